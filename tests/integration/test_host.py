"""The kernel host with real templates, inits and kernels: who starts whom, who outlives whom, and that nothing is left.

Most of it runs without a sandbox, where nothing but our own care ends a process; what differs with one is tried too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import hosted
import msgspec
import psutil
import pytest
import pytest_asyncio
from hosted import Bench, bench, gone, kill
from waiting import wait_until

from kernelsvc.errors import (
    AtCapacity,
    BadRequest,
    Conflict,
    KernelDead,
    KernelsvcError,
    NotFound,
    TemplateFailed,
    Timeout,
    TooLarge,
)
from kernelsvc.host.protocol import RegisterCopyRequest, SpawnRequest, StartProcessRequest
from kernelsvc.kernels.forked import launcher
from kernelsvc.linux import procfs, seqpacket
from kernelsvc.model.exit_status import Cause
from kernelsvc.model.limits import Limits

pytestmark = pytest.mark.asyncio(loop_scope="module")

POLICIES = [pytest.param("off", marks=pytest.mark.thorough), "best-effort"]
HERE = Path(__file__).parent


class SharedBench:
    """The host that tests share. The next test gets another one if a test left something behind."""

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self._bench: Bench | None = None
        self._stack = contextlib.AsyncExitStack()

    async def get(self) -> Bench:
        if self._bench is None:
            self._bench = await self._stack.enter_async_context(bench(self.policy))
        return self._bench

    async def discard(self) -> None:
        self._bench = None
        await self._stack.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=POLICIES)
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[SharedBench]:
    made = SharedBench(request.param)
    yield made
    await made.discard()


@pytest_asyncio.fixture(loop_scope="module")
async def host(shared: SharedBench) -> AsyncIterator[Bench]:
    """A host that tests share and leave as it was. What a test leaves fails that test alone."""
    made = await shared.get()
    yield made
    if left := {*await made.kernels(), *made.left()}:
        await shared.discard()
    assert left == set()


@pytest_asyncio.fixture(loop_scope="module")
async def own() -> AsyncIterator[Bench]:
    """A host for one test that harms it; nothing confines its sessions."""
    async with bench("off") as made:
        yield made


def spawn_request(kernel: str, workdir: str) -> SpawnRequest:
    return SpawnRequest(kernel=kernel, session="s", template="python3", workdir=workdir, env={}, limits=Limits())


# --- a session's life ----------------------------------------------------------------------------


async def test_a_kernel_is_forked_runs_cells_and_ends(host: Bench) -> None:
    one = await host.start(env={"COLOUR": "blue"})
    assert await one.run("import os; print(os.environ['COLOUR'], os.getcwd() == os.environ['HOME'])") == "blue True\n"
    assert one.kernel.info.python == sys.version.split()[0]
    init = procfs.stat(one.pid)
    assert init is not None
    await one.kernel.end()
    await gone(one.pid, init.parent)
    assert host.left() == set()


async def test_sessions_of_one_template_draw_different_numbers(host: Bench) -> None:
    code = "import random, uuid, tempfile\nimport numpy as np\n"
    code += "print(random.random(), np.random.rand(), uuid.uuid4(), next(tempfile._get_candidate_names()))"
    kernels = [await host.start() for _ in range(3)]
    said = [(await one.run(code)).split() for one in kernels]
    for column in zip(*said, strict=True):
        assert len(set(column)) == 3
    for one in kernels:
        await one.kernel.end()


async def test_no_secret_of_a_session_reaches_the_next(host: Bench) -> None:
    secret = "tseb-eht-si-terces-siht"[::-1]
    first = await host.start(env={"TOKEN": secret})
    assert (await first.run("import os; print(os.environ['TOKEN'])")).strip() == secret
    second = await host.start()
    look = f"needle = {secret[::-1].encode()!r}[::-1]\n" + (
        "found = 0\n"
        "with open('/proc/self/maps') as maps, open('/proc/self/mem', 'rb', 0) as memory:\n"
        "    for line in maps:\n"
        "        ends, rights = line.split()[:2]\n"
        "        begin, end = (int(part, 16) for part in ends.split('-'))\n"
        "        if rights.startswith('rw') and '[v' not in line:\n"
        "            memory.seek(begin)\n"
        "            found += memory.read(end - begin).count(needle)\n"
        "print(found)"
    )
    assert int(await first.run(look)) > 1, "the search finds what is there"
    # The needle itself, and what copies of it the search made.
    other = second.request.session[::-1]
    control = look.replace(repr(secret[::-1].encode()), repr(f"{other}-no-such-thing".encode()))
    assert int(await second.run(look)) <= int(await second.run(control)) + 1
    await first.kernel.end()
    await second.kernel.end()


@pytest.mark.parametrize(
    ("code", "cause", "number", "status"),
    [
        ("import os; os._exit(3)", Cause.EXITED, None, 3),
        ("import os; os._exit(0)", Cause.EXITED, None, 0),
        ("import ctypes; ctypes.string_at(0)", Cause.SIGNALLED, signal.SIGSEGV, None),
        ("import os; os.abort()", Cause.SIGNALLED, signal.SIGABRT, None),
        ("import os; os.kill(os.getpid(), 9)", Cause.SIGNALLED, signal.SIGKILL, None),
    ],
)
async def test_the_exit_of_a_kernel_is_reported_once(
    host: Bench, code: str, cause: Cause, number: int | None, status: int | None
) -> None:
    one = await host.start()
    one.send("print('last words')\n" + code)
    ended = await one.exit()
    assert (ended.cause, ended.signal, ended.exit_code) == (cause, number, status)
    assert one.sink.text().startswith("last words\n")
    with pytest.raises(NotFound) as error:
        await host.client.find(one.request.kernel)
    assert error.value.details["exit"]["cause"] == cause
    await one.kernel.end()
    assert len(one.sink.exits) == 1


async def test_a_kernel_that_closes_all_its_descriptors_is_ended(host: Bench) -> None:
    for _ in range(5):  # what is closed before the server is back differs from time to time
        one = await host.start()
        one.send("print('on')\nimport os, time\nos.closerange(3, 100)\ntime.sleep(30)")
        await one.exit(5)
        assert one.sink.text().startswith("on\n")
        two = await host.start()
        two.send(
            "print('on')\nimport os, time\nfor fd in range(3, 100):\n    try: os.close(fd)\n"
            "    except OSError: pass\ntime.sleep(30)"
        )
        await two.exit(5)
        await one.kernel.end()
        await two.kernel.end()


async def test_a_kernel_that_closes_a_descriptor_ends_or_answers(host: Bench) -> None:
    one = await host.start()
    numbers = (await one.run("import os\nfor fd in os.listdir('/proc/self/fd'): print(fd)")).split()
    await one.kernel.end()
    for number in [number for number in numbers if int(number) > 2]:
        one = await host.start()
        # The cell goes on for a moment, in which the server may be back at the socket.
        code = f"import os, time\ntry: os.close({number})\nexcept OSError: pass\ntime.sleep(0.05)\nprint('on')"
        cells = [one.send(code), one.send("print('on')")]
        what = f"the end of a kernel without its descriptor {number}, or of its cells"
        await wait_until(lambda k=one, c=cells: k.sink.exits or all(map(k.sink.idle, c)), what=what)
        assert one.sink.exits or all("on\n" in one.sink.text(cell) for cell in cells)
        await one.kernel.end()


async def test_an_exit_by_the_oom_killer_has_its_cause(host: Bench) -> None:
    one = await host.start(limits=Limits(memory_bytes=256 << 20))
    if one.kernel.sandbox.limits["memory_bytes"] != "hard":
        await one.kernel.end()
        pytest.skip("no memory cgroup here")
    # Below RLIMIT_DATA, which would only raise MemoryError: shared memory is charged, but is no "data".
    one.send("import mmap\nm = mmap.mmap(-1, 600 << 20)\nfor i in range(0, len(m), 4096): m[i] = 1")
    ended = await one.exit()
    assert ended.cause is Cause.MEMORY
    assert "256 MiB" in ended.message
    await one.kernel.end()


async def test_an_interrupt_and_a_kill(host: Bench) -> None:
    one = await host.start()
    cell = one.send("import time; print('on'); time.sleep(60)")
    await wait_until(lambda: one.sink.text())
    one.kernel.interrupt()
    await wait_until(lambda: one.sink.idle(cell))
    one.kernel.kill()
    assert (await one.exit()).signal == signal.SIGKILL
    one.kernel.interrupt()
    await one.kernel.end()
    one.kernel.interrupt()


async def test_the_host_signals_for_a_server_that_may_not(host: Bench) -> None:
    one = await host.start()
    cell = one.send("import time; print('on'); time.sleep(60)")
    await wait_until(lambda: one.sink.text())
    host.client.signal(one.request.kernel, signal.SIGINT)
    await wait_until(lambda: one.sink.idle(cell))
    await one.kernel.end()


# --- nothing is left ---------------------------------------------------------------------------------

_DAEMON = """
import os, subprocess, sys, time
ours = subprocess.Popen(['sleep', '1000'])
group = subprocess.Popen(['sleep', '1000'], process_group=0)
away = subprocess.Popen(['sleep', '1000'], start_new_session=True)
reader, writer = os.pipe()
middle = os.fork()
if middle == 0:
    os.setsid()
    pid = os.fork()
    if pid == 0:
        os.execvp('sleep', ['sleep', '1000'])
    os.write(writer, str(pid).encode())
    os._exit(0)
