"""Synthetic addresses: one for each name that a session has looked up."""

from __future__ import annotations

import ipaddress
import secrets

#: RFC 2544 reserves 198.18.0.0/15 for tests. The first 256 addresses are left for the session's own.
_FIRST, _COUNT = int(ipaddress.IPv4Address("198.18.1.0")), (1 << 17) - 512
#: Most names of one session.
MAX_NAMES = 1024


class TooManyNames(Exception):
    """The session has looked up ``MAX_NAMES`` names."""


class SyntheticNames:
    """Names and addresses of one session. An address stands for one name for the session's life in this process.

    Addresses begin at a random one. A program that kept an address from an earlier proxy then gets a refusal and not
    another host.
    """

    def __init__(self) -> None:
        self._addresses: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._next = secrets.randbelow(_COUNT)

    def address_of(self, name: str) -> str:
        """Return the address of a name, a new one at the first call.

        Raises:
            TooManyNames: there is no room.
        """
        known = self._addresses.get(name)
        if known is not None:
            return known
        if len(self._addresses) >= MAX_NAMES:
            raise TooManyNames
        address = str(ipaddress.IPv4Address(_FIRST + self._next))
        self._next = (self._next + 1) % _COUNT
        self._addresses[name], self._names[address] = address, name
        return address

    def name_of(self, address: str) -> str | None:
        """Return the name that an address stands for, or None."""
        return self._names.get(address)
