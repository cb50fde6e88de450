"""MCP over HTTP: the SDK's session manager in this process.

The SDK implements both versions of the protocol (``initialize`` with ``Mcp-Session-Id``,
and the stateless one of 2026-07-28), event streams and their resumption. It
speaks ASGI. ``Exchange`` carries one request between Tornado and the SDK. Tokens,
origins and limits are checked before the SDK gets a request.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from tornado.iostream import StreamClosedError

from kernelsvc.model.objects import Principal
from kernelsvc.server.handler import ServerContext
from kernelsvc.server.mcp import server
from kernelsvc.server.mcp.event_store import McpSession, MemoryEventStore, current_session
from kernelsvc.server.mcp.tool_backend import ServiceToolBackend
from kernelsvc.tools import ToolBackend, Toolbox
from kernelsvc.tools.session_resolver import CallerState

if TYPE_CHECKING:
    from kernelsvc.server.mcp import McpHandler

Message = MutableMapping[str, Any]

SESSION_HEADER = "mcp-session-id"
#: Most connected clients, and most callers whose state is stored.
MAX_CLIENTS, MAX_CALLERS = 1000, 10_000
#: Most connected clients of one principal. Over it, the one that was quiet for longest gives way.
MAX_CLIENTS_OF_ONE = 250
IDLE_SECONDS = 3600.0
#: Name of the caller in an ASGI scope.
PRINCIPAL = "kernelsvc.principal"


class ManagerTask:
    """Runs a session manager of the SDK until it is stopped.

    The manager's task group must be entered and left by the same task (AnyIO), so it has one of its own.

    Args:
        manager: The session manager.
        name: Name of the task, for asyncio's log lines.
    """

    def __init__(self, manager: StreamableHTTPSessionManager, name: str) -> None:
        self._manager = manager
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopping = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=name)

    async def _run(self) -> None:
        async with self._manager.run():
            self._ready.set_result(None)
            await self._stopping.wait()

    async def ready(self) -> None:
        """Wait until requests can be handled. Safe to cancel."""
        await asyncio.shield(self._ready)

    async def stop(self) -> None:
        """End the manager's sessions."""
        self._stopping.set()
        await self._task


class McpService:
    """The MCP server of one Tornado application."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._callers: OrderedDict[tuple[str, str], CallerState] = OrderedDict()
        self._sessions: OrderedDict[str, McpSession] = OrderedDict()
        self._event_store = MemoryEventStore()
        self._manager = StreamableHTTPSessionManager(
            server.make_server(self._find, _owner, _options),
            event_store=self._event_store,
            session_idle_timeout=IDLE_SECONDS,
            max_sessions=MAX_CLIENTS,
            max_request_body_size=context.settings.max_body_bytes,
        )
        self._running = ManagerTask(self._manager, "mcp")

    async def stop(self) -> None:
        """End all MCP sessions. Running cells continue."""
        await self._running.stop()

    async def answer(self, exchange: Exchange) -> None:
        """Serve one request."""
        await self._running.ready()
        given = exchange.handler.request.headers.get(SESSION_HEADER)
        who = exchange.handler.who.name
        session = (self._sessions.get(given) if given is not None else None) or McpSession(who)
        if given is None:
            await self._make_room(exchange)
        elif given in self._sessions and session.principal == who:
            self._sessions.move_to_end(given)
        current_session.set(session)
        # Stored before the response's first byte is sent: the client may send its next request immediately.
        exchange.on_opened = lambda opened: self._remember(opened, session)
        session.requests += 1
        try:
            await self._manager.handle_request(exchange.scope(), exchange.receive, exchange.send)
        finally:
            session.requests -= 1
        if exchange.handler.request.method == "DELETE" and session.principal == who:
            self._sessions.pop(given or "", None)
            self._event_store.forget(session)

    async def _make_room(self, exchange: Exchange) -> None:
        """End MCP sessions of the caller that are over its share: first those without a request, the oldest first."""
        own = [(name, each) for name, each in self._sessions.items() if each.principal == exchange.handler.who.name]
        own.sort(key=lambda pair: pair[1].requests > 0)  # stable: the last used is last
        for name, session in own[: max(0, len(own) - MAX_CLIENTS_OF_ONE + 1)]:
            self._sessions.pop(name, None)
            self._event_store.forget(session)
            await self._manager.handle_request(exchange.end_scope(name), _no_body, _ignore)

    def _remember(self, opened: str, session: McpSession) -> None:
        self._sessions.setdefault(opened, session)
        while len(self._sessions) > MAX_CLIENTS * 2:
            self._event_store.forget(self._sessions.popitem(last=False)[1])

    def _find(self, ctx: server.Context) -> tuple[Toolbox, ToolBackend]:
        request = ctx.request
        if request is None:
            raise RuntimeError("the MCP request has no HTTP request")
        who: Principal = request.scope[PRINCIPAL]
        made = self._context.tool_backend
        backend = made(who) if made is not None else ServiceToolBackend(self._context, who)
        return Toolbox(backend, self._caller_state(who, request.headers.get(SESSION_HEADER), ctx)), backend

    def _caller_state(self, who: Principal, connection: str | None, ctx: server.Context) -> CallerState:
        """Return the state that this caller's calls share: by connection, or without one, by the client's name."""
        client = ctx.session.client_params
        name = client.client_info.name[:64] if client is not None and client.client_info else ""
        key = f"connection:{connection}" if connection else f"client:{name}"
        state = self._callers.pop((who.name, key), None)
        if state is None:
            digest = hashlib.sha256(f"{who.name}\0{key}".encode()).hexdigest()[:24]
            state = CallerState(f"mcp.{digest}", f"MCP: {name}" if name else "MCP")
        self._callers[who.name, key] = state
        while len(self._callers) > MAX_CALLERS:
            self._callers.popitem(last=False)
        return state


def _owner(ctx: server.Context) -> str:
    request = ctx.request
    return str(request.scope[PRINCIPAL].name) if request is not None else ""


def _options(ctx: server.Context) -> server.McpOptions:
    """Return the options in the query of the request's address."""
    request = ctx.request
    asked = request.query_params if request is not None else {}
    return server.McpOptions(facts=asked.get("facts") == "1", tools=asked.get("tools"))