daemon = int(os.read(reader, 20))
os.waitpid(middle, 0)  # the daemon has its last parent, so that a walk through the tree of processes finds it
print(ours.pid, group.pid, away.pid, daemon)
"""


def outer(init: int) -> dict[int, int]:
    """Pids here, by those inside, of all below an init."""
    return {procfs.inner_pid(pid): pid for pid in procfs.below(init)}


async def test_ending_a_session_ends_all_its_processes(host: Bench) -> None:
    one, other = await host.start(), await host.start()
    init = procfs.stat(one.pid).parent  # type: ignore[union-attr]
    inside = [int(pid) for pid in (await one.run(_DAEMON)).split()]
    found = outer(init)
    everyone = [found[pid] for pid in inside]
    assert all(psutil.pid_exists(pid) for pid in everyone)
    await one.kernel.end()
    await gone(*everyone, one.pid, init)
    assert await other.run("print('on')") == "on\n"
    await other.kernel.end()


async def test_a_dead_kernel_ends_its_processes_except_daemons(host: Bench) -> None:
    one = await host.start()
    init = procfs.stat(one.pid).parent  # type: ignore[union-attr]
    found_in = await one.run(_DAEMON)
    found = outer(init)
    ours, group, away, daemon = (found[int(pid)] for pid in found_in.split())
    one.kernel.kill()
    await one.exit()
    await gone(ours, group)
    assert psutil.pid_exists(away)
    assert psutil.pid_exists(daemon)
    await one.kernel.end()
    await gone(away, daemon)


async def test_a_signal_for_all(host: Bench) -> None:
    one = await host.start()
    init = procfs.stat(one.pid).parent  # type: ignore[union-attr]
    inside = await one.run(_DAEMON)
    found = outer(init)
    host.client.signal(one.request.kernel, signal.SIGTERM, everyone=True)
    await gone(*(found[int(pid)] for pid in inside.split()))
    await one.kernel.end()


async def test_a_killed_init_ends_its_session(own: Bench) -> None:
    one, other = await own.start(), await own.start()
    init = procfs.stat(one.pid).parent  # type: ignore[union-attr]
    found = [int(pid) for pid in (await one.run(_DAEMON)).split()]
    kill(init)
    assert (await one.exit()).cause is Cause.SIGNALLED
    await gone(one.pid, *found)
    assert await other.run("print('on')") == "on\n"
    await one.kernel.end()
    await other.kernel.end()


async def test_a_stopped_init_is_killed(own: Bench) -> None:
    one = await own.start()
    init = procfs.stat(one.pid).parent  # type: ignore[union-attr]
    found = [int(pid) for pid in (await one.run(_DAEMON)).split()]
    kill(init, signal.SIGSTOP)
    await one.kernel.end()
    await gone(one.pid, init, *found)


@pytest.mark.slow
async def test_many_spawns_leak_nothing(host: Bench) -> None:
    async def life() -> None:
        one = await host.start()
        assert await one.run("print(1)") == "1\n"
        await one.kernel.end()
        shutil.rmtree(one.request.workdir)

    async def lives(count: int) -> None:
        for _ in range(count):
            await life()

    await lives(2)
    process, template = await host.host(), await host.template()
    before = process.num_fds(), template.num_fds(), len(os.listdir("/proc/self/fd"))
    await asyncio.gather(*(lives(15) for _ in range(4)))
    assert (process.num_fds(), template.num_fds(), len(os.listdir("/proc/self/fd"))) == before
    await wait_until(lambda: [child.pid for child in process.children(recursive=True)] == [template.pid])
    assert template.num_threads() == 1
    assert host.left() == set()


# --- starts that fail, or are not wanted any more ------------------------------------------------------


async def test_an_id_is_taken_once(host: Bench) -> None:
    one = await host.start()
    fds = host.launcher.make_endpoints("second")
    try:
        with pytest.raises(Conflict):
            await host.client.spawn(spawn_request(one.request.kernel, one.request.workdir), fds)
    finally:
        seqpacket.close_all(fds)
        host.launcher.path("second").unlink()
    assert await one.run("print('unharmed')") == "unharmed\n"
    await one.kernel.end()


async def test_sessions_get_the_usual_limit_of_descriptors(host: Bench) -> None:
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    here = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    for limits, expected in ((Limits(open_files=None), here), (Limits(open_files=200), 200)):
        one = await host.start(limits=limits)
        assert await one.run(code) == f"{expected}\n"
        await one.kernel.end()
    assert resource.prlimit((await host.host()).pid, resource.RLIMIT_NOFILE)[0] >= here


async def test_a_burst_of_starts(host: Bench) -> None:
    started = await asyncio.gather(*(host.start() for _ in range(25)))
    assert len({one.pid for one in started}) == 25
    await asyncio.gather(*(one.kernel.end() for one in started))
    assert host.left() == set()


async def test_a_kernel_can_be_ended_without_a_host(own: Bench) -> None:
    one = await own.start()
    own.client._may_start = False
    kill((await own.host()).pid)
    ending = asyncio.ensure_future(one.kernel.end())
    await gone(one.pid)
    assert not ending.done()
    own.client._may_start = True
    await ending
    assert own.left() == set()


async def test_a_kernel_is_ended_by_the_next_host_if_the_last_has_just_died(own: Bench) -> None:
    one = await own.start()
    pidfd = os.pidfd_open((await own.host()).pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    select.select([pidfd], [], [], 10)  # blocks the loop, so that it has not read the end of the connection
    os.close(pidfd)
    await one.kernel.end()
    assert own.left() == set()


async def test_an_unknown_template(host: Bench) -> None:
    with pytest.raises(NotFound, match="no template 'nothing'"):
        await host.start(template="nothing")
    assert host.left() == set()


async def test_a_working_directory_that_is_not_there(host: Bench) -> None:
    with pytest.raises(KernelsvcError):
        await host.start(workdir="/nonexistent/nowhere")
    await wait_until(lambda: host.left() == set(), what="no trace")


@pytest.mark.parametrize("pause", [0, 0.002, 0.005, 0.01, 0.02])
async def test_a_start_that_is_cancelled_leaves_nothing(host: Bench, pause: float) -> None:
    template, host_process = await host.template(), await host.host()
    task = asyncio.ensure_future(host.start())
    await asyncio.sleep(pause)  # not a wait for something: the moments at which it may strike
    await hosted.cancelled(task)

    async def alone() -> bool:
        if task.done() and not task.cancelled():
            await task.result().kernel.end()
        below = [child.pid for child in host_process.children(recursive=True)]
        return await host.kernels() == {} and below == [template.pid] and host.left() == set()

    await wait_until(alone, what="no trace")


async def test_an_environment_has_a_bound_in_bytes_as_they_travel(host: Bench) -> None:
    for value in ("x" * 65_536, "\x01" * 12_000, "\N{SNOWMAN}" * 22_000):
        with pytest.raises(TooLarge, match="environment"):
            await host.start(env={"A": value})
    assert host.left() == set()
    value = "\N{SNOWMAN}" * 20_000
    one = await host.start(env={"A": value})
    assert await one.run("import os; print(len(os.environ['A']))") == "20000\n"
    await one.kernel.end()


async def test_invalid_requests_are_refused_and_change_nothing(host: Bench) -> None:
    for op, fields in (
        ("nonsense", {}),
        ("spawn", {"kernel": "x"}),
        ("spawn", {"kernel": 3, "session": [], "template": None}),
        ("start", {"kernel": "x", "session": "s", "argv": ["true"], "env": {}, "cwd": "/", "limits": {}, "share": "/"}),
        ("enlist", {"kernel": "x", "of": "y"}),
        ("signal", {}),
    ):
        with pytest.raises((BadRequest, NotFound)):
            await host.client.request(op, **fields)
    with pytest.raises(Conflict, match="version"):
        await host.client.request("hello", version=99)
    for garbage in (b"not json", b"[]", b"{" * 5000, b'{"id": 1}' + b" " * 190_000):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(host.runtime / "host.sock"))
            sock.send(garbage)
    assert (await host.hello())["pid"]


async def test_a_foreign_process_is_not_taken_for_a_copy(host: Bench) -> None:
    one = await host.start()
    pidfd = os.pidfd_open(os.getpid())
    try:
        with pytest.raises(KernelDead):
            await host.client.register_copy(RegisterCopyRequest(kernel="copy", original=one.request.kernel), pidfd)
    finally:
        os.close(pidfd)
    assert "copy" not in await host.kernels()
    await one.kernel.end()


# --- templates ---------------------------------------------------------------------------------------------


async def test_a_dead_template_is_restarted_and_its_sessions_continue(own: Bench) -> None:
    one = await own.start()
    before = await own.template()
    kill(before.pid)
    two = await own.start()
    assert (await own.template()).pid != before.pid
    assert await one.run("print('on')") == "on\n"
    assert await two.run("print('new')") == "new\n"
    for running in (one, two):
        await running.kernel.end()


async def test_spawns_while_the_template_dies_again_and_again(own: Bench) -> None:
    template = await own.template()
    starts = [asyncio.ensure_future(own.start()) for _ in range(6)]
    await wait_until(lambda: any(start.done() for start in starts), deadline=30)
    kill(template.pid)
    done = await asyncio.gather(*starts)
    for running in done:
        assert await running.run("print('on')") == "on\n"
    await asyncio.gather(*(running.kernel.end() for running in done))
    assert own.left() == set()


async def test_a_template_that_can_not_start_reports_the_reason(short_tmp: Path) -> None:
    async with bench("off", template={"preload": ["no_such_module"]}) as broken:
        with pytest.raises(TemplateFailed, match="no_such_module"):
            await broken.start()
        await wait_until(lambda: broken.client.templates["python3"]["state"] == "failed")
        assert "no_such_module" in broken.client.templates["python3"]["message"]
    async with bench("off", template={"python": "/nonexistent/python"}) as broken:
        with pytest.raises(TemplateFailed, match="/nonexistent/python can't be started"):
            await broken.start()


async def test_a_module_that_starts_threads_is_named(tmp_path: Path) -> None:
    source = "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
    python = hosted.python_with(tmp_path, source)
    async with bench("off", template={"python": str(python), "preload": ["json", "extra"]}) as broken:
        with pytest.raises(TemplateFailed, match=r"extra starts 1 thread .*preload"):
            await broken.start()


async def test_the_environment_s_own_interpreter(tmp_path: Path) -> None:
    python = hosted.python_with(tmp_path, "WHO = 'extra'")
    async with bench("off", template={"python": str(python), "preload": ["extra"]}) as made:
        one = await made.start()
        assert (
            await one.run("import extra, sys; print(extra.WHO, 'kernelsvc.kernels' in sys.modules)") == "extra False\n"
        )
        await one.kernel.end()


# --- a host that dies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGKILL, id="kill"), pytest.param(signal.SIGTERM, id="term", marks=pytest.mark.thorough)],
)
async def test_a_host_dies_and_the_next_finds_its_sessions(policy: str, number: int) -> None:
    async with bench(policy) as made:
        one, two = await made.start(), await made.start()
        await one.run("x = 42")
        copy = made.request()
        await one.kernel.fork(copy, mode="checkpoint")
        inside = await two.run(_DAEMON)
        init = procfs.stat(two.pid).parent  # type: ignore[union-attr]
        found = outer(init)
        before = await made.host()
        running = one.send("import time\nfor i in range(40): print(i, flush=True); time.sleep(0.01)")
        kill(before.pid, number)
        await gone(before.pid)
        assert await one.run("print(x)") == "42\n"
        assert one.sink.text(running) == "".join(f"{i}\n" for i in range(40))

        await made.another(than=before.pid)
        names = {one.request.kernel, two.request.kernel, copy.kernel}
        assert await made.kernels() == await made.kernels()
        assert set(await made.kernels()) == names
        assert (await made.kernels())[one.request.kernel] == one.pid

        three = await made.start()
        assert await three.run("print('new')") == "new\n"
        one.kernel.kill()
        assert (await one.exit()).signal == signal.SIGKILL
        await one.kernel.end()
        woken = await made.wake(copy)
        assert await woken.run("print(x)") == "42\n"
        woken.send("import ctypes; ctypes.string_at(0)")
        assert (await woken.exit()).signal == signal.SIGSEGV
        for running_one in (woken, two, three):
            await running_one.kernel.end()
        await gone(init, *(found[int(pid)] for pid in inside.split()))
        assert made.left() == set()


async def test_a_death_without_a_host_is_reported_with_its_cause() -> None:
    async with bench("off") as made:
        one = await made.start()
        kill((await made.host()).pid)
        one.send("import os; os._exit(5)")
        ended = await one.exit()
        assert (ended.cause, ended.exit_code) == (Cause.EXITED, 5)
        await one.kernel.end()
        assert made.left() == set()


async def test_only_one_host_to_a_directory(host: Bench) -> None:
    again = subprocess.run(
        [sys.executable, "-m", "kernelsvc.host.daemon"],
        input=msgspec.json.encode(host.settings),
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(HERE.parents[1])},
    )
    assert again.returncode == 3
    assert b"already runs" in again.stderr
    assert (await host.hello())["pid"]


async def test_kernels_of_an_earlier_host_that_can_not_be_adopted_are_ended(own: Bench) -> None:
    one, two = await own.start(), await own.start()
    before = await own.host()
    kill(before.pid, signal.SIGSTOP)  # so that none is started before the records are harmed
    (own.runtime / f"{one.request.kernel}.json").write_text("{")
    (own.runtime / f"{two.request.kernel}.json").unlink()
    (own.runtime / "k999.json").write_text("{}")
    kill(before.pid)
    assert (await one.exit()).cause is Cause.SIGNALLED
    assert (await two.exit()).cause is Cause.SIGNALLED
    await wait_until(lambda: own.left() <= {f"{k}.k" for k in (one.request.kernel, two.request.kernel)})
    assert await own.kernels() == {}
    for running in (one, two):
        await running.kernel.end()


async def test_a_host_with_other_settings_is_replaced_and_its_kernels_continue(own: Bench) -> None:
    one = await own.start()
    await one.run("x = 7")
    before = await own.host()
    one.kernel.detach()
    await own.client.close()
    settings = msgspec.structs.replace(own.settings, adoption_seconds=120.0, persistent=True)
    own.client = own.launcher.host = type(own.client)(settings)
    await own.client.start()
    assert (await own.host()).pid != before.pid
    again = await own.adopt(one)
    assert again is not None
    assert await again.run("print(x)") == "7\n"
    # Where another starts the hosts, it is left alone, and told of.
    other = type(own.client)(own.settings, start=False)
    await other.start()
    assert (await other.request("hello", version=1))[0]["pid"] == (await own.host()).pid
    await other.close()
    await again.kernel.end()


# --- a server that goes -----------------------------------------------------------------------------------------


async def test_the_next_server_finds_kernels_and_copies(host: Bench) -> None:
    one = await host.start()
    await one.run("x = 1")
    copy = host.request()
    await one.kernel.fork(copy, mode="checkpoint")
    one.kernel.detach()
    again = await host.adopt(one)
    assert again is not None
    assert again.pid == one.pid
    await again.run("x = 2")
    again.kernel.kill()
    await again.exit()
    woken = await host.wake(copy)
    assert await woken.run("print(x)") == "1\n"
    await again.kernel.end()
    await woken.kernel.end()


async def test_a_kernel_that_accepts_no_connection_is_not_tried_without_end(
    host: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "ADOPT_SECONDS", 0.1)
    monkeypatch.setattr(launcher, "ADOPT_ATTEMPTS", 3)
    one = await host.start()
    await one.run("w = get_ipython().kernel.session.wire\nw._listener.listen(0)\ntype(w)._accept = lambda self: None")
    one.kernel.detach()
    path = str(host.launcher.path(one.request.kernel))
    with contextlib.ExitStack() as waiting:
        for _ in range(2):  # the queue is full
            sock = waiting.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            with contextlib.suppress(BlockingIOError):
                sock.connect(path)
        for _ in range(2):
            with pytest.raises(Timeout):
                await host.adopt(one)
        assert await host.adopt(one) is None
    ended = await host.launcher.how_ended(one.request.kernel)
    assert ended is not None
    assert ended.cause is Cause.UNREACHABLE
    assert host.launcher._unanswered == {}


@pytest.mark.parametrize("what", ["os.open('/dev/zero', os.O_RDONLY)", "socket.socketpair()[0].detach()"])
async def test_a_kernel_that_hands_over_no_pipes_is_not_adopted(host: Bench, what: str) -> None:
    one = await host.start()
    await one.run(f"import os, socket\nw = get_ipython().kernel.session.wire\nw._stdio.fds = [{what}, {what}]")
    one.kernel.detach()
    before = len(os.listdir("/proc/self/fd"))
    assert await host.adopt(one) is None
    ended = await host.launcher.how_ended(one.request.kernel)
    assert ended is not None
    assert (ended.cause, "not the pipe" in ended.message) == (Cause.PROTOCOL, True)
    assert len(os.listdir("/proc/self/fd")) <= before
    await gone(one.pid)


async def test_adoption_continues_at_the_last_journaled_frame(host: Bench) -> None:
    one = await host.start()
    await one.run("print('one')")
    cell = one.send("import time\nfor i in range(5):\n    print(i, flush=True); time.sleep(0.05)")
    await wait_until(lambda: "0\n" in one.sink.text())
    seen = one.sink.text()
    one.kernel.detach()
    again = await host.adopt(one)
    assert again is not None
    await wait_until(lambda: again.sink.idle(cell))
    assert seen + again.sink.text() == "one\n0\n1\n2\n3\n4\n"
    await again.kernel.end()
    assert await host.adopt(one) is None


async def test_copies_end_one_by_one(host: Bench) -> None:
    one = await host.start()
    await one.run("x = 1")
    checkpoint, branch = host.request(), host.request()
    await one.kernel.fork(checkpoint, mode="checkpoint")
    await one.kernel.fork(branch, mode="branch")
    live = await host.wake(branch)
    init = procfs.stat(one.pid).parent  # type: ignore[union-attr]
    found = [int(pid) for pid in (await live.run(_DAEMON)).split()]
    found = [outer(init)[pid] for pid in found]
    live.send("import os; os._exit(3)")  # a child of the original, which does not wait for it
    assert (await live.exit()).exit_code == 3
    await live.kernel.end()
    await gone(*found[:2])
    assert await one.run("x = 2; print(x)") == "2\n"
    await one.kernel.end()
    assert set(await host.kernels()) == {checkpoint.kernel}
    again = await host.wake(checkpoint)
    assert await again.run("print(x)") == "1\n"
    await again.kernel.end()
    await gone(init, *found)
    with pytest.raises(KernelDead):
        await host.wake(checkpoint)
    assert host.left() == set()


async def test_a_branch_that_cannot_copy_its_directory_is_reported_and_ended(host: Bench) -> None:
    group = host.runtime / "group"
    files, made = group / "user", group / "user.d" / "branch"
    for directory in (group, files, made.parent, made):
        directory.mkdir(mode=0o755)
    (files / "data").write_bytes(b"x" * (3 << 20))
    one = await host.start(workdir=str(files), family=str(group))
    owner = files.stat()  # the session's own user by now
    for directory in (made.parent, made):
        os.chown(directory, owner.st_uid, owner.st_gid)
    branch = host.request(
        workdir=str(made),
        home=f"{one.kernel.home}.d/branch",
        copy_from=one.kernel.home,
        limits=Limits(disk_bytes=1 << 20),
    )
    await one.kernel.fork(branch, mode="branch")
    pid = (await host.kernels())[branch.kernel]
    with pytest.raises(AtCapacity, match="the directory holds 3145728 bytes and a branch may have 1048576"):
        await host.wake(branch)
    await gone(pid)
    assert set(await host.kernels()) == {one.request.kernel}
    assert await one.run("print(6 * 7)") == "42\n"
    await one.kernel.end()
    shutil.rmtree(group)


async def test_a_start_whose_server_disconnects_leaves_nothing(host: Bench) -> None:
    server = type(host.client)(host.settings)
    await server.start()
    fds, request = host.launcher.make_endpoints("leaving"), host.request()
    task = asyncio.ensure_future(server.spawn(spawn_request("leaving", request.workdir), fds))
    await asyncio.sleep(0)
    await server.close()
    await hosted.cancelled(task)
    seqpacket.close_all(fds)
    host.launcher.path("leaving").unlink()

    async def alone() -> bool:
        return await host.kernels() == {} and host.left() == set()

    await wait_until(alone, what="no trace")


async def test_kernels_that_no_server_adopts_end_after_the_grace_time() -> None:
    async with bench("off", adoption_seconds=1.0) as made:
        held, left = await made.start(), await made.start()
        kernels = held.request.kernel, left.request.kernel
        second = Bench.__new__(Bench)
        second.__dict__.update(made.__dict__)
        second.client = type(made.client)(made.settings)
        await second.client.start()
        os.close((await second.client.find(kernels[0])).pidfd)
        left.kernel.detach()
        held.kernel.detach()
        await made.client.close()
        await gone(left.pid)
        assert psutil.pid_exists(held.pid)
        host = await second.host()
        await second.client.close()
        await gone(held.pid, host.pid)
        assert {name for name in made.left() if not name.endswith(".k")} == set()
        made.client = type(made.client)(made.settings)
        await made.client.start()


async def test_a_session_without_host_and_server_ends_itself() -> None:
    async with bench("off", adoption_seconds=0.5) as made:
        one = await made.start()
        inside = [int(pid) for pid in (await one.run(_DAEMON)).split()]
        init = procfs.stat(one.pid).parent  # type: ignore[union-attr]
        host = await made.host()
        one.kernel.detach()
        await made.client.close()
        kill(host.pid)
        await gone(one.pid, init, *inside)
        made.client = type(made.client)(made.settings)
        await made.client.start()


async def test_an_end_is_reported_after_all_output_was_accepted(host: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelsvc.kernels.forked.kernel.EXIT_REPORT_SECONDS", 0.05)
    one = await host.start()
    one.sink.refusing = True
    one.send("print('held'); import os; os._exit(1)")
    await gone(one.pid)
    await asyncio.sleep(0.3)  # longer than it would wait; nothing shows that it still waits
    assert not one.sink.exits
    one.sink.refusing = False
    one.kernel.resume()
    await one.exit()
    assert one.sink.text().startswith("held")
    await one.kernel.end()


# --- cold kernels' processes -----------------------------------------------------------------------------------


async def start_cold(host: Bench, *argv: str) -> tuple[str, Any, str]:
    request = host.request()
    share = host.runtime / f"c{request.kernel}"
    share.mkdir(mode=0o755)
    reader, writer = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    try:
        start = StartProcessRequest(
            kernel=request.kernel,
            session=request.session,
            argv=list(argv),
            env={"COLOUR": "blue"},
            cwd=request.workdir,
            limits=Limits(),
            share=str(share),
        )
        found = await host.client.start_process(start, [null, writer, writer])
    finally:
        os.close(writer)
        os.close(null)
    with os.fdopen(reader, "rb", closefd=True) as stream:
        line = await asyncio.to_thread(stream.readline)
    return request.kernel, found, line.decode().strip()


async def test_a_cold_kernel_s_process(host: Bench) -> None:
    ends: list[Any] = []
    script = "trap 'exit 7' TERM; sleep 1000 & echo $COLOUR $$; wait"
    kernel, found, said = await start_cold(host, "/bin/sh", "-c", script)
    host.client.on_end(kernel, ends.append)
    colour, inner = said.split()
    assert colour == "blue"
    assert int(inner) == procfs.inner_pid(found.pid)
    host.client.signal(kernel, signal.SIGTERM)
    await wait_until(lambda: ends)
    assert (ends[0].cause, ends[0].exit_code) == (Cause.EXITED, 7)
    os.close(found.pidfd)
    await host.client.end(kernel)
    assert host.left() == set()


async def test_a_program_that_is_not_there_ends_with_127(host: Bench) -> None:
    kernel, found, said = await start_cold(host, "/no/such/program")
    assert "No such file" in said
    await procfs.wait_pidfd(found.pidfd)
    os.close(found.pidfd)

    async def ended() -> Any:
        try:
            os.close((await host.client.find(kernel)).pidfd)
        except NotFound as error:
            return error.details["exit"]

    assert (await wait_until(ended))["exit_code"] == 127
    await host.client.end(kernel)
    assert host.left() == set()


async def test_many_cold_kernels_at_once(host: Bench) -> None:
    started = await asyncio.gather(*(start_cold(host, "/bin/sh", "-c", "echo on; exec sleep 1000") for _ in range(5)))
    for kernel, found, said in started:
        assert said == "on"
        os.close(found.pidfd)
        await host.client.end(kernel)
    assert host.left() == set()
