"""What every handler has in common: one error shape, one way in, bounds before bodies.

Bodies are never buffered by Tornado: each handler takes them in pieces, so that
``prepare`` refuses a caller, an origin or a size before a byte of body is kept.
Once an answer is finished, Tornado reads what is left of the body and throws it
away, which lets a client that is still sending read why it was refused.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler, stream_request_body

from kernelsvc.errors import AtCapacity, BadRequest, Forbidden, Internal, KernelsvcError, NotFound, TooLarge
from kernelsvc.model.objects import Principal, Scope
from kernelsvc.protocol import jsonrpc, methods
from kernelsvc.server import auth
from kernelsvc.server.connections import connection_of
from kernelsvc.settings import Settings
from kernelsvc.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from kernelsvc.service import ServiceApi

log = logging.getLogger(__name__)
T = TypeVar("T")

#: How much of a refused body is still read, so that the refusal can be read at all.
DISCARD_BYTES = 256 * 1024 * 1024

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class ServerContext:
    """What the handlers share.

    Attributes:
        service: the only thing behind a transport.
        settings: bounds, origins, times.
        metrics: what is counted.
        streams: answers that go on until told; ended at a stop.
        requests: handlers that have not answered yet.
        sockets: open WebSockets.
        closers: what a door wants awaited at a stop, when every request is answered.
        stopping: whether nothing new is taken any more.
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
        self.closers: list[Callable[[], Awaitable[None]]] = []
        self.stopping = False


async def invoke(
    context: ServerContext, who: Principal, method: methods.Method, params: Any, client: object | None = None
) -> Any:
    """Call the service as a row of the method table says. Safe to cancel: what was accepted goes on.

    Raises:
        KernelsvcError: the scope is missing, or the service's own.
    """
    auth.require_scope(who, method.scope)
    args, kwargs = method.arguments(params)
    if method.client:
        kwargs = {**kwargs, "client": client}
    value = getattr(context.service, method.calls)(*((who,) if method.who else ()), *args, **kwargs)
    if inspect.isawaitable(value):
        value = await value
    return methods.shape(method, params, value)


def as_error(error: BaseException) -> KernelsvcError:
    """Any exception as one of the tree; what is not meant for clients becomes ``Internal``."""
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
    """A path as it may be logged: a capability URL (``/t/<token>/...``) has the token in it."""
    return re.sub(r"^/t/[^/]*", "/t/...", path)


class ClientGone(Exception):
    """The connection was dropped while we worked for it; nobody is left to answer."""


class BaseHandler(RequestHandler):
    """Base of every handler, WebSockets included."""

    context: ServerContext
    who: Principal
    #: What a token must allow; None opens the route to everybody.
    scope: Scope | None = "read"
    #: Whether ``?token=`` counts (browsers' WebSockets).
    query_token = False
    transport = "http"
    kept_headers: dict[str, str] = {}
    _began = 0.0
    _code = "ok"

    def initialize(self, context: ServerContext, **more: Any) -> None:
        """Tornado's hook: takes the shared context."""
        self.context = context
        self._began = time.perf_counter()
        for name, value in more.items():
            setattr(self, name, value)

    def set_default_headers(self) -> None:
        """Headers that keep a browser from making more of an answer than it is."""
        for name, value in (SECURITY_HEADERS | self.kept_headers).items():
            self.set_header(name, value)
        self.clear_header("Server")

    def keep_headers(self, **headers: str) -> None:
        """Set headers that an error's answer carries too (Tornado clears the others)."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.kept_headers = self.kept_headers | named
        for name, value in named.items():
            self.set_header(name, value)

    # --- the way in ------------------------------------------------------------------

    def authenticate_request(self) -> None:
        """Check origin, then token.

        Raises:
            Forbidden: a foreign origin.
            Unauthenticated: no token that we know.
        """
        headers = self.request.headers
        origin = headers.get("Origin")
        if not auth.origin_allowed(origin, headers.get("Host"), self.context.settings.origins):
            raise Forbidden(f"The origin {origin} is not allowed here; add it to the setting 'origins'.")
        if origin is not None:
            exposed = "ETag, Location, Retry-After, Content-Disposition, Content-Range"
            self.keep_headers(Access_Control_Allow_Origin=origin, Vary="Origin", Access_Control_Expose_Headers=exposed)
        if self.scope is not None:
            self.set_principal(self.context.service.authenticate(self.token()))

    def set_principal(self, who: Principal) -> None:
        """Serve this request for a caller whose token or secret was checked.

        Raises:
            AtCapacity: the caller has too many connections open.
        """
        connection = connection_of(getattr(self.request.connection, "stream", None))
        if connection is not None:
            connection.claim(who.name)
        self.who = who

    def token(self) -> str | None:
        """The token that the request carries."""
        token = auth.bearer(self.request.headers.get("Authorization"))
        if token is None and self.query_token:
            given = self.request.query_arguments.get("token")
            token = given[-1].decode("utf-8", "replace") if given else None
        return token

    def auth_scope(self, scope: Scope) -> None:
        """Ask for a scope.

        Raises:
            Forbidden: the token lacks it.
        """
        auth.require_scope(self.who, scope)

    def options(self, *args: str) -> None:
        """A browser's preflight; the origin was checked."""
        self.set_header("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, DELETE, OPTIONS")
        self.set_header(
            "Access-Control-Allow-Headers",
            "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Range, If-Match, If-None-Match, If-Range",
        )
        self.set_header("Access-Control-Max-Age", "600")
        self.set_status(204)

    # --- errors -----------------------------------------------------------------------

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Tornado's hook: any failure as the one shape."""
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
        """The HTTP methods that this handler has."""
        unset = RequestHandler._unimplemented_method
        return [verb for verb in self.SUPPORTED_METHODS if getattr(type(self), verb.lower()) is not unset]

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Tornado's hook: our own errors are answers, not log lines; others are bugs. Never logs a query."""
        if value is None or isinstance(value, (KernelsvcError, HTTPError, StreamClosedError)):
            return
        log.error("%s failed", self._request_summary(), exc_info=value, extra={"action": "request_failed"})

    def _request_summary(self) -> str:
        return f"{self.request.method} {without_token(self.request.path)}"

    def on_finish(self) -> None:
        """Tornado's hook: count it."""
        name = f"{self.request.method} {getattr(self, 'route', 'other')}"
        self.context.metrics.request(self.transport, name, self._code, time.perf_counter() - self._began)


