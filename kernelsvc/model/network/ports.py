"""Ports of sessions that people look at: who may, signed addresses, and what the API shows. Pure."""

from __future__ import annotations

import hmac
import re
from typing import Annotated, Literal

import msgspec

#: A TCP port. In the log, 0 (``EVERY`` of ``service.ports``) stands for all ports of a session.
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
#: How a request proved that it may use a port.
Access = Literal["token", "signed", "public"]
#: Longest time of a signed address, in seconds.
MAX_SECONDS = 30 * 24 * 3600
#: Name in a query that holds a ticket, for the first request to a host name of a port.
TICKET_QUERY = "kernelsvc_ticket"
#: Bytes of a ticket that are looked at.
MAX_TICKET = 256

_TICKET = re.compile(
    r"(?P<session>[A-Za-z0-9_-]{1,128})\.(?P<port>[0-9]{1,5})\.(?P<expires>[0-9]{1,12})\.(?P<mac>[0-9a-f]{64})"
)


class PortState(msgspec.Struct, frozen=True):
    """One port's sharing, as the log has it.

    Attributes:
        public: whether requests need no token.
        generation: how often the port was closed. A signed address is valid for one generation.
    """

    public: bool = False
    generation: int = 0


class PortInfo(msgspec.Struct, kw_only=True):
    """A port of a session that was shared.

    Attributes:
        port: the number.
        public: whether requests need no token.
    """

    port: int
    public: bool


class PortAddress(PortInfo, kw_only=True):
    """The address of a port.

    Attributes:
        path: the address on this server. It holds a signature, unless the port is public.
        url: the address on a host name of the port's own, if the setting ``port_domain`` is set.
        expires_at: when the signature ends, or None for a public port.
    """

    path: str
    url: str | None = None
    expires_at: str | None = None


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """The signed part of an address.

    Attributes:
        session: the session's id.
        port: the port.
        expires: Unix time in seconds.
        mac: the signature, 64 hexadecimal digits.
    """

    session: str
    port: int
    expires: int
    mac: str

    def text(self) -> str:
        """Return it as a part of an address."""
        return f"{self.session}.{self.port}.{self.expires}.{self.mac}"


def parse_ticket(text: str) -> Ticket | None:
    """Return the ticket in this text, or None if it has another form."""
    found = _TICKET.fullmatch(text[:MAX_TICKET])
    if found is None:
        return None
    return Ticket(session=found["session"], port=int(found["port"]), expires=int(found["expires"]), mac=found["mac"])


def ticket_mac(secret: str, port: int, expires: int, generation: int) -> str:
    """Return the signature of a ticket with a session's secret."""
    return hmac.digest(secret.encode(), f"{port}:{expires}:{generation}".encode(), "sha256").hex()


class TicketSignature(msgspec.Struct, frozen=True):
    """A ticket and the generation of its port. Implements ``service.api.Signed``."""

    ticket: Ticket
    generation: int

    def is_signed_with(self, secret: str) -> bool:
        """Return whether this secret made the signature. The comparison takes constant time."""
        made = ticket_mac(secret, self.ticket.port, self.ticket.expires, self.generation)
        return hmac.compare_digest(made, self.ticket.mac)
