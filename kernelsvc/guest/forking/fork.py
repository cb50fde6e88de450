"""Forking a live kernel between cells.

A copy is made at the top of the main thread's stack, with no cell, no coroutine
and no handler on it, and the loop not running. Order matters::

    survey, quiesce (idle pools, OpenMP), flush files ─ fork ─┬─ original: answer with the pid
                                                              └─ copy: own wire, pipes, file offsets;
                                                                 wait for HELLO; then own session, loop

Every copy waits for HELLO before any of its code runs on: for a branch that is
the server's "go", said when its limits are set; a checkpoint waits for as long
as nobody needs it, with its garbage collector off so that its pages stay shared.

Garbage. Kernels are never frozen here, and the template's frozen objects never
thawed: ``gc.freeze`` before each fork would keep the original's cycles for ever,
and ``gc.unfreeze`` after it would make each full collection walk, and so copy,
everything that the template had imported.

This module knows asyncio's selector loop from the inside (``_selector``,
``_make_self_pipe``): public means can't give a loop another epoll instance.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import gc
import io
import os
import random
import select
import selectors
import signal
import socket
import sys
import time
import traceback
import warnings
from typing import TYPE_CHECKING, Any

from kernelsvc.guest.confine import confine
from kernelsvc.guest.forking import fork_safety, state_pickle
from kernelsvc.guest.forking.fork_safety import ForkSafety
from kernelsvc.guest.forking.prefault import PagePrefault
from kernelsvc.guest.forking.proc_maps import ProcMaps

if TYPE_CHECKING:
    from kernelsvc.guest.main_loop import MainLoop
    from kernelsvc.guest.wire_server import ControlRequest

#: The live kernel offers itself to the OOM killer before its checkpoints (proc(5), ``oom_score_adj``).
OOM_LIVE, OOM_PARKED = 300, 0
#: Landlock's own bound on its layers, and how many of them parents may use up, so that some are left for branches.
MAX_FENCES, PARENTS_FENCES = 16, 10
_FDS = 5
#: Seconds after which a copy at whose door nobody was ends: who asked for it has given up, and nobody knows of it.
CLAIM_SECONDS = 60.0
_OMP_PAUSE_HARD = 2
_mapped = ProcMaps()


def answer(runner: MainLoop, control: ControlRequest) -> None:
    """Answer a CONTROL request; in a copy, return when it is live."""
    reap(runner)
    if control.op == "survey":
        _mapped.read()
        found = check_fork_safety(runner, set(), _mapped.lines(*fork_safety.TELLING))
        _mapped.drop()
        runner.wire.reply(control.number, {"ok": True, "obstacles": found.obstacles, "warnings": found.warnings})
    elif control.op == "fork":
        _fork(runner, control)
    elif control.op == "fence":
        runner.wire.reply(
            control.number, restrict_writes(runner, [str(path) for path in control.body.get("write") or []])
        )
    elif control.op in ("save", "load") and len(control.fds) == 1:
        runner.wire.reply(control.number, state_pickle.answer(runner.kernel.shell, control.body, control.fds.pop()))
    else:
        runner.wire.reply(control.number, {"ok": False, "refused": [f"There is no operation {control.op!r}."]})


def restrict_writes(runner: MainLoop, write: list[str]) -> dict[str, Any]:
    """Leave branches alone from now on: keep the right to write to these directories only.

    A branch has been taken the right to touch its parent's files already. Here the
    parent gives up its right to its branches': a process may always tighten, and never
    undo it, so each group of branches costs a layer and the directories of later ones
    must be among ``write``.
    """
    if write == runner.fenced:
        return {"ok": True}
    if runner.fences >= PARENTS_FENCES:
        return {"ok": False, "refused": ["This session has been fenced off from its branches too often."]}
    # A layer that scoped signals would also keep it from ending what it has started itself.
    alone = not fork_safety.children(set(runner.forks))
    try:
        confine.restrict_writes([path for path in write if os.path.isdir(path)], scope=alone)
    except confine.StepFailed as error:
        return {"ok": False, "refused": [str(error)]}
    runner.fences, runner.fenced = runner.fences + 1, write
    return {"ok": True}


def check_fork_safety(runner: MainLoop, given: set[int], mapped: str) -> ForkSafety:
    """What this process holds that a copy would break or share; ``given`` came with the request."""
    _quiesce_pools(runner.loop)
    return fork_safety.survey(runner.loop, runner.own_fds() | given, runner.forks, mapped)


def reap(runner: MainLoop) -> None:
    """Take leave of copies that ended; children of the user's are the user's to wait for."""
    for pid in list(runner.forks):
        try:
            gone = os.waitpid(pid, os.WNOHANG)[0] == pid
        except ChildProcessError:
            gone = True  # user code waited for any child
        if gone:
            runner.forks.remove(pid)


def set_oom_score(value: int) -> None:
    """Offer this process to the OOM killer, or rather another one. Best effort."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(value))


