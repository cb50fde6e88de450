"""Requests that are passed on to a node: heads are read, bodies pass in pieces, at the pace of the reader."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, stream_request_body

from kernelsvc.errors import AtCapacity, NodeUnreachable
from kernelsvc.front.locating import Cluster
from kernelsvc.front.members import Member
from kernelsvc.front.placing import Placing
from kernelsvc.front.routes import Action, Match, sandbox_in, session_in, wanted
from kernelsvc.front.splice import splice
from kernelsvc.front.upstream import UNLIMITED, Collector, NoAnswer, NotSent, Response
from kernelsvc.protocol.port_headers import end_to_end
from kernelsvc.server import sandboxai
from kernelsvc.server.connections import ANSWER_SECONDS, connection_of
from kernelsvc.server.e2b import models
from kernelsvc.server.handler import DISCARD_BYTES, ON_LOOPBACK, ApiHandler, ServerContext, as_error
from kernelsvc.server.jupyter.handlers import token_of
from kernelsvc.server.native.handlers import send_record
from kernelsvc.service.api import RecordPart

#: Pieces of a body that wait for a node.
MAX_PIECES = 4
#: Seconds before another attempt to reach a node that reports and does not accept or answer.
PAUSE_SECONDS = 0.1


class FrontHandler(ApiHandler):
    """Base of the front's handlers: tokens in the forms of all APIs, and errors in their formats."""

    transport = "front"
    match: Match
    cluster: Cluster
    placing: Placing

    def token(self) -> str | None:
        """Return the token that the request carries."""
        row, key = self.match.row, self.request.headers.get("X-API-KEY")
        found = token_of(self, query=row.query)
        return key or found if row.form == "e2b" else found or key

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Tornado's hook: write an error in the format of the request's API."""
        if self.match.row.form != "e2b":
            super().write_error(status_code, **kwargs)
            return
        info = kwargs.get("exc_info")
        raised = info[1] if info else HTTPError(status_code)
        known = as_error(raised)
        self._code = known.code
        status = raised.status_code if isinstance(raised, HTTPError) else known.http_status
        self.set_status(status)
        if known.retryable and status in (429, 503):
            self.set_header("Retry-After", "1")
        self.finish({"code": status, "message": known.message})

    def compute_etag(self) -> str | None:
        """Tornado's hook: the node makes the tags."""
        return None


