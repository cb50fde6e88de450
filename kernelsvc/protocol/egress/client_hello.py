"""The first message of a TLS client: the server name and the protocols, which it sends in clear.

RFC 8446, section 4.1.2, RFC 6066 and RFC 7301.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

#: Most bytes of a hello. Clients send up to 2 KiB today, with keys for post-quantum exchanges.
MAX_BYTES = 64 * 1024
_HANDSHAKE, _CLIENT_HELLO = 22, 1
#: The first byte of a connection with TLS.
FIRST_BYTE = bytes([_HANDSHAKE])
#: Bytes of one record, and most records of a hello. Clients send one or two. Each new byte costs a look at all.
_MAX_RECORD, MAX_RECORDS = 16384, 64
_SERVER_NAME, _PROTOCOLS, _ENCRYPTED_CLIENT_HELLO = 0, 16, 0xFE0D
ALERT_ACCESS_DENIED, ALERT_INTERNAL_ERROR, ALERT_NO_APPLICATION_PROTOCOL = 49, 80, 120


class InvalidHello(Exception):
    """The bytes are not a ClientHello."""


class ClientHello(NamedTuple):
    """Extensions of a ClientHello.

    Attributes:
        server_name: The server name, or None if there is none.
        encrypted: Whether it carries an encrypted ClientHello, whose inner server name can't be read.
        protocols: The protocols that the client offers by ALPN. Empty if it does not say.
    """

    server_name: str | None
    encrypted: bool
    protocols: tuple[bytes, ...] = ()


class _Reader:
    """Bytes with a position. Reading past the end raises ``InvalidHello``."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def more(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        # The rest is not copied: a hello can have 16,000 extensions.
        start, self._at = self._at, self._at + size
        if self._at > len(self._data):
            raise InvalidHello("it ends early")
        return self._data[start : self._at]

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> _Reader:
        """Read a length of ``size`` bytes, and that many bytes."""
        return _Reader(self.take(self.number(size)))


def parse_client_hello(data: bytes) -> ClientHello | None:
    """Parse a ClientHello from the first bytes of a connection. Return None if more bytes are needed.

    A hello may be split over several records (RFC 8446, section 5.1).

    Raises:
        InvalidHello: It is not a ClientHello, or a malformed one.
    """
    body, rest = b"", data
    for _ in range(MAX_RECORDS):
        if (rest and rest[0] != _HANDSHAKE) or (len(rest) > 1 and rest[1] != 3):
            raise InvalidHello("it is not TLS")
        if len(rest) < 5:
            return None
        size = struct.unpack_from("!H", rest, 3)[0]
        if not 0 < size <= _MAX_RECORD:
            raise InvalidHello("the length of a record is not valid")
        body += rest[5 : 5 + size]
        if body and body[0] != _CLIENT_HELLO:
            raise InvalidHello("the first message is not a ClientHello")
        if len(body) >= 4 and len(body) >= 4 + int.from_bytes(body[1:4]):
            return _parse_body(_Reader(body[4 : 4 + int.from_bytes(body[1:4])]))
        if len(rest) < 5 + size:
            return None
        rest = rest[5 + size :]
    raise InvalidHello("it has too many records")


def _parse_body(hello: _Reader) -> ClientHello:
    hello.take(2 + 32)  # version, random
    hello.vector(1)  # session id
    hello.vector(2)  # cipher suites
    hello.vector(1)  # compression methods
    name, encrypted, seen = None, False, set()
    protocols: tuple[bytes, ...] = ()
    extensions = hello.vector(2) if hello.more else _Reader(b"")
    while extensions.more:
        kind, value = extensions.number(2), extensions.vector(2)
        # RFC 8446, section 4.2: "There MUST NOT be more than one extension of the same type".
        if kind in seen:
            raise InvalidHello("an extension is there twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            name = _server_name(value)
        if kind == _PROTOCOLS:
            protocols = _protocols(value.vector(2))
        encrypted = encrypted or kind == _ENCRYPTED_CLIENT_HELLO
    return ClientHello(name, encrypted, protocols)


def _server_name(value: _Reader) -> str:
    names = value.vector(2)
    kind, name = names.number(1), names.vector(2)
    # RFC 6066, section 3: one name for each type, and there is one type. A second name could be taken for the first.
    if kind != 0 or names.more or value.more or not name.more:
        raise InvalidHello("not exactly one server name")
    try:
        return name.rest().decode("ascii")
    except UnicodeDecodeError:
        raise InvalidHello("the server name is not ASCII") from None


def _protocols(names: _Reader) -> tuple[bytes, ...]:
    found = []
    while names.more:
        found.append(names.vector(1).rest())
    return tuple(found)


def alert(description: int) -> bytes:
    """Return a fatal alert (RFC 8446, section 6)."""
    return struct.pack("!BHHBB", 21, 0x0303, 2, 2, description)