# --- the fork ------------------------------------------------------------------------------


def _fork(runner: MainLoop, control: ControlRequest) -> None:
    began = time.perf_counter()
    body = control.body
    if len(control.fds) != _FDS or body.get("mode") not in ("checkpoint", "branch"):
        refused = ["A fork request carries five descriptors, and a mode that is 'checkpoint' or 'branch'."]
        runner.wire.reply(control.number, {"ok": False, "refused": refused})
        return
    if body["mode"] == "branch" and runner.fences >= MAX_FENCES:
        refused = ["Branches of branches can't go deeper: Linux fences a process 16 times. Branch from an earlier one."]
        runner.wire.reply(control.number, {"ok": False, "refused": refused})
        return
    _mapped.read()
    mapped = _mapped.lines(*fork_safety.TELLING)
    found = check_fork_safety(runner, set(control.fds), mapped)
    if found.obstacles and not body.get("force"):
        _mapped.drop()
        said = {"ok": False, "refused": found.obstacles, "warnings": found.warnings}
        runner.wire.reply(control.number, said)
        return
    warned = [*found.obstacles, *found.warnings, *_quiesce(fork_safety.openmp(mapped))]
    flush_files(runner)
    # Not for a branch: it would make the branch's pages the branch's alone.
    again = body["mode"] == "checkpoint" and "workdir" not in body.get("identity", {})
    if again:
        runner.hot.forking(_mapped)
    _mapped.drop()
    files = any(found.regular for found in fork_safety.descriptors(runner.own_fds() | set(control.fds)))
    state = random.getstate()
    pid = _copy(runner)
    if pid:
        runner.forks.append(pid)
        cost = round((time.perf_counter() - began) * 1000, 2)
        runner.wire.reply(control.number, {"ok": True, "pid": pid, "cost_ms": cost, "warnings": warned})
        if again:
            runner.hot.forked()
        return
    try:
        random.setstate(state)  # CPython seeds it anew in a child; a copy goes on where its original was
        _become(runner, control, files=files)
    except BaseException:
        os.write(2, traceback.format_exc().encode("utf-8", "replace"))
        os._exit(70)


def _copy(runner: MainLoop) -> int:
    runner.ours = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of native threads, which were looked at
            return os.fork()
    finally:
        runner.ours = False


def _become(runner: MainLoop, control: ControlRequest, *, files: bool) -> None:
    """In the copy: nothing kernel-side may be shared with the original; then wait for HELLO.

    Args:
        runner: the copy's.
        control: the request.
        files: whether regular files of the user's are open.
    """
    # A server may knock as soon as the new door is there; it must not be let in before the copy is who it is to be.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
    collecting = gc.isenabled()
    gc.disable()
    listener, raw = socket.socket(fileno=control.fds[0]), control.fds[1:]
    control.fds = []
    os.setsid()
    mine = runner.own_fds() | {listener.fileno(), *raw}
    runner.forks.clear()
    runner.hot = PagePrefault()
    runner.wire.watcher = None
    polled = runner.wire.fds()
    old_reads = runner.wire.adopt(listener, runner.take_raw(raw))
    for fd in old_reads:
        os.close(fd)
    if files:  # now, for a branch may soon have no right to open them
        reopen_files(mine)
    runner.promised = control.body.get("identity") or {}
    set_oom_score(OOM_PARKED)
    _await_claim(listener, float(control.body.get("claim_seconds") or CLAIM_SECONDS))
    runner.wire.wait_for(lambda: runner.wire.woken is not None)
    # What nobody sees before it is awake: each page that is written here would be a page that waits.
    renew_loop(runner.loop, polled)
    runner.kernel.session.renew()
    runner.kernel.usage.reopen()
    set_oom_score(OOM_LIVE)
    runner.wire.watch_all(runner)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if collecting:
        gc.enable()


