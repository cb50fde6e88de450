"""``/console/``: the web console, a page of ES modules that uses the native API like any other client."""

from __future__ import annotations

from typing import Any

from kernelsvc.server.console.assets import AssetHandler, FrameHandler, IndexRedirect
from kernelsvc.server.console.sign_in import MeHandler, RedeemHandler, TicketHandler, Tickets


def routes(shared: dict[str, Any]) -> list[Any]:
    """Return the routes of the console, or none if the settings turn it off. No file is read before a request."""
    if shared["context"].settings.console == "off":
        return []
    with_tickets = {**shared, "tickets": Tickets()}
    return [
        (r"/console", IndexRedirect, shared),
        (r"/console/tickets", TicketHandler, with_tickets),
        (r"/console/tickets/redeem", RedeemHandler, with_tickets),
        (r"/console/me", MeHandler, shared),
        (r"/console/frame/(still|run)", FrameHandler, shared),
        (r"/console/([a-z0-9_]+\.(?:js|css|svg))?", AssetHandler, shared),
    ]
