"""Base of the handlers of the E2B API: authentication, sandboxes, format of errors.

There are two kinds of requests. The *control plane* (``E2bHandler``) takes a token of
kernelsvc, as ``X-API-KEY`` or ``Authorization: Bearer``. Requests *to a sandbox*
(``SandboxHandler``) name it in headers and carry the secret from ``create`` or
``connect``, or a token of the owner. A file's URL may be signed instead. Without
either, the error does not reveal whether a sandbox of that name exists.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, ClassVar, NoReturn

import msgspec
from tornado.web import HTTPError

from kernelsvc.errors import BadRequest, KernelsvcError, NotFound, Unauthenticated
from kernelsvc.model.objects import Scope, SessionInfo, SessionState
from kernelsvc.protocol import e2b
from kernelsvc.protocol.jupyter import check_json
from kernelsvc.server import auth
from kernelsvc.server.e2b import models
from kernelsvc.server.handler import ApiHandler, ClientGone, as_error

#: Headers that a page in a browser may send.
ALLOWED_HEADERS = (
    "Authorization",
    "Connect-Protocol-Version",
    "Connect-Timeout-Ms",
    "Content-Type",
    "E2b-Sandbox-Id",
    "E2b-Sandbox-Port",
    "E2b-Traffic-Access-Token",
    "Idempotency-Key",
    "Keepalive-Ping-Interval",
    "Range",
    "User-Agent",
    "X-Access-Token",
    "X-Api-Key",
)


class SandboxNotFound(HTTPError):
    """The sandbox does not exist or does not listen: 502, as from the proxy in front of E2B's sandboxes."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(502)
        self.body = body


class E2bHandler(ApiHandler):
    """Base of all handlers of this API: E2B's header for a token, and E2B's format of errors.

    Attributes:
        connect_codes: Whether an error's ``code`` is a Connect code instead of the HTTP status.
    """

    transport = "e2b"
    route = "/sandboxes"
    connect_codes: ClassVar[bool] = False

    def token(self) -> str | None:
        """Return the token that the request carries."""
        headers = self.request.headers
        return headers.get("X-API-KEY") or auth.bearer(headers.get("Authorization"))

    def options(self, *args: str, **named: str) -> None:
        """Respond to a browser's preflight, for E2B's SDK in a page. The origin was checked."""
        super().options(*args)
        self.set_header("Access-Control-Allow-Headers", ", ".join(ALLOWED_HEADERS))
        self.set_header("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Tornado's hook: write any failure in E2B's format, ``{"code", "message"}``."""
        info = kwargs.get("exc_info")
        raised = info[1] if info else HTTPError(status_code)
        known = as_error(raised)
        self._code = known.code
        status = raised.status_code if isinstance(raised, HTTPError) else known.http_status
        self.set_status(status)
        if known.retryable and status in (429, 503):
            self.set_header("Retry-After", "1")
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(self.shape(raised, known, status)))

    def shape(self, raised: BaseException, known: KernelsvcError, status: int) -> dict[str, Any]:
        """Return the body of an error response."""
        if isinstance(raised, SandboxNotFound):
            return raised.body
        message = known.message.encode("utf-8", "replace").decode()
        return {"code": connect_code(status) if self.connect_codes else status, "message": message}

    def json_body(self) -> dict[str, Any]:
        """Decode the body, a JSON object. An empty body is an empty object.

        Raises:
            BadRequest: It is not a JSON object.
            TooLarge: It is over its limit.
        """
        data = self.body().strip()
        check_json(data)
        try:
            value = msgspec.json.decode(data) if data else {}
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise BadRequest(f"The body is not JSON: {error}.") from None
        if not isinstance(value, dict):
            raise BadRequest("The body must be a JSON object.")
        return value


#: Connect error codes for HTTP statuses.
_WORDS = {
    400: "invalid_argument",
    401: "unauthenticated",
    403: "permission_denied",
    404: "not_found",
    405: "unimplemented",
    409: "failed_precondition",
    413: "resource_exhausted",
    429: "resource_exhausted",
    501: "unimplemented",
    502: "unavailable",
    503: "unavailable",
    504: "deadline_exceeded",
}


def connect_code(status: int) -> str:
    """Return the Connect error code for an HTTP status."""
    return _WORDS.get(status, "internal")


