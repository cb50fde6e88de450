"""What the handlers of the E2B door have in common: who calls, for which sandbox, and how errors look.

Two kinds of request come here. The *control plane* (``E2bHandler``) is called
with a token of ours, as ``X-API-KEY`` or ``Authorization: Bearer``. What goes
*to a sandbox* (``SandboxHandler``) names it in headers and shows the secret that
``create`` or ``connect`` gave, or a token of its owner; a file's address may be
signed instead. Who shows neither learns nothing, not even whether a sandbox of
that name exists.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, ClassVar

import msgspec
from tornado.web import HTTPError

from kernelsvc.errors import BadRequest, KernelsvcError, NotFound, Unauthenticated
from kernelsvc.model.objects import Scope, SessionInfo, SessionState
from kernelsvc.protocol import e2b
from kernelsvc.server import auth
from kernelsvc.server.e2b import models
from kernelsvc.server.handler import ApiHandler, as_error

#: What a page may send here.
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
    """The sandbox is not there, or does not listen: 502, as the proxy in front of E2B's sandboxes says it."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(502)
        self.body = body


class E2bHandler(ApiHandler):
    """Base of all: E2B's names for a token, and its shape of errors.

    Attributes:
        words: whether an error's ``code`` is a word (Connect's) or the HTTP status.
    """

    transport = "e2b"
    route = "/sandboxes"
    connect_codes: ClassVar[bool] = False

    def token(self) -> str | None:
        """The token that the request carries."""
        headers = self.request.headers
        return headers.get("X-API-KEY") or auth.bearer(headers.get("Authorization"))

    def options(self, *args: str, **named: str) -> None:
        """A browser's preflight, for E2B's SDK in a page; the origin was checked."""
        super().options(*args)
        self.set_header("Access-Control-Allow-Headers", ", ".join(ALLOWED_HEADERS))
        self.set_header("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Tornado's hook: any failure in E2B's shape, ``{"code", "message"}``."""
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
        """The body of an error's answer."""
        if isinstance(raised, SandboxNotFound):
            return raised.body
        message = known.message.encode("utf-8", "replace").decode()
        return {"code": connect_code(status) if self.connect_codes else status, "message": message}

    def json_body(self) -> dict[str, Any]:
        """The body: a JSON object, or nothing.

        Raises:
            BadRequest: it is something else.
            TooLarge: it is over its bound.
        """
        data = self.body().strip()
        try:
            value = msgspec.json.decode(data) if data else {}
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise BadRequest(f"The body is not JSON: {error}.") from None
        if not isinstance(value, dict):
            raise BadRequest("The body must be a JSON object.")
        return value


#: Connect's words for statuses, where an answer is a Connect error.
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
    """Connect's word for an HTTP status."""
    return _WORDS.get(status, "internal")


class SandboxHandler(E2bHandler):
    """Base of what goes to one sandbox. Once ``prepare`` has returned, its attributes are set.

    Attributes:
        who: the sandbox's owner, with at most the scopes of the token that was shown or that the secret is bound to.
        sandbox: the sandbox's id, which is that of its session; it is open.
        user: the user that the request names, or ``user``. Nothing is granted by it.
        port: which of the sandbox's ports this route belongs to.
        purposes: the secrets that open this route.
        signed: HTTP methods for which a signed address counts, with what it must allow.
    """

    route = "/sandbox"
    scope: Scope | None = "run"
    port: ClassVar[int] = e2b.FILES_PORT
    purposes: ClassVar[Iterable[str]] = (e2b.ENVD,)
    signed: ClassVar[dict[str, e2b.Operation]] = {}
    sandbox = ""
    user = e2b.DEFAULT_USER

    def authenticate_request(self) -> None:
        """Check origin, then the secret, the token or the signature; then that the sandbox is there.

        Raises:
            Unauthenticated: none of them is good.
            NoSandbox: the sandbox is not there, ended or paused, or the port is another one.
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
        """Find out who calls, and for which sandbox.

        Raises:
            Unauthenticated: that can't be found out.
            NotFound: it can, but the sandbox is not there any more.
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
            self.who, self.sandbox = self.context.service.authenticate(self.token()), sandbox

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
        """The user that the request names, or E2B's default one."""
        return self.argument("username") or e2b.user_of(self.request.headers.get("Authorization")) or e2b.DEFAULT_USER

    def argument(self, name: str) -> str | None:
        """A value of the query."""
        given = self.request.query_arguments.get(name)
        return given[-1].decode("utf-8", "surrogateescape") if given else None

    def require_running(self, port: int | None) -> SessionInfo:
        """The sandbox's session.

        Raises:
            NoSandbox: it is somebody else's, has ended or is paused, or this route is not on that port.
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

    def _resumed(self, session: SessionInfo) -> SessionInfo:
        """A paused sandbox, running again if it was made so that whoever wants it resumes it."""
        if models.RESUMES not in session.labels:
            raise SandboxNotFound(e2b.gone(self.sandbox))
        return self.context.service.leases.grant(self.who, session.id, models.DEFAULT_SECONDS)
