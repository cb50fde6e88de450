"""A copy of the kernel is made, or its failure has a reason, whatever the user replaced or removed in the session."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from served import Served, serving
from waiting import wait_until

from kernelsvc import AsyncClient
from kernelsvc.client.sessions import AsyncSession
from kernelsvc.errors import CannotFork
from kernelsvc.model import events as ev

pytestmark = pytest.mark.timeout(120)

#: Seconds in which a request must be answered. The server itself waits 15 s and more for a kernel.
SOON = 10.0
#: Statements that take something away that the kernel needs for a copy.
TAKEN = {
    "the directory": "import os, tempfile\nd = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)",
    "functions of os": """
import os
for name in "fork getcwd chdir listdir readlink open close kill unlink write".split():
    setattr(os, name, None)
""",
    "functions of other modules": """
import gc, random, select, signal, socket, fcntl, time, threading
gc.get_objects = gc.isenabled = gc.disable = random.getstate = random.setstate = signal.pthread_sigmask = None
select.poll = fcntl.fcntl = time.perf_counter = threading.enumerate = None
""",
    "open": "import builtins\nbuiltins.open = None",
}
#: Ends the checkpoint first, then the kernel.
KILL_ALL = """
import os, signal
for pid in sorted(map(int, filter(str.isdigit, os.listdir("/proc"))), reverse=True):
    if pid > 1:
        os.kill(pid, signal.SIGKILL)
"""


@pytest.fixture
async def client(served: Served) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(served.url, served.token) as made:
        yield made


async def events_of(session: AsyncSession, kind: type[ev.Event]) -> list[ev.Event]:
    async with session.events(0, follow=False) as events:
        return [event async for event in events if isinstance(event, kind)]


async def copied(session: AsyncSession) -> None:
    async def there() -> bool:
        info, cells = await session.info(), await session.cells()
        return any(one.after_cell == cells[-1].id for one in info.checkpoints)

    await wait_until(there, what="the checkpoint of the last cell")


@pytest.mark.parametrize("taken", TAKEN.values(), ids=TAKEN)
async def test_every_kind_of_copy_is_made_whatever_was_taken_away(client: AsyncClient, taken: str) -> None:
    async with await client.create_session() as session:
        (await session.run(f"x = 41\n{taken}")).raise_for_error()
        await copied(session)
        async with asyncio.timeout(SOON):
            await session.checkpoint("named")
            (branch,) = await session.branch()
        assert (await branch.run("x + 1")).text.strip() == "42"
        await branch.close()
        cell = await session.run("del x\nimport ctypes; ctypes.string_at(0)")
        assert (cell.reason, cell.variables_kept) == ("kernel_died", True)
        assert (await session.run("x + 1")).text.strip() == "42"
        async with asyncio.timeout(SOON):
            await session.hibernate()
        assert (await session.run("x + 1")).text.strip() == "42"


async def test_a_copy_that_fails_has_its_reason_at_once_and_in_the_log(client: AsyncClient) -> None:
    async with await client.create_session() as session:
        broken = "property(lambda self: 1 / 0)"
        await session.run(f"import asyncio\nasyncio.get_running_loop().__class__._ssock = {broken}")
        async with asyncio.timeout(SOON):
            with pytest.raises(CannotFork, match="ZeroDivisionError"):
                await session.checkpoint("named")
        skipped = await events_of(session, ev.CheckpointSkipped)
        assert any("ZeroDivisionError" in why for event in skipped for why in event.why)


async def test_variables_are_lost_if_the_checkpoint_died_with_the_kernel(client: AsyncClient) -> None:
    async with await client.create_session() as session:
        await session.run("x = 41")
        await copied(session)
        cell = await session.run(KILL_ALL)
        assert (cell.reason, cell.variables_kept) == ("kernel_died", False)
        assert "variables are lost" in str(cell.message)
        assert (await session.run("x")).error.ename == "NameError"


async def test_a_restarted_server_adopts_a_session_whose_directory_is_gone() -> None:
    directory = tempfile.TemporaryDirectory(prefix="k", dir="/tmp", ignore_cleanup_errors=True)
    with directory as root, serving(Path(root)) as served:
        async with AsyncClient(served.url, served.token) as client:
            session = await client.create_session()
            (await session.run(f"x = 41\n{TAKEN['the directory']}")).raise_for_error()
        served.kill()
        served.start()
        async with AsyncClient(served.url, served.token) as client:
            cell = await (await client.session(session.id)).run("x + 1")
            assert cell.text.strip() == "42"
