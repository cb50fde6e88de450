"""One connection of a session, from its first byte to its report."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Coroutine
from typing import Any, Protocol

from kernelsvc.egress.byte_channels import ByteChannel, PlainChannel
from kernelsvc.egress.http_relay import HTTP_1_ONLY, REFUSED, BadHttp, HttpExchange, HttpRelay, refusal
from kernelsvc.egress.interception import Interception
from kernelsvc.egress.relay import relay
from kernelsvc.model.network.hosts import DNS_PORT, HTTP_PORT, HTTPS_PORT
from kernelsvc.model.network.policy import Refused, rule_for_request
from kernelsvc.model.network.rules import ParsedRule
from kernelsvc.protocol.egress import client_hello

#: Seconds for the first bytes of a TLS or HTTP connection, and without a byte in either direction later.
FIRST_BYTES_SECONDS, IDLE_SECONDS = 10.0, 300.0
#: Seconds between changes of the time limit. A change for each piece takes as long as a piece.
_LIMIT_SECONDS = 1.0
#: Seconds in which a refused client may read the reason, and its longest name in a report.
FAREWELL_SECONDS, MAX_SHOWN = 0.5, 253
_DENIED = client_hello.alert(client_hello.ALERT_ACCESS_DENIED)
_NO_PROTOCOL = client_hello.alert(client_hello.ALERT_NO_APPLICATION_PROTOCOL)
_FAILED = client_hello.alert(client_hello.ALERT_INTERNAL_ERROR)

_HTTP_1 = b"http/1.1"

_Rules = tuple[ParsedRule, ...]


class QuotaUsed(Exception):
    """The session has sent and received the bytes that it may."""


class Idle(Exception):
    """No byte came for ``IDLE_SECONDS``."""


class NoCommonProtocol(Refused):
    """The client offers no protocol that is read."""


class ConnectionPolicy(Protocol):
    """The decisions, the connections and the reports of one session. Implemented by ``SessionProxy``."""

    interception: Interception

    async def serve_lookup(self, sock: socket.socket) -> None:
        """Answer a look-up over TCP."""

    def destination(self, address: str) -> str:
        """Return the name that an address stands for, or the address."""

    def rules_for(self, destination: str, port: int) -> _Rules:
        """Return the rules that may allow a connection, or raise ``Refused``."""

    def check_address(self, address: str) -> None:
        """Check the address of a connection, or raise ``Refused``."""

    async def connect(self, destination: str, port: int) -> socket.socket:
        """Connect to a destination."""

    def count(self, size: int) -> None:
        """Count bytes, or raise ``QuotaUsed``."""

    async def pause(self) -> None:
        """See ``relay.Pause``."""

    def report(self, kind: str, **fields: Any) -> None:
        """Send a report."""

    def report_denied(self, via: str, host: str, port: int | None, why: str) -> None:
        """Report a refusal."""


class EgressConnection:
    """See the module's docstring.

    Args:
        proxy: decides, connects and reports for the session.
        sock: the session's socket. The connection owns it.
    """

    def __init__(self, proxy: ConnectionPolicy, sock: socket.socket) -> None:
        self._proxy = proxy
        self._sock = sock
        self._client = PlainChannel(sock)
        self._loop = asyncio.get_running_loop()
        self._began = self._active = self._loop.time()
        self._limit = asyncio.timeout(None)
        self._sent = self._received = 0
        self._address = ""
        self._destination, self._port = "", 0
        self._rules: _Rules = ()
        self._http: HttpRelay | None = None
        self._cut = ""

    async def run(self) -> None:
        """Serve the connection until its end, and close it. Safe to cancel."""
        try:
            await self._serve()
        finally:
            self._client.close()

    async def _serve(self) -> None:
        address, port = self._sock.getsockname()[:2]
        if port == DNS_PORT:
            with contextlib.suppress(TimeoutError):
                await self._proxy.serve_lookup(self._sock)
            return
        destination = self._proxy.destination(address.removeprefix("::ffff:"))
        self._destination, self._port = destination, port
        try:
            self._rules = rules = self._proxy.rules_for(destination, port)
            if port == HTTP_PORT or rules[0].reads_requests():
                await self._requests(rules, destination, port)
            else:
                await self._bytes(rules[0], destination, port)
        except Refused as error:
            self._denied(destination, port, error)
            if self._http is None:
                tls = _NO_PROTOCOL if isinstance(error, NoCommonProtocol) else _DENIED
                await self._farewell(refusal(403, REFUSED.format(why=error)) if port == HTTP_PORT else tls)

    def cut_if_refused(self) -> bool:
        """Use the present rules. Return whether they refuse this connection. The caller then cancels ``run``."""
        if not self._destination:
            return False
        try:
            self._rules = rules = self._proxy.rules_for(self._destination, self._port)
            if self._address:
                self._proxy.check_address(self._address)
            # Each request gets its own decision. Bytes that are passed on unread have that of the connection, and the
            # messages of a WebSocket that of its handshake.
            unread = self._http.unread if self._http is not None else None
            if unread is not None:
                changed = rule_for_request(rules, unread.method, unread.path) != unread.rule
            else:
                changed = rules[0].reads_requests() and self._http is None
        except Refused:
            changed = True
        if changed:
            self._cut = "the rules have changed"
        return changed

    def _denied(self, destination: str, port: int, error: Refused) -> None:
        via = "http" if self._http is not None else {HTTP_PORT: "http", HTTPS_PORT: "tls"}.get(port, "tcp")
        self._proxy.report_denied(via, destination, port, str(error))

    async def _bytes(self, rule: ParsedRule, destination: str, port: int) -> None:
        end = "failed"
        try:
            if port == HTTPS_PORT:
                await self._check_hello(destination)
            with contextlib.closing(await self._connect(destination, port)) as server:
                await self._until_idle(relay(self._client, server, self._count))
            end = "closed"
        except Idle:
            end = "idle"
        except QuotaUsed:
            end = "quota"
        except (OSError, client_hello.InvalidHello) as error:
            end = f"failed: {error}"[:200]
            await self._farewell(_FAILED if port == HTTPS_PORT else b"")
        except Refused:
            end = ""
            raise
        finally:
            if end:
                self._report(rule, destination, port, end=end)

    async def _requests(self, rules: _Rules, destination: str, port: int) -> None:
        """Relay requests: plain ones on port 80, over TLS on port 443. On another port the first byte decides."""
        try:
            if port == HTTP_PORT or (port != HTTPS_PORT and not await self._begins_with_tls()):
                await self._relay_requests(self._client, rules, destination, port)
                return
            hello = await self._check_hello(destination)
        except (OSError, client_hello.InvalidHello) as error:
            self._report(rules[0], destination, port, end=f"failed: {error}"[:200])
            await self._farewell(b"" if port == HTTP_PORT else _FAILED)
            return
        if hello.protocols and _HTTP_1 not in hello.protocols:
            raise NoCommonProtocol(HTTP_1_ONLY)
        try:
            channel = await self._proxy.interception.accept(self._client, destination)
        except OSError as error:
            self._report(rules[0], destination, port, end=f"failed: the client's handshake: {error}"[:200])
            return
        try:
            await self._relay_requests(channel, rules, destination, port, tls=True)
        finally:
            channel.close()

    async def _relay_requests(
        self, client: ByteChannel, rules: _Rules, destination: str, port: int, *, tls: bool = False
    ) -> None:
        interception, end = self._proxy.interception, "closed"

        async def connect() -> ByteChannel:
            server = await self._connect(destination, port)
            if not tls:
                return server
            try:
                return await interception.connect(server, destination)
            except BaseException:  # also a cancellation: no caller has the connection yet, so this must close it
                server.close()
                raise

        def on_exchange(exchange: HttpExchange) -> None:
            request = {"method": exchange.method, "path": exchange.path, "status": exchange.status}
            used = {"secrets": exchange.secrets} if exchange.secrets else {}
            self._report(exchange.rule, destination, port, **request, **used, end=end)
            self._sent = self._received = 0

        secrets = interception.secrets if tls else None
        # The relay answers requests that it refuses.
        self._http = HttpRelay(
            client,
            destination,
            port,
            lambda: self._rules,
            connect,
            self._count,
            on_exchange,
            secrets,
            self._proxy.pause,
        )
        try:
            await self._until_idle(self._http.run())
        except (QuotaUsed, OSError, Idle) as error:
            end = {QuotaUsed: "quota", Idle: "idle"}.get(type(error)) or f"failed: {error}"[:200]
            self._report(rules[0], destination, port, end=end)
        except (Refused, BadHttp):
            await self._farewell(b"", client)
            with contextlib.suppress(BadHttp):
                raise

    async def _begins_with_tls(self) -> bool:
        """Whether the first byte is that of a record with a handshake (RFC 8446, section 5.1)."""
        async with asyncio.timeout(FIRST_BYTES_SECONDS):
            await self._readable(1)
        return self._sock.recv(1, socket.MSG_PEEK) == client_hello.FIRST_BYTE

    async def _connect(self, destination: str, port: int) -> PlainChannel:
        sock = await self._proxy.connect(destination, port)
        self._address = str(sock.getpeername()[0])
        return PlainChannel(sock)

    async def _until_idle(self, work: Coroutine[Any, Any, None]) -> None:
        """Relay, and raise ``Idle`` when no byte came for a while."""
        self._limit = asyncio.timeout(IDLE_SECONDS)
        try:
            async with self._limit:
                await work
        except TimeoutError:
            if self._limit.expired():
                raise Idle from None
            raise

    def _count(self, sent: int, received: int) -> None:
        now = self._loop.time()
        if now - self._active >= _LIMIT_SECONDS and not self._limit.expired():
            self._active = now
            self._limit.reschedule(now + IDLE_SECONDS)
        self._sent += sent
        self._received += received
        self._proxy.count(sent + received)

    async def _check_hello(self, destination: str) -> client_hello.ClientHello:
        """Return the ClientHello, and leave it in the socket: nothing is passed on before the decision.

        Raises:
            Refused: its server name is another than that of the address, or can't be read.
            InvalidHello: it is not a ClientHello.
            OSError: it does not come.
        """
        async with asyncio.timeout(FIRST_BYTES_SECONDS):
            wanted = 1
            while True:
                await self._readable(wanted)
                data = self._sock.recv(client_hello.MAX_BYTES, socket.MSG_PEEK)
                hello = client_hello.parse_client_hello(data)
                if hello is not None:
                    break
                if len(data) < wanted or len(data) >= client_hello.MAX_BYTES:
                    raise client_hello.InvalidHello("it ends early or is too long")
                wanted = len(data) + 1
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        if hello.encrypted:
            raise Refused("the ClientHello is encrypted")
        if hello.server_name is not None and hello.server_name.lower() != destination:
            raise Refused(f"the server name {hello.server_name[:MAX_SHOWN]} is not the one that was looked up")
        return hello

    async def _readable(self, size: int) -> None:
        """Wait until ``size`` bytes can be read, or the end (SO_RCVLOWAT, socket(7))."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
        ready = self._loop.create_future()
        self._loop.add_reader(self._sock.fileno(), lambda: None if ready.done() else ready.set_result(None))
        try:
            await ready
        finally:
            self._loop.remove_reader(self._sock.fileno())

    async def _farewell(self, data: bytes, client: ByteChannel | None = None) -> None:
        """Send the last bytes, and read the client's. Unread bytes would make Linux send a reset first."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self._client.send(data)
                await (client or self._client).finish()
                while await self._client.receive(client_hello.MAX_BYTES):
                    pass

    def _report(self, rule: ParsedRule, destination: str, port: int, **more: Any) -> None:
        self._proxy.report(
            "connection",
            rule=rule.text,
            host=destination,
            address=self._address,
            port=port,
            sent=self._sent,
            received=self._received,
            seconds=round(self._loop.time() - self._began, 6),
            **more | ({"end": self._cut} if self._cut else {}),
        )
