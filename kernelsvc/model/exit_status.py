"""How a kernel ended, in words: decided from Linux' reports, never from the kernel's own.

Sources: wait(2) for the status, and the cgroup's counters for memory. The text names the OOM killer only if the cgroup
counted a kill (cgroup v2, ``memory.events``).
"""

from __future__ import annotations

import os
import signal
from enum import StrEnum

import msgspec

MiB = 1024 * 1024
#: Exit status of a kernel that user code made unusable. Its standard error has the reason.
UNFIT = 70

_MEANING = {
    signal.SIGSEGV: "a segmentation fault",
    signal.SIGABRT: "an abort",
    signal.SIGBUS: "a bus error",
    signal.SIGFPE: "an arithmetic error in native code",
    signal.SIGILL: "an illegal instruction",
    signal.SIGSYS: "a forbidden system call",
    signal.SIGXCPU: "the end of its CPU time",
    signal.SIGXFSZ: "a file over its size limit",
}


class Cause(StrEnum):
    """How a kernel's process ended."""

    EXITED = "exited"  # os._exit, sys.exit in C, end of main
    SIGNALLED = "signalled"  # segfault, abort, SIGKILL from inside or outside
    MEMORY = "memory"  # the OOM killer, or the server's watchdog
    PROTOCOL = "protocol"  # it violated the wire protocol: forged, oversized or garbled frames
    UNREACHABLE = "unreachable"  # it closed its own socket, and was ended
    STOPPED = "stopped"  # SIGSTOP in the middle of a cell, and the server ended it
    LOST = "lost"  # unknown


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a kernel as Linux reports it."""

    cause: Cause
    message: str
    signal: int | None = None
    exit_code: int | None = None


def exit_of(status: int | None, *, oom_kills: int = 0, memory_bytes: int | None = None) -> Exit:
    """Translate a wait status.

    Args:
        status: As waitpid(2) returns it. None if no process could wait for it.
        oom_kills: OOM kills in the session's cgroup since the kernel started.
        memory_bytes: The session's memory limit, for the message.
    """
    if status is None:
        if oom_kills:
            return _out_of_memory(None, memory_bytes)
        return Exit(cause=Cause.LOST, message="The kernel's process is gone, and its exit status is unknown.")
    code = os.waitstatus_to_exitcode(status)
    if code == UNFIT:
        text = f"The kernel could not go on and ended itself (status {UNFIT})"
        return Exit(cause=Cause.EXITED, message=text, exit_code=code)
    if code >= 0:
        return Exit(
            cause=Cause.EXITED, message=f"The kernel's process exited by itself with status {code}", exit_code=code
        )
    if -code == signal.SIGKILL and oom_kills:
        return _out_of_memory(-code, memory_bytes)
    return Exit(cause=Cause.SIGNALLED, message=f"The kernel was ended by {_words(-code)}", signal=-code)


def _out_of_memory(number: int | None, memory_bytes: int | None) -> Exit:
    limit = f"{memory_bytes // MiB} MiB" if memory_bytes else "the limit"
    return Exit(
        cause=Cause.MEMORY, message=f"memory: {limit} reached; the kernel was killed by the OOM killer", signal=number
    )


def _words(number: int) -> str:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    meaning = next((text for one, text in _MEANING.items() if one == number), None)
    return f"{name} ({meaning})" if meaning else name
