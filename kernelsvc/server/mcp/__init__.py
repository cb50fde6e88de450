"""The MCP door: streamable HTTP at ``/mcp``.

``server`` is the MCP server over a toolbox (``kernelsvc.tools``), ``serving``
runs it in this process, ``backend`` gives the toolbox its sessions, ``backlog``
keeps what an interrupted stream missed. This module is the way in, and imports
none of the official SDK: the first request does, in a thread, so that neither
the server's start nor other sessions wait for it.
"""

from __future__ import annotations

import asyncio
import importlib
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from kernelsvc.errors import Forbidden
from kernelsvc.server import auth
from kernelsvc.server.handler import ApiHandler, ServerContext

if TYPE_CHECKING:
    from kernelsvc.server.mcp.asgi_bridge import Exchange, McpService

#: Where a token may stand that a host can send in no other way.
PREFIX = r"(?:/t/[^/]+)?"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class McpServiceHolder:
    """Where an application's MCP server is, once somebody has asked for it."""

    def __init__(self) -> None:
        self._service: McpService | None = None
        self._lock = asyncio.Lock()

    async def serving(self, context: ServerContext) -> McpService:
        """The server, started by the first call. Safe to cancel: the next call begins anew."""
        async with self._lock:
            if self._service is None:
                module = await asyncio.to_thread(importlib.import_module, "kernelsvc.server.mcp.asgi_bridge")
                self._service = found = module.McpService(context)
                context.closers.append(found.stop)
            return self._service


class McpHandler(ApiHandler):
    """One request of the protocol's; who may send it is decided here."""

    transport = "mcp"
    route = "/mcp"
    holder: McpServiceHolder
    _exchange: Exchange | None = None

    def token(self) -> str | None:
        """The token that the request carries, in a header or in front of the path."""
        found = re.match(r"/t/([^/]+)/", self.request.path)
        return unquote(found.group(1)) if found else super().token()

    def authenticate_request(self) -> None:
        """Check origin, then token.

        The protocol's own rule (transports, security): a page may only call from an origin that is known. That a
        page has our own host name proves nothing, since its owner decides what address the name has (DNS rebinding).

        Raises:
            Forbidden: a foreign origin.
            Unauthenticated: no token that we know.
        """
        origin = self.request.headers.get("Origin")
        configured = auth.origin_allowed(origin, None, self.context.settings.origins)
        if not configured and urlsplit(origin or "").hostname not in _LOOPBACK:
            raise Forbidden(f"The origin {origin} is not allowed here; add it to the setting 'origins'.")
        super().authenticate_request()

    def options(self, *args: str) -> None:
        """A browser's preflight; the origin was checked."""
        super().options(*args)
        more = "Authorization, Content-Type, Accept, Last-Event-ID, Mcp-Session-Id, Mcp-Protocol-Version, Mcp-Method"
        self.set_header("Access-Control-Allow-Headers", more)

    async def post(self) -> None:
        """A message of the client's."""
        await self._forward()

    async def get(self) -> None:
        """A stream for the server's messages, or the rest of one that broke."""
        await self._forward()

    async def delete(self) -> None:
        """The client leaves."""
        await self._forward()

    async def _forward(self) -> None:
        serving = await self.holder.serving(self.context)
        module = importlib.import_module("kernelsvc.server.mcp.asgi_bridge")
        self._exchange = module.Exchange(self)
        await self.while_connected(serving.answer(self._exchange))

    def no_delay(self) -> None:
        """Let each event leave at once."""
        stream = getattr(self.request.connection, "stream", None)
        if stream is not None:
            stream.set_nodelay(True)

    def on_connection_close(self) -> None:
        """Tornado's hook: the client left. The SDK decides what that ends: a stream, not the work behind it."""
        if self._exchange is None:
            super().on_connection_close()
            return
        self.context.requests.discard(self)
        self._exchange.gone.set()


def routes(shared: dict[str, Any]) -> list[Any]:
    """Tornado's routes of this door.

    Args:
        shared: what every handler is initialised with.
    """
    return [(rf"{PREFIX}/mcp/?", McpHandler, {**shared, "holder": McpServiceHolder()})]
