"""The shim of a program: a small process that starts a program in a session's sandbox, watches it and ends it.

Theory of operation. A program of a session's client (a shell command) must have the confinement of the kernel and must
not be the kernel's child: children prevent forks, and a computing kernel starts none. The init can't be its parent,
since its seccomp filter has no exec. So the kernel host forks this shim. The shim joins the session's cgroup and
namespaces and forks, because a pid namespace applies to children only (setns(2)). The child drops all rights that the
kernel has dropped and runs the program.

The shim is in no pid namespace of the sandbox, so the session can't see it. The program's process is visible from its
fork on, and until exec it has a copy of the host's memory. So both are hidden before they enter
(``confine.hide_from_sandbox``). The shim talks to the server only, over a socket that came with the request.

Datagrams in JSON. To the server: ``{"pid"}`` as seen inside, or ``{"failed", "missing": bool}``, and ``{"ended": wait
status}`` at the end. From the server: ``{"signal": n}`` for the program's process group. When the server closes the
socket, both processes end.
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

#: Largest request in bytes, and longest error message in characters.
_DATAGRAM, _MAX_ERROR = 4096, 2000


class ExecSpec:
    """Program to run, and its sandbox."""

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
        """See ``confine.join`` and ``confine.exec_joined``. With ``terminal``, descriptor 0 is a terminal.

        The terminal becomes the program's controlling terminal.
        """
        self.plan, self.cgroup, self.kernel = plan, cgroup, kernel
        self.argv, self.env, self.cwd, self.write, self.terminal = argv, env, cwd, write, terminal


def run_shim(spec: ExecSpec, server: socket.socket) -> NoReturn:
    """Run the shim in a fresh single-threaded fork whose descriptors 0 to 2 are the program's."""
    try:
        confine.hide_from_sandbox(spec.plan)
        confine.join(spec.plan, spec.cgroup, spec.kernel)
        # Exec closes the write end (O_CLOEXEC): the end of the pipe reports a successful start.
        start_read, start_pipe = os.pipe2(os.O_CLOEXEC)
        program = os.fork()
        if program == 0:
            _run(spec, start_pipe)
        os.close(start_pipe)
        _release_streams()
        if _report_start(server, start_read):
            _watch(server, program)
    except (OSError, ValueError, confine.StepFailed) as error:
        _send(server, {"failed": f"{error}"[:_MAX_ERROR], "missing": False})
    finally:
        os._exit(0)


def _run(spec: ExecSpec, start_pipe: int) -> NoReturn:
    """In the child: report the pid, become confined, run the program. Exec closes the pipe, which reports the start."""
    try:
        os.setsid()
        if spec.terminal:
            # A session leader without a terminal may take one (ioctl_tty(2)). Ctrl-C then signals the program.
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.write(start_pipe, f"{os.getpid()}\n".encode())
        lx.close_others({0, 1, 2, start_pipe})
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM):
            # Python ignores SIGPIPE, and ignored signals stay ignored over exec (execve(2)).
            signal.signal(number, signal.SIG_DFL)
        confine.exec_joined(spec.plan, spec.argv, spec.env, spec.cwd, spec.write)
    except BaseException as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError)
        os.write(start_pipe, json.dumps({"failed": f"{error}"[:_MAX_ERROR], "missing": missing}).encode())
    finally:
        os._exit(127)


def _release_streams() -> None:
    """Close the program's ends of its pipes, so that readers see their end."""
    null = os.open("/dev/null", os.O_RDWR) if os.path.exists("/dev/null") else -1
    for target in (0, 1, 2):
        if null >= 0:
            os.dup2(null, target)
        else:
            os.close(target)


def _report_start(server: socket.socket, start_read: int) -> bool:
    """Report the start to the server. Return False if the program did not start."""
    report = b""
    while data := os.read(start_read, _DATAGRAM):
        report += data
    os.close(start_read)
    pid, _, failure = report.partition(b"\n")
    if failure or not pid:
        _send(server, json.loads(failure) if failure else {"failed": "it ended before it started", "missing": False})
        return False
    _send(server, {"pid": int(pid)})
    return True


def _watch(server: socket.socket, program: int) -> None:
    """Pass on signals until the program ends or the server closes the socket."""
    # Readable when the process ends (pidfd_open(2)), without a SIGCHLD handler.
    pidfd = os.pidfd_open(program)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(server, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == pidfd:
                _send(server, {"ended": os.waitpid(program, 0)[1]})
                return
            data = server.recv(_DATAGRAM)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program, int(json.loads(data)["signal"]) if data else signal.SIGKILL)
            if not data:
                return


def _send(server: socket.socket, body: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        server.send(json.dumps(body).encode())
