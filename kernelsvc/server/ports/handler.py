"""Handler of requests to servers in sessions: who asks, and what is passed on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from http import HTTPStatus
from http.client import responses

import msgspec
from tornado.iostream import IOStream

from kernelsvc.errors import BadRequest, Conflict, Forbidden, NotFound, TooLarge, Unauthenticated
from kernelsvc.model.network.ports import Access, Ticket
from kernelsvc.model.objects import Principal, Scope, SessionInfo
from kernelsvc.protocol import e2b, port_headers
from kernelsvc.server import auth
from kernelsvc.server.connections import connection_of
from kernelsvc.server.e2b import models
from kernelsvc.server.handler import ApiHandler
from kernelsvc.server.ports.exchange import PortExchange
from kernelsvc.server.ports.target import PortTarget, target_of, ticket_in_query

#: Seconds that the cookie of an address lives. The ticket in it ends earlier, as a rule.
_COOKIE_SECONDS = 24 * 3600
_BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})


class PortHandler(ApiHandler):
    """Handler of one request to a session's server. See ``protocol.port_headers`` for what passes."""

    route = "/v1/sessions/{session}/ports/{port}/{path}"
    own_authentication = True
    scope: Scope | None = None
    target: PortTarget
    access: Access = "token"
    _exchange: PortExchange | None = None
    _ticket_moved: tuple[str, str] | None = None
    _keep_authorization = False
    _expires: float | None = None
    _expiry: asyncio.TimerHandle | None = None

    # -- the way in ------------------------------------------------------------------

    async def prepare(self) -> None:
        """Tornado's hook: authenticate, connect, and send the head before the body arrives."""
        given = self.path_kwargs
        self.target = target_of(self.request, *(_text(given.get(name)) for name in ("ticket", "session", "port")))
        await super().prepare()
        if self._ticket_moved is not None or self._is_preflight():
            return
        request, target, headers = self.request, self.target, self.request.headers
        upgrade = headers.get("Upgrade", "").lower() == "websocket" and request.method == "GET"
        has_body = headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in headers
        if has_body and (upgrade or ("Transfer-Encoding" in headers and request.method not in _BODY_METHODS)):
            raise BadRequest("Send a body with a Content-Length, and none with a WebSocket.")
        session = self._resume_paused()
        connection = await self.context.service.ports.connect(self.who, target.session, target.port, self.access)
        self._exchange = PortExchange(self, connection, target.port, self.context.settings.port_bytes)
        connection.on_end(self._end)
        if self._expires is not None:  # a WebSocket could outlive its address by days
            self._expiry = asyncio.get_running_loop().call_later(self._expires - time.time(), self._end)
        fields = port_headers.for_session(
            list(headers.get_all()),
            host=headers.get("Host", ""),
            scheme="https" if self._is_https() else "http",
            local=models.host_for(session, target.port),
            own_origin=target.own_origin,
            keep_authorization=self._keep_authorization,
            upgrade=upgrade,
        )
        if request.method in _BODY_METHODS and not has_body and "Content-Length" not in headers:
            fields.append(("Content-Length", "0"))
        self._exchange.send_head(request.method or "GET", target.path, fields, upgrade=upgrade)

    def max_body(self) -> int:
        """Return the most bytes of a request."""
        return self.context.settings.port_bytes

    def authenticate_request(self) -> None:
        """Find out who asks: a token, a sandbox's secret, a signed address, or everybody if the port is public.

        Raises:
            Unauthenticated: the request proves none of them, and the port is not public.
            Forbidden: a page of another site sent it, or the token lacks the scope ``run``.
        """
        target, service = self.target, self.context.service
        if target.ticket:
            if not self._is_preflight():
                self._allow_signed(*service.ports.holder(target.ticket))
            return
        if self._is_preflight():
            if service.ports.visitor(target.session, target.port) is None:
                super().authenticate_request()
            return
        if not target.own_origin and "Authorization" in self.request.headers:
            super().authenticate_request()  # checks the origin, as for all requests with a token
        try:
            self._use_token()
        except Unauthenticated:
            if not (self._use_cookie() or self._use_public()):
                raise

    def _use_token(self) -> None:
        """Accept a token or a sandbox's secret."""
        headers, service = self.request.headers, self.context.service
        shown = [headers[name] for name in ("X-Access-Token", "E2B-Traffic-Access-Token") if headers.get(name)]
        if shown:
            who = service.access.holder(self.target.session, (e2b.ENVD, e2b.TRAFFIC), *shown)
        else:
            token = headers.get("X-API-KEY") or auth.bearer(headers.get("Authorization"))
            who = service.authenticate(token, headers.get("X-On-Behalf-Of"))
        self.set_principal(who)
        self.auth_scope("run")

    def _use_cookie(self) -> bool:
        """Accept the signed address in a host name's query or cookie."""
        if not self.target.own_origin:
            return False
        ports, headers = self.context.service.ports, self.request.headers
        moved = ticket_in_query(self.target.path)
        for text in [moved[0]] if moved is not None else port_headers.tickets_of(headers.get("Cookie")):
            try:
                who, ticket = ports.holder(text)
            except Unauthenticated:
                continue
            if (ticket.session, ticket.port) != (self.target.session, self.target.port):
                continue
            if moved is None and port_headers.comes_from_other_site(
                headers, self.request.method or "", headers.get("Host", "")
            ):
                raise Forbidden("A page of another site sent this request. Open the address itself.")
            self._keep_authorization = True
            if moved is not None and self.request.method in ("GET", "HEAD"):
                self._ticket_moved = moved
            elif moved is not None:
                self.target = msgspec.structs.replace(self.target, path=moved[1])
            self._allow_signed(who, ticket)
            return True
        return False

    def _use_public(self) -> bool:
        who = self.context.service.ports.visitor(self.target.session, self.target.port)
        if who is None:
            return False
        if not self.target.own_origin:  # else the name holds the session's id, which another site's page can't guess
            self.check_host()
        self._keep_authorization = True
        self.who, self.access = who, "public"  # visitors are no principals: their connections stay unauthenticated
        return True

    def _allow_signed(self, who: Principal, ticket: Ticket) -> None:
        self.who, self.access, self._expires = who, "signed", ticket.expires
        connection = connection_of(getattr(self.request.connection, "stream", None))
        if connection is not None:
            connection.end_with_token(who.token_sha256)

    def _resume_paused(self) -> SessionInfo:
        """Resume a paused sandbox that was created with ``autoResume``, as E2B does. Return the session."""
        session = self.context.service.get(self.who, self.target.session)
        if not session.paused:
            return session
        if models.RESUMES not in session.labels:
            raise NotFound("The session is paused. Its owner must resume it.")
        self.context.service.leases.grant(self.who, session.id, models.DEFAULT_SECONDS)
        return session

    def _host(self) -> str:
        return self.request.headers.get("Host", "").partition(":")[0].lower()

    def _is_https(self) -> bool:
        domain = self.context.settings.port_domain
        forwarded = self.request.headers.get("X-Forwarded-Proto") == "https"
        return forwarded or self.request.protocol == "https" or bool(domain and self._host().endswith(f".{domain}"))

    def _is_preflight(self) -> bool:
        """Whether a page of the sandboxed origin asks whether it may send a request, which needs no rights itself."""
        headers = self.request.headers
        asks = self.request.method == "OPTIONS" and "Access-Control-Request-Method" in headers
        return asks and not self.target.own_origin

    # -- the exchange -------------------------------------------------------------------

    async def data_received(self, chunk: bytes) -> None:
        """Tornado's hook: pass a piece of the body on."""
        self._kept += len(chunk)
        if self._exchange is not None and self._kept <= self.max_body():
            await self._exchange.send_body(chunk)

    async def _respond(self, *_: str, **__: str) -> None:
        exchange = self._exchange
        if self._ticket_moved is not None:
            self._move_ticket(*self._ticket_moved)
        elif self._is_preflight():
            super().options()
            self.set_header("Access-Control-Allow-Headers", "*, Authorization")
            if "Access-Control-Allow-Origin" not in self._headers:
                self.set_header("Access-Control-Allow-Origin", "*")
        elif exchange is None:
            raise Conflict("The port was closed during the request. Ask its owner for another address.")
        elif self._kept > self.max_body():
            raise TooLarge(f"The body has more than {self.max_body()} bytes (port_bytes). Send it in parts.")
        else:
            await self._run(exchange)

    get = post = put = patch = delete = head = _respond
    options = _respond  # type: ignore[assignment]

    async def _run(self, exchange: PortExchange) -> None:
        connection = connection_of(getattr(self.request.connection, "stream", None))
        if connection is not None:
            connection.await_relay()
        try:
            await self.while_connected(exchange.respond())
        finally:
            if self._finished:  # detached, for a WebSocket
                self.on_finish()

    def begin_response(self, code: int, headers: port_headers.Headers) -> Awaitable[None]:
        """Send the head of a response to the client."""
        self._set_head(code, headers)
        return self.flush()

    def _set_head(self, code: int, headers: port_headers.Headers) -> None:
        target = self.target
        self._headers.clear()
        self.set_status(code, responses.get(code, "Unknown"))
        host = self.request.headers.get("Host", "")
        passed = port_headers.for_client(
            headers, port=target.port, host=host, base=target.base, own_origin=target.own_origin
        )
        if self.access == "token":
            passed += self.kept_headers.items()  # of an origin that the settings allow
        elif not target.own_origin:
            # The page's own scripts have the origin "null", and these addresses need no credentials of a browser.
            passed.append(("Access-Control-Allow-Origin", "*"))
        for name, value in passed:
            self.add_header(name, value)

    def pass_on(self, chunk: bytes) -> Awaitable[None]:
        """Send a piece of a response to the client."""
        self.write(chunk)
        return self.flush()

    def upgrade(self, headers: port_headers.Headers) -> IOStream:
        """Send the head of an upgrade to the client, and return the stream, which carries a WebSocket from now on."""
        self._set_head(HTTPStatus.SWITCHING_PROTOCOLS, headers)
        self.set_header("Upgrade", "websocket")
        self.set_header("Connection", "Upgrade")
        head = [f"{name}: {value}" for name, value in self._headers.get_all()]
        stream: IOStream = self.detach()
        stream.write("\r\n".join(["HTTP/1.1 101 Switching Protocols", *head, "", ""]).encode("latin1"))
        return stream

    def _move_ticket(self, ticket: str, path: str) -> None:
        """Put the ticket of an address into a cookie, so that it leaves the browser's address bar and history."""
        secure = self._is_https()
        name = port_headers.SECURE_COOKIE if secure else port_headers.COOKIE
        attributes = f"Path=/; HttpOnly; SameSite=Lax; Max-Age={_COOKIE_SECONDS}" + ("; Secure" if secure else "")
        self.set_header("Set-Cookie", f"{name}={ticket}; {attributes}")
        self.set_header("Location", path)
        self.set_status(HTTPStatus.FOUND)

    # -- the end -------------------------------------------------------------------------

    def _end(self) -> None:
        """End the exchange at once: its address is not valid any more, or its session has ended."""
        self._close_exchange()
        if self._work is not None:
            self._work.cancel()

    def _close_exchange(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()

    def on_finish(self) -> None:
        """Tornado's hook: the response is complete."""
        self._close_exchange()
        super().on_finish()

    def on_connection_close(self) -> None:
        """Tornado's hook: the client disconnected."""
        super().on_connection_close()
        self._close_exchange()


def _text(value: bytes | str | None) -> str | None:
    return value.decode("latin1") if isinstance(value, bytes) else value
