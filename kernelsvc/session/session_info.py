"""A session as the API shows it."""

from __future__ import annotations

import time
from collections.abc import Callable

from msgspec import UNSET, UnsetType

from kernelsvc.model.events import KernelInfo, SandboxReport
from kernelsvc.model.hash_chain import timestamp
from kernelsvc.model.limits import Usage
from kernelsvc.model.machine import Machine
from kernelsvc.model.objects import HoldInfo, SessionInfo, SessionState
from kernelsvc.model.storage.mounts import names_of
from kernelsvc.session.spec import SessionSpec

#: Seconds by which the wall clock must be set for shown times to follow it.
_STEP = 1.0


class WallClock:
    """Converts monotonic times to wall-clock times, the same one each time although both clocks are read apart.

    Args:
        wall: reads the wall clock.
        monotonic: reads the monotonic clock, which is also the event loop's.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._offset = wall() - monotonic()

    def wall_time(self, at: float) -> float:
        """Return the wall-clock time of a monotonic time. It changes only if the wall clock is set."""
        offset = self._wall() - self._monotonic()
        if abs(offset - self._offset) > _STEP:
            self._offset = offset
        return self._offset + at


_clock = WallClock()


def _hold(machine: Machine) -> HoldInfo | UnsetType:
    hold = machine.hold
    if hold is None:
        return UNSET
    return HoldInfo(by=hold.by, since=hold.at, seconds=hold.seconds, then=hold.then, cells=[*machine.held])


def describe(
    spec: SessionSpec,
    machine: Machine,
    usage: Usage,
    last_seq: int,
    kernel: KernelInfo | None,
    sandbox: SandboxReport,
) -> SessionInfo:
    """Return the public description of a session, with the machine's monotonic times as wall-clock times."""
    expires = machine.expires_at()
    closed = machine.state is SessionState.CLOSED
    calls = machine.calls
    return SessionInfo(
        id=spec.id,
        name=spec.name,
        template=spec.template,
        state=machine.state,
        created_at=spec.created_at,
        last_activity_at=timestamp(_clock.wall_time(machine.last_activity)),
        expires_at=None if closed or expires is None else timestamp(_clock.wall_time(expires)),
        principal=spec.principal,
        labels=spec.labels,
        limits=spec.limits,
        usage=usage,
        last_seq=last_seq,
        execution_count=machine.execution_count,
        parent=spec.parent,
        kernel=kernel,
        sandbox=sandbox,
        checkpoints=list(machine.checkpoints.values()),
        queued=len(machine.queue) + len(machine.held) - (machine.running is not None),
        running=machine.running.id if machine.running else None,
        sidecar_of=spec.beside,
        beside=spec.beside,
        paused=machine.paused,
        calls_open=len(calls.open) if calls.open else UNSET,
        approvals_pending=len(calls.pending()) if calls.open else UNSET,
        mounts=names_of(spec.binds) or UNSET,
        workspace=spec.workspace or UNSET,
        hold=_hold(machine),
        input_cell=machine.waiting_for.cell if machine.waiting_for else UNSET,
    )
