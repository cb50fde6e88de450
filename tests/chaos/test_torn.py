"""What a power loss leaves: torn journals, half a notebook, empty files. The start puts it right."""

import asyncio
import json
import shutil
import subprocess

import pytest
from waiting import wait_until

from chaos.arena import Arena, check, counting, journal_of
from kernelsvc.model import events as ev
from kernelsvc.model.objects import SessionState

pytestmark = pytest.mark.timeout(120)


async def test_torn_tails_of_many_journals(place):
    """The last entry cut at every 7th byte: each session is there, and goes on, from the entry before."""
    async with Arena(place) as arena, arena.client() as client:
        session = await client.create_session(name="torn")
        await session.run(counting("one", 3), cell="one")
        arena.power_off()
        path = arena.session_path(session.id)
        whole = (path / "journal.jsonl").read_bytes()
        last = whole.rstrip(b"\n").rfind(b"\n") + 1
        names = []
        for cut in range(last + 1, len(whole), max(1, (len(whole) - last) // 12)):
            name = f"s_{cut:016d}"
            torn = arena.session_path(name)
            subprocess.run(["cp", "-a", path, torn], check=True)  # owners too
            about = json.loads((torn / "session.json").read_bytes())
            (torn / "session.json").write_text(json.dumps(about).replace(session.id, name))
            data = whole.replace(session.id.encode(), name.encode())
            names.append((name, _rechained(data)[: cut - len(whole)], torn))
        for _, data, torn in names:
            (torn / "journal.jsonl").write_bytes(data)
        await arena.start()
        listed = await asyncio.to_thread(arena.served.call, "GET", "/v1/sessions")
        assert {one["id"] for one in listed["sessions"]} >= {name for name, _, _ in names}
        for _, data, torn in names:
            entries = journal_of(torn)
            whole_lines = data.split(b"\n")[:-1]
            assert (torn / "journal.jsonl").read_bytes().split(b"\n")[: len(whole_lines)] == whole_lines
            assert [e.seq for e in entries] == list(range(1, len(entries) + 1))
        again = await client.session(names[0][0], keep=False)
        assert (await again.run("1 + 1")).text.strip() == "2"
        check(arena.session_path(again.id), {"one": 3})


def _rechained(data: bytes) -> bytes:
    """The same entries under another session's name, linked anew."""
    from kernelsvc.model import hash_chain

    lines, prev = [], ""
    for line in data.splitlines():
        event = ev.decode(line)
        event.prev = prev
        line = ev.encode(event)
        lines.append(line)
        prev = hash_chain.digest(line)
    return b"\n".join(lines) + b"\n"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("session.json", b""),
        ("session.json", None),
        ("session.json", b'{"id": "s_'),
        ("notebook.ipynb", b""),
        ("notebook.ipynb", b'{"cells": [{"cell_type"'),
        ("../../index.sqlite", b""),
        ("../../index.sqlite", b"SQLite format 3\0rubbish" * 100),
        ("../../index.sqlite", None),
        ("../../retention.jsonl", b'{"at": "20'),
    ],
    ids=lambda value: value if isinstance(value, str) else "none" if value is None else f"{len(value)} bytes",
)
async def test_a_half_written_file(arena, name, data):
    async with arena.client() as client, await client.create_session(name="mine", labels={"a": "b"}) as session:
        await session.run(counting("one", 3), cell="one")
        await session.run("x = 7")
        arena.kill()
        path = arena.session_path(session.id) / name
        if data is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(data)
        await arena.start()
        assert (await session.run("x")).text.strip() == "7", "the kernel is the one it was"
        info = await session.info()
        assert (info.name, info.labels, info.state) == ("mine", {"a": "b"}, SessionState.IDLE)
        assert [one.id for one in await client.sessions()] == [session.id]
        await session.close()
        check(arena.session_path(session.id), {"one": 3})


async def test_a_cell_that_may_have_been_sent_does_not_run_again(arena):
    """The log knows that it was accepted; that it began was never written, and its kernel is gone."""
    async with arena.client() as client, await client.create_session() as session:
        code = counting("sent", 1) + "import time; time.sleep(30)"
        await session.run("1")
        await session.run(code, cell="sent", wait="queued")
        ran = arena.session_path(session.id) / "files" / "ran"
        await wait_until(lambda: ran.exists() and ran.read_text())
        arena.power_off()
        path = arena.session_path(session.id) / "journal.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        began = next(n for n, line in enumerate(lines) if b'"cell_started"' in line and b'"sent"' in line)
        path.write_bytes(b"".join(lines[:began]))
        await arena.start()
        await wait_until(lambda: session_idle(arena, session.id))
        events = journal_of(arena.session_path(session.id))
        ends = {e.cell: e.reason for e in events if isinstance(e, ev.CellFinished)}
        assert ends["sent"] == "kernel_died"
        assert ran.read_text().split().count("sent") == 1
        assert (await session.run("6 * 7")).text.strip() == "42"
        await session.close()
        check(arena.session_path(session.id), {})


def session_idle(arena, session):
    """Whether it waits for a cell."""
    return arena.served.call("GET", f"/v1/sessions/{session}")["state"] == "idle"


async def test_the_machine_reboots(arena):
    """Every process gone at once: the session is there, its variables are not, and that is said."""
    async with arena.client() as client, await client.create_session() as session:
        await session.run(counting("one", 3), cell="one")
        await session.run("x = 7")
        arena.power_off()
        shutil.rmtree(arena.served.runtime_dir)
        await arena.start()
        cell = await session.run("'x' in globals()")
        assert cell.text.strip() == "False"
        events = [e async for e in session.events(0, follow=False)]
        assert any(isinstance(e, ev.KernelDied) and e.message for e in events)
        assert any(isinstance(e, ev.KernelRestarted) for e in events)
        await session.close()
        check(arena.session_path(session.id), {"one": 3})
