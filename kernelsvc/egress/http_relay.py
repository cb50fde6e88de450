"""HTTP between a session and a server, plain or inside TLS: each request is read, checked and written again.

Two parsers that disagree on where a request ends would let a second request pass unread. So h11 reads the bytes and
writes others with one framing, and nothing that it does not understand is passed on. The messages of a WebSocket are
bytes, from the answer on that accepts its handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import h11

from kernelsvc.egress.byte_channels import ByteChannel
from kernelsvc.egress.relay import CHUNK_BYTES, Count, Pause, give_way, relay
from kernelsvc.egress.secret_values import Secret, values_for
from kernelsvc.model.network.policy import Refused, rule_for_request
from kernelsvc.model.network.rules import ParsedRule
from kernelsvc.model.network.secrets import Redactor, as_variable, with_secrets
from kernelsvc.protocol.egress import websocket

#: Most bytes of a request's head.
MAX_HEAD = 32 * 1024
#: Seconds after which the parsing of one read pauses for other sessions. One read of 64 KiB can have 11,000 chunks of
#: one byte.
TURN_SECONDS = 0.001
#: Longest path in a report, without its query, which often has keys.
MAX_PATH = 512
#: RFC 9110, section 7.6.1: fields for one connection only. Expect is answered here. Upgrade would end the reading, so
#: only that of a WebSocket is passed on.
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"te", b"trailer", b"upgrade")
)
#: Fields with which a request replaces its own method or path in some frameworks, after the rules have read them.
_OVERRIDES = frozenset(
    (b"x-http-method", b"x-http-method-override", b"x-method-override", b"x-original-url", b"x-rewrite-url")
)
#: Fields that say where a request ends and for whom it is. h11 has read them, and no other spelling is passed on.
_FRAMING = frozenset((b"host", b"content-length", b"transfer-encoding"))
#: Text of an answer to a request that the rules refuse.
REFUSED = "This session's network rules refused the request: {why}"
#: Why HTTP/2 is refused: streams, compressed headers and continuations are places where two parsers can disagree.
HTTP_1_ONLY = "requests to this host are read, so the client must use HTTP/1.1 (gRPC and other HTTP/2 do not pass)"
#: Why an answer is refused after a secret was sent.
UNREADABLE = "the server's answer is compressed, so it can't be searched for the secret that was sent"
_REPLIES = {400: b"Bad Request", 403: b"Forbidden", 431: b"Request Header Fields Too Large", 502: b"Bad Gateway"}


@dataclass
class HttpExchange:
    """One request and the status of its answer, for a report. Status 0 means that there was no answer."""

    rule: ParsedRule
    method: str
    path: str
    status: int = 0
    secrets: list[str] = field(default_factory=list)


class BadHttp(Exception):
    """The session sent a request that is not valid.

    Attributes:
        status: the status of the answer.
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def check_request(request: h11.Request, name: str, port: int) -> None:
    """Check that a request is for the server whose address was connected to.

    Args:
        request: its head.
        name: the name that the address stands for, or the address.
        port: the port that was connected to.

    Raises:
        Refused: it names another server, or it is for a proxy.
        BadHttp: it has two framings.
    """
    if request.http_version not in (b"1.0", b"1.1"):  # the preface of RFC 9113, section 3.4, looks like a request
        raise Refused(HTTP_1_ONLY)
    fields = [field for field, _ in request.headers]
    if b"transfer-encoding" in fields and b"content-length" in fields:
        raise BadHttp(400, "a request has both Transfer-Encoding and Content-Length")
    if request.method == b"CONNECT" or not request.target.startswith((b"/", b"*")):
        raise Refused("a request in the form for proxies")
    hosts = [value for field, value in request.headers if field == b"host"]
    shown = f"[{name}]" if ":" in name else name
    # "name." is the same name (RFC 3986, section 3.2.2).
    allowed = {each.encode() for host in (shown, f"{shown}.") for each in (host, f"{host}:{port}")}
    if len(hosts) != 1 or hosts[0].lower() not in allowed:
        raise Refused("the Host header is not the name that was connected to")


