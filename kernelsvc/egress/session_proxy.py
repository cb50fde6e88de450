"""The proxy of one container: its listeners, its look-ups, its connections and its quotas."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kernelsvc.egress.connection import MAX_SHOWN, EgressConnection, QuotaUsed
from kernelsvc.egress.interception import Interception
from kernelsvc.egress.lookups import NameServer
from kernelsvc.egress.protocol import OpenRequest
from kernelsvc.egress.relay import give_way
from kernelsvc.egress.synthetic_names import SyntheticNames
from kernelsvc.egress.token_bucket import TokenBucket
from kernelsvc.egress.upstream import Upstream, bound_buffers
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model.network.policy import NetworkPolicy, Refused
from kernelsvc.model.network.rules import NetworkRules, ParsedRule

log = logging.getLogger(__name__)

#: New connections of one session in a second, and at once. More wait in the listener's queue.
RATE, BURST = 50.0, 100
#: Seconds until the next accept(2) after descriptors ran out.
PAUSE_SECONDS = 0.2
_AT_ONCE = 16

#: Called with the kind of a report and its fields.
OnReport = Callable[[str, dict[str, Any]], None]


class SessionProxy:
    """See the module's docstring. Created on the event loop.

    Args:
        request: names the container and its rules.
        fds: the sockets for look-ups and the listeners. It owns them.
        hosts: addresses of names that are not looked up.
        interception: reads requests over TLS.
        on_report: receives ``denied`` and ``connection``.
    """

    def __init__(
        self,
        request: OpenRequest,
        fds: Sequence[int],
        hosts: Mapping[str, str],
        interception: Interception,
        on_report: OnReport,
    ) -> None:
        self._rules = request.rules
        self._policy = NetworkPolicy(request.rules)
        self._names = SyntheticNames()
        self._upstream = Upstream(self._policy, hosts)
        self.interception = interception
        self._on_report = on_report
        self._loop = asyncio.get_running_loop()
        self._bucket = TokenBucket(RATE, BURST, self._loop.time())
        self._tasks = OwnedTasks()
        self._open: dict[EgressConnection, asyncio.Task[None]] = {}
        self._connections = self._bytes = 0
        self._summary = request.rules.summary()
        self._closed = self._accepting = False
        self._turn = asyncio.Lock()
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
        self._upstream.close()
        for sock in self._sockets:
            sock.close()

    def update(self, rules: NetworkRules) -> None:
        """Use other rules from now on. Connections that they do not allow end."""
        self._rules = rules
        self._policy.use(rules)
        self._summary = rules.summary()
        for connection, task in list(self._open.items()):
            if connection.cut_if_refused():
                task.cancel()
        self._accept_more()

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
            now = self._loop.time()
            if wait := self._bucket.wait(now):
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
            self._bucket.take(now)  # not before: each callback ends with an accept(2) that finds no connection
            sock.setblocking(False)
            # Without it each small packet of a handshake waits for an acknowledgement, about 40 ms (tcp(7)).
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections += 1
            connection = EgressConnection(self, sock)
            self._open[connection] = self._tasks.start(self._serve(connection))

    async def _serve(self, connection: EgressConnection) -> None:
        try:
            await connection.run()
        except OSError as error:
            log.debug("a connection ended: %s", error)
        finally:
            self._open.pop(connection, None)
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

    def check_address(self, address: str) -> None:
        """Check the address of a connection. See ``NetworkPolicy.check_address``."""
        self._policy.check_address(address)

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

    async def pause(self) -> None:
        """See ``relay.Pause``."""
        async with self._turn:
            await give_way()

    def report(self, kind: str, **fields: Any) -> None:
        """Send a report."""
        self._on_report(kind, fields)

    def report_denied(self, via: str, host: str, port: int | None, why: str) -> None:
        """Report a refusal, with a message for people and models."""
        shown, why = _printable(host[:MAX_SHOWN]), _printable(why)
        where = shown if port is None else f"{shown}:{port}"
        message = f"network: {where} was refused: {why}. Allowed: {self._summary}"
        self.report("denied", via=via, host=shown, port=port, why=why, message=message)

    def _refused_name(self, name: str, why: str) -> None:
        self.report_denied("dns", name, None, why)


def _printable(text: str) -> str:
    """Return a text that the session chose, as one line without control characters."""
    return "".join(each if each.isprintable() else "?" for each in text)
