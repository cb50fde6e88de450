"""The init of a session, without a namespace: a real process with real children; a test stands for the host."""

from __future__ import annotations

import array
import fcntl
import functools
import json
import os
import signal
import socket
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import waiting

from kernelsvc.guest.confine import init, linux
from kernelsvc.linux import procfs

DEADLINE = 30.0
#: Each is two forks of the process that runs the tests, which is large.
STRAYS = 10
#: Each step needs a fork or a signal, which took over 10 seconds on a loaded machine.
wait_for = functools.partial(waiting.wait_for, deadline=DEADLINE)


class Guarded:
    """An init, its kernel, and the host's end of the channel."""

    def __init__(self, address: Path, act: Callable[[], object], grace: float) -> None:
        self.address = address
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(DEADLINE)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        bound.bind(str(address))
        self.pid = os.fork()
        if self.pid == 0:
            self.channel.close()
            _guard(theirs, bound, act, grace)
        theirs.close()
        bound.close()

    def hear(self) -> tuple[dict[str, Any], list[int]]:
        data, fds, _, _ = socket.recv_fds(self.channel, 65536, 4)
        return (json.loads(data) if data else {}), fds

    def introduce(self) -> tuple[int, dict[str, Any]]:
        """The kernel's pid, and what was said."""
        said, (own, kernel) = self.hear()
        assert procfs.pid_of(own) == self.pid
        pid = procfs.pid_of(kernel)
        os.close(own)
        os.close(kernel)
        return pid, said

    def tell(self, **order: Any) -> None:
        self.channel.send(json.dumps(order).encode())

    def all_read(self) -> bool:
        unread = array.array("i", [0])
        fcntl.ioctl(self.channel, termios.TIOCOUTQ, unread)
        return not unread[0]

    def grown(self) -> int:
        """Wait until ``_brood`` is complete: the kernel with a child, and a daemon, whose pid is returned."""

        def complete() -> bool:
            pids = procfs.children(self.pid)
            # A stray has the kernel's session. The daemon has another one.
            sessions = {about.session for pid in pids if (about := procfs.stat(pid))}
            return sorted(len(procfs.children(pid)) for pid in pids) == [0, 1] and len(sessions) == 2

        wait_for(complete)
        return next(pid for pid in procfs.children(self.pid) if not procfs.children(pid))

    def knock(self) -> None:
        """Come as the next host."""
        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(DEADLINE)
        self.channel.connect(str(self.address))

    def wait(self) -> int:
        return os.waitpid(self.pid, 0)[1]


def _guard(channel: socket.socket, address: socket.socket, act: Callable[[], object], grace: float) -> NoReturn:
    try:
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
        guard = init.Init(channel, address, {"namespaces": [], "guard_init": False}, grace=grace)
        kernel = os.fork()
        if kernel == 0:
            guard.forget()
            channel.close()
            os.setsid()
            act()
            os._exit(0)
        guard.run(kernel)
    finally:
        os._exit(99)


Make = Callable[..., Guarded]


@pytest.fixture
def make(short_tmp: Path) -> Iterator[Make]:
    made: list[Guarded] = []

    def one(act: Callable[[], object] = signal.pause, *, grace: float = 60.0) -> Guarded:
        made.append(Guarded(short_tmp / f"{len(made)}-{time.monotonic_ns()}.i", act, grace))
        return made[-1]

    yield one
    for guarded in made:
        guarded.channel.close()
        pids = [guarded.pid, *procfs.below(guarded.pid)]
        procfs.kill_those(pids, lambda about: about.session != os.getsid(0) or about.parent == os.getpid())
        guarded.address.unlink()


def alive(pid: int) -> bool:
    about = procfs.stat(pid)
    return about is not None and about.state != "Z"


def test_it_names_itself_and_the_kernel_and_tells_the_end(make: Make) -> None:
    guarded = make(lambda: os._exit(3))
    _, said = guarded.introduce()
    assert said == {"kernel": True, "status": None}
    told, _ = guarded.hear()
    assert told["exited"]["kernel"]
    assert os.waitstatus_to_exitcode(told["exited"]["status"]) == 3
    guarded.tell(end=True)
    assert guarded.wait() == 0


