"""The init of a session: reaps, reports, signals, and ends everything when nobody is left.

There is one per session, confined or not. In a pid namespace it is pid 1 and its
exit ends all that lives in there; without one it is a subreaper, so daemons
become its children, and it walks ``/proc`` to end them. It runs none of the
user's code and, once ``guard_init`` has been called, can open no file, make no
socket and start no program.

It hangs on the spawn channel to the kernel host, its lifeline. When that closes
the host is gone: the init then waits ``grace`` seconds at its door (a listening
socket in the runtime directory) for the next host, and if none comes ends the
session.

Datagrams, JSON. To the host: ``{"kernel": true, "status"}`` with the pidfds of
init and kernel, ``{"exited": {"pid", "status", "kernel"}}`` for the kernel and its
copies, ``{"failed", "step", "trace"}`` if there will be none. From the host:
``{"member": pid}`` for each copy, ``{"signal": n, "all": bool}``, ``{"end": true}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import time
import traceback
from typing import Any, NoReturn

from kernelsvc.guest.confine import confine

#: Milliseconds to wait for news of a child between two attempts to kill what keeps being born.
_KILL_PAUSE_MS = 5
#: Seconds for which that is tried.
_KILL_SECONDS = 5.0


def ended_children() -> list[tuple[int, int]]:
    """Collect every child that has ended: pid and wait status."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append((pid, status))


def limit_descriptors(soft: int) -> None:
    """Back to the usual soft limit of open files, which the host has raised for itself."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def say_failed(channel: socket.socket, error: BaseException) -> None:
    """Tell the host why there is no kernel, if it is still there."""
    step = getattr(error, "step", "start")
    text = f"{type(error).__name__}: {error}"
    body = {"failed": text[:2000], "step": step, "trace": traceback.format_exc()[-3000:]}
    with contextlib.suppress(OSError):
        channel.send(json.dumps(body).encode())


def fail(channel: socket.socket, error: BaseException) -> NoReturn:
    """``say_failed``, and end this process."""
    try:
        say_failed(channel, error)
    finally:
        os._exit(70)


class Init:
    """Made before confinement is built, run after the kernel was forked."""

    def __init__(self, channel: socket.socket, door: socket.socket, plan: dict[str, Any], *, grace: float) -> None:
        self._channel: socket.socket | None = channel
        self._door = door
        self._plan = plan
        self._grace = grace
        self._own_namespace = "pid" in plan["namespaces"]
        self._alone_since: float | None = None
        self._kernel = 0
        self._kernel_status: int | None = None
        self._kernel_pidfd = -1
        self._copies: set[int] = set()
        door.listen(4)

    def forget(self) -> None:
        """In the kernel: close what belongs to the init."""
        self._door.close()

    def run(self, kernel: int) -> NoReturn:
        """Guard ``kernel`` until told to end, or until nobody is left to tell."""
        self._kernel = kernel
        self._kernel_pidfd = os.pidfd_open(kernel)
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake = wake_read
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        own = os.pidfd_open(os.getpid())
        self._introduce(own)
        confine.guard_init(self._plan)
        poll = select.poll()
        poll.register(wake_read, select.POLLIN)
        poll.register(self._door, select.POLLIN)
        if self._channel is not None:
            poll.register(self._channel, select.POLLIN)
        self._reap()
        while True:
            for fd, _ in poll.poll(self._patience()):
                if fd == wake_read:
                    self._reap()
                elif fd == self._door.fileno():
                    self._open_door(poll, own)
                elif self._channel is not None and fd == self._channel.fileno():
                    self._listen(poll)
            if self._alone_since is not None and time.monotonic() - self._alone_since >= self._grace:
                self._end()

    def _patience(self) -> int | None:
        if self._alone_since is None:
            return None
        left = self._grace - (time.monotonic() - self._alone_since)
        return max(0, int(left * 1000) + 1)

    def _introduce(self, own: int) -> None:
        if self._channel is None:
            return
        try:
            said: dict[str, Any] = {"kernel": True, "status": self._kernel_status}
            socket.send_fds(self._channel, [json.dumps(said).encode()], [own, self._kernel_pidfd])
        except OSError:
            return  # the host is gone already; the poll will say so

    def _say(self, body: dict[str, Any]) -> None:
        if self._channel is not None:
            try:
                self._channel.send(json.dumps(body).encode(), socket.MSG_DONTWAIT)
            except OSError:
                return  # full or gone: what matters is found out by pidfd too

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        for pid, status in ended_children():
            kernel = pid == self._kernel and self._kernel_status is None
            if kernel:
                self._kernel_status = status
            if kernel or pid in self._copies:  # not of whatever the user's code leaves behind
                self._copies.discard(pid)
                self._say({"exited": {"pid": pid, "status": status, "kernel": kernel}})

    def _listen(self, poll: select.poll) -> None:
        channel = self._channel
        assert channel is not None
        try:
            data = channel.recv(4096)
        except OSError:
            data = b""
        if not data:
            poll.unregister(channel)
            channel.close()
            self._channel, self._alone_since = None, time.monotonic()
            return
        order = json.loads(data)
        if order.get("end"):
            self._end()
        if "member" in order:
            self._copies.add(int(order["member"]))
        if "signal" in order:
            self._signal(int(order["signal"]), bool(order.get("all")))

    def _open_door(self, poll: select.poll, own: int) -> None:
        """A host has come: the newest is the one that counts."""
        try:
            guest, _ = self._door.accept()
        except OSError:
            return
        if self._channel is not None:
            poll.unregister(self._channel)
            self._channel.close()
        self._channel, self._alone_since = guest, None
        poll.register(guest, select.POLLIN)
        self._introduce(own)

    def _signal(self, number: int, everyone: bool) -> None:
        for pid in self._others() if everyone else [self._kernel]:
            if pid == self._kernel and self._kernel_status is not None:
                continue
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def _others(self) -> list[int]:
        return [-1] if self._own_namespace else _descendants(os.getpid())

    def _end(self) -> NoReturn:
        """End all and exit. In a pid namespace the exit alone does it, and Linux vouches for that."""
        deadline = time.monotonic() + _KILL_SECONDS
        news = select.poll()
        news.register(self._wake, select.POLLIN)
        while not self._own_namespace and time.monotonic() < deadline:
            left = _descendants(os.getpid())
            if not left:
                break
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            news.poll(_KILL_PAUSE_MS)
            self._reap()
        self._reap()
        os._exit(0)


def _descendants(root: int) -> list[int]:
    """Every process below ``root``; none where ``/proc`` can't be read, the kernel's death signal must do then."""
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        try:
            tasks = os.listdir(f"/proc/{pid}/task")
            for task in tasks:
                with open(f"/proc/{pid}/task/{task}/children") as file:
                    children = [int(child) for child in file.read().split()]
                found += children
                waiting += children
        except OSError:
            continue
    return found
