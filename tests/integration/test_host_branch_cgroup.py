"""A branch's own cgroup: its caps, its end, its OOM kills, and the next host that takes it over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hosted import Bench, Running, bench, gone, kill
from waiting import wait_until

from kernelsvc.model.exit_status import Cause
from kernelsvc.model.limits import Limits

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20
#: Below RLIMIT_DATA, which would only raise MemoryError: shared memory is charged, but is no "data".
EAT = "import mmap\nm = mmap.mmap(-1, {} << 20)\nfor i in range(0, len(m), 4096): m[i] = 1"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["off", "best-effort"])
async def host(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with bench(request.param) as made:
        probe = await made.start()
        hard = probe.kernel.sandbox.limits["memory_bytes"] == "hard"
        await probe.kernel.end()
        if not hard:
            pytest.skip("no memory cgroup here")
        yield made
        assert await made.kernels() == {}
        assert made.left() == set()


async def branch_of(host: Bench, one: Running, **limits: Any) -> Running:
    """A branch with caps of its own, awake."""
    home = Path(one.request.workdir)
    request = host.request(limits=Limits(**limits), home=str(home), copy_from="")
    await one.kernel.fork(request, mode="branch")
    return await host.wake(request)


def group_of(pid: int) -> Path | None:
    """The directory of the memory cgroup in which a process is, as this machine sees it."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line)
            base = "" if path.startswith(own.split(":", 2)[2]) else own.split(":", 2)[2]
            return Path(f"/sys/fs/cgroup/memory{base}{path}")
        if not controllers and "kernelsvc" in path:
            return Path(f"/sys/fs/cgroup{path}")
    return None


def number(group: Path | None, *names: str) -> int:
    assert group is not None
    return next(int((group / name).read_text()) for name in names if (group / name).exists())


async def test_a_branch_lives_in_a_cgroup_of_its_own_with_its_own_caps(host: Bench) -> None:
    one = await host.start(limits=Limits(memory_bytes=512 * MIB))
    two = await branch_of(host, one, memory_bytes=256 * MIB)
    first, second = group_of(one.pid), group_of(two.pid)
    assert first != second
    assert number(first, "memory.max", "memory.limit_in_bytes") == 512 * MIB
    assert number(second, "memory.max", "memory.limit_in_bytes") == 256 * MIB
    assert await two.run("import os; print(os.system('true'))") == "0\n"
    await one.kernel.end()
    assert await two.run("print('alone')") == "alone\n"
    await two.kernel.end()
    await wait_until(lambda: first is None or second is None or not (first.exists() or second.exists()))


async def test_what_a_branch_copies_of_itself_is_charged_to_it(host: Bench) -> None:
    one = await host.start()
    two = await branch_of(host, one, memory_bytes=256 * MIB)
    request = host.request()
    await two.kernel.fork(request, mode="checkpoint")
    three = await host.wake(request)
    assert group_of(three.pid) == group_of(two.pid)
    group = group_of(two.pid)
    await two.kernel.end()
    assert group is not None
    assert group.exists(), "the copy still lives there"
    assert await three.run("print('on')") == "on\n"
    await three.kernel.end()
    await wait_until(lambda: not group.exists())
    assert await one.run("print('on')") == "on\n"
    await one.kernel.end()


async def test_memory_that_runs_out_in_a_branch_ends_nobody_else(host: Bench) -> None:
    one = await host.start(limits=Limits(memory_bytes=512 * MIB))
    await one.run("x = 'kept'")
    two = await branch_of(host, one, memory_bytes=256 * MIB)
    three = await branch_of(host, one, memory_bytes=256 * MIB)
    kept = host.request()
    await two.kernel.fork(kept, mode="checkpoint")
    two.send(EAT.format(600))
    ended = await two.exit()
    assert ended.cause is Cause.MEMORY
    assert "256 MiB" in ended.message
    woken = await host.wake(kept)  # the OOM killer took the live kernel and not the copy of it
    for other in (one, three, woken):
        assert await other.run("print(x)") == "kept\n"
    for running in (one, two, three, woken):
        await running.kernel.end()


async def test_memory_that_runs_out_in_the_parent_ends_no_branch(host: Bench) -> None:
    one = await host.start(limits=Limits(memory_bytes=256 * MIB))
    two = await branch_of(host, one, memory_bytes=256 * MIB)
    one.send(EAT.format(600))
    assert (await one.exit()).cause is Cause.MEMORY
    assert await two.run("print('on')") == "on\n"
    await one.kernel.end()
    await two.kernel.end()


async def test_tasks_are_counted_for_each_branch(host: Bench) -> None:
    one = await host.start(limits=Limits(processes=8))
    two = await branch_of(host, one, processes=8)
    count = (
        "import os, signal\npids = []\ntry:\n    while len(pids) < 64:\n        pid = os.fork()\n"
        "        if pid == 0:\n            signal.pause()\n            os._exit(0)\n        pids.append(pid)\n"
        "except OSError:\n    pass\nprint(len(pids))"
    )
    first, second = int(await one.run(count)), int(await two.run(count))
    assert 8 <= second < 64
    assert abs(first - second) <= 4, "the other's processes do not count"
    await one.kernel.end()
    await two.kernel.end()


async def test_what_a_branch_leaves_behind_ends_with_it(host: Bench) -> None:
    one = await host.start()
    two = await branch_of(host, one)
    daemon = "import subprocess\nprint(subprocess.Popen(['sleep', '1000'], start_new_session=True).pid)"
    await two.run(daemon)
    group = group_of(two.pid)
    assert group is not None
    left = [int(pid) for pid in (group / "cgroup.procs").read_text().split() if int(pid) != two.pid]
    assert left
    await two.kernel.end()
    await gone(*left)
    assert await one.run("print('on')") == "on\n"
    await one.kernel.end()


async def test_the_next_host_finds_the_branch_in_its_cgroup() -> None:
    async with bench("best-effort") as own:
        one = await own.start()
        if one.kernel.sandbox.limits["memory_bytes"] != "hard":
            pytest.skip("no memory cgroup here")
        two = await branch_of(own, one, memory_bytes=256 * MIB)
        group = group_of(two.pid)
        before = await own.host()
        kill(before.pid)
        await gone(before.pid)
        await own.another(than=before.pid)
        assert group is not None
        assert group.exists(), "the next host knows whose it is"
        two.send(EAT.format(600))
        assert (await two.exit()).cause is Cause.MEMORY
        await two.kernel.end()
        await wait_until(lambda: not group.exists())
        await one.kernel.end()