@stream_request_body
class RelayHandler(FrontHandler):
    """Handler of every request that a node answers."""

    _websocket_at: Member | None = None
    _read_whole = False

    def initialize(self, context: ServerContext, **more: Any) -> None:
        """Tornado's hook."""
        super().initialize(context, **more)
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_PIECES)
        self._body = []
        self._kept = 0
        row = self.match.row
        self.route = row.path.pattern
        if row.open or self.request.method == "OPTIONS":
            self.scope, self.own_authentication = None, row.action is Action.SANDBOX

    # --- the request ------------------------------------------------------------------------

    def authenticate_request(self) -> None:
        """Check origin and token, except for a session's own server, whose rules only the node knows."""
        if self.match.row.action is not Action.PORT:
            super().authenticate_request()

    async def prepare(self) -> None:
        """Tornado's hook: authenticate, and find the node of a request that names it before its body is read."""
        self.context.requests.add(self)
        connection = self.request.connection
        if isinstance(connection, HTTP1Connection):
            connection.set_max_body_size(DISCARD_BYTES)
        await self.admit_request()
        action = self.match.row.action
        if self.request.method == "OPTIONS" and action is not Action.PORT:
            action = Action.ANY
        if action is Action.PLACE:
            return
        member = await self._find(action)
        if action is Action.GATHER:
            return
        if self._opens_websocket():
            self._websocket_at = member
            return
        if isinstance(connection, HTTP1Connection):
            connection.set_max_body_size(UNLIMITED)
        self._work = asyncio.ensure_future(self._pass_on(member))

    def _is_repeatable(self) -> bool:
        """Return whether the request only reads, and has no body, which would have passed already."""
        headers = self.request.headers
        body = "Transfer-Encoding" in headers or headers.get("Content-Length", "0") != "0"
        return self.request.method in ("GET", "HEAD") and not body

    def _opens_websocket(self) -> bool:
        """Return whether this is an opening handshake. Any other request loses the header ``Upgrade``."""
        upgrade = self.request.headers.get("Upgrade", "").lower()
        return "websocket" in upgrade and self.request.method == "GET" and self._is_repeatable()

    async def _find(self, action: Action) -> Member:
        cluster, values, token = self.cluster, self.match.values, self.token()
        match action:
            case Action.SESSION:
                session = session_in(self.match)
                if session is not None:
                    return await cluster.node_of(session, token)
            case Action.SANDBOX:
                return await self._find_sandbox()
            case Action.PORT:
                # Nodes report their open sessions, so none is asked with a token that was not checked.
                session = session_in(self.match) or sandbox_in(self.request.headers)
                if session is not None:
                    return await cluster.node_of(session, None)
            case Action.OBJECT:
                path = "/".join(self.request.path.split("/")[:4])  # /v1/KIND/ID, as the client has quoted it
                return await cluster.node_of_object(values["object"], path, token or "")
            case Action.WORKSPACE if "name" in values:
                return await cluster.node_of_workspace(f"{values['owner']}/{values['name']}", token or "")
            case Action.NODE if "node" in values:
                return await cluster.members.wait_for(values["node"], values["node"])
            case Action.NAMED:
                label = f"{sandboxai.LABEL}={values['space']}/{values['name']}"
                if found := await cluster.node_of_label(label, token or ""):
                    return found
            case Action.SNAPSHOT:
                named = values.get("snapshot") or values["template"]
                if found := await self.placing.node_of_snapshot(named, token or ""):
                    return found
            case Action.BUILDS:
                return await cluster.node_of_workspace(models.templates_address(self.who.name), token or "")
            case Action.HOME:
                return await cluster.home_of(self.who.name)
            case Action.TICKET:
                # A ticket is in the memory of one server.
                return await cluster.home_of("tickets of the console")
            case _:
                pass
        await cluster.members.wait_for_any()
        return cluster.members.any()

    async def _find_sandbox(self) -> Member:
        if session := sandbox_in(self.request.headers):
            return await self.cluster.node_of(session, self.token())
        if (given := self._argument("signature")) is not None:
            operation = {"GET": "read", "HEAD": "read", "POST": "write"}.get(self.request.method or "", "")
            user = self._argument("username") or ""
            expiry = self._argument("signature_expiration")
            expires = int(expiry) if expiry and expiry.isdecimal() and len(expiry) < 16 else None
            signed = (given, self._argument("path") or "", operation, user, expires)
            if found := await self.cluster.node_of_signed(signed):
                return found[0]
        await self.cluster.members.wait_for_any()
        return self.cluster.members.any()

    def _argument(self, name: str) -> str | None:
        given = self.request.query_arguments.get(name)
        return given[-1].decode("utf-8", "replace") if given else None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Tornado's hook: a piece of the body."""
        if self._work is not None:
            return None if self._work.done() else self._put(chunk)
        return super().data_received(chunk)

    async def _put(self, chunk: bytes | None) -> None:
        """Pass a piece to the node's connection, unless the exchange ends first."""
        assert self._work is not None
        if not self._pieces.full():
            self._pieces.put_nowait(chunk)
            return
        putting = asyncio.ensure_future(self._pieces.put(chunk))
        await asyncio.wait({putting, self._work}, return_when=asyncio.FIRST_COMPLETED)
        putting.cancel()

    async def _flowing(self) -> AsyncIterator[bytes]:
        while not self._read_whole:
            piece = await self._pieces.get()
            if piece is None:
                self._read_whole = True
                return
            yield piece

    # --- the answer -------------------------------------------------------------------------

    async def _serve(self, *_: str, **__: str) -> None:
        """Wait for the node's answer, or place the request."""
        connection = connection_of(getattr(self.request.connection, "stream", None))
        if connection is not None:
            # The node knows whether the caller is authenticated, and how long its response may take.
            connection.await_relay()
        try:
            if self._work is not None:
                await self._put(None)
            elif self._websocket_at is not None:
                self._work = asyncio.ensure_future(self._open_websocket(self._websocket_at))
            elif self.match.row.action is Action.GATHER:
                self._work = asyncio.ensure_future(self._gather())
            else:
                self._work = asyncio.ensure_future(self._place())
            await self._work
        except asyncio.CancelledError:
            self._abort()  # the client has disconnected, or an endless response ends because the front stops
        finally:
            if connection is not None and self._websocket_at is None:
                connection.await_answer()

    get = post = put = delete = head = patch = options = _serve  # type: ignore[assignment]

    async def _pass_on(self, member: Member) -> None:
        start, headers = self._head()
        deadline = asyncio.get_running_loop().time() + self.cluster.members.hold_seconds
        while True:
            try:
                await self.cluster.upstream.exchange(member, start, headers, self._flowing, Passing(self))
                break
            except (NotSent, NoAnswer) as error:
                if isinstance(error, NoAnswer) and not self._is_repeatable():
                    # The node may have carried it out, so no error may say that it has not.
                    self._abort()
                    return
                if asyncio.get_running_loop().time() > deadline:
                    raise NodeUnreachable(
                        f"The node {member.name} does not answer. Try again in a few seconds.", node=member.name
                    ) from None
                await asyncio.sleep(PAUSE_SECONDS)
                member = await self.cluster.members.wait_for(member.name, "this")
            except StreamClosedError:
                self._abort()
                return
        if not self._finished:
            self.finish()

    async def _open_websocket(self, member: Member) -> None:
        try:
            await splice(self, member, *self._head(), Passing(self))
        except StreamClosedError:
            self._abort()
            return
        if not self._finished:
            self.finish()

    def _head(self) -> tuple[RequestStartLine, HTTPHeaders]:
        request = self.request
        headers = HTTPHeaders()
        for name, value in end_to_end(request.headers.get_all()):
            headers.add(name, value)
        if "chunked" in request.headers.get("Transfer-Encoding", "").lower():
            headers["Transfer-Encoding"] = "chunked"
        headers.setdefault("Host", "localhost")
        if self.context.on_loopback:
            headers[ON_LOOPBACK] = "1"
        return RequestStartLine(request.method or "", request.uri or "", "HTTP/1.1"), headers

    async def _gather(self) -> None:
        gathered = await self.cluster.everywhere("GET", self.request.uri or "", self.token() or "")
        bodies = [each.body.strip() for _, each in gathered.answers if each.status == 200]
        refused = [(member.name, each) for member, each in gathered.answers if each.status != 200]
        if refused and not bodies:
            self.copy(refused[0][1])
            return
        if not bodies:
            raise AtCapacity("No node of this cluster answers now. Try again in a few seconds.")
        if missing := sorted([*gathered.missing, *(name for name, _ in refused)]):
            self.set_header("X-Kernelsvc-Unreachable", ",".join(missing))
        self.set_header("Content-Type", "application/json")
        lists = [body[1:-1] for body in bodies if body.startswith(b"[") and body[1:-1].strip()]
        self.finish(b"[" + b",".join(lists) + b"]")

    async def _place(self) -> None:
        body = self.body()
        start, headers = self._head()
        headers.pop("Transfer-Encoding", None)
        headers["Content-Length"] = str(len(body))
        asked = wanted(body, self.request.headers.get("Idempotency-Key"), self.request.path)
        if (space := self.match.values.get("space")) and asked.name:
            named = await self.cluster.node_of_label(f"{sandboxai.LABEL}={space}/{asked.name}", self.token() or "")
            tries = [named] if named else await self.placing.choose(self.who, self.token() or "", asked)
        else:
            tries = await self.placing.choose(self.who, self.token() or "", asked)

        async def whole() -> AsyncIterator[bytes]:
            if body:
                yield body

        for number, member in enumerate(tries):
            last = number + 1 == len(tries)
            passing = Passing(self, refuse=not last)
            self.placing.note_sent(self.who, asked, member)
            try:
                await self.cluster.upstream.exchange(member, start, headers, whole, passing)
            except NotSent:
                if last:
                    raise AtCapacity("No node accepts this now. Try again in a few seconds.") from None
                continue
            except (NoAnswer, StreamClosedError):
                self._abort()
                return
            if passing.refused is None:
                self.placing.note_answered(self.who, asked, member)
                break
        if not self._finished:
            self.finish()

    def copy(self, response: Response) -> None:
        """Answer with a node's whole response."""
        passing = Passing(self)
        passing.copy_head(response.status, response.headers)
        self.finish(response.body)