@stream_request_body
class ApiHandler(BaseHandler):
    """Base of the REST handlers: bounded bodies, and work that ends when the client leaves."""

    #: Largest body of this route; None takes the setting.
    max_body_bytes: int | None = None
    _work: asyncio.Task[Any] | None = None

    async def prepare(self) -> None:
        """Tornado's hook: refuse before a byte of body is kept."""
        self._body: list[bytes] = []
        self._kept = 0
        self.context.requests.add(self)
        connection = self.request.connection
        if isinstance(connection, HTTP1Connection):
            connection.set_max_body_size(DISCARD_BYTES)
        if self.request.method != "OPTIONS":
            self.authenticate_request()
        else:
            self.scope = None
            self.authenticate_request()
        await self.context.service.ensure_loaded(f"{self.request.host} {self.request.path}")
        bound = self.max_body()
        length = self.request.headers.get("Content-Length", "0")
        if isinstance(connection, HTTP1Connection):
            connection.set_max_body_size(max(DISCARD_BYTES, bound))
        if length.isdecimal() and int(length) > bound:
            raise jsonrpc.too_large("The body", int(length), bound)

    def max_body(self) -> int:
        """The largest body that this request may have, in bytes."""
        return self.context.settings.max_body_bytes if self.max_body_bytes is None else self.max_body_bytes

    def data_received(self, chunk: bytes) -> None:
        """Tornado's hook: keep the body, up to its bound."""
        self._kept += len(chunk)
        if self._kept <= self.max_body():
            self._body.append(chunk)
        else:
            self._body.clear()

    def body(self) -> bytes:
        """The whole body.

        Raises:
            TooLarge: it passed its bound on the way (chunked encoding tells no length before).
        """
        if self._kept > self.max_body():
            raise jsonrpc.too_large("The body", self._kept, self.max_body())
        return b"".join(self._body)

    def query(self, kind: type[T], **path: str) -> T:
        """Query (and path) values as a struct.

        Raises:
            BadRequest: one that is unknown, doubled or of the wrong type.
        """
        found: dict[str, Any] = dict(path)
        for name, values in self.request.query_arguments.items():
            if len(values) > 1:
                raise BadRequest(f"The query has {name!r} more than once; send it once.")
            found[name] = self.decode_argument(values[0], name)
        try:
            return msgspec.convert(found, kind, strict=False)
        except (msgspec.ValidationError, ValueError) as error:
            raise BadRequest(f"The query can't be read: {error}.") from None

    def answer(self, value: Any, status: int = 200) -> None:
        """Write a value as JSON (204 when there is none)."""
        if value is None:
            self.set_status(204)
            return
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        try:
            self.write(msgspec.json.encode(value))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise Internal("The result can't be written as JSON; read the cell's output in pieces instead.") from error

    async def while_connected(self, work: Coroutine[Any, Any, T]) -> T:
        """Await this, and cancel it when the client leaves or the server stops.

        Raises:
            ClientGone: nobody is left to answer.
            AtCapacity: the server stops.
        """
        self._work = task = asyncio.ensure_future(work)
        self.context.streams.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if self.context.stopping and not self._headers_written:
                raise AtCapacity("The server stops; what was accepted goes on, send the request again.") from None
            raise ClientGone from None
        except StreamClosedError:
            raise ClientGone from None
        finally:
            self._work = None
            self.context.streams.discard(task)

    def on_finish(self) -> None:
        """Tornado's hook: answered."""
        self.context.requests.discard(self)
        super().on_finish()

    def on_connection_close(self) -> None:
        """Tornado's hook: the client left."""
        self.context.requests.discard(self)
        self.context.service.client_gone(self)
        if self._work is not None:
            self._work.cancel()

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """A client that left is no failure."""
        if not isinstance(value, ClientGone):
            super().log_exception(typ, value, tb)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Tornado's hook: an answer that is half sent can only be cut off."""
        info = kwargs.get("exc_info")
        gone = info is not None and isinstance(info[1], ClientGone)
        if gone or self._headers_written:
            self._abort()
            return
        # Tornado closes the connection of who is answered before all was read, and does not say so.
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
    """Everything that is no route of ours."""

    scope = None

    async def prepare(self) -> None:
        """Refuse, in the one shape."""
        await super().prepare()
        raise HTTPError(404)