def _brood() -> None:
    """Strays that end, a child that stays, and a daemon."""
    for _ in range(STRAYS):
        if os.fork() == 0:
            if os.fork():
                os._exit(1)
            os._exit(2)
    if os.fork() == 0:
        signal.pause()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.setsid()
        if os.fork():
            os._exit(0)
        signal.pause()
    for _ in range(STRAYS + 1):
        os.wait()
    signal.pause()


def test_orphans_are_reaped_and_not_reported(make: Make) -> None:
    guarded = make(_brood)
    kernel, _ = guarded.introduce()
    guarded.grown()
    guarded.tell(signal=9)
    told, _ = guarded.hear()
    assert told["exited"] == {"pid": kernel, "status": 9, "kernel": True}
    guarded.tell(signal=9)  # it is gone: nothing happens
    left = list(procfs.below(guarded.pid))
    assert len(left) == 2
    guarded.tell(end=True)
    assert guarded.hear() == ({}, [])
    assert guarded.wait() == 0
    assert not any(alive(pid) for pid in left)


def test_the_exit_of_a_member_is_reported(make: Make) -> None:
    guarded = make(_brood)
    guarded.introduce()
    daemon = guarded.grown()
    guarded.tell(member=daemon)
    wait_for(guarded.all_read)
    os.kill(daemon, signal.SIGKILL)
    told, _ = guarded.hear()
    assert told["exited"] == {"pid": daemon, "status": 9, "kernel": False}
    guarded.tell(end=True)
    assert guarded.wait() == 0


def test_a_signal_for_all(make: Make) -> None:
    guarded = make(_brood)
    guarded.introduce()
    guarded.grown()
    guarded.tell(signal=int(signal.SIGTERM), all=True)
    told, _ = guarded.hear()
    assert told["exited"]["status"] == signal.SIGTERM
    wait_for(lambda: len(list(procfs.below(guarded.pid))) == 1)  # the one that ignores it
    guarded.tell(end=True)
    assert guarded.wait() == 0


def test_signals_from_the_session_do_not_end_it(make: Make) -> None:
    guarded = make()
    kernel, _ = guarded.introduce()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(guarded.pid, number)
    guarded.tell(signal=9)
    assert guarded.hear()[0]["exited"]["pid"] == kernel
    guarded.tell(end=True)
    assert guarded.wait() == 0


def test_without_a_host_it_ends_after_the_grace_time(make: Make) -> None:
    guarded = make(_brood, grace=0.2)
    guarded.introduce()
    guarded.grown()
    left = list(procfs.below(guarded.pid))
    guarded.channel.close()
    assert guarded.wait() == 0
    wait_for(lambda: not any(alive(pid) for pid in left))


def test_the_next_host_is_let_in_and_told_what_happened(make: Make) -> None:
    guarded = make()
    kernel, _ = guarded.introduce()
    guarded.channel.close()
    os.kill(kernel, signal.SIGKILL)
    wait_for(lambda: procfs.stat(kernel) is None)  # init has its status
    guarded.knock()
    _, said = guarded.introduce()
    assert said["status"] == 9
    guarded.tell(end=True)
    assert guarded.wait() == 0


def test_the_newest_host_is_the_one_that_counts(make: Make) -> None:
    guarded = make()
    guarded.introduce()
    first = guarded.channel
    guarded.knock()
    kernel, _ = guarded.introduce()
    assert first.recv(10) == b""
    first.close()
    guarded.tell(signal=9)
    assert guarded.hear()[0]["exited"]["pid"] == kernel
    guarded.tell(end=True)
    assert guarded.wait() == 0


def test_why_there_is_no_kernel_is_said() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    error = OSError(1, "not allowed")
    error.step = "mount"  # type: ignore[attr-defined]
    init.say_failed(theirs, error)
    said = json.loads(ours.recv(65536))
    assert said["step"] == "mount"
    assert "not allowed" in said["failed"]
    ours.close()
    init.say_failed(theirs, error)  # nobody is there: nothing happens
    theirs.close()
