"""Fork a live kernel between cells.

A fork is made at the top of the main thread's stack: no cell, no coroutine and no handler is on it, and the loop is
stopped. The order matters::

    survey, quiesce (idle pools, OpenMP), flush files ─ fork ─┬─ original: reply with the pid
                                                              └─ fork: own wire, pipes, file offsets.
                                                                 Wait for HELLO, then own session and loop

Every fork waits for HELLO before it runs any code. A branch gets HELLO when its limits are set. A checkpoint waits
until it is needed, with its garbage collector off so that its pages stay shared.

Garbage: kernels are never frozen here, and the template's frozen objects are never unfrozen. ``gc.freeze`` before each
fork would keep the original's cycles without end. ``gc.unfreeze`` after it would make each full collection visit, and
so copy, all objects of the template.

This module uses private attributes of asyncio's selector loop (``_selector``, ``_make_self_pipe``): the public API
can't give a loop another epoll instance.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import selectors
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, Any

from kernelsvc.guest.confine import confine
from kernelsvc.guest.forking import fork_safety, state_pickle
from kernelsvc.guest.forking.fork_safety import ForkSafety
from kernelsvc.guest.forking.prefault import PagePrefault
from kernelsvc.guest.forking.proc_maps import ProcMaps
from kernelsvc.guest.private_modules import ctypes, fcntl, gc, open_file, os, random, select, signal, socket, time

if TYPE_CHECKING:
    from kernelsvc.guest.main_loop import MainLoop
    from kernelsvc.guest.wire_server import ControlRequest

#: Landlock's limit of stacked layers (landlock(7)), and how many of them a parent may use, so that some are left for
#: branches.
MAX_LAYERS, MAX_PARENT_LAYERS = 16, 10
_FDS = 5
#: Seconds after which a fork ends if no server has connected: the requester has given up, and no process knows of the
#: fork.
CLAIM_SECONDS = 60.0
_OMP_PAUSE_HARD = 2
_maps = ProcMaps()


def handle_control(main_loop: MainLoop, control: ControlRequest) -> None:
    """Handle a CONTROL request. In a fork, return when it is live."""
    reap(main_loop)
    if control.op == "survey":
        _maps.read()
        found = check_fork_safety(main_loop, set(), _maps.lines(*fork_safety.MAPPINGS_OF_INTEREST))
        _maps.drop()
        main_loop.wire.reply(control.number, {"ok": True, "obstacles": found.obstacles, "warnings": found.warnings})
    elif control.op == "fork":
        _fork(main_loop, control)
    elif control.op == "fence":
        main_loop.wire.reply(
            control.number, restrict_writes(main_loop, [str(path) for path in control.body.get("write") or []])
        )
    elif control.op == "continue":
        main_loop.continue_history(int(control.body["execution_count"]), control.body.get("ran") or {})
        main_loop.wire.reply(control.number, {"ok": True})
    elif control.op in ("save", "load") and len(control.fds) == 1:
        main_loop.wire.reply(
            control.number, state_pickle.answer(main_loop.kernel.shell, control.body, control.fds.pop())
        )
    else:
        main_loop.wire.reply(control.number, {"ok": False, "refused": [f"There is no operation {control.op!r}."]})


def restrict_writes(main_loop: MainLoop, write: list[str]) -> dict[str, Any]:
    """Give up the right to write to branches' directories: from now on, write only to these directories.

    A branch has lost the right to write to its parent's files already. A process can only tighten its Landlock rules
    (landlock(7)), so each group of branches costs a layer, and the directories of later branches must be in ``write``.
    """
    if write == main_loop.write_paths:
        return {"ok": True}
    if main_loop.landlock_layers >= MAX_PARENT_LAYERS:
        return {
            "ok": False,
            "refused": ["This session has made branches too often. Branch from another session."],
        }
    # A layer with signal scope would also keep the session from ending its own child processes.
    alone = not fork_safety.children(set(main_loop.forks))
    try:
        confine.restrict_writes([path for path in write if os.path.isdir(path)], scope=alone)
    except confine.StepFailed as error:
        return {"ok": False, "refused": [str(error)]}
    main_loop.landlock_layers, main_loop.write_paths = main_loop.landlock_layers + 1, write
    return {"ok": True}


def check_fork_safety(main_loop: MainLoop, given: set[int], maps_text: str) -> ForkSafety:
    """Return obstacles and warnings for a fork of this process. ``given`` are descriptors of the request."""
    _quiesce_pools(main_loop.loop)
    main_loop.kernel.debugging.settle()
    return fork_safety.survey(main_loop.loop, main_loop.own_fds() | given, main_loop.forks, maps_text)


def reap(main_loop: MainLoop) -> None:
    """Reap forks of this kernel that ended. Children of user code belong to user code (waitpid(2))."""
    for pid in list(main_loop.forks):
        try:
            ended = os.waitpid(pid, os.WNOHANG)[0] == pid
        except ChildProcessError:
            ended = True  # User code has called waitpid(-1).
        if ended:
            main_loop.forks.remove(pid)


def set_oom_score(value: int) -> None:
    """Set the OOM score of this process (proc(5)), unless Landlock forbids it to a fork. Then the host does."""
    with contextlib.suppress(OSError), open_file("/proc/self/oom_score_adj", "w") as file:
        file.write(str(value))


# --- the fork ------------------------------------------------------------------------------


def _fork(main_loop: MainLoop, control: ControlRequest) -> None:
    began, worked = time.perf_counter(), time.thread_time()
    body = control.body
    if len(control.fds) != _FDS or body.get("mode") not in ("checkpoint", "branch"):
        refused = ["A fork request carries five descriptors, and a mode that is 'checkpoint' or 'branch'."]
        main_loop.wire.reply(control.number, {"ok": False, "refused": refused})
        return
    if body["mode"] == "branch" and main_loop.landlock_layers >= MAX_LAYERS:
        refused = ["Branches can't be nested deeper (Landlock allows 16 layers). Branch from an earlier session."]
        main_loop.wire.reply(control.number, {"ok": False, "refused": refused})
        return
    _maps.read()
    maps_text = _maps.lines(*fork_safety.MAPPINGS_OF_INTEREST)
    found = check_fork_safety(main_loop, set(control.fds), maps_text)
    if found.obstacles and not body.get("force"):
        _maps.drop()
        refusal = {"ok": False, "refused": found.obstacles, "warnings": found.warnings}
        main_loop.wire.reply(control.number, refusal)
        return
    warned = [*found.obstacles, *found.warnings, *_quiesce(fork_safety.openmp(maps_text))]
    flush_files(main_loop)
    # Not for a branch: prefaulting would copy pages that the branch shares.
    prefault_after = body["mode"] == "checkpoint" and "workdir" not in body.get("identity", {})
    if prefault_after:
        main_loop.prefault.forking(_maps)
    _maps.drop()
    files = any(found.regular for found in fork_safety.descriptors(main_loop.own_fds() | set(control.fds)))
    state = random.getstate()
    # Only the calling thread exists in the child (fork(2)), so the survey refuses other threads.
    pid = _fork_process(main_loop)
    if pid:
        main_loop.forks.append(pid)
        cost = round((time.perf_counter() - began) * 1000, 2)
        cpu = round((time.thread_time() - worked) * 1000, 2)
        done = {"ok": True, "pid": pid, "cost_ms": cost, "cpu_ms": cpu, "warnings": warned}
        main_loop.wire.reply(control.number, done)
        if prefault_after:
            main_loop.prefault.forked()
        return
    try:
        random.setstate(state)  # CPython reseeds in a child. A fork must continue with the state of its original.
        _start_fork(main_loop, control, files=files)
    except BaseException:
        os.write(2, traceback.format_exc().encode("utf-8", "replace"))
        os._exit(70)


def _fork_process(main_loop: MainLoop) -> int:
    main_loop.forking_itself = True
    try:
        with warnings.catch_warnings():
            # os.fork warns about native threads, which the survey has checked.
            warnings.simplefilter("ignore", DeprecationWarning)
            return os.fork()
    finally:
        main_loop.forking_itself = False


def _start_fork(main_loop: MainLoop, control: ControlRequest, *, files: bool) -> None:
    """In the fork: replace all kernel objects that are shared with the original, then wait for HELLO.

    Args:
        main_loop: The fork's main loop.
        control: The request.
        files: Whether user code has regular files open.
    """
    # A server can connect as soon as the listener exists. It must not be accepted before the fork has its identity.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
    collecting = gc.isenabled()
    gc.disable()
    listener, raw = socket.socket(fileno=control.fds[0]), control.fds[1:]
    control.fds = []
    # A session of its own: signals to the original's process group do not reach the fork (setsid(2)).
    os.setsid()
    own = main_loop.own_fds() | {listener.fileno(), *raw}
    main_loop.forks.clear()
    main_loop.prefault = PagePrefault()
    main_loop.wire.watcher = None
    polled = main_loop.wire.fds()
    old_reads = main_loop.wire.adopt(listener, main_loop.install_stdio(raw))
    for fd in old_reads:
        os.close(fd)
    if files:  # Now, since a branch may lose the right to open them.
        reopen_files(own)
    main_loop.pending_identity = control.body.get("identity") or {}
    set_oom_score(confine.OOM_PARKED)
    _await_claim(listener, float(control.body.get("claim_seconds") or CLAIM_SECONDS))
    main_loop.wire.wait_for(lambda: main_loop.wire.hello is not None)
    # Only after HELLO: each page that is written here is copied, and a checkpoint may wait for hours.
    renew_loop(main_loop.loop, polled)
    main_loop.kernel.session.new_ids()
    main_loop.kernel.tool_calls.lose()
    main_loop.kernel.usage.reopen()
    set_oom_score(confine.OOM_LIVE)
    main_loop.wire.watch_all(main_loop)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if collecting:
        gc.enable()


def _await_claim(listener: socket.socket, seconds: float) -> None:
    """Wait until a server connects to the listener. End this process if none does."""
    poller = select.poll()
    poller.register(listener.fileno(), select.POLLIN)
    if not poller.poll(seconds * 1000):
        os._exit(0)


# --- before ----------------------------------------------------------------------------------


def _quiesce_pools(loop: asyncio.AbstractEventLoop) -> None:
    """End threads that restart by themselves: an idle default executor, tqdm's monitor."""
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
    """End the idle teams of OpenMP libraries (``omp_pause_resource_all``). A fork would wait for them without end."""
    failed = []
    for path in libraries:
        try:
            paused = ctypes.CDLL(path).omp_pause_resource_all(_OMP_PAUSE_HARD) == 0
        except (OSError, AttributeError):
            paused = False
        if not paused:
            failed.append(f"{os.path.basename(path)} could not be paused. Code that uses it may hang in the fork.")
    return failed


