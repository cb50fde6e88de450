"""The proxy of one container: its listeners, its look-ups, its connections and its quotas."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kernelsvc.egress.http_relay import REFUSED, BadHttp, HttpExchange, HttpRelay, refusal
from kernelsvc.egress.lookups import NameServer
from kernelsvc.egress.protocol import OpenRequest
from kernelsvc.egress.relay import Idle, relay
from kernelsvc.egress.synthetic_names import SyntheticNames
from kernelsvc.egress.token_bucket import TokenBucket
from kernelsvc.egress.upstream import Upstream, bound_buffers
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model.network.hosts import DNS_PORT
from kernelsvc.model.network.policy import NetworkPolicy, Refused
from kernelsvc.model.network.rules import ParsedRule
from kernelsvc.protocol.egress import client_hello

log = logging.getLogger(__name__)

#: New connections of one session in a second, and at once. More wait in the listener's queue.
RATE, BURST = 50.0, 100
#: Seconds for the first bytes of a TLS or HTTP connection.
FIRST_BYTES_SECONDS = 10.0
#: Seconds in which a refused client may read the reason, and its longest name in a report.
FAREWELL_SECONDS, MAX_SHOWN = 0.5, 253
#: Seconds until the next accept(2) after descriptors ran out.
PAUSE_SECONDS = 0.2
HTTP_PORT, HTTPS_PORT = 80, 443
_DENIED = client_hello.alert(client_hello.ALERT_ACCESS_DENIED)
_FAILED = client_hello.alert(client_hello.ALERT_INTERNAL_ERROR)
_AT_ONCE = 16

#: Called with the kind of a report and its fields.
OnReport = Callable[[str, dict[str, Any]], None]


class QuotaUsed(Exception):
    """The session has sent and received the bytes that it may."""


class SessionProxy:
    """See the module's docstring. Created on the event loop.

    Args:
        request: names the container and its rules.
        fds: the sockets for look-ups and the listeners. It owns them.
        hosts: addresses of names that are not looked up.
        on_report: receives ``denied`` and ``connection``.
    """

    def __init__(self, request: OpenRequest, fds: Sequence[int], hosts: Mapping[str, str], on_report: OnReport) -> None:
        self._rules = request.rules
        self._policy = NetworkPolicy(request.rules)
        self._names = SyntheticNames()
        self._upstream = Upstream(self._policy, hosts)
        self._on_report = on_report
        self._loop = asyncio.get_running_loop()
        self._bucket = TokenBucket(RATE, BURST, self._loop.time())
        self._tasks = OwnedTasks()
        self._connections = self._bytes = 0
        self._summary = request.rules.summary()
        self._closed = self._accepting = False
        udp, *listeners = (socket.socket(fileno=fd) for fd in fds)
        self._sockets = [udp, *listeners]
        self._listeners = listeners
        self._name_server = NameServer(udp, self._policy, self._names, self._refused_name)
        for listener in listeners:
            listener.setblocking(False)
            bound_buffers(listener)
        self._accept_more()

    def close(self) -> None:
        """End every connection and close the sockets, so that the network namespace can go."""
        self._closed = True
        self._pause()
        self._name_server.close()
        self._tasks.cancel()
        for sock in self._sockets:
            sock.close()

    # -- accepting -----------------------------------------------------------------------

    def _accept_more(self) -> None:
        """Accept connections, unless the session has its most. Then more wait, and none is refused."""
        if not self._closed and not self._accepting and self._connections < self._rules.connections:
            self._accepting = True
            for listener in self._listeners:
                self._loop.add_reader(listener.fileno(), self._accept, listener)

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                self._loop.remove_reader(listener.fileno())

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            if self._connections >= self._rules.connections:
                self._pause()
                return
            wait = self._bucket.take(self._loop.time())
            if wait:
                self._pause()
                self._loop.call_later(wait, self._accept_more)
                return
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("a connection can't be accepted now: %s", error)
                self._pause()
                self._loop.call_later(PAUSE_SECONDS, self._accept_more)
                return
            sock.setblocking(False)
            # Without it each small packet of a handshake waits for an acknowledgement, about 40 ms (tcp(7)).
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections += 1
            self._tasks.start(self._serve(sock))

    async def _serve(self, sock: socket.socket) -> None:
        try:
            with sock:
                await _EgressConnection(self, sock).run()
        except OSError as error:
            log.debug("a connection ended: %s", error)
        finally:
            self._connections -= 1
            self._accept_more()

    # -- for a connection --------------------------------------------------------------

    async def serve_lookup(self, sock: socket.socket) -> None:
        """Answer a look-up over TCP."""
        await self._name_server.serve_tcp(sock)

    def destination(self, address: str) -> str:
        """Return the name that an address stands for, or the address."""
        return self._names.name_of(address) or address

    def rules_for(self, destination: str, port: int) -> tuple[ParsedRule, ...]:
        """Return the rules that may allow a connection, see ``NetworkPolicy.rules_for``.

        Raises:
            Refused: none does, or the quota of bytes is used up.
        """
        if self._rules.bytes is not None and self._bytes >= self._rules.bytes:
            raise Refused(f"the session has sent and received its {self._rules.bytes} bytes")
        try:
            return self._policy.rules_for(ipaddress.ip_address(destination), port)
        except ValueError:
            return self._policy.rules_for(destination, port)

    async def connect(self, destination: str, port: int) -> socket.socket:
        """Connect to a destination. See ``Upstream.connect``."""
        return await self._upstream.connect(destination, port)

    def count(self, size: int) -> None:
        """Count bytes.

        Raises:
            QuotaUsed: they are more than the rules allow.
        """
        self._bytes += size
        if self._rules.bytes is not None and self._bytes > self._rules.bytes:
            raise QuotaUsed

    def report(self, kind: str, **fields: Any) -> None:
        """Send a report."""
        self._on_report(kind, fields)

    def report_denied(self, via: str, host: str, port: int | None, why: str) -> None:
        """Report a refusal, with a message for people and models."""
        shown = "".join(c if c.isprintable() else "?" for c in host[:MAX_SHOWN])
        where = shown if port is None else f"{shown}:{port}"
        message = f"network: {where} was refused: {why}. Allowed: {self._summary}"
        self.report("denied", via=via, host=shown, port=port, why=why, message=message)

    def _refused_name(self, name: str, why: str) -> None:
        self.report_denied("dns", name, None, why)


class _EgressConnection:
    """One connection of a session, from its first byte to its report."""

    def __init__(self, proxy: SessionProxy, sock: socket.socket) -> None:
        self._proxy = proxy
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._sent = self._received = 0
        self._address = ""

    async def run(self) -> None:
        address, port = self._sock.getsockname()[:2]
        if port == DNS_PORT:
            with contextlib.suppress(TimeoutError):
                await self._proxy.serve_lookup(self._sock)
            return
        destination = self._proxy.destination(address.removeprefix("::ffff:"))
        try:
            rules = self._proxy.rules_for(destination, port)
            if rules[0].reads_requests() and port != HTTP_PORT:
                raise Refused("rules with methods or paths are for plain HTTP on port 80")
        except Refused as error:
            http = port == HTTP_PORT
            self._denied(destination, port, error)
            await self._farewell(refusal(403, REFUSED.format(why=error)) if http else _DENIED)
            return
        try:
            if port == HTTP_PORT:
                await self._http(rules, destination, port)
            else:
                await self._bytes(rules[0], destination, port)
        except Refused as error:
            self._denied(destination, port, error)
            await self._farewell(b"" if port == HTTP_PORT else _DENIED)
        except BadHttp:
            await self._farewell(b"")

    def _denied(self, destination: str, port: int, error: Refused) -> None:
        via = {HTTP_PORT: "http", HTTPS_PORT: "tls"}.get(port, "tcp")
        self._proxy.report_denied(via, destination, port, str(error))

    async def _bytes(self, rule: ParsedRule, destination: str, port: int) -> None:
        end = "failed"
        try:
            if port == HTTPS_PORT:
                await self._check_server_name(destination)
            with await self._connect(destination, port) as server:
                await relay(self._sock, server, self._count)
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

    async def _http(self, rules: tuple[ParsedRule, ...], destination: str, port: int) -> None:
        def on_exchange(exchange: HttpExchange) -> None:
            request = {"method": exchange.method, "path": exchange.path, "status": exchange.status}
            self._report(exchange.rule, destination, port, **request, end=end)
            self._sent = self._received = 0

        end = "closed"
        try:
            await HttpRelay(
                self._sock, destination, port, rules, lambda: self._connect(destination, port), self._count, on_exchange
            ).run()
        except (QuotaUsed, OSError) as error:
            end = "quota" if isinstance(error, QuotaUsed) else f"failed: {error}"[:200]
            self._report(rules[0], destination, port, end=end)

    async def _connect(self, destination: str, port: int) -> socket.socket:
        sock = await self._proxy.connect(destination, port)
        self._address = str(sock.getpeername()[0])
        return sock

    def _count(self, sent: int, received: int) -> None:
        self._sent += sent
        self._received += received
        self._proxy.count(sent + received)

    async def _check_server_name(self, destination: str) -> None:
        """Look at the ClientHello and leave it in the socket: nothing is passed on before the decision.

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

    async def _readable(self, size: int) -> None:
        """Wait until ``size`` bytes can be read, or the end (SO_RCVLOWAT, socket(7))."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
        ready = self._loop.create_future()
        self._loop.add_reader(self._sock.fileno(), lambda: None if ready.done() else ready.set_result(None))
        try:
            await ready
        finally:
            self._loop.remove_reader(self._sock.fileno())

    async def _farewell(self, data: bytes) -> None:
        """Send the last bytes, and read the client's. Unread bytes would make Linux send a reset first."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self._loop.sock_sendall(self._sock, data)
                self._sock.shutdown(socket.SHUT_WR)
                while await self._loop.sock_recv(self._sock, client_hello.MAX_BYTES):
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
            **more,
        )
