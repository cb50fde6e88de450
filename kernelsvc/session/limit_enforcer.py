"""What a session does about a cap that was passed: the watchdog's word, and the kernel host's.

Where Linux holds a cap it has struck already, and this puts it on record. Where it
does not, somebody has looked and this stops what went too far: a cell is
interrupted, or the kernel is ended where an interrupt can't help. A session never
pays twice for the same excess: files that are over the limit stay where they are
until somebody deletes them, and cells run on meanwhile as long as nothing grows.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Sequence

import msgspec

from kernelsvc.errors import KernelsvcError
from kernelsvc.model import limit_causes
from kernelsvc.model.events import LimitReached, Reason
from kernelsvc.model.exit_status import Cause, Exit
from kernelsvc.model.limits import Limits, MiB
from kernelsvc.model.state import MachineState
from kernelsvc.model.stimuli import Interrupt
from kernelsvc.sandbox.watchdog import LimitExceeded
from kernelsvc.session.ports import SessionPort

#: The end of a kernel that could not go on.
STOPPED = Exit(
    cause=Cause.STOPPED,
    message="The kernel was stopped by a signal (SIGSTOP), could not go on, and was ended",
    signal=signal.SIGKILL,
)
#: Growth of the files, in bytes, below which one that is over its limit is left alone.
DISK_SLACK = 1 * MiB


class LimitEnforcer:
    """One session's. Called from the server's event loop."""

    def __init__(self, session: SessionPort, machine: MachineState, limits: Limits) -> None:
        self._session = session
        self._machine = machine
        self._limits = limits
        self._disk: float | None = None
        self._after: str | None = None
        self._counted_for: str | None = None
        self._spared = False
        self._killed_for = ""
        self._stopped = False

    def on_watchdog(self, breaches: Sequence[LimitExceeded]) -> None:
        """The watchdog has looked, and these limits are passed."""
        disk = next((breach.value for breach in breaches if breach.limit == "disk_bytes"), None)
        first, grown = self._disk is None, disk is not None and disk > (self._disk or 0) + DISK_SLACK
        self._disk = disk
        spare = self._spare(grown=grown)
        for breach in breaches:
            if breach.limit != "disk_bytes":
                self._breached(breach, kill=True)
            elif spare:
                self._told_of_nobody(breach, first=first)
            elif grown:
                # What a cell that has ended wrote is seen only now; what grows without a cell is ended.
                self._breached(breach, kill=not first and self._after == self._machine.last_finished)
            else:
                continue
            break
        self._after = self._machine.last_finished

    def _spare(self, *, grown: bool) -> bool:
        """Whether files that grew may be those of a cell that has ended since the last look, and not the running one's.

        Not twice on end: many short cells must not fill what one may not.
        """
        ended = self._after != self._machine.last_finished
        self._spared = grown and ended and self._machine.running is not None and not self._spared
        return self._spared

    def _told_of_nobody(self, breach: LimitExceeded, *, first: bool) -> None:
        if first:
            self._session.try_record(_reached(breach))

    def _breached(self, breach: LimitExceeded, *, kill: bool) -> None:
        session, kernel, run = self._session, self._session.kernel, self._machine.running
        if kernel is None or (run is not None and run.stop is not None):
            return  # it is being ended already
        self._record(_reached(breach))
        with contextlib.suppress(KernelsvcError, OSError):
            if run is not None:
                session.handle(
                    Interrupt(why=breach.limit, reason=limit_causes.REASONS.get(breach.limit, Reason.INTERRUPTED))
                )
            if breach.limit in limit_causes.ENDED_AT_ONCE or (run is None and kill):
                self._killed_for = breach.message
                kernel.kill()

    def on_kernel_stopped(self) -> None:
        """The kernel was stopped (SIGSTOP) in the middle of a cell: it can do nothing, so it is as good as dead."""
        kernel = self._session.kernel
        if kernel is not None:
            self._stopped = True
            kernel.kill()

    def explain(self, exit: Exit) -> Exit:
        """How a kernel ended, with the reason for which we ended it."""
        said, self._killed_for = self._killed_for, ""
        stopped, self._stopped = self._stopped, False
        if stopped and exit.signal == signal.SIGKILL:
            return STOPPED
        ours = said and exit.cause is Cause.SIGNALLED and exit.signal == signal.SIGKILL
        return msgspec.structs.replace(exit, message=f"{said}; the kernel was ended") if ours else exit

    def on_cgroup_event(self, limit: str) -> None:
        """The session's cgroup says that a cap of Linux's has struck something other than the kernel."""
        reached = limit_causes.of_counters(limit, self._limits)
        run, last = self._machine.running, self._machine.last_finished
        # The counters are read now and then: what a cell said of itself may be counted after its end.
        told = run.struck if run is not None else () if self._counted_for == last else self._machine.last_struck
        self._counted_for = last
        if reached is not None and limit not in told:
            self._record(reached)

    def _record(self, reached: LimitReached) -> None:
        run = self._machine.running
        if run is not None:
            reached.cell = run.id
        self._session.try_record(reached)


def _reached(breach: LimitExceeded) -> LimitReached:
    return LimitReached(
        limit=breach.limit,
        value=breach.value,
        bound=breach.maximum,
        enforced_by="watchdog",
        message=breach.message,
    )
