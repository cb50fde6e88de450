"""The specification of a session: everything about it that its log does not change."""

from __future__ import annotations

from typing import Any

import msgspec

from kernelsvc.kernels.port import StartRequest
from kernelsvc.model.limits import Limits


class SessionSpec(msgspec.Struct, kw_only=True):
    """The specification of one session. Stored in ``session.json``."""

    id: str
    principal: str
    template: str
    workdir: str
    kernel: str
    created_at: str
    limits: Limits
    name: str | None = None
    labels: dict[str, str] = {}
    env: dict[str, str] = {}
    parent: dict[str, Any] | None = None
    idempotency_key: str | None = None
    family: str = ""
    home: str = ""
    copy_from: str = ""
    spare: str = ""
    beside: str | None = None


def start_request_of(spec: SessionSpec) -> StartRequest:
    """Return the request that starts the session's kernel, or resumes the fork that it begins as."""
    return StartRequest(
        session=spec.id,
        kernel=spec.kernel,
        template=spec.template,
        workdir=spec.workdir,
        limits=spec.limits,
        env=spec.env,
        family=spec.family,
        home=spec.home,
        copy_from=spec.copy_from,
    )