def forwarded(headers: Iterable[tuple[bytes, bytes]], *, request: bool) -> list[tuple[bytes, bytes]]:
    """Return the fields that are passed on: without those that are for one connection or replace the method or path."""
    headers = list(headers)
    listed = b",".join(value for field, value in headers if field == b"connection").lower()
    dropped = _HOP_BY_HOP | {token.strip() for token in listed.split(b",")}
    if not request:
        return [(field, value) for field, value in headers if field not in dropped - _FRAMING]
    dropped = frozenset(map(as_variable, dropped)) - _FRAMING | {b"expect"} | _OVERRIDES
    return [
        (field, value)
        for field, value in headers
        if (plain := as_variable(field)) not in dropped and (plain == field or plain not in _FRAMING)
    ]


def refusal(status: int, why: str) -> bytes:
    """Return the answer to a request that is not passed on."""
    body = f"{why.rstrip('.')}.\n".encode()
    return (
        b"HTTP/1.1 %d %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n"
        b"X-Kernelsvc-Egress: denied\r\nConnection: close\r\n\r\n%s"
    ) % (status, _REPLIES.get(status, b"Refused"), len(body), body)


class HttpRelay:
    """One connection of a session to an HTTP server, plain or over TLS, for any number of requests.

    Args:
        client: the session's connection.
        name: see ``check_request``.
        port: see ``check_request``.
        rules: returns the present rules of the connection. Each request needs one that allows it.
        connect: connects to the server. Called at the first request that passes.
        count: see ``relay.Count``.
        on_exchange: called at the end of each request that was passed on.
        secrets: the operator's secrets if both connections are over TLS, or None. Without TLS none is sent.
        pause: see ``relay.Pause``. Called after each ``TURN_SECONDS``.

    Attributes:
        unread: the handshake of the WebSocket that the connection has become, or None.
    """

    def __init__(
        self,
        client: ByteChannel,
        name: str,
        port: int,
        rules: Callable[[], Sequence[ParsedRule]],
        connect: Callable[[], Awaitable[ByteChannel]],
        count: Count,
        on_exchange: Callable[[HttpExchange], None],
        secrets: Mapping[str, Secret] | None = None,
        pause: Pause = give_way,
    ) -> None:
        self._client = client
        self._name, self._port = name, port
        self._rules = rules
        self._connect = connect
        self._count = count
        self._on_exchange = on_exchange
        self._secrets = secrets
        self._pause = pause
        self._turn_began = 0.0
        self._server: ByteChannel | None = None
        self._key: bytes | None = None
        self.unread: HttpExchange | None = None
        # A head and a body that came together go together: each write wakes the receiver.
        self._to_client = bytearray()
        self._inner = h11.Connection(h11.SERVER, MAX_HEAD)
        self._outer = h11.Connection(h11.CLIENT, MAX_HEAD)

    async def run(self) -> None:
        """Relay until a side closes.

        Raises:
            Refused, BadHttp: a request was not passed on, and the session got the answer.
            OSError: the server can't be reached, or a side was reset.
            Exception: from ``count``.
        """
        try:
            while await self._exchange():
                self._inner.start_next_cycle()
                self._outer.start_next_cycle()
        except (Refused, BadHttp) as error:
            if isinstance(error, BadHttp):
                await self._refuse(error.status, f"The request is not valid: {error}")
            else:
                await self._refuse(403, REFUSED.format(why=error))
            raise
        except h11.LocalProtocolError as error:
            raise OSError(f"the server's answer is not valid HTTP: {error}") from None
        finally:
            if self._server is not None:
                self._server.close()

    async def _exchange(self) -> bool:
        """Relay one request and its answer. Return whether the connection may have another."""
        request = await self._next_request()
        if request is None:
            return False
        check_request(request, self._name, self._port)
        method, path = request.method.decode("latin-1"), request.target.partition(b"?")[0].decode("latin-1")
        exchange = HttpExchange(rule_for_request(self._rules(), method, path), method, path[:MAX_PATH])
        headers, hidden = self._with_secrets(exchange, forwarded(request.headers, request=True))
        self._key = websocket.handshake_key(request.method, request.headers)
        if self._key is not None:
            compressed = [websocket.EXTENSIONS] if exchange.secrets else []
            headers = [(field, value) for field, value in headers if field not in compressed] + websocket.UPGRADE
        if self._server is None:
            try:
                self._server = await self._connect()
            except OSError as error:
                await self._refuse(502, f"The server can't be reached: {error}")
                raise
        try:
            if self._inner.they_are_waiting_for_100_continue:
                await self._send_client(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
                await self._flush()
            head = self._outer.send(h11.Request(method=request.method, target=request.target, headers=headers))
            redactor = Redactor(hidden)
            await self._transfer(exchange, redactor, head or b"")
            if self.unread is not None:
                await self._relay_messages(redactor)
                return False
        finally:
            self._on_exchange(exchange)
        return self._inner.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE} == self._outer.states

    async def _transfer(self, exchange: HttpExchange, redactor: Redactor, head: bytes) -> None:
        """Send a request's head and the part of its body that is here. Then relay both ways until the answer ends."""
        assert self._server is not None
        ended = False
        self._turn_began = time.monotonic()
        with contextlib.suppress(h11.RemoteProtocolError):  # the upload meets the same error
            while isinstance(event := self._inner.next_event(), h11.Data):
                head += self._outer.send(h11.Data(data=bytes(event.data))) or b""
                if self._turn_is_over():
                    break
            if isinstance(event, h11.EndOfMessage):
                ended = True
                head += self._outer.send(h11.EndOfMessage()) or b""  # trailers are left out
        await self._server.send(head)
        if ended:
            await self._download(exchange, redactor)
            return
        upload = asyncio.ensure_future(self._upload())
        try:
            await self._download(exchange, redactor)
        finally:
            if not upload.done():
                upload.cancel()
            await asyncio.wait([upload])
            if not upload.cancelled() and (error := upload.exception()) is not None:
                raise error

    def _with_secrets(
        self, exchange: HttpExchange, headers: list[tuple[bytes, bytes]]
    ) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
        """Return a request's headers, and the texts that its answer must not have.

        Raises:
            Refused: its rule has secrets, and the connection is not over TLS, or a secret is missing.
        """
        rule = exchange.rule
        if not (rule.inject or rule.placeholders):
            return headers, []
        if self._secrets is None:
            raise Refused("secrets are sent over TLS only")
        values = values_for(rule, self._secrets)
        exchange.secrets = list(values)
        return with_secrets(headers, values, rule.inject, rule.placeholders)

    async def _next_request(self) -> h11.Request | None:
        try:
            event = await self._receive(self._inner, self._client, sent=True)
        except h11.RemoteProtocolError as error:
            raise BadHttp(error.error_status_hint, str(error)) from None
        return event if isinstance(event, h11.Request) else None

    async def _upload(self) -> None:
        """Pass the request's body on. A fault of it ends the connection, and so does an error of ``count``."""
        complete = False
        try:
            with contextlib.suppress(OSError, h11.ProtocolError):
                while not complete:
                    event = await self._receive(self._inner, self._client, sent=True)
                    if isinstance(event, h11.EndOfMessage):
                        await self._send_server(h11.EndOfMessage())  # trailers are left out
                        complete = True
                    elif isinstance(event, h11.Data):
                        await self._send_server(h11.Data(data=bytes(event.data)))
                    else:
                        break
        finally:
            if not complete and self._server is not None:
                self._server.abort()  # Else the download waits for an answer that may never come.

    async def _download(self, exchange: HttpExchange, redactor: Redactor) -> None:
        assert self._server is not None
        while True:
            try:
                event = await self._receive(self._outer, self._server, sent=False)
            except h11.RemoteProtocolError as error:
                raise OSError(f"the server's answer is not valid HTTP: {error}") from None
            if isinstance(event, h11.Response):
                exchange.status = event.status_code
                if exchange.secrets:
                    await self._require_readable(event)
                headers = redactor.fields(forwarded(event.headers, request=False))
                reason = redactor.text(bytes(event.reason))
                await self._send_client(h11.Response(status_code=event.status_code, reason=reason, headers=headers))
            elif isinstance(event, h11.Data):
                await self._send_data(redactor.feed(bytes(event.data)))
            elif isinstance(event, h11.EndOfMessage):
                if self._server.is_cut():  # RFC 9112, section 9.8. A body with a length is complete before the end.
                    self._client.abort()  # An end of TLS would tell the session that the answer is complete.
                    raise OSError("the server's answer has no length, and TLS ended without close_notify")
                await self._send_data(redactor.flush())
                await self._send_client(h11.EndOfMessage())  # trailers are left out
                await self._flush()
                return
            elif not isinstance(event, h11.InformationalResponse):
                raise OSError("the server closed the connection without an answer")
            elif event.status_code == 101:
                await self._switch(exchange, redactor, event)
                return

    async def _switch(self, exchange: HttpExchange, redactor: Redactor, response: h11.InformationalResponse) -> None:
        """Pass on the answer that accepts a WebSocket."""
        exchange.status = response.status_code
        if self._key is None or not websocket.is_accepted(self._key, response.headers):
            why = "the server accepts a WebSocket, but not the one that was asked for"
        elif exchange.secrets and any(field == websocket.EXTENSIONS for field, _ in response.headers):
            why = UNREADABLE
        else:
            headers = [*redactor.fields(forwarded(response.headers, request=False)), *websocket.UPGRADE]
            await self._send_client(h11.InformationalResponse(status_code=101, headers=headers))
            await self._flush()
            self.unread = exchange
            return
        await self._refuse(502, f"The answer is not passed on: {why}")
        raise OSError(why)

    async def _relay_messages(self, redactor: Redactor) -> None:
        """Relay a WebSocket until its end, first the bytes that came with the handshake."""
        assert self._server is not None
        assert self.unread is not None
        frames = websocket.FrameRedactor(redactor).feed if self.unread.secrets else None
        try:
            await self._server.send(self._inner.trailing_data[0])
            rest = self._outer.trailing_data[0]
            await self._client.send(frames(rest) if frames else rest)
            await relay(self._client, self._server, self._count, frames, self._pause)
        except websocket.InvalidFrame as error:
            raise OSError(str(error)) from None

    async def _require_readable(self, response: h11.Response) -> None:
        """Refuse an answer in a coding in which values could not be found. The request asked for none."""
        coding = [value.strip().lower() for name, value in response.headers if name == b"content-encoding"]
        if set(coding) - {b"", b"identity"}:
            await self._refuse(502, f"The answer is not passed on: {UNREADABLE}")
            raise OSError(UNREADABLE)

    async def _receive(self, connection: h11.Connection, channel: ByteChannel, *, sent: bool) -> object:
        if self._turn_is_over():
            await self._pause()
            self._turn_began = time.monotonic()
        while (event := connection.next_event()) is h11.NEED_DATA:
            if not sent:
                await self._flush()
            data = await channel.receive(CHUNK_BYTES)
            self._turn_began = time.monotonic()
            self._count(len(data) if sent else 0, 0 if sent else len(data))
            connection.receive_data(data)
        return event

    def _turn_is_over(self) -> bool:
        return time.monotonic() - self._turn_began >= TURN_SECONDS

    async def _send_server(self, event: h11.Request | h11.Data | h11.EndOfMessage) -> None:
        assert self._server is not None
        if data := self._outer.send(event):
            await self._server.send(data)

    async def _send_client(self, event: h11.Event) -> None:
        self._to_client += self._inner.send(event) or b""
        if len(self._to_client) >= CHUNK_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        if self._to_client:
            data = bytes(self._to_client)
            self._to_client.clear()
            await self._client.send(data)

    async def _send_data(self, data: bytes) -> None:
        if data:
            await self._send_client(h11.Data(data=data))

    async def _refuse(self, status: int, why: str) -> None:
        if self._inner.our_state not in (h11.IDLE, h11.SEND_RESPONSE, h11.ERROR):
            return  # an answer has begun
        reply = refusal(status, why)
        with contextlib.suppress(OSError):
            await self._client.send(reply)
