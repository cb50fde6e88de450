"""The native WebSocket at a front: frames of one client to the nodes of the sessions that they name.

A frame is read as far as its method and its session, and passed on unchanged, over one connection for each client and
node. Answers come back unchanged, so ids of requests stay the client's. All frames of a session go one way, so their
order is kept. A request that names no session is placed, gathered or sent to all nodes.

When a connection to a node breaks, the client's is closed too. Clients connect again and resume by position, cell id
and idempotency key, as after the restart of a single server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UnsetType
from tornado.iostream import StreamClosedError

from kernelsvc import errors
from kernelsvc.errors import KernelsvcError, NodeUnreachable, QuotaExceeded
from kernelsvc.front.gathering import error_of, list_sessions
from kernelsvc.front.relay import is_full
from kernelsvc.front.routes import wanted
from kernelsvc.front.upstream import NoAnswer, NotSent, Response
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model.cluster import ids
from kernelsvc.model.cluster.known_offers import KnownOffers
from kernelsvc.protocol import jsonrpc
from kernelsvc.protocol.method_params import OfferParams, WithdrawParams
from kernelsvc.protocol.methods import METHODS
from kernelsvc.server.native.websocket import ApiSocket, ConnectionGone
from kernelsvc.server.ws import client
from kernelsvc.server.ws.client import ClientSocket, HandshakeRefused
from kernelsvc.server.ws.protocol import HELD_FROM

if TYPE_CHECKING:
    from kernelsvc.front.locating import Cluster
    from kernelsvc.front.members import Member
    from kernelsvc.front.own import Info
    from kernelsvc.front.placing import Placing
    from kernelsvc.server.connections import LimitedConnection
    from kernelsvc.server.handler import ServerContext

#: Most bytes and frames of one client's requests that wait for connections to nodes, and most bytes of answers that
#: wait for the client.
MAX_WAITING, MAX_FRAMES, MAX_UNSENT = 64 * 1024 * 1024, 4096, 256 * 1024


class _Params(msgspec.Struct):
    session: str | None = None


class _Peek(msgspec.Struct):
    method: str
    params: _Params | None = None


class _Made(msgspec.Struct):
    id: str


class _Reply(msgspec.Struct):
    id: Any = None
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: dict[str, Any] | None = None


_peek = msgspec.json.Decoder(_Peek).decode
_reply = msgspec.json.Decoder(_Reply).decode
_made = msgspec.json.Decoder(_Made).decode
_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class NodeConnection:
    """One client's connection to one node, which is opened after the first requests for it.

    Args:
        socket: The client.
    """

    def __init__(self, socket: FrontSocket) -> None:
        self._socket = socket
        self._member: Member | None = None
        self._stream: ClientSocket | None = None
        self._waiting: deque[bytes] = deque()
        self._asked: dict[str, asyncio.Future[_Reply]] = {}
        self._prefix = f"front-{os.urandom(8).hex()}-"
        self._number = 0
        self._over = False

    async def open(self, member: Member) -> None:
        """Connect, and send the waiting frames. Safe to cancel.

        Args:
            member: The node.

        Raises:
            OSError, TimeoutError, HandshakeRefused: The node does not accept.
        """
        headers = [("Authorization", f"Bearer {self._socket.token()}")]
        # The setting limits requests. An answer may be longer.
        stream = await client.connect(
            member.url, "/v1/ws", headers, self._on_message, self._on_closed, 1 << 40, self._socket.flush_queue
        )
        if self._over:
            stream.close()
            return
        self._stream, self._member = stream, member
        member.on_lost.add(self.close)
        frames = [*self._waiting]
        self._waiting.clear()
        counts, sent = (len(frames), sum(map(len, frames))), None
        for frame in frames:
            sent = stream.queue(frame)
        stream.flush()
        # They stay in memory until the node has read them.
        if sent is None:
            self._socket.room.give_back(*counts)
        else:
            sent.add_done_callback(lambda _: self._socket.room.give_back(*counts))

    def send(self, message: bytes) -> asyncio.Future[None] | None:
        """Send a client's frame with the next ``flush``, or when the connection is open.

        Returns:
            A future that is done when the client may send more, or None.

        Raises:
            QuotaExceeded: Too much waits.
        """
        if self._stream is None:
            self._socket.take_room(len(message))
            self._waiting.append(message)
            return None
        try:
            return self._stream.queue(message)
        except StreamClosedError:
            return None  # the client's connection is about to be closed

    def flush(self) -> None:
        """Send the frames that are ready, in one write."""
        if self._stream is not None:
            self._stream.flush()

    def waiting(self) -> list[bytes]:
        """Return the frames that were not sent, and forget them."""
        found = [*self._waiting]
        self._waiting.clear()
        self._socket.room.give_back(len(found), sum(map(len, found)))
        return found

    def ask(self, method: str, params: Any) -> asyncio.Future[_Reply]:
        """Send a request of the front's own, after all earlier frames.

        Returns:
            A future of the reply. It fails with ``NodeUnreachable`` when the connection ends.

        Raises:
            QuotaExceeded: Too much waits.
        """
        self._number += 1
        name = f"{self._prefix}{self._number}"
        future: asyncio.Future[_Reply] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # some are not awaited
        self.send(_encode({"jsonrpc": "2.0", "id": name, "method": method, "params": params}))
        self.flush()
        self._asked[name] = future
        return future

    def give_up(self, error: KernelsvcError) -> list[bytes]:
        """End the front's own requests with an error. Return the client's that were not sent."""
        for future in self._asked.values():
            if not future.done():
                future.set_exception(error)
        self._asked.clear()
        return [frame for frame in self.waiting() if self._prefix.encode() not in frame[:200]]

    def _on_message(self, message: bytes) -> asyncio.Future[None] | None:
        if self._asked and self._prefix.encode() in message[:200]:
            reply = _reply(message)
            future = self._asked.pop(reply.id, None) if isinstance(reply.id, str) else None
            if future is not None:
                if not future.done():
                    future.set_result(reply)
                return None
        return self._socket.pass_back(message)

    def _on_closed(self) -> None:
        if self._member is not None:
            self._member.on_lost.discard(self.close)
        if not self._over:
            self._over = True
            self._socket.cut()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._stream is not None:
            self._stream.close()
        self.give_up(NodeUnreachable("The connection to the node ended. Connect again."))

    def abandon(self) -> None:
        """Close it because the client is gone."""
        self._over = True
        self.close()


class _Room:
    """Room for the requests of one client that wait for connections to nodes, whichever names of nodes it makes up."""

    def __init__(self) -> None:
        self._bytes = self._frames = 0
        self._limited: LimitedConnection | None = None

    def take(self, size: int, limited: LimitedConnection | None) -> None:
        """Count a frame.

        Args:
            size: Its bytes.
            limited: The client's connection, which is closed if the frames of all clients are too large together.

        Raises:
            QuotaExceeded: Too much waits.
        """
        if self._bytes + size > MAX_WAITING or self._frames >= MAX_FRAMES:
            raise QuotaExceeded("Too many requests wait for the nodes of their sessions. Send them again later.")
        self._bytes += size
        self._frames += 1
        self._limited = limited
        if limited is not None:
            limited.serve(size)

    def give_back(self, frames: int, size: int) -> None:
        """Stop counting so many frames of ``size`` bytes together."""
        self._bytes -= size
        self._frames -= frames
        if self._limited is not None and frames:
            self._limited.serve(-size)


class FrontSocket(ApiSocket):
    """The handler of one client's WebSocket at a front."""

    cluster: Cluster
    placing: Placing
    info: Info

    def initialize(self, context: ServerContext, **more: Any) -> None:
        """Tornado's hook."""
        super().initialize(context, **more)
        self._nodes: dict[str, NodeConnection] = {}
        self._offers = KnownOffers()
        self.room = _Room()
        self._unflushed: dict[NodeConnection, None] = {}
        self._own = OwnedTasks()

    def open(self, *args: str, **kwargs: str) -> None:
        """Tornado's hook."""
        super().open(*args, **kwargs)
        self.cluster.members.on_joined.add(self._on_joined)

    def on_close(self) -> None:
        """Tornado's hook."""
        self.cluster.members.on_joined.discard(self._on_joined)
        self._own.cancel()
        for connection in self._nodes.values():
            connection.abandon()
        super().on_close()

    def cut(self) -> None:
        """Close the client's connection without a farewell: a node's has broken."""
        self._abort_stream()

    def take_room(self, size: int) -> None:
        """Count a frame that waits for a node.

        Raises:
            QuotaExceeded: Too much waits.
        """
        self.room.take(size, getattr(self.ws_connection, "limited", None))

    def pass_back(self, message: bytes) -> asyncio.Future[None] | None:
        """Send a node's message to the client, with the others of the same read.

        Returns:
            A future that is done when the node may send more, or None.
        """
        if self._send_queue.closed:
            return None
        self._send_queue.hold(jsonrpc.text_frame(message))
        if self._send_queue.backlog < MAX_UNSENT:
            return None
        return self._own.start(self._send_queue.drained())

    # --- requests ---------------------------------------------------------------------------

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        """Tornado's hook: a whole frame of the client."""
        self._last_received = time.monotonic()
        raw = message.encode() if isinstance(message, str) else message
        handled = self._handle_frame(raw)
        if handled is None or len(raw) <= HELD_FROM:
            return handled
        # The next frame is read when this one is done. Until then it is in memory.
        task = asyncio.ensure_future(handled)
        self.count_until_done(task, len(raw))
        return task

    def _handle_frame(self, raw: bytes) -> Awaitable[None] | None:
        try:
            seen = _peek(raw)
        except jsonrpc.DECODE_ERRORS:
            seen = None
        session = seen.params.session if seen is not None and seen.params is not None else None
        if seen is None or session is None or seen.method not in METHODS:
            return self._without_session(raw)
        owner = self._owner(ids.session_of(session) or "")
        connection = self._nodes.get(owner) if owner is not None else None
        if connection is not None:
            return self._send(connection, raw)
        return self._find_and_send(raw, ids.session_of(session) or session)

    def _owner(self, session: str) -> str | None:
        """Return the node of a session, as far as it is known without a search. This is in the way of each frame."""
        members = self.cluster.members
        return (members.moved(session) if members.any_guests else None) or ids.node_of(session)

    def on_read(self) -> None:
        """Send the requests of one read, with one write to each node."""
        for connection in self._unflushed:
            connection.flush()
        self._unflushed.clear()

    def _send(self, connection: NodeConnection, raw: bytes) -> Awaitable[None] | None:
        self._unflushed[connection] = None
        try:
            return connection.send(raw)
        except QuotaExceeded as error:
            return self._refuse_frame(raw, error)

    async def _find_and_send(self, raw: bytes, session: str) -> None:
        """Send a frame to a node without a connection yet. Only the search delays the client's next frames."""
        members = self.cluster.members
        owner = members.owner(session)
        if owner is None:
            try:
                owner = (await self.cluster.node_of(session, self.token())).name
            except KernelsvcError as error:
                await self._refuse_frame(raw, error)
                return
        sent = self._send(self._connection(owner), raw)
        self.on_read()
        if sent is not None:
            await sent

    def _connection(self, node: str) -> NodeConnection:
        found = self._nodes.get(node)
        if found is None:
            found = self._nodes[node] = NodeConnection(self)
            self._own.start(self._open_connection(found, node))
        return found

    async def _open_connection(self, connection: NodeConnection, node: str) -> None:
        """Connect to a node, and hold requests while it is away for a moment."""
        members = self.cluster.members
        deadline = asyncio.get_running_loop().time() + members.hold_seconds
        error: KernelsvcError
        while True:
            try:
                await connection.open(await members.wait_for(node, "the session"))
            except KernelsvcError as found:
                error = found
                break
            except HandshakeRefused as refused:
                error = NodeUnreachable(f"The node {node} refused this connection ({refused}).", node=node)
                break
            except (OSError, TimeoutError):
                if asyncio.get_running_loop().time() < deadline:
                    await asyncio.sleep(0.1)
                    continue
                error = members.absent(node, "the session")
                break
            for each in self._offers.providers.values():
                offered = OfferParams(provider=each.provider, offers=[*each.offers.values()], holding=[*each.holding])
                connection.ask("tools.offer", offered)
            return
        del self._nodes[node]
        for raw in connection.give_up(error):
            await self._refuse_frame(raw, error)

    async def _refuse_frame(self, raw: bytes, error: KernelsvcError) -> None:
        try:
            id = _object(raw).get("id")
        except jsonrpc.DECODE_ERRORS:
            return
        if id is not None:
            with contextlib.suppress(ConnectionGone):
                await self._reply(jsonrpc.encode_error(msgspec.json.decode(id), error))

    # --- requests without a session ---------------------------------------------------------

    def _without_session(self, raw: bytes) -> Awaitable[None] | None:
        try:
            request = jsonrpc.decode(raw, self.context.request_limits)
        except jsonrpc.RequestRefused as refused:
            return self._refuse(refused)
        if self._unanswered >= self.context.settings.max_requests:
            return self._send_error(request.id, QuotaExceeded("Too many requests are unanswered. Wait for replies."))
        self._unanswered += 1
        self.count_until_done(self._own.start(self._answer_one(request, raw)), len(raw))
        return None

    async def _answer_one(self, request: jsonrpc.Request, raw: bytes) -> None:
        made: str | None = None
        try:
            result = await self._result(request, _object(raw).get("params", msgspec.Raw(b"{}")))
            if request.method.name == "session.create" and request.params.attach:
                made = _made(result).id
            payload = b"" if isinstance(request.id, UnsetType) else jsonrpc.encode_result(request.id, result)
        except Exception as error:
            known = self._as_known_error(error, request)
            payload = b"" if isinstance(request.id, UnsetType) else jsonrpc.encode_error(request.id, known)
        finally:
            self._unanswered -= 1
        if payload and not self._send_queue.closed:
            self._send_queue.put(jsonrpc.text_frame(payload))
        # In the same turn of the loop, so that it comes before all that the client sends for the new session.
        if made is not None and (owner := self.cluster.members.owner(made)) is not None:
            self._connection(owner).ask("session.attach", {"session": made, "after": 0})

    async def _result(self, request: jsonrpc.Request, params: msgspec.Raw) -> Any:
        name = request.method.name
        token = self.token() or ""
        match name:
            case "session.list":
                return await list_sessions(self.cluster, token, request.params)
            case "info":
                return await self.info.show(token)
            case "session.create":
                fields = _object(params)
                fields.pop("attach", None)
                return await self._placed("/v1/sessions", _encode(fields))
            case "call":
                return await self._placed("/v1/execute", bytes(params))
            case "tools.offer" | "tools.withdraw":
                return await self._everywhere(request, params)
            case "workspace.set" | "workspace.get" | "workspace.remove":
                address = f"{request.params.owner or self.who.name}/{request.params.name}"
                member = await self.cluster.node_of_workspace(address, token)
            case "workspace.list":
                found = await self.cluster.everywhere("GET", "/v1/workspaces", token)
                return [each for _, one in found.answers for each in _checked(one)]
            case _:
                await self.cluster.members.wait_for_any()
                member = self.cluster.members.any()
        return _result_of(await self._connection(member.name).ask(name, params))

    async def _placed(self, path: str, body: bytes) -> msgspec.Raw:
        """Make a session by REST, so that a node without room can be followed by another."""
        token = self.token() or ""
        asked = wanted(body, None, path)
        tries = await self.placing.choose(self.who, token, asked)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        response = Response()
        for number, member in enumerate(tries):
            self.placing.note_sent(self.who, asked, member)
            try:
                response = await self.cluster.upstream.fetch(member, "POST", path, headers, body)
            except NotSent:
                if number + 1 == len(tries):
                    raise NodeUnreachable(f"The node {member.name} does not accept connections.") from None
                continue
            except (NoAnswer, OSError):
                self.cut()  # it may have been made: the client asks again, with its key
                raise NodeUnreachable from None
            if not is_full(response):
                self.placing.note_answered(self.who, asked, member)
                break
        if response.status not in (200, 201):
            raise error_of(response)
        return msgspec.Raw(response.body)

    # --- offers -----------------------------------------------------------------------------

    async def _everywhere(self, request: jsonrpc.Request, params: msgspec.Raw) -> Any:
        """Send an offer for all sessions, or the end of some, to each node. Nodes that join later get what is left."""
        given = request.params

        def known() -> KnownOffers:
            if isinstance(given, WithdrawParams):
                return self._offers.withdraw(given.names)
            return self._offers.offer(given.provider, given.offers, given.holding, replace=given.replace)

        known()  # too many are refused before a node gets them
        connections = [self._connection(member.name) for member in self.cluster.members.reachable()]
        replies = await asyncio.gather(
            *(each.ask(request.method.name, params) for each in connections), return_exceptions=True
        )
        # A node that went meanwhile gets the offer when it is back.
        results = [_result_of(reply) for reply in replies if not isinstance(reply, BaseException)]
        if not results:
            raise NodeUnreachable("No node answers now. Offer the functions again in a few seconds.")
        self._offers = known()
        if isinstance(given, WithdrawParams):
            return None
        shown = [msgspec.json.decode(each) for each in results]
        return {**shown[0], "cancelled": sorted({call for each in shown for call in each.get("cancelled", [])})}

    def _on_joined(self, member: Member) -> None:
        if self._offers.providers:
            self._connection(member.name)


def _result_of(reply: _Reply) -> msgspec.Raw:
    if reply.error is not None:
        raise errors.from_json(reply.error.get("data") or {})
    return reply.result


def _checked(response: Response) -> list[Any]:
    if response.status != 200:
        raise error_of(response)
    found: list[Any] = msgspec.json.decode(response.body)
    return found
