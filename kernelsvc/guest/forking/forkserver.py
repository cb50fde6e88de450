"""The template process: it imports modules once, waits with one thread, and forks for each session.

The kernel host starts it with the environment's own interpreter and talks to it over one ``SOCK_SEQPACKET`` socket. The
first message lists the modules to import. Then each datagram of one byte carries one descriptor, the *spawn channel*.
The template forks, and **the child** reads the plan from that channel, so that no session's environment is ever in the
heap from which the next session is forked.

::

    host ── plan, descriptors ──> child (the middle) ── enter ── fork ──> init ── build ── fork ──> kernel

The middle process exits after it has forked the init, and the template only reaps it. The init's new parent is the host
(a subreaper, prctl(2)), so sessions outlive their template. Without a pid namespace there is no middle process, and the
host becomes the init's parent when the template ends.
"""

from __future__ import annotations

import json
import os
import platform
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

# Import all of them here: a confined session can no longer read kernelsvc's files.
from kernelsvc.guest import import_policy, ipython, limit_errors, variables
from kernelsvc.guest.confine import confine, init, linux, neutral_paths
from kernelsvc.guest.forking import copy_tree, fork, fork_safety, state_pickle
from kernelsvc.guest.main_loop import PreparedKernel, prepare, serve

_LOADED = (limit_errors, copy_tree, fork, import_policy, ipython, state_pickle, fork_safety, variables)

#: Largest datagram, in bytes: the plan with its filters, the environment, the identity.
DATAGRAM = 192 * 1024
#: Descriptors of a spawn: kernel listener, init listener, then read and write ends of stdout and stderr.
DESCRIPTORS = 6
#: Imports a module and counts threads. It forks because OpenBLAS ends its pool at the first fork.
_COUNT = """
import importlib, os, sys
importlib.import_module(sys.argv[1])
os.fork() or os._exit(0)
os.wait()
print(len(os.listdir("/proc/self/task")), flush=True)
os._exit(0)
"""


def main(control_fd: int) -> None:
    """Run a template until the host closes its end of the socket."""
    control = socket.socket(fileno=control_fd)
    request = json.loads(control.recv(DATAGRAM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        prepared = prepare(request["preload"])
    except BaseException as error:
        threads = _threads_of(request["preload"]) if isinstance(error, RuntimeError) else ""
        why = threads or f"{type(error).__name__}: {error}"
        control.send(json.dumps({"failed": why[:4000]}).encode())
        raise
    sys.path[:] = [p for p in sys.path if p != sys.argv[2]]
    control.send(json.dumps(_describe(request.get("binds") or {})).encode())
    _wait(control, prepared)


def _threads_of(preload: Sequence[str]) -> str:
    """Return a message about modules that start threads at import, which a template can't have. Tries each alone."""
    found = {name: _count_threads(name) for name in preload}
    return "; ".join(
        f"{name} starts {count - 1} thread{'s' * (count > 2)} when it is imported, which no fork would have: "
        "take it out of preload, sessions can import it themselves"
        for name, count in found.items()
        if count > 1
    )


def _count_threads(name: str) -> int:
    """Return the number of threads after this module is imported, or 0 if the import fails."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _COUNT, name], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
        )
        return int(done.stdout.split()[-1])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return 0


def _describe(binds: Mapping[str, str]) -> dict[str, Any]:
    packages = ("ipykernel", "IPython", "numpy", "pandas", "matplotlib")
    found = {name: getattr(sys.modules.get(name), "__version__", None) for name in packages}
    prefixes = {sys.prefix, sys.base_prefix, *(path for path in sys.path if os.path.isdir(path))}
    return {
        "ready": True,
        "pid": os.getpid(),
        "python": platform.python_version(),
        # The machine's paths, since the host looks them up.
        "prefixes": sorted({neutral_paths.original(path, binds) for path in prefixes}),
        "neutral": any(sys.executable.startswith(f"{target}/") for target in binds.values()),
        "versions": {name: version for name, version in found.items() if version},
        "threads": len(os.listdir("/proc/self/task")),
    }


def _wait(control: socket.socket, prepared: PreparedKernel) -> None:
    """Fork for each descriptor that arrives, and reap the middle processes."""
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    # SIGCHLD writes a byte, so that poll returns. A handler alone would not end poll (PEP 475).
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(wake_read, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == wake_read:
                os.read(wake_read, 4096)
                init.ended_children()
                continue
            byte, fds, _, _ = socket.recv_fds(control, 16, 1)
            if not byte:
                return
            for channel_fd in fds:
                _fork(socket.socket(fileno=channel_fd), prepared)


def _fork(channel: socket.socket, prepared: PreparedKernel) -> None:
    """Fork the middle process. An error is reported to the host and does not end the template."""
    with channel:
        try:
            pid = os.fork()
        except OSError as error:  # No memory, or the process limit of this user (fork(2), EAGAIN, ENOMEM).
            init.say_failed(channel, error)
            return
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _child(channel, prepared)


def _child(channel: socket.socket, prepared: PreparedKernel) -> NoReturn:
    try:
        data, fds, _, _ = socket.recv_fds(channel, DATAGRAM, DESCRIPTORS)
        spawn = json.loads(data)
        if len(fds) != DESCRIPTORS:
            raise ValueError(f"{len(fds)} descriptors came with the plan, {DESCRIPTORS} were expected")
        _redirect_stdio()
        linux.close_others({0, 1, 2, channel.fileno(), *fds})
        start(channel, spawn, fds, prepared)
    except BaseException as error:
        init.fail(channel, error)


def _redirect_stdio() -> None:
    """Point descriptors 0 to 2 to /dev/null: they lead to the host's log, where the session must not write."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def start(channel: socket.socket, spawn: dict[str, Any], fds: Sequence[int], prepared: PreparedKernel) -> NoReturn:
    """In the middle process: enter the namespaces, then fork the init, which forks the kernel."""
    plan = spawn["plan"]
    init.limit_descriptors(spawn["descriptors"])
    confine.enter(plan)
    if "pid" in plan["namespaces"] and os.fork():
        # Only children are in the new pid namespace (pid_namespaces(7)). Without one, the middle process becomes the
        # init.
        os._exit(0)
    listener, init_listener, *raw = fds
    session_init = init.Init(channel, socket.socket(fileno=init_listener), plan, grace=spawn["grace"])
    confine.build(plan)
    kernel = os.fork()
    if kernel == 0:
        session_init.forget()
        _kernel(channel, spawn, listener, raw, prepared)
    for fd in (listener, *raw):
        os.close(fd)
    session_init.run(kernel)


def _kernel(
    channel: socket.socket, spawn: dict[str, Any], listener: int, raw: Sequence[int], prepared: PreparedKernel
) -> NoReturn:
    """In the kernel: finish confinement, then serve. The channel closes before any user code runs."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        plan, identity = spawn["plan"], dict(spawn["identity"])
        bound = socket.socket(fileno=listener)
        # After ``seal`` no socket can be bound to a path. This one is bound already and listens here.
        confine.seal(plan)
        identity["workdir"] = plan["home"]
        rules = spawn.get("imports") or {}
        if rules:
            import_policy.install(rules.get("allow"), rules.get("deny") or [])
    except BaseException as error:
        init.fail(channel, error)

    def ready() -> None:
        channel.send(b'{"ready": true}')
        channel.close()

    serve(prepared, identity, bound, raw, ready)
