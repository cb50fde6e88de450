"""The Connect protocol's framing of streams, with messages in JSON: functions of values.

Source: the protocol's reference at connectrpc.com. A stream is a sequence of
envelopes: one byte of flags, four of length (big-endian), and the message. The
last one from the server has flag 2 and holds an error or nothing. Unary calls
have no envelopes: a JSON body in each direction, errors by HTTP status.
"""

from __future__ import annotations

import base64
import binascii
import struct
from typing import Any

import msgspec

from kernelsvc.errors import BadRequest, TooLarge
from kernelsvc.protocol.jupyter import check_json

#: The content type of a stream.
STREAM = "application/connect+json"

_HEAD = struct.Struct(">BI")
_COMPRESSED, _END = 1, 2
#: Largest message that a client may send in a stream.
MAX_MESSAGE = 8 << 20


def envelope(message: Any, flags: int = 0) -> bytes:
    """Encode a message as an envelope of a stream."""
    data = msgspec.json.encode(message)
    return _HEAD.pack(flags, len(data)) + data


def end(code: str | None = None, message: str = "") -> bytes:
    """Encode the last envelope of a stream. With a Connect error code it reports a failure."""
    return envelope({} if code is None else {"error": {"code": code, "message": message}}, _END)


def take(data: bytearray, most: int | None = None) -> list[dict[str, Any]]:
    """Remove whole messages from the front of ``data`` and return them.

    Args:
        data: The bytes that have arrived.
        most: Number of messages after which the rest stays. None is no limit.

    Raises:
        BadRequest: ``data`` is compressed, or is not a stream of JSON objects.
        TooLarge: A message is longer than ``MAX_MESSAGE``.
    """
    found: list[dict[str, Any]] = []
    while len(data) >= _HEAD.size and (most is None or len(found) < most):
        flags, length = _HEAD.unpack_from(data)
        if flags & _COMPRESSED:
            raise BadRequest("Compressed messages are not supported. Send them uncompressed.")
        if length > MAX_MESSAGE:
            raise TooLarge(f"A message has {length} bytes, and {MAX_MESSAGE} is the limit. Send it in pieces.")
        whole = _HEAD.size + length
        if len(data) < whole:
            break
        found.append(_message(bytes(data[_HEAD.size : whole])))
        del data[:whole]
    return found


def _message(data: bytes) -> dict[str, Any]:
    check_json(data)
    try:
        value = msgspec.json.decode(data or b"{}")
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadRequest(f"A message of the stream is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise BadRequest("A message of the stream must be a JSON object.")
    return value


def as_bytes(value: object) -> bytes:
    """Decode bytes as protocol buffers write them in JSON: base64.

    Raises:
        BadRequest: ``value`` is not base64.
    """
    try:
        return base64.b64decode(value if isinstance(value, str) else "", validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("Data must be in base64.") from None


def as_text(data: bytes) -> str:
    """Encode bytes as protocol buffers write them in JSON. See ``as_bytes``."""
    return base64.b64encode(data).decode()


def seconds(header: str | None, unit: float = 1.0) -> float | None:
    """Parse a time from a header such as ``Connect-Timeout-Ms``.

    Args:
        header: The header's value, if it was sent.
        unit: Seconds of one unit of the header.

    Returns:
        Seconds. None if the header is missing or is not a positive number.
    """
    if header is None or not header.isdecimal() or len(header) > 12:
        return None
    return int(header) * unit or None
