"""The MCP endpoint: streamable HTTP at ``/mcp``.

``server`` is the MCP server over a toolbox (``kernelsvc.tools``), ``asgi_bridge``
runs it in this process, ``tool_backend`` connects the toolbox to the service, and
``event_store`` stores events for interrupted streams. ``python_tool`` is a second server, at ``/python``, with one
tool for model servers. This module has the handler. It
does not import the official SDK. The first request imports it in a thread, so that
neither the server's start nor other sessions wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from kernelsvc.errors import Forbidden
from kernelsvc.protocol.jupyter import check_json
from kernelsvc.server import auth
from kernelsvc.server.handler import ApiHandler, ServerContext

if TYPE_CHECKING:
    from kernelsvc.server.mcp.asgi_bridge import Exchange, McpService
    from kernelsvc.server.mcp.python_tool import PythonToolService

#: Prefix with a token, for MCP hosts that can't send headers.
PREFIX = r"(?:/t/[^/]+)?"
#: Bytes of a message above which those of one principal are checked one after the other.
LONG = 64 * 1024
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class McpServiceHolder:
    """Holder of an application's MCP server, which the first request starts.

    Args:
        module: Name of the module with the server.
        name: Name of its class.
    """

    def __init__(self, module: str = "asgi_bridge", name: str = "McpService") -> None:
        self._module, self._name = f"kernelsvc.server.mcp.{module}", name
        self._service: McpService | PythonToolService | None = None
        self._lock = asyncio.Lock()

    async def serving(self, context: ServerContext) -> McpService | PythonToolService:
        """Return the server. The first call starts it. Safe to cancel: the next call starts it again."""
        async with self._lock:
            if self._service is None:
                module = await asyncio.to_thread(importlib.import_module, self._module)
                made: McpService | PythonToolService = getattr(module, self._name)(context)
                context.closers.append(made.stop)
                self._service = made
            return self._service


class McpHandler(ApiHandler):
    """Handler of the MCP endpoint: authentication, then the SDK."""

    transport = "mcp"
    route = "/mcp"
    holder: McpServiceHolder
    _exchange: Exchange | None = None

    def token(self) -> str | None:
        """Return the token that the request carries, in a header or in the path's prefix."""
        found = re.match(r"/t/([^/]+)/", self.request.path)
        return unquote(found.group(1)) if found else super().token()

    def authenticate_request(self) -> None:
        """Check the origin, then the token.

        MCP requires that servers validate the origin (transports, security): a page may only call
        from a known origin. An origin with this server's own host name is not enough, since the
        owner of a name decides its address (DNS rebinding).

        Raises:
            Forbidden: The origin is not allowed.
            Unauthenticated: The token is missing or unknown.
        """
        origin = self.request.headers.get("Origin")
        configured = auth.origin_allowed(origin, None, self.context.settings.origins)
        if not configured and urlsplit(origin or "").hostname not in _LOOPBACK:
            raise Forbidden(f"The origin {origin} is not allowed here. Add it to the setting 'origins'.")
        super().authenticate_request()

    def options(self, *args: str, **named: str) -> None:
        """Respond to a browser's preflight. The origin was checked."""
        super().options(*args)
        more = "Authorization, Content-Type, Accept, Last-Event-ID, Mcp-Session-Id, Mcp-Protocol-Version, Mcp-Method"
        self.set_header("Access-Control-Allow-Headers", more)

    async def post(self) -> None:
        """Receive a message from the client.

        Raises:
            BadRequest: Its JSON has too many values, which the SDK would build before it looks at them.
        """
        body = self.body()
        async with self.context.turn_of(self.who, "messages") if len(body) > LONG else contextlib.nullcontext():
            check_json(body)
        await self._forward()

    async def get(self) -> None:
        """Stream the server's messages, or the rest of an interrupted stream."""
        await self._forward()

    async def delete(self) -> None:
        """End the MCP session."""
        await self._forward()

    async def _forward(self) -> None:
        serving = await self.holder.serving(self.context)
        module = importlib.import_module("kernelsvc.server.mcp.asgi_bridge")
        self._exchange = module.Exchange(self)
        await self.while_connected(serving.answer(self._exchange))

    def no_delay(self) -> None:
        """Set TCP_NODELAY, so that each event is sent immediately."""
        stream = getattr(self.request.connection, "stream", None)
        if stream is not None:
            stream.set_nodelay(True)

    def on_connection_close(self) -> None:
        """Tornado's hook: the client disconnected. The SDK ends the stream, not the request's work."""
        if self._exchange is None:
            super().on_connection_close()
            return
        self.context.requests.discard(self)
        self._exchange.gone.set()


def routes(shared: dict[str, Any]) -> list[Any]:
    """Return Tornado's routes of the MCP endpoint.

    Args:
        shared: Passed to each handler's ``initialize``.
    """
    python = {**shared, "holder": McpServiceHolder("python_tool", "PythonToolService")}
    return [
        (rf"{PREFIX}/mcp/?", McpHandler, {**shared, "holder": McpServiceHolder()}),
        (rf"{PREFIX}/python/(?:sse|messages|mcp)/?", McpHandler, python),
    ]
