"""The specification of a session: its properties outside the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from kernelsvc.kernels.port import StartRequest
from kernelsvc.model.limits import Limits, Network
from kernelsvc.model.objects import CheckpointMode
from kernelsvc.model.storage.mounts import Bind
from kernelsvc.model.tool_calls.offers import ToolFilter


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
    request_digest: str = ""
    family: str = ""
    home: str = ""
    copy_from: str = ""
    spare: str = ""
    beside: str | None = None
    checkpoint: CheckpointMode = "auto"
    binds: list[Bind] = []
    workspace: str = ""
    tools: list[ToolFilter] = []

    def permits_tool(self, tool: str) -> bool:
        """Return whether the session's code may call a function of this full name."""
        return all(each.permits(tool) for each in self.tools)

    def use_binds(self, binds: list[Bind], workspace: str) -> None:
        """Set the directories of the machine, and the address of the workspace or "", for the next kernel."""
        self.binds, self.workspace = binds, workspace

    def use_kernel(self, kernel: str) -> None:
        """Set the id of the kernel that runs the session from now on."""
        self.kernel = kernel

    def use_directory(self, workdir: str, *, family: str = "", home: str = "", copy_from: str = "") -> None:
        """Set the session's directories. An empty argument does not change the specification.

        Args:
            workdir: the working directory on this machine.
            family: the directory that contains it and the directories of its branches.
            home: a branch's directory as seen inside the sandbox.
            copy_from: the directory of a branch's parent as seen inside the sandbox.
        """
        self.workdir = workdir
        self.family = family or self.family
        self.home = home or self.home
        self.copy_from = copy_from or self.copy_from

    def use_network(self, network: Network) -> None:
        """Set the rules of the session's network."""
        self.limits = msgspec.structs.replace(self.limits, network=network)

    def leave_family(self) -> None:
        """Make this the specification of a session with a sandbox of its own."""
        self.workdir = self.family = self.home = self.copy_from = self.spare = ""
        self.parent = {**(self.parent or {}), "isolated": True}

    def forget_secrets(self) -> None:
        """Drop the environment variables: the session has ended and starts no kernel."""
        self.env, self.request_digest = {}, ""

    def add_warnings(self, warnings: list[str]) -> None:
        """Add a fork's warnings to ``parent``, which the ``session_started`` event records."""
        if warnings:
            self.parent = {**(self.parent or {}), "warnings": warnings}


def lost_warnings(lost: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable that an isolated branch does not have."""
    return [f"the variable {name} was not copied: {why}" for name, why in lost.items()]


def start_request_of(spec: SessionSpec) -> StartRequest:
    """Return the request that starts the session's kernel, or resumes the fork of a new branch."""
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
        binds=spec.binds,
    )
