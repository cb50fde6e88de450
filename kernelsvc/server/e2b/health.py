"""``/health``, which means another thing on each port: both say that the sandbox is there."""

from __future__ import annotations

from typing import Any

from kernelsvc.model.objects import SessionInfo
from kernelsvc.protocol import e2b
from kernelsvc.server.e2b.handler import SandboxHandler


class HealthHandler(SandboxHandler):
    """``GET /health``."""

    purposes = (e2b.ENVD, e2b.TRAFFIC)
    asked_port: int | None = None

    def require_running(self, port: int | None) -> SessionInfo:
        """Any of the two ports is as well as the other."""
        self.asked_port = port
        return super().require_running(None if port == e2b.INTERPRETER_PORT else port)

    async def get(self) -> None:
        """204 from files and commands, 200 from the interpreter."""
        if self.asked_port == e2b.INTERPRETER_PORT:
            self.write("OK")
        else:
            self.answer(None)


ROUTES: list[tuple[str, Any]] = [(r"/health", HealthHandler)]
