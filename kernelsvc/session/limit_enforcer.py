"""Actions on limits that a session has reached, as the watchdog and the kernel host report them.

For limits that Linux enforces, this only records that the limit was reached. For limits that the server supervises, it
interrupts the cell, or ends the kernel where an interrupt can't help. It acts only once on the same excess: files above
the limit stay until they are deleted, and meanwhile cells may run as long as the files don't grow.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Sequence

import msgspec

from kernelsvc.errors import KernelsvcError
from kernelsvc.kernels.read_budget import ReadPauses
from kernelsvc.model import limit_causes
from kernelsvc.model.events import LimitReached, Reason
from kernelsvc.model.exit_status import Cause, Exit
from kernelsvc.model.limits import Limits, MiB
from kernelsvc.model.state import MachineState
from kernelsvc.model.stimuli import Interrupt
from kernelsvc.sandbox.watchdog import LimitExceeded
from kernelsvc.session.ports import SessionPort

#: The end of a kernel that was stopped by SIGSTOP.
STOPPED = Exit(
    cause=Cause.STOPPED,
    message="The kernel was stopped by a signal (SIGSTOP), could not go on, and was ended",
    signal=signal.SIGKILL,
)
#: Name of the limit on the share of the server's thread that the output of one kernel may take.
SERVER_SHARE = "server_share"
#: Growth above a limit that is ignored, by the limits of what a session keeps: bytes, and number of files.
SLACK = {"disk_bytes": 1 * MiB, "files": 100}


class LimitEnforcer:
    """The enforcement of one session's limits. Called from the server's event loop.

    Args:
        session: interrupts and records.
        machine: is only read here.
        limits: the session's limits.
    """

    def __init__(self, session: SessionPort, machine: MachineState, limits: Limits) -> None:
        self._session = session
        self._machine = machine
        self._limits = limits
        self._kept: dict[str, float] = {}
        self._last_finished: str | None = None
        self._counted_for: str | None = None
        self._spared = False
        self._killed_for = ""
        self._stopped = False

    def on_watchdog(self, breaches: Sequence[LimitExceeded]) -> None:
        """Act on the limits that the watchdog found exceeded in its last check. The sequence may be empty."""
        kept = {breach.limit: breach.value for breach in breaches if breach.limit in SLACK}
        first = kept.keys() - self._kept.keys()
        grown = {name for name, value in kept.items() if name in first or value > self._kept[name] + SLACK[name]}
        # Files that can't be measured may grow all the time.
        grown |= {breach.limit for breach in breaches if breach.unseen}
        self._kept = kept
        spare = self._spare(grown=bool(grown))
        for breach in breaches:
            name = breach.limit
            if name not in SLACK:
                self._enforce(breach, kill=True)
            elif spare:
                self._record_once(breach, first=name in first)
            elif name in grown:
                # An interrupt can't stop files that grow while no cell runs, so the kernel is ended. But not if a cell
                # has ended since the last check: its files are found only now.
                quiet = self._last_finished == self._machine.last_finished
                self._enforce(breach, kill=name not in first and quiet)
            else:
                continue
            break
        self._last_finished = self._machine.last_finished

    def _spare(self, *, grown: bool) -> bool:
        """Return whether files that grew may belong to a cell that ended since the last check, not to the running cell.

        Never return True twice in a row: otherwise many short cells could fill the disk.
        """
        ended = self._last_finished != self._machine.last_finished
        self._spared = grown and ended and self._machine.running is not None and not self._spared
        return self._spared

    def _record_once(self, breach: LimitExceeded, *, first: bool) -> None:
        if first:
            self._session.try_record(_reached(breach))

    def _enforce(self, breach: LimitExceeded, *, kill: bool) -> None:
        session, kernel, run = self._session, self._session.kernel, self._machine.running
        if kernel is None or (run is not None and run.stop is not None):
            return  # the cell or the kernel is already being ended
        self._record(_reached(breach))
        with contextlib.suppress(KernelsvcError, OSError):
            if run is not None:
                session.handle(
                    Interrupt(why=breach.limit, reason=limit_causes.REASONS.get(breach.limit, Reason.INTERRUPTED))
                )
            if breach.limit in limit_causes.ENDED_AT_ONCE or (run is None and kill):
                self._killed_for = breach.message
                kernel.kill(everything=True)

    def on_kernel_stopped(self) -> None:
        """End a kernel that was stopped by SIGSTOP in the middle of a cell, because it can't reply any more."""
        kernel = self._session.kernel
        if kernel is not None:
            self._stopped = True
            kernel.kill()

    def explain(self, exit: Exit) -> Exit:
        """Return the end of a kernel, with the limit in its message if this object ended the kernel."""
        said, self._killed_for = self._killed_for, ""
        stopped, self._stopped = self._stopped, False
        if stopped and exit.signal == signal.SIGKILL:
            return STOPPED
        ours = said and exit.cause is Cause.SIGNALLED and exit.signal == signal.SIGKILL
        return msgspec.structs.replace(exit, message=f"{said}; the kernel was ended") if ours else exit

    def on_cgroup_event(self, limit: str) -> None:
        """Record that Linux enforced a limit of the session's cgroup on a process other than the kernel."""
        reached = limit_causes.of_counters(limit, self._limits)
        run, last = self._machine.running, self._machine.last_finished
        # The kernel host reads the cgroup's counters at intervals. So a limit that a cell's own reply has reported may
        # be reported here again after the cell's end, and must not be recorded twice.
        told = (
            run.limits_reached
            if run is not None
            else ()
            if self._counted_for == last
            else self._machine.last_limits_reached
        )
        self._counted_for = last
        if reached is not None and limit not in told:
            self._record(reached)

    def on_read_pauses(self, pauses: ReadPauses) -> None:
        """Record that the kernel sends more than its share of the server's time allows.

        Not a limit of the cell: the event names no cell, so it does not become the reason of the cell's end.
        """
        message = (
            f"server time: the output of this kernel took {pauses.busy_seconds:.1f} s of the server's thread while "
            f"other sessions needed it. It is read with pauses now, at most {pauses.share:.0%} of the time"
        )
        self._session.try_record(
            LimitReached(
                limit=SERVER_SHARE,
                value=round(pauses.busy_seconds / (pauses.busy_seconds + pauses.paused_seconds), 3),
                bound=pauses.share,
                enforced_by="server",
                message=message,
            )
        )

    def _record(self, reached: LimitReached) -> None:
        run = self._machine.running
        self._session.try_record(reached if run is None else msgspec.structs.replace(reached, cell=run.id))


def _reached(breach: LimitExceeded) -> LimitReached:
    return LimitReached(
        limit=breach.limit,
        value=breach.value,
        bound=breach.maximum,
        enforced_by="watchdog",
        message=breach.message,
    )
