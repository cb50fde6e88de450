"""WebSockets through the proxy: the handshake (RFC 6455, section 4), and stars for secrets in a server's frames."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable

from kernelsvc.model.network.secrets import Redactor

#: RFC 6455, section 1.3.
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_VERSION = b"13"
#: Fields with which both sides agree on an extension. The only one in use compresses messages (RFC 7692).
EXTENSIONS = b"sec-websocket-extensions"
#: Fields of a handshake for this connection alone. ``UPGRADE`` takes their place.
UPGRADE = [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
#: RFC 6455, section 5.2: reserved bits of the first byte, the mask bit of the second.
_RESERVED, _MASKED = 0x70, 0x80
#: Section 5.2: lengths that say in how many further bytes the length is.
_LONG = {126: 2, 127: 8}

Headers = Iterable[tuple[bytes, bytes]]


class InvalidFrame(Exception):
    """A server's frame can't be read."""


def handshake_key(method: bytes, headers: Headers) -> bytes | None:
    """Return the key of a request that is a valid handshake, or None if it is another request.

    A handshake that a server refuses and a proxy takes for accepted would open a tunnel for unread requests. So it must
    be complete, and ``is_accepted`` compares the answer.

    Args:
        method: The request's method.
        headers: Its fields, names in lower case.
    """
    found: dict[bytes, list[bytes]] = {}
    for field, value in headers:
        found.setdefault(field, []).append(value.strip())
    if method != b"GET" or found.keys() & {b"content-length", b"transfer-encoding"}:
        return None
    tokens = {token.strip().lower() for value in found.get(b"connection", ()) for token in value.split(b",")}
    upgrades = [value.lower() for value in found.get(b"upgrade", ())]
    keys = found.get(b"sec-websocket-key", [])
    if b"upgrade" not in tokens or upgrades != [b"websocket"] or len(keys) != 1:
        return None
    if found.get(b"sec-websocket-version") != [_VERSION]:
        return None
    try:
        return keys[0] if len(base64.b64decode(keys[0], validate=True)) == 16 else None
    except binascii.Error:
        return None


def is_accepted(key: bytes, headers: Headers) -> bool:
    """Whether an answer with the status 101 accepts the handshake with this key (RFC 6455, section 4.2.2)."""
    wanted = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    fields = [(field, value.strip()) for field, value in headers]
    accepts = [value for field, value in fields if field == b"sec-websocket-accept"]
    return accepts == [wanted] and [value.lower() for field, value in fields if field == b"upgrade"] == [b"websocket"]


class FrameRedactor:
    """Replaces secrets by stars in the frames of a server, each frame by itself, and keeps no complete frame back.

    The lengths stay, so the frames do, too. Only bytes at the end of an incomplete frame may be kept back.

    Args:
        redactor: Has the texts.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._head = b""
        self._left = 0

    def feed(self, data: bytes) -> bytes:
        """Return the next bytes of the connection that can be passed on.

        Raises:
            InvalidFrame: A frame is masked, or belongs to an extension. No extension was agreed on.
        """
        passed = bytearray()
        at = 0
        while at < len(data):
            if self._left:
                part = data[at : at + self._left]
                at += len(part)
                self._left -= len(part)
                passed += self._redactor.feed(part)
                if not self._left:
                    passed += self._redactor.flush()
            else:
                part = data[at : at + _head_size(self._head) - len(self._head)]
                at += len(part)
                self._head += part
                if len(self._head) == _head_size(self._head):
                    passed += self._head
                    self._left, self._head = _payload_size(self._head), b""
        return bytes(passed)


def _head_size(head: bytes) -> int:
    """Return the bytes of a frame before its payload, as far as the bytes that are here tell it."""
    return 2 + (_LONG.get(head[1] & 0x7F, 0) if len(head) > 1 else 0)


def _payload_size(head: bytes) -> int:
    # RFC 6455, section 5.1: "A client MUST close a connection if it detects a masked frame."
    if head[0] & _RESERVED or head[1] & _MASKED:
        raise InvalidFrame("a frame of the server is masked or belongs to an extension")
    size = head[1] & 0x7F
    return int.from_bytes(head[2:]) if size in _LONG else size
