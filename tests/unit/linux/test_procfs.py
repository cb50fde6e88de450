"""What Linux says about processes, asked of real ones."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from waiting import wait_for

from kernelsvc.linux import procfs

DEADLINE = 10.0


@contextmanager
def child(act: Callable[[], object]) -> Iterator[tuple[int, int]]:
    """A forked child: pid and pidfd. It is killed and waited for at the end."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        finally:
            os._exit(0)
    pidfd = os.pidfd_open(pid)
    try:
        yield pid, pidfd
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(pidfd)


async def test_a_pidfd_tells_its_pid_and_its_end() -> None:
    with child(signal.pause) as (pid, pidfd):
        assert procfs.pid_of(pidfd) == pid
        waiting = [asyncio.ensure_future(procfs.wait_pidfd(pidfd)) for _ in range(2)]
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*waiting)
        os.waitpid(pid, 0)
        assert procfs.pid_of(pidfd) == 0


@pytest.mark.parametrize(("act", "status"), [(lambda: os._exit(7), 7 << 8), (lambda: os.kill(os.getpid(), 15), 15)])
async def test_how_it_ended_is_known_without_waiting_for_it(act: Callable[[], object], status: int) -> None:
    with child(act) as (pid, pidfd):
        await procfs.wait_pidfd(pidfd)
        assert procfs.exit_status(pidfd) == status
        os.waitpid(pid, 0)
        # Since Linux 6.15 also when somebody else has.
        assert procfs.exit_status(pidfd) in (status, None)


async def test_a_process_that_lives_has_no_status() -> None:
    with child(signal.pause) as (_, pidfd):
        assert procfs.exit_status(pidfd) is None


def test_stat_reads_names_that_would_confuse_it() -> None:
    script = "printf ') Z 1 (' > /proc/self/comm; read x"
    with subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.PIPE) as one:
        wait_for(lambda: ") Z" in Path(f"/proc/{one.pid}/comm").read_text())
        about = procfs.stat(one.pid)
        assert about is not None
        assert (about.parent, about.session) == (os.getpid(), os.getsid(0))
        assert about.state != "Z"
        one.communicate(b"\n")
    assert procfs.stat(one.pid) is None


def test_families() -> None:
    with subprocess.Popen(["/bin/sh", "-c", "sleep 100 & sleep 100 & echo; wait"], stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        shell.stdout.readline()
        wait_for(lambda: len(procfs.children(shell.pid)) == 2)
        sleeps = procfs.children(shell.pid)
        assert set(procfs.below(os.getpid())) >= {shell.pid, *sleeps}
        assert procfs.descends(sleeps[0], os.getpid())
        assert not procfs.descends(os.getpid(), sleeps[0])
        assert procfs.inner_pid(sleeps[0]) == sleeps[0]
        assert procfs.kill_those([*sleeps, shell.pid], lambda about: about.parent == shell.pid) == 2
        assert shell.wait(DEADLINE) == 0
    assert procfs.kill_those(sleeps, lambda _: True) == 0
    assert procfs.children(shell.pid) == []
    assert not procfs.descends(shell.pid, os.getpid())
    assert procfs.inner_pid(shell.pid) == -1


def test_descendants_that_started_since_then_get_a_signal() -> None:
    with subprocess.Popen(["sleep", "100"]) as earlier:
        wait_for(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) > procfs.stat(earlier.pid).started / 100 + 0.2)
        script = "sleep 100 & sleep 100 & echo; wait"
        with subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE) as shell:
            assert shell.stdout is not None
            shell.stdout.readline()
            found = procfs.started_since(os.getpid(), 0.1, but_not=())
            assert set(found) == {shell.pid, *procfs.children(shell.pid)}
            assert not procfs.started_since(os.getpid(), 0.1, but_not={shell.pid})
            assert earlier.pid in procfs.started_since(os.getpid(), 60, but_not={shell.pid})
            procfs.send_signal({pid: started + 1 for pid, started in found.items()}, signal.SIGKILL)
            assert shell.poll() is None
            procfs.send_signal(found, signal.SIGTERM)
            assert shell.wait(DEADLINE) == -signal.SIGTERM
        earlier.kill()


def test_stat_counts_processor_time_threads_and_memory() -> None:
    before = procfs.stat(os.getpid())
    ballast = bytearray(64 << 20)
    ballast[:: os.sysconf("SC_PAGE_SIZE")] = b"x" * len(range(0, len(ballast), os.sysconf("SC_PAGE_SIZE")))
    spent = time.process_time()
    while time.process_time() < spent + 0.1:
        pass
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait)
    thread.start()
    after = procfs.stat(os.getpid())
    gate.set()
    thread.join()
    assert before is not None
    assert after is not None
    assert after.cpu_seconds > before.cpu_seconds
    assert after.threads == before.threads + 1
    assert after.resident_bytes > before.resident_bytes + (48 << 20)
    del ballast
