"""What a session is, apart from what happens in it."""

from __future__ import annotations

from typing import Any

import msgspec

from kernelsvc.kernels.port import StartRequest
from kernelsvc.model.limits import Limits


class SessionSpec(msgspec.Struct, kw_only=True):
    """What a session is, apart from what happens in it. Kept in ``session.json``."""

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


def start_request_of(about: SessionSpec) -> StartRequest:
    """What it takes to start the kernel of such a session, or to wake the copy that it begins as."""
    return StartRequest(
        session=about.id,
        kernel=about.kernel,
        template=about.template,
        workdir=about.workdir,
        limits=about.limits,
        env=about.env,
        family=about.family,
        home=about.home,
        copy_from=about.copy_from,
    )
