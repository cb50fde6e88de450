"""Lists and trees of sessions, with a scripted server."""

import argparse
import io
import json

import pytest
from rpc_server import TOKEN, Server

from kernelsvc.cli import show
from kernelsvc.cli.terminal import Terminal


@pytest.fixture
async def server():
    server = Server()
    server.url = await server.start()
    yield server
    await server.stop()


async def said(command, server, **options):
    terminal = Terminal(io.StringIO(), io.StringIO(), {})
    defaults = {"url": server.url, "token": TOKEN, "json": False, "id": None, "state": None, "label": None}
    defaults |= {"limit": None, "all": False, "events": False, "follow": False}
    assert await command(argparse.Namespace(**(defaults | options)), terminal) == 0
    return terminal.out.getvalue()


async def family(server):
    """s0 with branches s1 and s2, s1 with s3; s4 alone."""
    from kernelsvc import AsyncClient

    async with AsyncClient(server.url, TOKEN) as client:
        for _ in range(5):
            await client.create_session()
    for child, parent in (("s1", "s0"), ("s2", "s0"), ("s3", "s1")):
        log, shown = server.sessions[child], server.sessions[child].shown
        log.shown = lambda shown=shown, parent=parent: shown() | {"parent": {"session": parent, "seq": 7}}


async def test_a_tree(server):
    await family(server)
    assert await said(show.tree, server) == (
        "s0 idle, 0 cells\n"
        "├─ s1 idle at 7, 0 cells\n"
        "│  └─ s3 idle at 7, 0 cells\n"
        "└─ s2 idle at 7, 0 cells\n"
        "s4 idle, 0 cells\n"
    )
    assert (await said(show.tree, server, id="s3")).splitlines()[0] == "s0 idle, 0 cells"
    nested = json.loads(await said(show.tree, server, id="s0", json=True))
    assert [branch["session"]["id"] for branch in nested[0]["branches"]] == ["s1", "s2"]


async def test_closed_ones_are_left_out_unless_asked_for(server):
    await family(server)
    server.sessions["s4"].closed = True
    assert "s4" not in await said(show.sessions, server)
    assert "s4" in await said(show.sessions, server, all=True)


async def test_what_others_wrote_into_a_name_does_not_reach_the_terminal(server):
    await family(server)
    log, shown = server.sessions["s4"], server.sessions["s4"].shown
    log.shown = lambda: shown() | {"name": "\x1b]0;evil\x07\x1b[31mred"}
    for command in (show.sessions, show.tree):
        out = await said(command, server)
        assert "\x1b" not in out
        assert "evil" in out
