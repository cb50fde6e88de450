"""The ports of one session: sockets in its network, open connections, and counts for the log.

A connection is a socket that the kernel host has made in the session's network namespace (``host.port_sockets``). They
are made in groups and kept for the next requests.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable

from kernelsvc.errors import KernelDead, PortUnreachable, Timeout
from kernelsvc.kernels.launchers import KernelLaunchers
from kernelsvc.model import events as ev
from kernelsvc.model.network.ports import Access
from kernelsvc.session import Session

#: Sockets of one request to the host, and the number below which it asks again.
BATCH, FEW = 32, 8
#: Seconds for a session's server to accept a connection. It is on the same machine.
CONNECT_SECONDS = 10.0
#: Seconds over which the log sums up requests. Sockets that were not needed for as long are closed.
RECORD_SECONDS = 10.0
#: Ports with an entry of their own for this time. Visitors of a session with every port public could try all of them,
#: and so fill its log. Further ones are summed up as the port ``OTHERS``.
MAX_NAMED, OTHERS = 16, 0

#: A port, and how its requests are allowed.
Key = tuple[int, Access]


class PortUse:
    """Requests to one port with one kind of access, since the last entry of the log."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, **counts: int) -> None:
        """Add to the counts: ``requests``, ``failed``, ``sent`` and ``received`` bytes."""
        self._counts.update(counts)

    def event(self, port: int, access: Access) -> ev.PortUsed:
        """Return the entry for the log."""
        found = self._counts
        return ev.PortUsed(
            port=port,
            access=access,
            requests=found["requests"],
            failed=found["failed"],
            sent=found["sent"],
            received=found["received"],
        )


class PortConnection:
    """One connection to a session's server. Implements ``service.api.PortLink``."""

    def __init__(self, ports: SessionPorts, key: Key, connected: socket.socket) -> None:
        self.socket = connected
        self._ports, self._key = ports, key
        self._on_end: Callable[[], None] = lambda: None

    def on_end(self, call: Callable[[], None]) -> None:
        """See ``service.api.PortLink``."""
        self._on_end = call

    def count(self, *, sent: int = 0, received: int = 0) -> None:
        """See ``service.api.PortLink``."""
        self._ports.use(self._key).add(sent=sent, received=received)

    def fail(self) -> None:
        """See ``service.api.PortLink``."""
        self._ports.use(self._key).add(failed=1)

    def end(self) -> None:
        """End it, because its address is not valid any more or its session has ended."""
        self._on_end()

    def close(self) -> None:
        """See ``service.api.PortLink``."""
        self.socket.close()
        self._ports.forget(self)


class SessionPorts:
    """Sockets, connections and counts of one session's ports.

    Args:
        session: the session.
        launchers: make sockets.

    Attributes:
        connections: the open ones, and those that are being made.
    """

    def __init__(self, session: Session, launchers: KernelLaunchers) -> None:
        self._session, self._launchers = session, launchers
        self.connections: dict[object, Key] = {}
        self._kernel = ""
        self._sockets: list[socket.socket] = []
        self._making: asyncio.Task[None] | None = None
        self._uses: dict[Key, PortUse] = {}
        self._timer: asyncio.TimerHandle | None = None

    def use(self, key: Key) -> PortUse:
        """Return the counts since the last entry of the log."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(RECORD_SECONDS, self.record)
        if key not in self._uses and len(self._uses) >= MAX_NAMED:
            key = (OTHERS, key[1])
        return self._uses.setdefault(key, PortUse())

    def forget(self, connection: PortConnection) -> None:
        """Stop counting a connection that is closed. Idempotent."""
        self.connections.pop(connection, None)

    def end_port(self, port: int) -> None:
        """End the connections to a port, apart from those with a token."""
        for one, (used, access) in list(self.connections.items()):
            if access != "token" and used == port:
                self.end(one)

    def end(self, one: object) -> None:
        """End a connection, or have one that is being made fail."""
        if isinstance(one, PortConnection):
            one.end()
        else:
            self.connections.pop(one, None)

    def record(self) -> None:
        """Write the counts into the log. Close spare sockets if there were no requests."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        uses, self._uses = self._uses, {}
        for (port, access), use in uses.items():
            self._session.try_record(use.event(port, access))
        if uses:
            # Once more, without requests, this closes the sockets.
            self._timer = asyncio.get_running_loop().call_later(RECORD_SECONDS, self.record)
        else:
            self._close_sockets()

    def _close_sockets(self) -> None:
        for one in self._sockets:
            one.close()
        self._sockets.clear()

    def close(self) -> None:
        """End all connections."""
        if self._timer is not None:
            self._timer.cancel()
        if self._making is not None:
            self._making.cancel()
        for one in list(self.connections):
            self.end(one)
        self._close_sockets()

    async def connect(self, port: int) -> socket.socket:
        """Return a socket that is connected to a port of the session. Safe to cancel.

        Raises:
            PortUnreachable: nothing listens there.
            Timeout: the server does not accept connections.
            KernelDead, NotSupported, Internal: the session's network can't be entered.
        """
        loop = asyncio.get_running_loop()
        # Many development servers listen on "localhost", which is ::1 for some and 127.0.0.1 for others.
        for address in ("127.0.0.1", "::1"):
            made = await self._take()
            if made.family == socket.AF_INET6:
                address = "::ffff:127.0.0.1" if address == "127.0.0.1" else address
            elif address == "::1":
                made.close()
                break
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await loop.sock_connect(made, (address, port))
                return made
            except TimeoutError:
                made.close()
                raise Timeout(
                    f"The server on port {port} accepted no connection for {CONNECT_SECONDS:g} s. It may be stopped or "
                    "overloaded. Look at it in the session, then try again.",
                    port=port,
                ) from None
            except OSError:
                made.close()
            except BaseException:
                made.close()
                raise
        raise PortUnreachable(
            f"Nothing listens on port {port} in this session. The port is not open. Start the server there, on "
            "127.0.0.1 or 0.0.0.0, and try again.",
            port=port,
        )

    async def _take(self) -> socket.socket:
        info = self._session.info
        if info is None:
            raise KernelDead("The session has no kernel now. Restart it, then start its server.")
        if info.id != self._kernel:  # another kernel may have another network
            self._close_sockets()
            self._kernel = info.id
        while not self._sockets:
            await asyncio.shield(self._make())
        if len(self._sockets) <= FEW:
            self._make()
        return self._sockets.pop()

    def _make(self) -> asyncio.Task[None]:
        if self._making is None:
            self._making = asyncio.ensure_future(self._make_sockets(self._kernel))
            self._making.add_done_callback(self._made)
        return self._making

    async def _make_sockets(self, kernel: str) -> None:
        made = await self._launchers.sockets(kernel, BATCH)
        if kernel == self._kernel:
            self._sockets += made
        else:
            for one in made:
                one.close()

    def _made(self, task: asyncio.Task[None]) -> None:
        self._making = None
        if not task.cancelled():
            task.exception()  # marks it as retrieved: a later request fails with the same
