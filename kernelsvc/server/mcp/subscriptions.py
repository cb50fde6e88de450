"""MCP subscriptions: clients are notified when a session's notebook or one of its files changes.

Both versions of the protocol are served: ``resources/subscribe``, whose notifications
use the connection's own stream, and ``subscriptions/listen``, whose response is the
stream. A subscribed session is polled once a second. A poll compares one number. However
fast a cell prints, a client gets at most one notification a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ResourcesListChanged, ResourceUpdated
from mcp.shared.exceptions import MCPError

from kernelsvc.errors import KernelsvcError, NotFound
from kernelsvc.model.objects import SessionInfo, SessionState
from kernelsvc.protocol.method_params import SessionPage
from kernelsvc.tools import ToolBackend

Context: TypeAlias = ServerRequestContext[Any, Any]
Notify = Callable[[], Awaitable[None]]

#: Seconds between two polls.
POLL_SECONDS = 1.0
#: Most resources of one client and of one principal: each is polled. Most streams of one principal, and of one server.
MAX_RESOURCES, MAX_RESOURCES_OF_ONE, MAX_STREAMS_OF_ONE, MAX_STREAMS = 64, 128, 64, 256
#: Bytes of a file that are hashed. The rest counts only by the file's size.
MAX_HASHED = 1 << 20
_STATE = "kernelsvc.subscriptions"


class WatchedResource:
    """One resource, and its state at the last poll. Made by ``watch_resource``."""

    def __init__(self, backend: ToolBackend, session: str, path: str | None) -> None:
        self._backend, self._session, self._path = backend, session, path
        self._seq = -1
        self._content = ""
        self.over = False

    async def changed(self) -> bool:
        """Return whether it changed since the last poll. True at the first poll. Safe to cancel.

        Raises:
            KernelsvcError: It does not exist.
        """
        found = await self._backend.call("session.get", {"session": self._session}, SessionInfo)
        self.over = found.state is SessionState.CLOSED
        if found.last_seq == self._seq:
            return False
        self._seq = found.last_seq
        if self._path is None:
            return True
        before, self._content = self._content, await self._digest(self._path)
        return before != self._content

    async def _digest(self, path: str) -> str:
        with contextlib.suppress(NotFound):
            piece = await self._backend.read_file(self._session, path, 0, MAX_HASHED)
            return f"{piece.size} {hashlib.sha256(piece.data).hexdigest()}"
        return "gone"


async def watch_resource(backend: ToolBackend, session: str, rest: str) -> WatchedResource:
    """Return an existing resource, after its first poll.

    Args:
        backend: The subscriber's.
        session: The session's id.
        rest: The resource's name in the session.

    Raises:
        KernelsvcError: The session does not exist, or has no such resource.
    """
    path = rest.removeprefix("files/") if rest.startswith("files/") else None
    if path is None and rest.partition(".")[0] != "notebook":
        raise NotFound(f"A session has no {rest[:100]!r}. Call resources/templates/list.")
    resource = WatchedResource(backend, session, path)
    await resource.changed()
    return resource


async def follow(resource: WatchedResource, notify: Notify) -> None:
    """Call ``notify`` at each change until the session has ended. Safe to cancel."""
    while not resource.over:
        await asyncio.sleep(POLL_SECONDS)
        try:
            changed = await resource.changed()
        except NotFound:
            return
        except KernelsvcError:
            continue  # the server may be restarting
        if changed:
            await notify()


async def follow_list(backend: ToolBackend, notify: Notify) -> None:
    """Call ``notify`` when the list of sessions changes. Safe to cancel."""
    before: list[tuple[str, str]] | None = None
    while True:
        with contextlib.suppress(KernelsvcError):
            page = await backend.call("session.list", {"limit": 100}, SessionPage)
            now = [(each.id, each.name or "") for each in page.sessions]
            if before is not None and now != before:
                await notify()
            before = now
        await asyncio.sleep(POLL_SECONDS)


class Subscriptions:
    """Handlers of the protocol's subscription requests.

    Args:
        backend: Returns the backend of the client that sent a request.
        parse_uri: Splits a resource's URI into session and name.
        owner: Returns the principal of the client that sent a request.
    """

    def __init__(
        self,
        backend: Callable[[Context], ToolBackend],
        parse_uri: Callable[[str], tuple[str, str]],
        owner: Callable[[Context], str],
    ) -> None:
        self._backend, self._parse_uri, self._owner = backend, parse_uri, owner
        self._streams: Counter[str] = Counter()
        self._watched: Counter[str] = Counter()

    async def subscribe(self, ctx: Context, params: types.SubscribeRequestParams) -> types.EmptyResult:
        """Handle ``resources/subscribe``."""
        uri = str(params.uri)
        tasks = self._tasks_of(ctx)
        if uri not in tasks:
            if len(tasks) >= MAX_RESOURCES:
                raise MCPError(
                    types.INVALID_REQUEST, f"{MAX_RESOURCES} resources are subscribed. Unsubscribe one of them."
                )
            owner, session = self._owner(ctx), ctx.session
            self._count(owner, 1)
            try:
                resource = await self._watch(ctx, uri)
            except BaseException:
                self._count(owner, -1)
                raise
            if uri in tasks:  # another request was faster
                self._count(owner, -1)
                return types.EmptyResult()
            task = tasks[uri] = asyncio.ensure_future(follow(resource, lambda: session.send_resource_updated(uri)))
            task.add_done_callback(lambda _: self._count(owner, -1))
        return types.EmptyResult()

    async def unsubscribe(self, ctx: Context, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
        """Handle ``resources/unsubscribe``."""
        task = self._tasks_of(ctx).pop(str(params.uri), None)
        if task is not None:
            task.cancel()
        return types.EmptyResult()

    async def listen(
        self, ctx: Context, params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        """Handle ``subscriptions/listen``: respond with a stream for as long as the client reads it."""
        wanted = params.notifications
        uris = [str(uri) for uri in wanted.resource_subscriptions or ()]
        owner = self._owner(ctx)
        full = self._streams[owner] >= MAX_STREAMS_OF_ONE or self._streams.total() >= MAX_STREAMS
        if len(uris) > MAX_RESOURCES or full:
            raise MCPError(
                types.INVALID_REQUEST,
                f"At most {MAX_RESOURCES} resources and {MAX_STREAMS_OF_ONE} streams are possible at the same time.",
            )
        bus = InMemorySubscriptionBus()
        self._count(owner, len(uris))
        self._streams[owner] += 1
        tasks: list[asyncio.Future[None]] = []
        try:
            for uri in uris:
                resource = await self._watch(ctx, uri)
                tasks.append(asyncio.ensure_future(follow(resource, _publisher(bus, ResourceUpdated(uri)))))
            if wanted.resources_list_changed:
                notify = _publisher(bus, ResourcesListChanged())
                tasks.append(asyncio.ensure_future(follow_list(self._backend(ctx), notify)))
            return await ListenHandler(bus)(ctx, params)
        finally:
            self._count(owner, -len(uris))
            self._streams[owner] -= 1
            if not self._streams[owner]:
                del self._streams[owner]
            for task in tasks:
                task.cancel()

    def _count(self, owner: str, more: int) -> None:
        """Count resources that a principal begins to watch, or with a negative number does not watch any more."""
        if more > 0 and self._watched[owner] + more > MAX_RESOURCES_OF_ONE:
            raise MCPError(
                types.INVALID_REQUEST,
                f"All your clients together can watch {MAX_RESOURCES_OF_ONE} resources. Unsubscribe some.",
            )
        self._watched[owner] += more
        if not self._watched[owner]:
            del self._watched[owner]

    async def _watch(self, ctx: Context, uri: str) -> WatchedResource:
        try:
            return await watch_resource(self._backend(ctx), *self._parse_uri(uri))
        except KernelsvcError as error:
            raise MCPError(types.INVALID_PARAMS, error.message, {"code": error.code}) from None

    def _tasks_of(self, ctx: Context) -> dict[str, asyncio.Future[None]]:
        """Return this connection's tasks, which end with it."""
        connection = ctx.session._connection  # private: the SDK gives handlers no public access to the connection's end
        if _STATE not in connection.state:
            connection.state[_STATE] = {}
            connection.exit_stack.callback(_cancel, connection.state[_STATE])
        tasks: dict[str, asyncio.Future[None]] = connection.state[_STATE]
        for uri in [uri for uri, task in tasks.items() if task.done()]:
            del tasks[uri]
        return tasks


def _publisher(bus: InMemorySubscriptionBus, event: ResourceUpdated | ResourcesListChanged) -> Notify:
    return lambda: bus.publish(event)


def _cancel(tasks: dict[str, asyncio.Future[None]]) -> None:
    for task in tasks.values():
        task.cancel()
