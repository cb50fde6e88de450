"""The init of a session: it reaps, reports and signals processes, and ends the session when no host remains.

Each session has one, confined or not. In a pid namespace it is pid 1, and its exit ends all processes of the namespace
(pid_namespaces(7)). Without one it is a subreaper (prctl(2)), so daemons become its children, and it searches ``/proc``
to end them. It runs no user code, and after ``guard_init`` it can open no file, create no socket and start no program.

The spawn channel connects it to the kernel host. When the channel closes, the host is gone. The init then waits
``grace`` seconds at its listener (a socket in the runtime directory) for the next host, and ends the session if none
connects.

Datagrams in JSON. To the host: ``{"kernel": true, "status"}`` with the pidfds of init and kernel, ``{"exited": {"pid",
"status", "kernel"}}`` for the kernel and its forks, ``{"failed", "step", "trace"}`` if there is no kernel. From the
host: ``{"member": pid}`` for each fork, ``{"signal": n, "all": bool}``, ``{"end": true}``.
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

#: Milliseconds to wait for ended children between two rounds of SIGKILL, while new processes appear.
_KILL_PAUSE_MS = 5
#: Seconds after which the init gives up.
_KILL_SECONDS = 5.0


def ended_children() -> list[tuple[int, int]]:
    """Reap all children that have ended. Return pids and wait statuses."""
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
    """Restore the usual soft limit of open files, which the host has raised for itself."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def say_failed(channel: socket.socket, error: BaseException) -> None:
    """Report to the host why there is no kernel. Errors are ignored."""
    step = getattr(error, "step", "start")
    text = f"{type(error).__name__}: {error}"
    body = {"failed": text[:2000], "step": step, "trace": traceback.format_exc()[-3000:]}
    with contextlib.suppress(OSError):
        channel.send(json.dumps(body).encode())


def fail(channel: socket.socket, error: BaseException) -> NoReturn:
    """Call ``say_failed`` and end this process."""
    try:
        say_failed(channel, error)
    finally:
        os._exit(70)


class Init:
    """Created before confinement is built. Call ``run`` after the kernel is forked."""

    def __init__(self, channel: socket.socket, listener: socket.socket, plan: dict[str, Any], *, grace: float) -> None:
        self._channel: socket.socket | None = channel
        self._listener = listener
        self._plan = plan
        self._grace = grace
        self._own_namespace = "pid" in plan["namespaces"]
        self._host_lost_at: float | None = None
        self._kernel = 0
        self._kernel_status: int | None = None
        self._kernel_pidfd = -1
        self._forks: set[int] = set()
        listener.listen(4)

    def forget(self) -> None:
        """In the kernel: close the init's sockets."""
        self._listener.close()
        for fd in self._plan.get("listeners", ()):
            os.close(fd)

    def run(self, kernel: int) -> NoReturn:
        """Guard ``kernel`` until the host orders the end, or no host connects within the grace time."""
        self._kernel = kernel
        self._kernel_pidfd = os.pidfd_open(kernel)
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake = wake_read
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # In a pid namespace, pid 1 gets no signal from inside without a handler (pid_namespaces(7)). Without one,
            # it must ignore them.
            signal.signal(number, signal.SIG_IGN)
        # Before ``guard_init``, after which nothing can be opened. The host gets pidfds, since pids of the namespace
        # mean nothing there.
        own = os.pidfd_open(os.getpid())
        # unix(7), ETOOMANYREFS: it may send descriptors while its user has no more in flight than it may open files.
        limit_descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        self._send_pidfds(own)
        confine.guard_init(self._plan)
        poll = select.poll()
        poll.register(wake_read, select.POLLIN)
        poll.register(self._listener, select.POLLIN)
        if self._channel is not None:
            poll.register(self._channel, select.POLLIN)
        self._reap()
        while True:
            for fd, _ in poll.poll(self._timeout_ms()):
                if fd == wake_read:
                    self._reap()
                elif fd == self._listener.fileno():
                    self._accept_host(poll, own)
                elif self._channel is not None and fd == self._channel.fileno():
                    self._receive(poll)
            if self._host_lost_at is not None and time.monotonic() - self._host_lost_at >= self._grace:
                self._end()

    def _timeout_ms(self) -> int | None:
        if self._host_lost_at is None:
            return None
        left = self._grace - (time.monotonic() - self._host_lost_at)
        return max(0, int(left * 1000) + 1)

    def _send_pidfds(self, own: int) -> None:
        if self._channel is None:
            return
        try:
            report: dict[str, Any] = {"kernel": True, "status": self._kernel_status}
            fds = [own, self._kernel_pidfd, *self._plan.get("listeners", ())]
            socket.send_fds(self._channel, [json.dumps(report).encode()], fds)
        except OSError:
            return  # The host is gone. The poll reports it.

    def _send(self, body: dict[str, Any]) -> None:
        if self._channel is not None:
            try:
                self._channel.send(json.dumps(body).encode(), socket.MSG_DONTWAIT)
            except OSError:
                return  # The socket is full or closed. The host also watches pidfds.

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        for pid, status in ended_children():
            kernel = pid == self._kernel and self._kernel_status is None
            if kernel:
                self._kernel_status = status
            if kernel or pid in self._forks:  # Not of other children, which user code left behind.
                self._forks.discard(pid)
                self._send({"exited": {"pid": pid, "status": status, "kernel": kernel}})

    def _receive(self, poll: select.poll) -> None:
        channel = self._channel
        assert channel is not None
        try:
            data = channel.recv(4096)
        except OSError:
            data = b""
        if not data:
            poll.unregister(channel)
            channel.close()
            self._channel, self._host_lost_at = None, time.monotonic()
            return
        order = json.loads(data)
        if order.get("end"):
            self._end()
        if "member" in order:
            self._forks.add(int(order["member"]))
        if "signal" in order:
            self._signal(int(order["signal"]), bool(order.get("all")))

    def _accept_host(self, poll: select.poll, own: int) -> None:
        """Accept a connection. The newest host has control."""
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if self._channel is not None:
            poll.unregister(self._channel)
            self._channel.close()
        self._channel, self._host_lost_at = connection, None
        poll.register(connection, select.POLLIN)
        self._send_pidfds(own)

    def _signal(self, number: int, everyone: bool) -> None:
        for pid in self._others() if everyone else [self._kernel]:
            if pid == self._kernel and self._kernel_status is not None:
                continue
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def _others(self) -> list[int]:
        # kill(2): -1 is every process that the caller may signal except pid 1, so all of the namespace.
        return [-1] if self._own_namespace else _descendants(os.getpid())

    def _end(self) -> NoReturn:
        """End all processes and exit. In a pid namespace Linux ends them at the exit (pid_namespaces(7))."""
        deadline = time.monotonic() + _KILL_SECONDS
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while not self._own_namespace and time.monotonic() < deadline:
            left = _descendants(os.getpid())
            if not left:
                break
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            poll.poll(_KILL_PAUSE_MS)
            self._reap()
        self._reap()
        os._exit(0)


def _descendants(root: int) -> list[int]:
    """Return all processes below ``root``, or none if ``/proc`` is unreadable (then PR_SET_PDEATHSIG must do)."""
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
