"""Lists and trees of sessions, with a scripted server."""

import argparse
import asyncio
import io
import json
import re

import pytest
from faulty_server import ME, TOKEN, FaultyServer

from kernelsvc.cli.sessions import show
from kernelsvc.cli.terminal import Terminal


@pytest.fixture
async def server():
    server = FaultyServer()
    await server.start()
    yield server
    await server.stop()


async def said(command, server, **options):
    terminal = Terminal(io.StringIO(), io.StringIO(), {})
    defaults = {"url": server.url, "token": TOKEN, "json": False, "id": None, "state": None, "label": None}
    defaults |= {"limit": None, "principal": None, "all": False, "events": False, "follow": False}
    assert await command(argparse.Namespace(**(defaults | options)), terminal) == 0
    return terminal.out.getvalue()


async def family(server):
    """A session with two branches, of which the first has one; and another one with a name to be afraid of."""
    from kernelsvc import AsyncClient

    async with AsyncClient(server.url, TOKEN) as client:
        first = await client.create_session(keep=True)
        # In turn: of branches that are made together, either can be the first.
        [one] = await first.branch()
        [two] = await first.branch()
        [three] = await one.branch()
        alone = await client.create_session(name="\x1b]0;evil\x07\x1b[31mred", keep=True)
    return [session.id for session in (first, one, two, three, alone)]


async def test_a_tree(server):
    first, one, two, three, alone = await family(server)
    lines = (await said(show.tree, server)).splitlines()
    assert [re.sub(r"at \d+", "at N", line) for line in lines[:4]] == [
        f"{first} idle, 0 cells",
        f"├─ {one} idle at N, 0 cells",
        f"│  └─ {three} idle at N, 0 cells",
        f"└─ {two} idle at N, 0 cells",
    ]
    assert lines[4].startswith(alone)
    assert (await said(show.tree, server, id=three)).splitlines()[0] == f"{first} idle, 0 cells"
    nested = json.loads(await said(show.tree, server, id=first, json=True))
    assert [branch["session"]["id"] for branch in nested[0]["branches"]] == [one, two]


async def test_closed_ones_are_left_out_unless_asked_for(server):
    *_, alone = await family(server)
    await server.service.close(ME, alone)
    assert alone not in await said(show.sessions, server)
    assert alone in await said(show.sessions, server, all=True)


async def test_what_others_wrote_into_a_name_does_not_reach_the_terminal(server):
    await family(server)
    for command in (show.sessions, show.tree):
        out = await said(command, server)
        assert "\x1b" not in out
        assert "evil" in out


async def test_a_session_is_followed_cell_by_cell_until_it_is_closed(server):
    from kernelsvc import AsyncClient

    async with AsyncClient(server.url, TOKEN) as client:
        session = await client.create_session()
        await session.run("print before\x1b[2A")
        following = asyncio.create_task(said(show.show, server, id=session.id, follow=True))
        await session.run("get nothing\n# a second line")
        await session.run("print last")
        await session.close()
        lines = [re.sub(r"in [\d.]+ m?s", "in T", line) for line in (await following).splitlines()]
    assert lines[0].startswith(f"{session.id} ")
    assert lines[lines.index("") :] == [
        *("", "In [1]: print before", "before", "ok in T"),
        *("", "In [2]: get nothing", "   ...: # a second line", "error in T"),
        *("", "In [3]: print last", "last", "ok in T"),
    ]


async def test_no_output_or_name_repaints_what_show_printed(server):
    """One removal of sequences makes new ones from nested ones. A checkpoint's name comes from a client."""
    from kernelsvc import AsyncClient

    attack = "\x1b\x1b[A[99A\x1b\x1b[A[J\r\b"
    async with AsyncClient(server.url, TOKEN) as client:
        session = await client.create_session(name=attack, labels={attack: attack}, keep=True)
        await session.run(f"print({attack + 'forged'!r})")
        await session.checkpoint(attack)
    for options in ({}, {"events": True}, {"json": True}):
        terminal = Terminal(io.StringIO(), io.StringIO(), {"FORCE_COLOR": "1"})
        defaults = {
            "url": server.url,
            "token": TOKEN,
            "json": False,
            "id": session.id,
            "events": False,
            "follow": False,
        }
        assert await show.show(argparse.Namespace(**(defaults | options)), terminal) == 0
        shown = terminal.out.getvalue()
        assert options.get("events") or "forged" in shown
        assert not re.search(r"\x1b(?!\[[0-9;:]*m)|\r|\x08", shown), options
