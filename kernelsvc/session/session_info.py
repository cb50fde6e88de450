"""A session as the API shows it."""

from __future__ import annotations

import asyncio
import time

from kernelsvc.model.events import KernelInfo, SandboxReport
from kernelsvc.model.hash_chain import timestamp
from kernelsvc.model.limits import Usage
from kernelsvc.model.machine import Machine
from kernelsvc.model.objects import SessionInfo, SessionState
from kernelsvc.session.spec import SessionSpec


def describe(
    spec: SessionSpec,
    machine: Machine,
    usage: Usage,
    last_seq: int,
    kernel: KernelInfo | None,
    sandbox: SandboxReport,
) -> SessionInfo:
    """Return the public description of a session, with the machine's monotonic times as wall-clock times."""
    now, wall = asyncio.get_running_loop().time(), time.time()
    expires = machine.expires_at()
    closed = machine.state is SessionState.CLOSED
    return SessionInfo(
        id=spec.id,
        name=spec.name,
        template=spec.template,
        state=machine.state,
        created_at=spec.created_at,
        last_activity_at=timestamp(wall - (now - machine.last_activity)),
        expires_at=None if closed or expires is None else timestamp(wall + expires - now),
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
        queued=len(machine.queue) - (machine.running is not None),
        running=machine.running.id if machine.running else None,
        sidecar_of=spec.beside,
        beside=spec.beside,
        paused=machine.paused,
    )
