"""The keeper of a program: one small process that starts it beside a session's kernel, watches it and ends it.

Theory of operation. A program of a session's client (a shell command, say) must
have the kernel's walls around it and must not be the kernel's child: children
stand in the way of a fork, and a kernel that computes starts none. The init
can't be its parent either, for its own filter has no exec. So the kernel host
forks this: it joins the session's cgroup and namespaces, forks once more,
because a pid namespace takes hold of children only, and the child drops every
right that the kernel has dropped before it runs the program.

The keeper itself is seen by nobody in there: it is not in their pid namespace. The
program's process is, from its fork on, and until it execs it holds a copy of the
host's memory: so both are concealed before they enter (``confine.conceal``).
It hears and tells the server alone, over a socket that came with the request.

Datagrams, JSON. To the server: ``{"pid"}``, the program's as seen inside, or
``{"failed", "missing": bool}``; and ``{"ended": wait status}`` at its end. From
the server: ``{"signal": n}`` for the program and what it started in its process
group. When the server lets go of the socket, both end.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import termios
from typing import Any, NoReturn

from kernelsvc.guest.confine import confine
from kernelsvc.guest.confine import linux as lx

#: Largest order, and largest word about a failed start.
_DATAGRAM, _WORDS = 4096, 2000


class ExecSpec:
    """What is to be run, and where."""

    def __init__(
        self,
        plan: dict[str, Any],
        cgroup: list[str],
        kernel: int,
        argv: list[str],
        env: dict[str, str],
        cwd: str,
        write: list[str] | None,
        *,
        terminal: bool,
    ) -> None:
        """See ``confine.join`` and ``confine.exec_joined``; with ``terminal`` descriptor 0 is one, and becomes its."""
        self.plan, self.cgroup, self.kernel = plan, cgroup, kernel
        self.argv, self.env, self.cwd, self.write, self.terminal = argv, env, cwd, write, terminal


def run_shim(order: ExecSpec, server: socket.socket) -> NoReturn:
    """Be a keeper: in a fresh fork with a single thread, descriptors 0 to 2 already those of the program."""
    try:
        confine.hide_from_sandbox(order.plan)
        confine.join(order.plan, order.cgroup, order.kernel)
        news, told = os.pipe2(os.O_CLOEXEC)
        program = os.fork()
        if program == 0:
            _run(order, told)
        os.close(told)
        _let_go_of_streams()
        if _introduce(server, news):
            _watch(server, program)
    except (OSError, ValueError, confine.StepFailed) as error:
        _say(server, {"failed": f"{error}"[:_WORDS], "missing": False})
    finally:
        os._exit(0)


def _run(order: ExecSpec, told: int) -> NoReturn:
    """In the child: tell the own pid, become confined, run the program. Its start is the end of the pipe."""
    try:
        os.setsid()
        if order.terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.write(told, f"{os.getpid()}\n".encode())
        lx.close_others({0, 1, 2, told})
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # Python ignores SIGPIPE, and what is ignored survives exec
        confine.exec_joined(order.plan, order.argv, order.env, order.cwd, order.write)
    except BaseException as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError)
        os.write(told, json.dumps({"failed": f"{error}"[:_WORDS], "missing": missing}).encode())
    finally:
        os._exit(127)


def _let_go_of_streams() -> None:
    """The program's ends of its pipes are its own: whoever reads them must see them end."""
    null = os.open("/dev/null", os.O_RDWR) if os.path.exists("/dev/null") else -1
    for target in (0, 1, 2):
        if null >= 0:
            os.dup2(null, target)
        else:
            os.close(target)


def _introduce(server: socket.socket, news: int) -> bool:
    """Tell the server of the start; False if there was none."""
    said = b""
    while data := os.read(news, _DATAGRAM):
        said += data
    os.close(news)
    pid, _, failure = said.partition(b"\n")
    if failure or not pid:
        _say(server, json.loads(failure) if failure else {"failed": "it ended before it began", "missing": False})
        return False
    _say(server, {"pid": int(pid)})
    return True


def _watch(server: socket.socket, program: int) -> None:
    """Pass signals on until the program or the server has gone."""
    pidfd = os.pidfd_open(program)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(server, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == pidfd:
                _say(server, {"ended": os.waitpid(program, 0)[1]})
                return
            data = server.recv(_DATAGRAM)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program, int(json.loads(data)["signal"]) if data else signal.SIGKILL)
            if not data:
                return


def _say(server: socket.socket, body: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        server.send(json.dumps(body).encode())
