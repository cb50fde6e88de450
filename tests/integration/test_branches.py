"""Branches as a user meets them: what they have, what they are kept from, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from served import Served
from waiting import wait_until

from kernelsvc import AsyncClient
from kernelsvc.client.sessions import AsyncSession
from kernelsvc.errors import BadRequest, CannotFork, LimitTooHigh, NotFound, TooLarge
from kernelsvc.model import events as ev

pytestmark = pytest.mark.timeout(120)

#: Whom a process may look into, signal, and where it may write.
LOOK = """
import os
def attempt(act, *given):
    try:
        act(*given)
        return 'yes'
    except OSError:
        return 'no'
def into(pid):
    os.close(os.open(f'/proc/{pid}/mem', os.O_RDONLY))
def put(path):
    with open(path + '/put', 'w') as file:
        file.write('x')
    os.remove(path + '/put')
def reach(pid, path):
    return attempt(into, pid), attempt(os.kill, pid, 0), attempt(put, path)
"""


@pytest.fixture
async def client(served: Served) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(served.url, served.token) as made:
        yield made


async def value(session: AsyncSession, code: str) -> str:
    return (await session.run(code)).raise_for_error().text.strip()


async def close(*sessions: AsyncSession) -> None:
    await asyncio.gather(*(one.close() for one in sessions))


async def events_of(session: AsyncSession, kind: type[ev.Event]) -> list[ev.Event]:
    async with session.events(0, follow=False) as events:
        return [event async for event in events if isinstance(event, kind)]


# --- isolated branches -----------------------------------------------------------------


async def test_an_isolated_branch_has_variables_and_files_and_no_view_of_its_parent(client: AsyncClient) -> None:
    async with await client.create_session() as parent:
        await value(
            parent,
            "import os, threading\nlock = threading.Lock()\ndef double(x):\n    return 2 * x\nbig = [1] * 1000\n"
            "os.makedirs('d/e'); open('d/e/f', 'w').write('text'); os.symlink('d/e/f', 'l'); os.mkfifo('p')\n"
            "open('/tmp/mark', 'w').close(); os.chmod('d/e/f', 0o750); pid = os.getpid(); import subprocess\n"
            "child = subprocess.Popen(['sleep', '1000'])",
        )
        (branch,) = await parent.branch(isolate=True)
        async with branch:
            look = "print(double(len(big)), open('l').read(), oct(os.stat('d/e/f').st_mode & 0o777))"
            assert await value(branch, look) == "2000 text 0o750"
            assert await value(branch, "print(os.path.exists('p'), os.path.exists('/tmp/mark'))") == "False False"
            names = "print([open(f'/proc/{p}/comm').read().strip() for p in os.listdir('/proc') if p.isdigit()])"
            assert "sleep" in await value(parent, names)
            assert "sleep" not in await value(branch, names)
            await value(branch, "open('d/e/f', 'w').write('branch')")
            assert await value(parent, "print(open('d/e/f').read())") == "text"
            spaces = "print(*(os.readlink(f'/proc/self/ns/{n}') for n in ('pid', 'mnt', 'ipc')))"
            assert not set((await value(branch, spaces)).split()) & set((await value(parent, spaces)).split())
            warnings = (branch.details.parent or {})["warnings"]
            assert sorted(one.split(" was not copied")[0] for one in warnings) == [
                "the file p",
                "the variable child",
            ]
            (event,) = await events_of(parent, ev.Branched)
            assert isinstance(event, ev.Branched)
            assert (event.sessions, event.warnings) == ([branch.id], warnings)
            assert (branch.details.parent or {})["session"] == parent.id
        await parent.checkpoint("now")
        with pytest.raises(BadRequest, match="at"):
            await parent.branch(isolate=True, at="now")


# --- what a branch has -------------------------------------------------------------------


async def test_branches_are_sessions_of_their_own(client: AsyncClient) -> None:
    parent = await client.create_session(name="root", labels={"team": "a"})
    await parent.run("n = 1; open('kept.txt', 'w').write('kept')")
    first, second = await parent.branch(count=2, labels={"try": "1"})
    await first.run("n += 10")
    await second.run("n += 20")
    assert [await value(one, "n") for one in (parent, first, second)] == ["1", "11", "21"]
    assert len({await value(one, "import os; os.getcwd()") for one in (parent, first, second)}) == 3
    assert await value(second, "open('kept.txt').read()") == "'kept'"
    info = await first.info()
    assert info.labels == {"team": "a", "try": "1"}
    assert info.parent is not None
    assert info.parent["session"] == parent.id
    await parent.close()
    nested = (await second.branch())[0]
    assert await value(nested, "n, open('kept.txt').read()") == "(21, 'kept')"
    await close(first, second, nested)


async def test_sixteen_branches_come_from_one_moment_while_cells_go_on(client: AsyncClient) -> None:
    parent = await client.create_session()
    await parent.run("n = 0")
    cells = [asyncio.ensure_future(parent.run("n += 1")) for _ in range(30)]
    branches = await parent.branch(count=16)
    await asyncio.gather(*cells)
    assert await value(parent, "n") == "30"
    assert len({await value(one, "n") for one in branches}) == 1
    await close(parent, *branches)


async def test_a_branch_of_a_checkpoint_has_what_was_there_and_no_more(client: AsyncClient) -> None:
    parent = await client.create_session()
    await parent.run("n = 1")
    await parent.checkpoint("one")
    await parent.run("n = 2  # later")
    (branch,) = await parent.branch(at="one")
    assert await value(branch, "n") == "1"
    assert await value(parent, "n") == "2"
    notebook = (await branch.notebook()).decode()
    assert "n = 1" in notebook
    assert "later" not in notebook
    with pytest.raises(NotFound, match="two"):
        await parent.branch(at="two")
    await close(parent, branch)


async def test_limits_of_a_branch_can_be_lowered_and_not_raised(client: AsyncClient) -> None:
    parent = await client.create_session(limits={"memory_bytes": 1 << 30, "cell_seconds": 60})
    lower = {"memory_bytes": 256 << 20, "cell_seconds": 1}
    (branch,) = await parent.branch(limits=lower)
    limits = (await branch.info()).limits
    assert (limits.memory_bytes, limits.cell_seconds) == (256 << 20, 1)
    assert (await branch.run("import time; time.sleep(30)")).reason == "timeout"
    greedy = await branch.run("x = bytearray(600 << 20)")
    assert greedy.error is not None
    assert greedy.error.ename == "MemoryError", "before the OOM killer comes"
    assert await value(parent, "len(bytearray(600 << 20))") == str(600 << 20)
    with pytest.raises(LimitTooHigh):
        await parent.branch(limits={"memory_bytes": 2 << 30})
    with pytest.raises(BadRequest, match="the network of its session"):
        await parent.branch(limits={"network": {"allow": ["pypi.org"]}})
    await close(parent, branch)


# --- what it is kept from ------------------------------------------------------------------


async def reach(one: AsyncSession, other: AsyncSession) -> tuple[str, ...]:
    """Whether a session can get into another's memory, signal it, and write into its directory."""
    where = await value(other, "import os; print(os.getpid(), os.getcwd())")
    pid, path = where.split(" ", 1)
    return tuple((await value(one, f"print(*reach({pid}, {path!r}))")).split())