class SandboxHandler(E2bHandler):
    """Base of requests to one sandbox. ``prepare`` sets the attributes.

    Attributes:
        who: The sandbox's owner, with at most the scopes of the token, or of the secret's token.
        sandbox: The id of the sandbox and of its session, which is open.
        user: The user that the request names, or ``user``. It grants no rights.
        port: The sandbox's port that this route belongs to.
        purposes: The secrets that this route accepts.
        signed: HTTP methods that accept a signed URL, with the operation that it must allow.
    """

    route = "/sandbox"
    own_authentication = True
    scope: Scope | None = "run"
    port: ClassVar[int] = e2b.FILES_PORT
    purposes: ClassVar[Iterable[str]] = (e2b.ENVD,)
    signed: ClassVar[dict[str, e2b.Operation]] = {}
    sandbox = ""
    user = e2b.DEFAULT_USER

    def authenticate_request(self) -> None:
        """Check the origin, then the secret, token or signature, then that the sandbox runs.

        Raises:
            Unauthenticated: None of them is valid.
            SandboxNotFound: The sandbox does not exist, has ended or is paused, or the port is another one.
        """
        scope, self.scope = self.scope, None
        super().authenticate_request()
        self.scope = scope
        if self.request.method == "OPTIONS":
            return
        sandbox, port = e2b.address(self.request.headers)
        try:
            self.identify(sandbox)
            self.set_principal(self.who)
        except NotFound:
            raise SandboxNotFound(e2b.gone(sandbox or "")) from None
        self.auth_scope("run")
        self.require_running(port)

    def identify(self, sandbox: str | None) -> None:
        """Set the caller and the sandbox.

        Raises:
            Unauthenticated: The request does not prove who calls.
            NotFound: It does, but the sandbox does not exist any more.
        """
        headers = self.request.headers
        self.user = self.named_user()
        shown = [headers[name] for name in ("X-Access-Token", "E2B-Traffic-Access-Token") if headers.get(name)]
        operation = self.signed.get(self.request.method or "")
        given = self.argument("signature")
        if operation is not None and given is not None and not shown:
            self._identify_by_signature(sandbox, operation, given)
        elif sandbox is None:
            raise Unauthenticated("Name the sandbox in the header E2b-Sandbox-Id, and send its X-Access-Token.")
        elif shown:
            self.who, self.sandbox = self.context.service.access.holder(sandbox, self.purposes, *shown), sandbox
        else:
            self.who, self.sandbox = self.named_principal(), sandbox

    def _identify_by_signature(self, sandbox: str | None, operation: e2b.Operation, given: str) -> None:
        path, user = self.argument("path") or "", self.argument("username") or ""
        expires = e2b.expiry_of(self.argument("signature_expiration"), time.time())
        access = self.context.service.access
        signed = e2b.SignedAddress(given, path, operation, user, expires)
        if sandbox is None:
            self.who, self.sandbox = access.search(e2b.ENVD, signed)
            return
        self.who, self.sandbox = access.signer(sandbox, e2b.ENVD, signed), sandbox

    def named_user(self) -> str:
        """Return the user that the request names, or E2B's default."""
        return self.argument("username") or e2b.user_of(self.request.headers.get("Authorization")) or e2b.DEFAULT_USER

    def argument(self, name: str) -> str | None:
        """Return a value of the query."""
        given = self.request.query_arguments.get(name)
        return given[-1].decode("utf-8", "surrogateescape") if given else None

    def require_running(self, port: int | None) -> SessionInfo:
        """Return the sandbox's session.

        Raises:
            SandboxNotFound: It belongs to another user, has ended or is paused, or this route has another port.
        """
        try:
            session = self.context.service.get(self.who, self.sandbox)
        except NotFound:
            raise SandboxNotFound(e2b.gone(self.sandbox)) from None
        if session.state is SessionState.CLOSED or not models.is_sandbox(session):
            raise SandboxNotFound(e2b.gone(self.sandbox))
        if session.paused:
            session = self._resumed(session)
        if port is not None and port != self.port:
            raise SandboxNotFound(e2b.closed_port(self.sandbox, port))
        return session

    def break_off(self) -> NoReturn:
        """Close the connection in the middle of a response, because the sandbox has ended.

        E2B's clients take the missing end as a sign to ask ``/health``, and raise their ``TimeoutException``.

        Raises:
            ClientGone: Always.
        """
        self.request.connection.stream.close()  # type: ignore[union-attr]
        raise ClientGone

    def is_ended(self, session: str) -> bool:
        """Return whether a session of the owner is closed."""
        try:
            return self.context.service.get(self.who, session).state is SessionState.CLOSED
        except NotFound:
            return True

    def _resumed(self, session: SessionInfo) -> SessionInfo:
        """Resume a paused sandbox if it was created with ``autoResume``."""
        if models.RESUMES not in session.labels:
            raise SandboxNotFound(e2b.gone(self.sandbox))
        return self.context.service.leases.grant(self.who, session.id, models.DEFAULT_SECONDS)
