"""E2B's routes for tags and lists of templates, and logs: 501 with the way to the same here."""

from __future__ import annotations

from typing import Any

from kernelsvc.errors import NotSupported
from kernelsvc.protocol import e2b
from kernelsvc.server.e2b.control_plane import ControlPlaneHandler
from kernelsvc.server.handler import UnknownRoute


class UnsupportedHandler(ControlPlaneHandler):
    """Base of the routes of a feature that this server lacks.

    Attributes:
        message: The feature, and the next step.
    """

    message = ""

    def _refuse(self, *_: str, **__: str) -> None:
        raise NotSupported(self.message)

    get = post = put = patch = delete = _refuse


class TemplatesHandler(UnsupportedHandler):
    """Handler of the routes that list, tag and change templates."""

    message = (
        "Templates have no tags, versions or properties here. GET /v1/templates lists those of the server. A template "
        "is built with Template.build(), and by the operator with 'kernelsvc env add NAME PACKAGE...'."
    )


class LogsHandler(UnsupportedHandler):
    """Handler of ``/sandboxes/{id}/logs``."""

    message = "The log of a sandbox is at GET /v1/sessions/ID/events, or 'kernelsvc show ID'."


class StrayHandler(UnknownRoute):
    """Handler of paths without a route. A host name with the port of a sandbox's own server gets E2B's 502."""

    async def prepare(self) -> None:
        """Respond without authentication, and the same whether or not the sandbox exists."""
        sandbox, port = e2b.address(self.request.headers)
        if sandbox is None or port in (None, e2b.FILES_PORT, e2b.INTERPRETER_PORT):
            await super().prepare()
            return
        self.set_status(502)
        self.finish(e2b.closed_port(sandbox, port or 0))


_ID, _REST = r"(?P<name>[^/]+)", r"(?P<rest>.+)"
ROUTES: list[tuple[str, Any]] = [
    (r"/(?:v2/)?templates", TemplatesHandler),
    (r"/templates/tags", TemplatesHandler),
    (rf"/templates/{_ID}/{_REST}", TemplatesHandler),
    (rf"/v2/templates/{_REST}", TemplatesHandler),
    (rf"/(?:v2/)?sandboxes/{_ID}/logs", LogsHandler),
]