async def test_relatives_can_not_touch_each_other(client: AsyncClient) -> None:
    parent = await client.create_session()
    if "landlock" not in (await parent.info()).sandbox.enforced:
        pytest.skip("no Landlock here")
    await parent.run(LOOK)
    first, second = await parent.branch(count=2)
    (third,) = await parent.branch()
    (below,) = await first.branch()
    family = [parent, first, second, third, below]
    for one in family:
        assert await reach(one, one) == ("yes", "yes", "yes"), "the look finds what is there"
        for other in family:
            if one is not other:
                assert await reach(one, other) == ("no", "no", "no"), (family.index(one), family.index(other))
    await close(*family)


async def test_a_parent_that_comes_back_is_kept_out_too(client: AsyncClient) -> None:
    parent = await client.create_session()
    if "landlock" not in (await parent.info()).sandbox.enforced:
        pytest.skip("no Landlock here")
    await parent.run(LOOK)
    await parent.checkpoint("before")
    (branch,) = await parent.branch()
    await parent.rollback("before")
    assert await reach(parent, branch) == ("no", "no", "no")
    await parent.run("import os; os.abort()")
    assert await reach(parent, branch) == ("no", "no", "no")
    await parent.restart()
    await parent.run(LOOK)
    assert (await reach(parent, branch))[2] == "no"
    await close(parent, branch)


async def test_a_parent_still_ends_what_it_started_before(client: AsyncClient) -> None:
    parent = await client.create_session()
    await parent.run("import subprocess; child = subprocess.Popen(['sleep', '1000'])")
    (branch,) = await parent.branch()
    info = await branch.info()
    assert info.parent is not None
    assert any("Child process" in warning for warning in info.parent["warnings"])
    assert await value(parent, "child.terminate(); child.wait()") == "-15"
    await close(parent, branch)


