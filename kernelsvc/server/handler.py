"""Base of all HTTP handlers: errors of one format, authentication, limits on bodies.

Tornado never buffers bodies here. Each handler reads its body in pieces, so that
``prepare`` refuses a caller, an origin or a size before a byte of the body is stored.
When a response is finished, Tornado reads and discards the rest of the body. A client
that is still sending can therefore read why its request was refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import re
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from http import HTTPStatus
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import msgspec
from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler, stream_request_body

from kernelsvc.errors import (
    AtCapacity,
    BadRequest,
    Forbidden,
    Internal,
    KernelsvcError,
    NotFound,
    TooLarge,
    Unauthenticated,
)
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model.objects import Principal, Scope
from kernelsvc.model.storage.name_rules import in_words
from kernelsvc.model.tracing.context import RequestMeta
from kernelsvc.protocol import jsonrpc, methods
from kernelsvc.server import auth
from kernelsvc.server.connections import connection_of
from kernelsvc.server.wrong_tokens import WrongTokens
from kernelsvc.service.api import REQUEST_META
from kernelsvc.settings import Settings
from kernelsvc.telemetry import operator_log
from kernelsvc.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from kernelsvc.service.api import ServiceApi, Subscription
    from kernelsvc.tools import ToolBackend

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Bytes of a refused body that are read and discarded. A client that still sends can't read its error otherwise.
DISCARD_BYTES = 256 * 1024 * 1024

#: The kinds of turns of methods that read, and take some ten milliseconds of the event loop, or a thread. They
#: never wait for a kernel. A read of one cell does not wait for a search.
LONG_READS = {
    **dict.fromkeys(
        [f"session.{name}" for name in ("calls", "cells", "list", "outline", "output", "search", "tools", "usage")], ""
    ),
    **dict.fromkeys([f"session.{name}" for name in ("call", "cell", "decide", "view")], "cell"),
}
#: Seconds after which a long read is followed by a pause as long as it took, and the longest pause.
PAUSE_AFTER, MAX_PAUSE = 0.05, 1.0
#: Bytes of a log's entries that clients of one principal get at the same time. Larger ones they get one by one.
LARGE_ENTRIES = 64 * 1024
#: Seconds that a stopping server waits for the tasks that clean up.
CLEANUP_SECONDS = 5.0
#: The header of a front that listens on loopback addresses only. From a client it only makes a check stricter.
ON_LOOPBACK = "X-Kernelsvc-On-Loopback"
#: A session's id in a path, see ``session.new_id``.
_SESSION = re.compile(r"\bs_[0-9A-Za-z]+")
#: Headers in which a request carries a token or a secret.
_SECRET_HEADERS = ("Authorization", "X-API-KEY", "X-Access-Token", "E2B-Traffic-Access-Token")

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class ServerContext:
    """State that all handlers of one server share.

    Attributes:
        service: The service that handlers call.
        settings: Limits, origins, times.
        metrics: Counters.
        streams: Tasks of responses without an end of their own. Cancelled at a stop.
        requests: Handlers that have not responded yet.
        sockets: Open WebSockets.
        background: Tasks that clean up after a request.
        openers: Called when the service has started, before the first request.
        closers: Awaited at a stop, when all requests have a response.
        stopping: Whether new requests are refused.
        on_loopback: Whether the server listens on loopback addresses only.
        wrong_tokens: Recent wrong tokens.
        tool_backend: Returns the backend of a caller's tools. None: the service.
    """

    def __init__(self, service: ServiceApi, settings: Settings, metrics: Metrics) -> None:
        self.service = service
        self.settings = settings
        self.metrics = metrics
        self.request_limits = jsonrpc.RequestLimits(
            frame_bytes=settings.max_frame_bytes, code_bytes=settings.max_code_bytes
        )
        self.streams: set[asyncio.Task[Any]] = set()
        self.requests: set[Any] = set()
        self.sockets: set[Any] = set()
        self.background = OwnedTasks()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.openers: list[Callable[[], None]] = []
        self.closers: list[Callable[[], Awaitable[None]]] = [partial(self.background.wait, CLEANUP_SECONDS)]
        self.stopping = False
        self.on_loopback = False
        self.wrong_tokens = WrongTokens()
        self.tool_backend: Callable[[Principal], ToolBackend] | None = None

    @contextlib.asynccontextmanager
    async def turn_of(self, who: Principal, kind: str = "") -> AsyncIterator[None]:
        """Wait until no other long read of this principal and kind is under way, and other clients were served.

        Safe to cancel. A read must not wait for another turn of the same kind.

        Args:
            who: The principal. The users of a backend take turns with each other.
            kind: Reads of different kinds do not wait for each other.
        """
        lock, loop = self._turns.setdefault(f"{kind} {who.account}", asyncio.Lock()), asyncio.get_running_loop()
        await lock.acquire()
        began = loop.time()
        try:
            await asyncio.sleep(0)
            yield
        finally:
            # A request of another client takes several turns of the event loop. It gets them after a very long read.
            took = loop.time() - began
            loop.call_later(min(took, MAX_PAUSE) if took > PAUSE_AFTER else 0.0, lock.release)

    def entries(self, who: Principal, subscription: Subscription) -> Entries:
        """Return the block that waits for the next entries of a log."""
        return Entries(self, who, subscription)


class Entries:
    """A block, entered by ``async with``, that waits for the next entries of a log. Safe to cancel.

    An empty list is the end of the log. The block writes what the entries become for the client, which then counts as
    an answer that the client has not read. It keeps no entries and does not wait for the client. So the entries of a
    principal's clients are not in memory at the same time in the forms between the two.
    """

    # A generator with asynccontextmanager costs each batch of a cell's events twice the time.
    __slots__ = ("_context", "_lines", "_subscription", "_turn", "_who")

    def __init__(self, context: ServerContext, who: Principal, subscription: Subscription) -> None:
        self._context = context
        self._who = who
        self._subscription = subscription
        self._lines: list[bytes] = []
        self._turn: contextlib.AbstractAsyncContextManager[None] | None = None

    async def __aenter__(self) -> list[bytes]:
        if await self._subscription.wait() > LARGE_ENTRIES:
            turn = self._context.turn_of(self._who, "entries")
            await turn.__aenter__()
            self._turn = turn
        try:
            self._lines = await self._subscription.next()
        except BaseException:
            await self.__aexit__()
            raise
        return self._lines

    async def __aexit__(self, *_: object) -> None:
        self._lines.clear()
        if self._turn is not None:
            await self._turn.__aexit__(None, None, None)


async def invoke(
    context: ServerContext, who: Principal, method: methods.Method, params: Any, client: object | None = None
) -> Any:
    """Call the service as a row of the method table says. Cancelling stops the wait, not the accepted work.

    Raises:
        KernelsvcError: The scope is missing, or the service's own error.
    """
    auth.require_scope(who, method.scope)
    kind = LONG_READS.get(method.name)
    if kind is not None:
        async with context.turn_of(who, kind):
            return await _call_service(context, who, method, params, client)
    return await _call_service(context, who, method, params, client)


async def _call_service(
    context: ServerContext, who: Principal, method: methods.Method, params: Any, client: object | None
) -> Any:
    args, kwargs = method.arguments(params)
    if method.client:
        kwargs = {**kwargs, "client": client}
    value = attrgetter(method.calls)(context.service)(*((who,) if method.who else ()), *args, **kwargs)
    if inspect.isawaitable(value):
        value = await value
    return methods.shape(method, params, value)


def as_error(error: BaseException) -> KernelsvcError:
    """Convert any exception into a ``KernelsvcError``. Internal details become ``Internal``."""
    if isinstance(error, KernelsvcError):
        return error
    if isinstance(error, HTTPError):
        return _from_tornado(error)
    return Internal()


def _from_tornado(error: HTTPError) -> KernelsvcError:
    known: dict[int, KernelsvcError] = {
        404: NotFound("There is no such route; GET /v1/openapi.json lists them."),
        405: BadRequest("This route does not take that method; GET /v1/openapi.json lists what it takes."),
        403: Forbidden(),
        413: TooLarge(),
    }
    if error.status_code in known:
        return known[error.status_code]
    return BadRequest() if 400 <= error.status_code < 500 else Internal()


def without_token(path: str) -> str:
    """Return a path as it may be logged: ``/t/<token>/...`` and ``/v1/ports/<ticket>/...`` hold secrets."""
    return re.sub(r"^(/t|/v1/ports)/[^/]*", r"\1/...", path)


class ClientGone(Exception):
    """The client closed the connection before its response."""


class BaseHandler(RequestHandler):
    """Base of every handler, including WebSockets."""

    context: ServerContext
    who: Principal
    #: Scope that the token needs. None: the route needs no token.
    scope: Scope | None = "read"
    #: Whether ``?token=`` is accepted (browsers can't set headers of a WebSocket).
    query_token = False
    #: Whether the handler checks a secret itself, after ``authenticate_request`` of this class.
    own_authentication = False
    #: The log's word for what this route's callers send.
    credential = "token"
    transport = "http"
    kept_headers: dict[str, str] = {}
    _began = 0.0
    _code = "ok"

    def initialize(self, context: ServerContext, **more: Any) -> None:
        """Tornado's hook: store the shared context."""
        self.context = context
        self._began = time.perf_counter()
        for name, value in more.items():
            setattr(self, name, value)

    def set_default_headers(self) -> None:
        """Set headers that stop a browser from running or caching a response."""
        for name, value in (SECURITY_HEADERS | self.kept_headers).items():
            self.set_header(name, value)
        self.clear_header("Server")

    def keep_headers(self, **headers: str) -> None:
        """Set headers that an error response carries too (Tornado clears the others)."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.kept_headers = self.kept_headers | named
        for name, value in named.items():
            self.set_header(name, value)

    # --- the way in ------------------------------------------------------------------

    async def admit_request(self) -> None:
        """Authenticate the request, and refuse wrong tokens more and more slowly.

        Raises:
            Forbidden, Unauthenticated: See ``authenticate_request``.
        """
        try:
            self.authenticate_request()
        except Unauthenticated:
            if self._shows_secret():
                peer = connection_of(getattr(self.request.connection, "stream", None))
                address = peer.peer if peer is not None else str(self.request.remote_ip)
                seconds, count = self.context.wrong_tokens.note(address, time.monotonic())
                fields = {"action": "refused", "code": "unauthenticated", "address": address, "recently": count}
                log.warning("Refused a wrong %s from %s (%d recently)", self.credential, address, count, extra=fields)
                if seconds:
                    await asyncio.sleep(seconds)
            raise

    def _shows_secret(self) -> bool:
        request = self.request
        return (
            any(name in request.headers for name in _SECRET_HEADERS)
            or any(name in request.query_arguments for name in ("token", "signature"))
            or request.path.startswith(("/t/", "/v1/ports/"))
            or auth.BEARER_SUBPROTOCOL in request.headers.get("Sec-WebSocket-Protocol", "")
        )

    def check_host(self) -> None:
        """Check ``Host`` where no token is needed. A page in a browser that guessed one would not need this server.

        Raises:
            Forbidden: The server or its front listens on loopback, and the client asks for another name.
        """
        context, host = self.context, self.request.headers.get("Host")
        on_loopback = context.on_loopback or ON_LOOPBACK in self.request.headers
        if not on_loopback or auth.host_allowed(host, context.settings.hosts):
            return
        if host and host.lower() in {urlsplit(origin).netloc.lower() for origin in context.settings.origins}:
            return
        raise Forbidden("This server does not answer to the name in 'Host'. Add the name to the setting 'hosts'.")

    def authenticate_request(self) -> None:
        """Check the origin, then the token, or the host where no token is needed.

        Raises:
            Forbidden: The origin or the host is not allowed.
            Unauthenticated: The token is missing or unknown.
        """
        headers = self.request.headers
        origin = headers.get("Origin")
        if not auth.origin_allowed(origin, headers.get("Host"), self.context.settings.origins):
            raise Forbidden(f"The origin {origin} is not allowed here. Add it to the setting 'origins'.")
        if origin is not None:
            exposed = "ETag, Location, Retry-After, Content-Disposition, Content-Range"
            self.keep_headers(Access_Control_Allow_Origin=origin, Vary="Origin", Access_Control_Expose_Headers=exposed)
        if self.scope is not None:
            self.set_principal(self.named_principal())
        elif not self.own_authentication:
            self.check_host()

    def named_principal(self) -> Principal:
        """Return the principal of the token, or of the user that the header ``X-On-Behalf-Of`` names.

        Raises:
            Unauthenticated, BadRequest, Forbidden: See ``ServiceApi.authenticate``.
        """
        return self.context.service.authenticate(self.token(), self.request.headers.get("X-On-Behalf-Of"))

    def set_principal(self, who: Principal) -> None:
        """Serve this request for a caller whose token or secret was checked.

        Raises:
            AtCapacity: The caller has too many open connections.
        """
        connection = connection_of(getattr(self.request.connection, "stream", None))
        if connection is not None:
            connection.claim(who.account, who.token_sha256)
        self.who = who

    def token(self) -> str | None:
        """Return the token that the request carries."""
        token = auth.bearer(self.request.headers.get("Authorization"))
        if token is None and self.query_token:
            given = self.request.query_arguments.get("token")
            token = given[-1].decode("utf-8", "replace") if given else None
        return token

    def auth_scope(self, scope: Scope) -> None:
        """Require a scope.

        Raises:
            Forbidden: The token lacks it.
        """
        auth.require_scope(self.who, scope)

    def options(self, *args: str, **named: str) -> None:
        """Respond to a browser's preflight. The origin was checked."""
        self.set_header("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, DELETE, OPTIONS")
        self.set_header(
            "Access-Control-Allow-Headers",
            "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Range, If-Match, If-None-Match, If-Range",
        )
        self.set_header("Access-Control-Max-Age", "600")
        self.set_status(204)

    # --- errors -----------------------------------------------------------------------

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Tornado's hook: write any failure in the common format."""
        info = kwargs.get("exc_info")
        raised = info[1] if info else HTTPError(status_code)
        error = as_error(raised)
        self._code = error.code
        self.set_status(raised.status_code if isinstance(raised, HTTPError) else error.http_status)
        if isinstance(raised, HTTPError) and raised.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            self.set_header("Allow", ", ".join(self.allowed()))
        if error.code == "unauthenticated":
            self.set_header("WWW-Authenticate", "Bearer")
        if error.retryable and error.http_status in (429, 503):
            self.set_header("Retry-After", "1")
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(jsonrpc.error_json(error)))

    def allowed(self) -> list[str]:
        """Return the HTTP methods that this handler implements."""
        unset = RequestHandler._unimplemented_method
        return [verb for verb in self.SUPPORTED_METHODS if getattr(type(self), verb.lower()) is not unset]

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Tornado's hook: log bugs, and no errors that are responses. Never logs a query."""
        if value is None or isinstance(value, (KernelsvcError, HTTPError, StreamClosedError)):
            return
        log.error("%s failed", self._request_summary(), exc_info=value, extra={"action": "request_failed"})

    def _request_summary(self) -> str:
        return f"{self.request.method} {without_token(self.request.path)}"

    def on_finish(self) -> None:
        """Tornado's hook: count the request."""
        name = f"{self.request.method} {getattr(self, 'route', 'other')}"
        self.context.metrics.request(self.transport, name, self._code, time.perf_counter() - self._began)
        if self._code != "ok" and name != "GET /readyz":  # a probe asks every second while the server starts
            who: Principal | None = getattr(self, "who", None)
            named = _SESSION.search(self.request.path)
            operator_log.refused(self._code, name, who.name if who else None, named[0] if named else None)


