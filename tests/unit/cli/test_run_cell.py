"""Run one cell at a terminal, with a scripted server."""

import asyncio
import io
import os
import signal

import pytest
from faulty_server import TOKEN, FaultyServer
from waiting import wait_until

from kernelsvc import AsyncClient
from kernelsvc.cli.run_cell import run_cell
from kernelsvc.cli.terminal import CellPrinter, Terminal


@pytest.fixture
async def server():
    server = FaultyServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def session(server):
    async with AsyncClient(server.url, TOKEN) as client, await client.create_session() as session:
        yield session


@pytest.fixture
def terminal():
    return Terminal(io.StringIO(), io.StringIO(), {})


async def test_it_is_shown(session, terminal):
    end = await run_cell(session, "lines 3", CellPrinter(terminal).show, terminal)
    assert terminal.out.getvalue() == "0\n1\n2\n"
    assert end.reason == "ok"


async def test_it_asks(session, terminal, server):
    asked = []

    async def ask(prompt, secret):
        asked.append((prompt, secret))
        return "Ada"

    await run_cell(session, "input name? ", CellPrinter(terminal).show, terminal, ask=ask)
    assert asked == [("name?", False)]
    assert server.cells(session.id)[0].text == "name?Ada\nAda\n"


async def test_ctrl_c_interrupts_the_cell_and_the_second_lets_go(session, terminal, server):
    async def run():
        # Within the task: a KeyboardInterrupt that leaves a task ends the loop too.
        with pytest.raises(KeyboardInterrupt):
            await run_cell(session, "hang", CellPrinter(terminal).show, terminal)
        return asyncio.current_task().cancelling()

    running = asyncio.create_task(run())
    await wait_until(lambda: server.runs(session.id))
    os.kill(os.getpid(), signal.SIGINT)
    await wait_until(lambda: "session.interrupt" in server.calls)
    assert not running.done()
    os.kill(os.getpid(), signal.SIGINT)
    assert await running == 0
