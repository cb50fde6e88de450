"""Who may reach servers in sessions from outside, and connections to them.

A session whose ports are not used costs nothing. The log has each address that the owner gives out, each end of one,
and, some seconds after the first request, how many there were.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from kernelsvc.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    KernelDead,
    KernelsvcError,
    LimitTooHigh,
    NotFound,
    QuotaExceeded,
    Unauthenticated,
)
from kernelsvc.kernels.launchers import KernelLaunchers
from kernelsvc.model import events as ev
from kernelsvc.model.hash_chain import timestamp
from kernelsvc.model.network.hosts import DNS_PORT
from kernelsvc.model.network.ports import (
    MAX_SECONDS,
    TICKET_QUERY,
    Access,
    PortAddress,
    PortInfo,
    PortState,
    Ticket,
    TicketSignature,
    parse_ticket,
    ticket_mac,
)
from kernelsvc.model.objects import Principal, SessionState
from kernelsvc.service.access.session_tokens import SessionTokens
from kernelsvc.service.environment import SessionEnvironment
from kernelsvc.service.ports.session_ports import Key, PortConnection, SessionPorts
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.session import Session
from kernelsvc.settings import Settings

#: Purpose of the secret that signs addresses.
PURPOSE = "port"
#: Every port of a session, in the log.
EVERY = 0


class Ports:
    """The ports of all sessions. Implements ``service.api.PortsApi``.

    Args:
        settings: who may reach ports, and how many connections.
        registry: all sessions.
        environment: resumes a hibernated session.
        launchers: make sockets.
        access: secrets that sign addresses.
    """

    def __init__(
        self,
        settings: Settings,
        registry: SessionRegistry,
        environment: SessionEnvironment,
        launchers: KernelLaunchers,
        access: SessionTokens,
    ) -> None:
        self._settings, self._registry, self._environment = settings, registry, environment
        self._launchers, self._access = launchers, access
        self._sessions: dict[str, SessionPorts] = {}

    def _require_on(self) -> None:
        if self._settings.ports == "off":
            raise Forbidden("This server does not forward requests to servers in sessions (setting 'ports').")

    # -- addresses -----------------------------------------------------------------------

    def list(self, who: Principal, session: str) -> Sequence[PortInfo]:
        """Return the ports that are public or that addresses were given out for."""
        found = self._registry.find(who, session)
        return [PortInfo(port=port, public=state.public) for port, state in sorted(found.ports.items()) if port]

    def share(
        self, who: Principal, session: str, port: int, *, public: bool = False, seconds: float = 3600.0
    ) -> PortAddress:
        """Make an address of a port that needs no token, and record it.

        Args:
            who: the owner.
            session: the session's id.
            port: the port. 0, with ``public``: every port.
            public: whether everybody may use the port, without a signature, until ``unshare``.
            seconds: how long a signed address is valid.

        Raises:
            Forbidden: the server allows no ports, or no public ones.
            LimitTooHigh: the time is too long.
            SessionClosed: the session has ended.
        """
        self._require_on()
        found = self._registry.find_open(who, session)
        if public:
            if self._settings.ports == "private":
                raise Forbidden("This server allows no public ports (setting 'ports'). Share a signed address.")
            if not self._state(found, port).public:
                found.record(ev.PortShared(port=port, public=True))
            return PortAddress(
                port=port, public=True, path=f"/v1/sessions/{found.id}/ports/{port}/", url=self._url(found, port, "")
            )
        if seconds > MAX_SECONDS:
            raise LimitTooHigh(
                f"An address is valid for {MAX_SECONDS} s at most. Ask for that, or make the port public.",
                limit="seconds",
                wanted=seconds,
                allowed=MAX_SECONDS,
            )
        if not who.token_sha256:
            raise BadRequest("An address is signed for a token. Send a request with one.")
        secret = self._access.secret(who, found.id, PURPOSE)
        expires = int(time.time() + seconds)
        mac = ticket_mac(secret, port, expires, self._state(found, port).generation)
        ticket = Ticket(session=found.id, port=port, expires=expires, mac=mac).text()
        found.record(ev.PortShared(port=port, seconds=seconds))
        return PortAddress(
            port=port,
            public=self._state(found, port).public,
            path=f"/v1/ports/{ticket}/",
            url=self._url(found, port, f"?{TICKET_QUERY}={ticket}"),
            expires_at=timestamp(expires),
        )

    def _url(self, session: Session, port: int, query: str) -> str | None:
        domain = self._settings.port_domain
        return f"https://{port}-{session.id.replace('_', '-', 1)}.{domain}/{query}" if domain else None

    def unshare(self, who: Principal, session: str, port: int) -> None:
        """End every address of a port, and the connections that use one. Idempotent.

        Raises:
            SessionClosed: the session has ended.
        """
        found = self._registry.find_open(who, session)
        if port in found.ports:
            found.record(ev.PortUnshared(port=port))
        ports = self._sessions.get(found.id)
        if ports is not None:
            ports.end_port(port)

    # -- requests ---------------------------------------------------------------------------

    def visitor(self, session: str, port: int) -> Principal | None:
        """Return the caller of a request without a token: the owner with the scope ``run``. None: it is not public."""
        found = self._registry.get(session)
        if self._settings.ports not in ("on", "open") or found is None:
            return None
        public = self._state(found, port).public or self._state(found, EVERY).public
        return Principal(name=found.principal, scopes=frozenset({"run", "read"})) if public else None

    def holder(self, text: str) -> tuple[Principal, Ticket]:
        """Return the caller of a ticket, and the ticket.

        Raises:
            Unauthenticated: the ticket is not valid, or not any more.
        """
        self._require_on()
        ticket = parse_ticket(text)
        found = self._registry.get(ticket.session) if ticket is not None else None
        if ticket is None or found is None:
            raise Unauthenticated("The address is not valid, or its session has ended. Ask the owner for another.")
        signature = TicketSignature(ticket, self._state(found, ticket.port).generation)
        try:
            who = self._access.signer(ticket.session, PURPOSE, signature)
        except Unauthenticated:
            who = None
        if who is None or time.time() >= ticket.expires:
            raise Unauthenticated("The address is not valid, or not any more. Ask the owner for another.")
        return who, ticket

    @staticmethod
    def _state(session: Session, port: int) -> PortState:
        return session.ports.get(port, PortState())

    async def connect(self, who: Principal, session: str, port: int, access: Access) -> PortConnection:
        """Connect to a server in a session. Resumes a session that is hibernated. Safe to cancel.

        Args:
            who: the owner, or whom ``visitor`` or ``holder`` returned.
            session: the session's id.
            port: the port.
            access: how the request was allowed, for the log.

        Raises:
            PortUnreachable: nothing listens there.
            Timeout: the server there accepts no connections.
            QuotaExceeded: too many connections to this session's ports are open.
            Conflict: the port belongs to the session's network rules.
            SessionClosed, KernelDead, NotSupported: the session has no network now.
        """
        self._require_on()
        found = self._registry.find_open(who, session)
        if not 1 <= port <= 65535:
            raise NotFound(f"There is no port {port}. Ports are numbers from 1 to 65535.")
        network = found.limits.network
        if not isinstance(network, str) and (port == DNS_PORT or port in network.ports()):
            raise Conflict(
                f"Port {port} carries this session's own connections to the network (limits.network). Start the server "
                "on another port."
            )
        ports = self._sessions.get(found.id)
        if ports is None:
            ports = self._sessions[found.id] = SessionPorts(found, self._launchers)
        most = self._settings.port_connections
        # The owner's own requests get an answer also while others use the rest.
        if len(ports.connections) >= (most if access == "token" else max(1, most - most // 4)):
            raise QuotaExceeded(
                f"{len(ports.connections)} connections to this session's ports are open (port_connections). "
                "Try again when some have ended."
            )
        key: Key = (port, access)
        place, open_now = object(), ports.connections
        ports.use(key).add(requests=1)
        open_now[place] = key
        try:
            await self._environment.resume(found)
            found.touch()
            connection = PortConnection(ports, key, await ports.connect(port))
        except KernelsvcError:
            ports.use(key).add(failed=1)
            raise
        finally:
            ended = open_now.pop(place, None) is None
        open_now[connection] = key
        if found.state is SessionState.CLOSED:  # meanwhile
            connection.close()
            raise KernelDead("The session has ended.")
        if ended:
            connection.close()
            raise Unauthenticated("The address is not valid any more. Ask the owner for another.")
        return connection

    # -- the end ------------------------------------------------------------------------------

    def end(self, session: str) -> None:
        """End the connections of a session that has ended."""
        ports = self._sessions.pop(session, None)
        if ports is not None:
            ports.close()

    def end_all(self) -> None:
        """Record the requests, and end all connections, because the server stops."""
        for session, ports in list(self._sessions.items()):
            ports.record()
            self.end(session)