async def _no_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _ignore(message: Message) -> None:
    """Discard the response to a request that no client sent."""


class Exchange:
    """One request and its response, between Tornado and ASGI."""

    def __init__(self, handler: McpHandler) -> None:
        self.handler = handler
        self.gone = asyncio.Event()
        self.on_opened: Callable[[str], None] = lambda opened: None
        self._body: bytes | None = handler.body()
        self._streams = False

    def scope(self) -> dict[str, Any]:
        """Return the ASGI scope with the caller. The SDK binds an MCP session to the caller."""
        request, who = self.handler.request, self.handler.who
        user = AuthenticatedUser(AccessToken(token="", client_id=who.name, scopes=sorted(who.scopes)))
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": request.protocol,
            "path": "/mcp",  # without the prefix with the token
            "raw_path": b"/mcp",
            "query_string": request.query.encode("latin-1", "replace"),
            "root_path": "",
            "headers": [
                (name.lower().encode("latin-1"), value.encode("latin-1", "replace"))
                for name, value in request.headers.get_all()
                if name.lower() != "authorization"
            ],
            "client": None,
            "server": None,
            "user": user,
            PRINCIPAL: who,
        }

    def end_scope(self, session: str) -> dict[str, Any]:
        """Return the ASGI scope of this caller's request to end an MCP session."""
        headers = [(SESSION_HEADER.encode(), session.encode()), (b"host", self.handler.request.host.encode("latin-1"))]
        return {**self.scope(), "method": "DELETE", "headers": headers}

    async def receive(self) -> Message:
        """Return the whole body. The second call waits until the client disconnects. Safe to cancel."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Write a part of the response. Does nothing after the client has disconnected."""
        if self.gone.is_set():
            return
        if message["type"] == "http.response.start":
            self._begin(message)
            return
        if chunk := message.get("body", b""):
            self.handler.write(bytes(chunk))
        if self._streams:
            try:
                await self.handler.flush()
            except StreamClosedError:
                self.gone.set()

    def _begin(self, message: Message) -> None:
        handler = self.handler
        handler.set_status(message["status"])
        handler.clear_header("Content-Type")
        for raw_name, raw_value in message.get("headers", []):
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            if name.lower() == SESSION_HEADER and message["status"] < 400:
                self.on_opened(value)
            if name.lower() != "connection":
                handler.set_header(name, value)
            self._streams = self._streams or value.startswith("text/event-stream")
        if self._streams:
            handler.no_delay()