@stream_request_body
class ApiHandler(BaseHandler):
    """Base of the REST handlers: limited bodies, and work that is cancelled when the client disconnects."""

    #: Largest body of this route in bytes. None: the setting's.
    max_body_bytes: int | None = None
    _work: asyncio.Task[Any] | None = None

    async def prepare(self) -> None:
        """Tornado's hook: authenticate and check the size before a byte of the body is stored."""
        self._body: list[bytes] = []
        self._kept = 0
        self.context.requests.add(self)
        connection = self.request.connection
        if isinstance(connection, HTTP1Connection):
            connection.set_max_body_size(DISCARD_BYTES)
        if self.request.method == "OPTIONS":
            self.scope = None
        await self.admit_request()
        if (traceparent := self.request.headers.get("traceparent")) is not None:
            REQUEST_META.set(RequestMeta(traceparent=traceparent, tracestate=self.request.headers.get("tracestate")))
        if getattr(self, "who", None) is not None:  # a caller without a token must not have journals read
            await self.context.service.ensure_loaded(f"{self.request.host} {self.request.path}")
        bound = self.max_body()
        length = self.request.headers.get("Content-Length", "0")
        if isinstance(connection, HTTP1Connection):
            connection.set_max_body_size(max(DISCARD_BYTES, bound))
        if length.isdecimal() and int(length) > bound:
            raise jsonrpc.too_large("The body", int(length), bound)

    def max_body(self) -> int:
        """Return the largest body that this request may have, in bytes."""
        return self.context.settings.max_body_bytes if self.max_body_bytes is None else self.max_body_bytes

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Tornado's hook: keep the body, up to its limit."""
        self._kept += len(chunk)
        if self._kept <= self.max_body():
            self._body.append(chunk)
        else:
            self._body.clear()
        limited = connection_of(getattr(self.request.connection, "stream", None))
        if limited is not None:
            limited.hold(self._kept if self._body else 0)
        return None

    def body(self) -> bytes:
        """Return the whole body.

        Raises:
            TooLarge: It passed its limit while it arrived (chunked encoding declares no length).
        """
        if self._kept > self.max_body():
            raise jsonrpc.too_large("The body", self._kept, self.max_body())
        return b"".join(self._body)

    def query(self, kind: type[T], **path: str) -> T:
        """Convert the query (and path) values into a struct.

        Raises:
            BadRequest: A value is unknown, repeated or of the wrong type.
        """
        found: dict[str, Any] = dict(path)
        for name, values in self.request.query_arguments.items():
            if len(values) > 1:
                raise BadRequest(f"The query has {name!r} more than once. Send it once.")
            found[name] = self.decode_argument(values[0], name)
        try:
            return msgspec.convert(found, kind, strict=False)
        except (msgspec.ValidationError, ValueError) as error:
            raise BadRequest(f"The query can't be read: {in_words(str(error))}.") from None

    def answer(self, value: Any, status: int = 200) -> None:
        """Write a value as JSON, or 204 for None."""
        if value is None:
            self.set_status(204)
            return
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        try:
            self.write(msgspec.json.encode(value))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise Internal("The result has no JSON form. Read the cell's output in pieces instead.") from error

    async def while_connected(self, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work``, and cancel it when the client disconnects or the server stops.

        Raises:
            ClientGone: The client disconnected.
            AtCapacity: The server stops.
        """
        self._work = task = asyncio.ensure_future(work)
        self.context.streams.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if self.context.stopping and not self._headers_written:
                raise AtCapacity("The server is stopping. Accepted work continues. Send the request again.") from None
            raise ClientGone from None
        except StreamClosedError:
            raise ClientGone from None
        finally:
            self._work = None
            self.context.streams.discard(task)
            del task  # Its exception holds this frame, which would hold the task: garbage with the request's body.

    def on_finish(self) -> None:
        """Tornado's hook: the response is complete."""
        self.context.requests.discard(self)
        self._body = []  # Cycles keep this object until the next collection of garbage, many requests later.
        super().on_finish()

    def on_connection_close(self) -> None:
        """Tornado's hook: the client disconnected."""
        self.context.requests.discard(self)
        self._body = []
        self.context.service.client_gone(self)
        if self._work is not None:
            self._work.cancel()

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Log nothing for a client that disconnected."""
        if not isinstance(value, ClientGone):
            super().log_exception(typ, value, tb)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Tornado's hook: abort a response that is half sent, since its status can't change any more."""
        info = kwargs.get("exc_info")
        gone = info is not None and isinstance(info[1], ClientGone)
        if info is not None:
            # Frames that hold the body live as long as the exception, which cycles may keep.
            traceback.clear_frames(info[2])
        if gone or self._headers_written:
            self._abort()
            return
        # Tornado closes a connection whose body was not read to the end, and does not send the header for it.
        if not getattr(self.request.connection, "_read_finished", True):
            self.keep_headers(Connection="close")
        super().send_error(status_code, **kwargs)

    def _abort(self) -> None:
        stream = getattr(self.request.connection, "stream", None)
        if stream is not None:
            stream.close()
        if not self._finished:
            self._finished = True
            self.on_finish()


class UnknownRoute(ApiHandler):
    """Handler of all paths that are not routes."""

    scope = None

    async def prepare(self) -> None:
        """Respond 404 in the common format."""
        await super().prepare()
        raise HTTPError(404)
