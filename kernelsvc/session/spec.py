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

    def use_kernel(self, kernel: str) -> None:
        """Note the id of the kernel that runs the session from now on."""
        self.kernel = kernel

    def use_directory(self, workdir: str, *, family: str = "", home: str = "", copy_from: str = "") -> None:
        """Note the session's directories. An empty argument leaves what the specification has.

        Args:
            workdir: the working directory on this machine.
            family: the directory that holds it and those of its branches.
            home: for a branch: its directory as seen inside the sandbox.
            copy_from: for a branch: its parent's directory as seen inside the sandbox.
        """
        self.workdir = workdir
        self.family = family or self.family
        self.home = home or self.home
        self.copy_from = copy_from or self.copy_from

    def add_warnings(self, warnings: list[str]) -> None:
        """Note for the journal what a fork could not copy."""
        if warnings:
            self.parent = {**(self.parent or {}), "warnings": warnings}


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