async def test_a_session_is_branched_again_and_again(client: AsyncClient) -> None:
    parent = await client.create_session()
    await parent.run("n = 0")
    branches = []
    for n in range(14):
        branches += await parent.branch()
        await parent.run("n += 1")
        assert await value(branches[-1], "open('own', 'w').write('x'), n") == f"(1, {n})"
    made = await events_of(parent, ev.Branched)
    told = [any("write into" in w for w in event.warnings) for event in made if isinstance(event, ev.Branched)]
    assert not any(told[:9])
    await close(parent, *branches)


async def test_branches_of_branches_are_refused_when_linux_fences_no_deeper(client: AsyncClient) -> None:
    one = await client.create_session()
    enforced = (await one.info()).sandbox.enforced
    await one.run("depth = 0")
    line = [one]
    with pytest.raises(CannotFork, match="deeper") if "landlock" in enforced else pytest.raises(StopAsyncIteration):
        for _ in range(20):
            line += await line[-1].branch()
            await line[-1].run("depth += 1")
        raise StopAsyncIteration
    assert len(line) >= 8
    assert await value(line[-1], "depth") == str(len(line) - 1)
    await close(*line)


# --- what is refused ---------------------------------------------------------------------------


async def test_a_directory_that_is_too_large_is_refused_before_anything_is_made(client: AsyncClient) -> None:
    parent = await client.create_session()
    await parent.run("open('big', 'wb').write(bytes(3 << 20)); n = 1")
    with pytest.raises(TooLarge, match="Delete some files"):
        await parent.branch(limits={"disk_bytes": 1 << 20})
    assert await value(parent, "n") == "1"
    assert await events_of(parent, ev.Branched) == []
    await parent.close()


async def test_what_runs_in_both_copies_is_told(client: AsyncClient) -> None:
    parent = await client.create_session()
    await parent.run(
        "import asyncio\nasync def tick():\n    await asyncio.sleep(60)\ntask = asyncio.create_task(tick())"
    )
    (branch,) = await parent.branch()
    info = await branch.info()
    assert info.parent is not None
    assert any("tick" in warning for warning in info.parent["warnings"])
    (made,) = await events_of(parent, ev.Branched)
    assert isinstance(made, ev.Branched)
    assert made.warnings == info.parent["warnings"]
    await close(parent, branch)


async def test_a_branch_holds_nothing_of_its_siblings(client: AsyncClient) -> None:
    parent = await client.create_session()
    look = (
        "import os; fds = [f'/proc/self/fd/{n}' for n in os.listdir('/proc/self/fd')]\n"
        "found = sorted(os.readlink(fd).split(':')[0].split('/')[-1] for fd in fds if os.path.lexists(fd))\n"
        # The kernel's own, which it opens in a branch when it first needs it.
        "[name for name in found if name != 'clear_refs']"
    )
    before = await value(parent, look)
    branches = await parent.branch(count=8)
    assert all("warnings" not in (one.details.parent or {}) for one in branches)
    for one in branches:
        assert await value(one, look) == before, "the sockets and pipes of others that were asked for with it"
    await close(parent, *branches)


async def test_force_says_what_is_lost(client: AsyncClient) -> None:
    parent = await client.create_session()
    await parent.run(
        "import threading, time\nt = threading.Thread(target=time.sleep, args=(60,), name='poller')\nt.start()"
    )
    with pytest.raises(CannotFork, match="poller") as refused:
        await parent.branch()
    assert any("poller" in reason for reason in refused.value.details["reasons"])
    (branch,) = await parent.branch(force=True)
    assert await value(branch, "t.is_alive()") == "False"
    info = await branch.info()
    assert info.parent is not None
    assert any("poller" in warning for warning in info.parent["warnings"])
    await close(parent, branch)


async def test_a_sleeping_session_is_woken_to_be_branched(client: AsyncClient) -> None:
    parent = await client.create_session()
    await parent.run("n = 5")
    await parent.hibernate()
    (branch,) = await parent.branch()
    assert await value(branch, "n") == "5"
    await close(parent, branch)


async def test_closing_a_branch_leaves_its_relatives(client: AsyncClient) -> None:
    parent = await client.create_session()
    await parent.run("n = 5")
    first, second = await parent.branch(count=2)
    await first.close()
    assert [await value(one, "n") for one in (parent, second)] == ["5", "5"]
    await second.run("import os; os._exit(1)")
    assert [await value(one, "n") for one in (parent, second)] == ["5", "5"]
    await close(parent, second)
    await wait_until(lambda: _closed(second))


async def _closed(session: AsyncSession) -> bool:
    return str((await session.info()).state) == "closed"