def _await_claim(listener: socket.socket, seconds: float) -> None:
    """Wait until somebody looks who listens here, which is what a server does first; end if nobody comes."""
    poller = select.poll()
    poller.register(listener.fileno(), select.POLLIN)
    if not poller.poll(seconds * 1000):
        os._exit(0)


# --- before ----------------------------------------------------------------------------------


def _quiesce_pools(loop: asyncio.AbstractEventLoop) -> None:
    """End threads that start again by themselves: an idle default executor, tqdm's monitor."""
    executor = getattr(loop, "_default_executor", None)
    if executor is not None and _idle(executor):
        executor.shutdown(wait=True)
        loop._default_executor = None  # type: ignore[attr-defined]
    tqdm = sys.modules.get("tqdm")
    monitor = getattr(getattr(tqdm, "tqdm", None), "monitor", None)
    if monitor is not None:
        with contextlib.suppress(Exception):
            monitor.exit()
            tqdm.tqdm.monitor = None  # type: ignore[union-attr]


def _idle(executor: Any) -> bool:
    threads, queue, idle = executor._threads, executor._work_queue, executor._idle_semaphore
    return bool(queue.empty() and idle._value >= len(threads))


def _quiesce(libraries: list[str]) -> list[str]:
    """End the idle teams of OpenMP libraries (``omp_pause_resource_all``); a copy would wait for them for ever."""
    failed = []
    for path in libraries:
        try:
            paused = ctypes.CDLL(path).omp_pause_resource_all(_OMP_PAUSE_HARD) == 0
        except (OSError, AttributeError):
            paused = False
        if not paused:
            failed.append(f"{os.path.basename(path)} could not be paused; what uses it may hang in a copy.")
    return failed


def flush_files(runner: MainLoop) -> None:
    """What is buffered for a file would be written once by each copy. The heap is walked only if a file is open."""
    files = {d.fd for d in fork_safety.descriptors(runner.own_fds()) if d.regular and d.writable}
    runner.flush_c()
    for stream in (sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(Exception):
            stream.flush()  # type: ignore[union-attr]
    if not files:
        return
    kinds = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
    for found in [o for o in gc.get_objects() if type(o) in kinds]:
        with contextlib.suppress(Exception):
            if not found.closed and found.fileno() in files and found.writable():
                found.flush()


# --- after, in the copy --------------------------------------------------------------------------


def renew_loop(loop: Any, drop: set[int]) -> None:
    """Give the loop object its own epoll instance and wake-up pipe; its tasks, timers and readers stay.

    The inherited epoll descriptor is closed and nothing is taken out of it: the
    instance behind it is the original's too.

    Args:
        loop: the selector event loop, not running.
        drop: descriptors that are not polled any more.
    """
    old = loop._selector
    kept = [key for key in old.get_map().values() if key.fd not in drop and key.fd != loop._ssock.fileno()]
    old.close()
    loop._ssock.close()
    loop._csock.close()
    loop._selector = selectors.DefaultSelector()
    loop._internal_fds -= 1
    loop._make_self_pipe()
    for key in kept:
        with contextlib.suppress(OSError, ValueError, KeyError):
            loop._selector.register(key.fileobj, key.events, key.data)
    if getattr(loop, "_signal_handlers", None):
        signal.set_wakeup_fd(loop._csock.fileno())


def reopen_files(own: set[int]) -> list[str]:
    """Give regular files an offset of their own: same inode, flags, position and number. Return what failed."""
    failed = []
    for found in fork_safety.descriptors(own):
        if not found.regular:
            continue
        try:
            _reopen(found.fd)
        except OSError as error:
            failed.append(f"{found.target}: {error.strerror}")
    return failed


def _reopen(fd: int) -> None:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    position = os.lseek(fd, 0, os.SEEK_CUR)
    inheritable = os.get_inheritable(fd)
    again = os.open(f"/proc/self/fd/{fd}", flags & (os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK) | os.O_CLOEXEC)
    try:
        os.lseek(again, position, os.SEEK_SET)
        os.dup2(again, fd, inheritable=inheritable)
    finally:
        os.close(again)
