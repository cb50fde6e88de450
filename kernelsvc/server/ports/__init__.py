"""Requests to servers in sessions: ``/v1/sessions/ID/ports/PORT/...``, ``/v1/ports/TICKET/...`` and host names."""

from __future__ import annotations

from typing import Any

from kernelsvc.server.ports.handler import PortHandler
from kernelsvc.server.ports.target import HostForm


def routes(shared: dict[str, Any]) -> list[Any]:
    """Return Tornado's routes of both forms.

    Args:
        shared: Passed to each handler's ``initialize``.
    """
    settings = shared["context"].settings
    found: list[Any] = [
        (r"/v1/sessions/(?P<session>[^/]+)/ports/(?P<port>[0-9]{1,5})(?P<rest>/.*)", PortHandler, shared),
        (r"/v1/ports/(?P<ticket>[^/]+)(?P<rest>/.*)", PortHandler, shared),
    ]
    return found if settings.ports == "off" else [(HostForm(), PortHandler, shared), *found]
