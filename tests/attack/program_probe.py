"""Programs that begin beside a hostile kernel, which looks into each of them; what it found, as JSON.

A program of its own, so that the tests can run it as root and as an ordinary user::

    python -m attack.program_probe [--without LAYER ...] [--bare]

What is started is a fork of this process until it execs. This one plays the kernel
host: a secret is in its environment, its arguments and its memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from typing import Any, NoReturn

from attack.driver import LIMITS, _release, _without
from kernelsvc.guest.confine import confine, exec_shim
from kernelsvc.host.exec import fork_shim
from kernelsvc.sandbox.manager import SandboxAllocation, SandboxManager
from kernelsvc.sandbox.plan import SCRATCH
from kernelsvc.sandbox.probe import probe

SECRET = "kernelsvc-canary-of-the-host"
#: Programs that are begun, one after the other; each is open to a look for a millisecond.
PROGRAMS = 60
#: In the kernel: look at every process but the own and its init, as fast as it goes.
LOOK = """
import os, sys
wanted, mine, found, seen = WANTED.encode(), {'1', str(os.getpid()), str(os.getppid())}, {}, set()
os.write(1, b'looking\\n')
os.set_blocking(0, False)
while True:
    try:
        if os.read(0, 1) == b'':
            break
    except BlockingIOError:
        pass
    for pid in os.listdir('/proc'):
        if not pid.isdecimal() or pid in mine:
            continue
        seen.add(pid)
        for name in ('environ', 'cmdline'):
            try:
                with open(f'/proc/{pid}/{name}', 'rb', buffering=0) as f:
                    if wanted in f.read(1 << 16):
                        found[name] = found.get(name, 0) + 1
            except OSError:
                pass
        try:
            with open(f'/proc/{pid}/maps') as maps, open(f'/proc/{pid}/mem', 'rb', buffering=0) as memory:
                for line in maps:
                    if '[heap]' in line or 'rw-p 00000000 00:00 0' in line:
                        start, end = (int(x, 16) for x in line.split()[0].split('-'))
                        memory.seek(start)
                        if wanted in memory.read(min(end - start, 1 << 22)):
                            found['mem'] = found.get('mem', 0) + 1
                            break
        except (OSError, ValueError):
            pass
import json
os.write(1, json.dumps({'found': found, 'seen': len(seen)}).encode())
"""


def _attacker(ticket: SandboxAllocation, pids: int, stdin: int, stdout: int) -> NoReturn:
    """The middle, its init and the kernel; the kernel's pid as this machine sees it comes over a socket."""
    try:
        os.dup2(stdin, 0)
        os.dup2(stdout, 1)
        confine.enter(ticket.plan)
        if os.fork():
            os._exit(0)
        confine.build(ticket.plan)
        kernel = os.fork()
        if kernel == 0:
            # The credentials of who sends carry the pid, translated for who receives (unix(7)).
            socket.socket(fileno=os.dup(pids)).send(b"here")
            confine.lx.close_others({0, 1, 2})
            confine.seal(ticket.plan)
            exec(compile(f"WANTED = {SECRET!r}\n{LOOK}", "<cell>", "exec"), {"__name__": "__main__"})
            os._exit(0)
        confine.guard_init(ticket.plan)
        os.waitpid(kernel, 0)
    except BaseException as error:
        os.write(2, f"SETUP {error}\n".encode())
    finally:
        os._exit(0)


def _pid_of_sender(sock: socket.socket) -> int:
    _, control, _, _ = sock.recvmsg(16, socket.CMSG_SPACE(12))
    return int.from_bytes(control[0][2][:4], sys.byteorder)


def _begin(order: exec_shim.ExecSpec) -> str:
    """One program; what its keeper said of its end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open(os.devnull, "r+b") as null:
        fork_shim(order, [null.fileno()] * 3 + [theirs.fileno()], 256)
        theirs.close()
        ours.settimeout(20)
        told = ""
        while "ended" not in told and "failed" not in told:
            data = ours.recv(4096)
            if not data:
                break
            told = data.decode()
    with contextlib.suppress(ChildProcessError):
        os.wait()
    return told


def run(base: str, without: list[str]) -> dict[str, Any]:
    """Make a kernel that looks, begin programs beside it, and tell what it saw."""
    os.mkdir(os.path.join(base, "run"))
    workdir = os.path.join(base, "work")
    os.mkdir(workdir)
    found = _without(probe(directory=os.path.join(base, "run")), without)
    sandbox = SandboxManager(policy="best-effort", runtime_dir=os.path.join(base, "run"), found=found)
    with contextlib.closing(sandbox):
        ticket = sandbox.prepare("k", workdir=workdir, limits=LIMITS, python=sys.executable)
        plan = confine.program_plan(ticket.plan, [])
        (answer, answers), (stop, stops) = os.pipe(), os.pipe()
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        here.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        middle = os.fork()
        if middle == 0:
            os.close(stops)
            _attacker(ticket, there.fileno(), stop, answers)
        os.close(answers)
        kernel = os.pidfd_open(_pid_of_sender(here))
        os.waitpid(middle, 0)
        assert os.read(answer, 100) == b"looking\n"
        ended = []
        for _ in range(PROGRAMS):
            order = exec_shim.ExecSpec(
                {**plan},
                ticket.group.join_files if ticket.group else [],
                kernel,
                ["sh", "-c", "ls /proc/self/fd >/dev/null && test -r /proc/self/environ && exit 7"],
                {},
                plan["home"],
                [plan["home"], *SCRATCH] if "mount" in plan["namespaces"] else None,
                terminal=False,
            )
            ended.append(_begin(order))
        os.close(stops)
        said = b""
        while data := os.read(answer, 65536):
            said += data
        deadline = time.monotonic() + 10
        while not _release(sandbox, ticket) and time.monotonic() < deadline:
            pass
    return {"ended": sorted(set(ended)), "isolation": ticket.report.isolation, **json.loads(said)}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--without", action="append", default=[])
    parser.add_argument("--bare", action="store_true", help="take away the wall under test")
    parser.add_argument("secret", nargs="?")
    given = parser.parse_args()
    if given.bare:
        confine.hide_from_sandbox = lambda plan: None
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    kept = [SECRET.encode() * 1000 for _ in range(100)]  # the heap's
    with tempfile.TemporaryDirectory(prefix="kab-", ignore_cleanup_errors=True) as base:
        os.chmod(base, 0o755)
        answer = run(base, given.without)
    sys.stdout.write(json.dumps({**answer, "kept": len(kept)}))


if __name__ == "__main__":
    main()
