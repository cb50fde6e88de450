"""Commands that act on sessions, parsed and run as the command line does, at a real server over fake kernels."""

import asyncio
import importlib
import io
import json
import os

import pytest
from faulty_server import TOKEN, FaultyServer

from kernelsvc import AsyncClient, BadRequest, KernelsvcError
from kernelsvc.cli.parser import build_parser
from kernelsvc.cli.terminal import Terminal
from kernelsvc.model.events import CellStarted


@pytest.fixture
async def server():
    server = FaultyServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def client(server):
    async with AsyncClient(server.url, TOKEN) as client:
        yield client


@pytest.fixture
def command(server):
    """Run a command. Return its output and, if it was refused, the error."""

    async def run(*words):
        args = build_parser().parse_args([*words, "--url", server.url, "--token", TOKEN])
        terminal = Terminal(io.StringIO(), io.StringIO(), {})
        error = None
        try:
            await getattr(importlib.import_module(args.module), args.function)(args, terminal)
        except KernelsvcError as refused:
            error = refused
        run.printed = terminal.err.getvalue()
        return terminal.out.getvalue(), error

    return run


async def test_close_ends_each_session_and_says_what_it_could_not_find(client, command):
    one, two = [await client.create_session(keep=True) for _ in range(2)]
    out, error = await command("close", one.id, "nothing", two.id)
    assert out.splitlines() == [f"{one.id} closed", f"{two.id} closed"]
    assert error is not None
    assert "nothing" in error.message
    shown = json.loads((await command("close", one.id, "--json"))[0])
    assert [(each["id"], each["state"]) for each in shown] == [(one.id, "closed")]


@pytest.mark.parametrize("words", [["purge", "--force"], ["close"], ["interrupt"], ["hibernate"]])
async def test_each_refusal_is_printed_once(client, command, words):
    open_one = await client.create_session(keep=True)
    _, error = await command(*words, "s_1", open_one.id, "s_2")
    assert error is not None
    told = [*command.printed.splitlines(), error.message]  # ``cli.main`` prints the error
    assert [sum(id in line for line in told) for id in ("s_1", "s_2")] == [1, 1]


async def test_interrupt_ends_the_cell(client, command):
    session = await client.create_session(keep=True)
    async with session.stream("wait for-ever") as running:
        async for event in running:
            if isinstance(event, CellStarted):
                assert (await command("interrupt", session.id))[1] is None
    assert (await running.cell()).reason == "interrupted"


async def test_files_go_in_and_come_out(client, command, tmp_path, capfdbinary):
    session = await client.create_session(keep=True)
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(name.encode() + b"\xff\x00")
    out, error = await command("upload", session.id, str(tmp_path / "a.bin"), str(tmp_path / "b.bin"))
    assert (out.split(), error) == (["a.bin", "b.bin"], None)
    await command("upload", session.id, str(tmp_path / "a.bin"), "--to", "deep/c.bin")
    out, _ = await command("download", session.id, "deep/c.bin", "-o", str(tmp_path))
    assert (tmp_path / "c.bin").read_bytes() == (tmp_path / "a.bin").read_bytes()
    assert out.strip() == str(tmp_path / "c.bin")
    await command("download", session.id, "b.bin", "-o", "-")
    assert capfdbinary.readouterr().out == b"b.bin\xff\x00"


@pytest.mark.parametrize("words", [("download", "a", "-o"), ("export", "-o")])
async def test_an_output_replaces_no_link_and_goes_through_a_pipe(client, command, tmp_path, words):
    session = await client.create_session(keep=True)
    await session.upload(b"x", "a")
    words = (words[0], session.id, *words[1:])
    link, pipe = tmp_path / "link.ipynb", tmp_path / "pipe"
    link.symlink_to("target")
    _, error = await command(*words, str(link))
    assert isinstance(error, BadRequest)
    assert [each.name for each in tmp_path.iterdir()] == ["link.ipynb"]
    os.mkfifo(pipe)
    reader = asyncio.create_task(asyncio.to_thread(pipe.read_bytes))
    _, error = await command(*words, str(pipe))
    assert (error, pipe.is_fifo()) == (None, True)
    assert await reader


async def test_one_name_for_several_files_is_refused_before_anything_is_sent(client, command, tmp_path):
    session = await client.create_session(keep=True)
    (tmp_path / "a").write_bytes(b"a")
    _, error = await command("upload", session.id, str(tmp_path / "a"), str(tmp_path / "a"), "--to", "c")
    assert isinstance(error, BadRequest)
    assert await session.files() == []


@pytest.mark.parametrize("words", [("interrupt", "nothing"), ("hibernate", "nothing"), ("download", "nothing", "a")])
async def test_an_unknown_session_is_an_error(command, words):
    out, error = await command(*words)
    assert out == ""
    assert error is not None
    assert "nothing" in error.message