def flush_files(main_loop: MainLoop) -> None:
    """Flush buffered files: each fork would write the buffer again. Searches the heap only if a file is open."""
    files = {d.fd for d in fork_safety.descriptors(main_loop.own_fds()) if d.regular and d.writable}
    main_loop.flush_c()
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
    """Give the loop object its own epoll instance and wake-up pipe. Its tasks, timers and readers remain.

    The inherited epoll descriptor is closed and no entry is removed from it: both processes share the instance behind
    it (epoll(7), fork(2)).

    Args:
        loop: The selector event loop, stopped.
        drop: Descriptors that are no longer polled.
    """
    old = loop._selector
    keys = [key for key in old.get_map().values() if key.fd not in drop and key.fd != loop._ssock.fileno()]
    old.close()
    loop._ssock.close()
    loop._csock.close()
    loop._selector = selectors.DefaultSelector()
    # ``_make_self_pipe`` counts the new pipe again.
    loop._internal_fds -= 1
    loop._make_self_pipe()
    for key in keys:
        with contextlib.suppress(OSError, ValueError, KeyError):
            loop._selector.register(key.fileobj, key.events, key.data)
    if getattr(loop, "_signal_handlers", None):
        # Signal handlers of the loop write to the inherited pipe otherwise.
        signal.set_wakeup_fd(loop._csock.fileno())


def reopen_files(own: set[int]) -> list[str]:
    """Give regular files their own offset: same inode, flags, position and number. Return the failures.

    After fork(2) both processes share the open file description, which holds the offset.
    """
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
    reopened = os.open(f"/proc/self/fd/{fd}", flags & (os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK) | os.O_CLOEXEC)
    try:
        os.lseek(reopened, position, os.SEEK_SET)
        os.dup2(reopened, fd, inheritable=inheritable)
    finally:
        os.close(reopened)
