"""Every way in which a cell can bring its kernel down, and the cell after it, which uses what was there before."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from served import Served
from waiting import wait_until

from kernelsvc import AsyncClient
from kernelsvc.client.sessions import AsyncSession
from kernelsvc.model import events as ev

pytestmark = pytest.mark.timeout(120)

#: Variables of many kinds, which refer to each other; and what shows that all are there.
BEFORE = """
import collections, numpy as np, pandas as pd
numbers = list(range(1000)); alias = numbers
table = pd.DataFrame({'a': [1, 2], 'b': ['x', 'y']})
array = np.arange(1e6)
class Thing:
    def __init__(self): self.parts = [self]
thing = Thing()
counter = iter(range(10)); next(counter)
def double(x): return 2 * x
with open('kept.txt', 'w') as file: n = file.write('kept')
"""
AFTER = (
    "numbers is alias, table.b.tolist(), float(array.sum()), thing.parts[0] is thing, next(counter), double(21), "
    "open('kept.txt').read(), Out[2], In[2], In[3].splitlines()[0], len(In)"
)
LOST = "numbers.clear(); array[:] = 0; del thing"
KEPT = f"(True, ['x', 'y'], 499999500000.0, True, 1, 42, 'kept', 7, '7', '{LOST}', 5)"

#: Name, code, how the cell ends, and what its message says.
CRASHES = [
    ("segfault", "import ctypes; ctypes.string_at(0)", "kernel_died", "SIGSEGV"),
    ("abort", "import os; os.abort()", "kernel_died", "SIGABRT"),
    ("exit", "import os; os._exit(3)", "kernel_died", "status 3"),
    ("exit with zero", "import os; os._exit(0)", "kernel_died", "status 0"),
    ("killed", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "kernel_died", "SIGKILL"),
    ("bus error", "import os, signal; os.kill(os.getpid(), signal.SIGBUS)", "kernel_died", "SIGBUS"),
    ("a jump to nowhere", "import ctypes; ctypes.CDLL(None).qsort(ctypes.create_string_buffer(800), 100, 8, 1)",
     "kernel_died", "SIGSEGV"),
    ("out of memory", "import mmap\nm = mmap.mmap(-1, 900 << 20)\nfor i in range(0, len(m), 4096): m[i] = 1",
     "memory", "400 MiB"),
    ("C code that holds the GIL", "import ctypes, signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n"
     "ctypes.PyDLL(None).sleep(60)", "timeout", ""),
    ("ignores its interrupt", "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
     "timeout", ""),
    ("stops itself", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "kernel_died", "SIGSTOP"),
]  # fmt: skip


@pytest.fixture
async def client(served: Served) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(served.url, served.token) as made:
        yield made


async def copied(session: AsyncSession) -> None:
    """Wait until the automatic checkpoint of the last cell is there."""

    async def there() -> bool:
        info, cells = await session.info(), await session.cells()
        return any(one.after_cell == cells[-1].id for one in info.checkpoints)

    await wait_until(there, what="the checkpoint of the last cell")


@pytest.mark.parametrize(("code", "reason", "said"), [c[1:] for c in CRASHES], ids=[c[0] for c in CRASHES])
async def test_the_next_cell_has_every_variable(client: AsyncClient, code: str, reason: str, said: str) -> None:
    async with await client.create_session(limits={"memory_bytes": 400 << 20}) as session:
        (await session.run(BEFORE)).raise_for_error()
        await session.run("7")
        await copied(session)
        cell = await session.run(f"{LOST}\n{code}", timeout=1 if said == "" else 30)
        assert (cell.reason, cell.variables_kept) == (reason, True), cell.message
        assert said in cell.message
        after = await session.run(AFTER)
        assert " ".join(after.text.split()) == KEPT
        assert after.execution_count == 4
        events = [e async for e in session.events(0, follow=False)]
        (restored,) = [e for e in events if isinstance(e, ev.KernelRestored)]
        assert restored.after_cell == [e for e in events if isinstance(e, ev.CellFinished)][1].cell


async def test_crash_after_crash_after_crash(client: AsyncClient) -> None:
    async with await client.create_session() as session:
        for n in range(6):
            await session.run(f"x = {n}")
            await copied(session)
            await session.run("x = 'lost'; import os; os._exit(1)")
            assert (await session.run("x")).text.strip() == str(n)
            await copied(session)


async def test_a_branch_crashes_alone(client: AsyncClient) -> None:
    async with await client.create_session() as session:
        await session.run("x = 1")
        branches = await session.branch(count=3)
        for n, branch in enumerate(branches):
            await branch.run(f"x = 10 + {n}")
            await copied(branch)
        await asyncio.gather(*(one.run("import os; os.abort()") for one in branches[:2]))
        assert [(await one.run("x")).text.strip() for one in (session, *branches)] == ["1", "10", "11", "12"]
        await asyncio.gather(*(one.close() for one in branches))


async def test_a_branch_that_crashes_at_once_has_what_its_parent_had(client: AsyncClient) -> None:
    async with await client.create_session() as session:
        await session.run("x = 1")
        (branch,) = await session.branch()
        cell = await branch.run("x = 2; import os; os.abort()")
        assert cell.reason == "kernel_died"
        assert cell.variables_kept, cell.message
        assert (await branch.run("x")).text.strip() == "1"
        await branch.close()


async def test_the_first_cell_is_undone_and_so_is_all(client: AsyncClient) -> None:
    async with await client.create_session() as session:
        await session.run("x = 1; open('kept.txt', 'w').close()")
        await session.checkpoint("with x")
        info = await session.rollback()
        assert info.execution_count == 1
        cell = await session.run("'x' in dir()")
        assert (cell.text.strip(), cell.execution_count) == ("False", 2)
        assert (await session.run("In[1][:5]")).text.strip() == "'x = 1'"
        await copied(session)
        crashed = await session.run("y = 2; import os; os.abort()")
        assert crashed.variables_kept
        assert (await session.run("'x' in dir(), 'y' in dir()")).text.strip() == "(False, False)"
        await session.rollback("with x")
        assert (await session.run("x")).text.strip() == "1"
        cells = json.loads(await session.notebook())["cells"]
        marked = ["undone" in c["metadata"].get("tags", []) for c in cells if c["cell_type"] == "code"]
        assert marked == [False, True, True, False, True, False], "the first stands again; the fourth died by itself"
        first = (await session.cells())[0].id
        await session.rollback(first)
        assert (await session.run("'x' in dir()")).text.strip() == "False"
        cells = json.loads(await session.notebook())["cells"]
        marked = ["undone" in c["metadata"].get("tags", []) for c in cells if c["cell_type"] == "code"]
        assert marked[0]
        rolled = [e async for e in session.events(0, follow=False) if isinstance(e, ev.RolledBack)]
        assert [one.to == "" for one in rolled] == [True, False, True]
        assert [one.after_cell is None for one in rolled] == [True, False, True]


async def test_what_a_checkpoint_costs_is_on_record(client: AsyncClient) -> None:
    async with await client.create_session() as session:
        await session.run("x = 1")
        made = await session.checkpoint("named")
        await copied(session)
        events = [e async for e in session.events(0, follow=False) if isinstance(e, ev.CheckpointMade)]
        assert len(events) >= 2
        for one in [made, *(await session.info()).checkpoints, *events]:
            assert 0 < one.cost_ms < 1000
            assert one.private_bytes is not None
            assert 100_000 < one.private_bytes < 64 << 20