class RecordHandler(RelayHandler):
    """Handler of a session's notebook and log. The archive has those of a closed session whose node is away."""

    async def prepare(self) -> None:
        """Tornado's hook: look into the archive before a wait for a node that does not answer."""
        session = session_in(self.match)
        if session is not None and not self.cluster.members.owner_answers(session):
            self.context.requests.add(self)
            await self.admit_request()
            self.auth_scope("read")
            part: RecordPart = "journal" if self.match.values["part"] == "journal" else "notebook"
            records, stream = self.context.service.records, None
            with contextlib.suppress(AtCapacity):  # The archive does not answer, but the node may.
                async with self.context.turn_of(self.who, "archive"):
                    stream = None if records is None else await records.open(self.who, session, part)
            if stream is not None:
                self._work = asyncio.ensure_future(send_record(self, session, part, stream))
                return
        await super().prepare()


def is_full(response: Response) -> bool:
    """Return whether a node refused a creation because it has no room, so that another node may be tried.

    Each API has its own format of errors, but only a node without room asks clients to try again.
    """
    return response.status == 503 and "Retry-After" in response.headers


class Passing(HTTPMessageDelegate):
    """Passes a node's response to a client.

    Args:
        handler: The client's request.
        refuse: Whether the response of a full node is kept in ``refused``, because another node is tried then.
    """

    def __init__(self, handler: RelayHandler, refuse: bool = False) -> None:
        self._handler = handler
        self._refuse = refuse
        self._collector: Collector | None = None
        self._length: str | None = None
        self.refused: Response | None = None

    def copy_head(self, status: int, headers: HTTPHeaders, reason: str | None = None) -> None:
        """Set status and headers."""
        handler = self._handler
        handler.set_status(status, reason)
        handler._headers = HTTPHeaders()
        for name, value in end_to_end(headers.get_all()):
            handler._headers.add(name, value)
        self._length = headers.get("Content-Length")
        if headers.get("Content-Type", "").startswith("text/event-stream") and (task := asyncio.current_task()):
            handler.context.streams.add(task)
            task.add_done_callback(handler.context.streams.discard)

    async def headers_received(self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders) -> None:
        """Tornado's hook."""
        assert isinstance(start_line, ResponseStartLine)
        if self._refuse and start_line.code == 503:
            self._collector = Collector()
            self._collector.headers_received(start_line, headers)
            return
        self.copy_head(start_line.code, headers, start_line.reason)
        if self._length is None and start_line.code not in (204, 304):
            stream = getattr(self._handler.request.connection, "stream", None)
            if stream is not None and not stream.closed():
                stream.set_nodelay(True)
            await self._flush()

    async def data_received(self, chunk: bytes) -> None:
        """Tornado's hook."""
        if self._collector is not None:
            self._collector.data_received(chunk)
            return
        self._handler.write(bytes(chunk))
        # A short body of known length leaves with the head.
        if self._length is None or int(self._length) > len(chunk):
            await self._flush()

    async def _flush(self) -> None:
        """Wait until the client takes the bytes. A client without a token has ``ANSWER_SECONDS`` for each piece."""
        known = getattr(self._handler, "who", None) is not None
        try:
            async with asyncio.timeout(None if known else ANSWER_SECONDS):
                await self._handler.flush()
        except TimeoutError:
            raise StreamClosedError from None

    def finish(self) -> None:
        """Tornado's hook."""
        if self._collector is None:
            return
        self._collector.finish()
        response = self._collector.response
        if is_full(response):
            self.refused = response
            return
        self.copy_head(response.status, response.headers)
        self._handler.write(response.body)

    def on_connection_close(self) -> None:
        """Tornado's hook."""
