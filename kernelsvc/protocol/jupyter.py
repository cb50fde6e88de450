"""Jupyter messages on a socket in two framings: functions of values.

``v1``: the subprotocol ``v1.kernel.websocket.jupyter.org``, also the payload of
MESSAGE frames on the kernel wire. First come little-endian u64s: the number of
offsets, then the offset of each part and of the end. Then come the parts: channel,
header, parent header, metadata, content, buffers.

``json``: the older framing. Without buffers the message is one JSON text with a
``channel`` field. With buffers it is binary: big-endian u32s with the number of parts
and the offset of each, then the JSON, then the buffers.

Input may be hostile. Decoding raises ``BadRequest`` and no other error. JSON is
limited in depth and in the number of values, since 64 MiB of ``[[],[],...]``
would otherwise become gigabytes of objects.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from kernelsvc.errors import BadRequest, TooLarge
from kernelsvc.model.hash_chain import LONG, count_at_most, max_depth_ok

SUBPROTOCOL = "v1.kernel.websocket.jupyter.org"
CHANNELS = frozenset({"shell", "control", "stdin", "iopub"})
#: On the kernel wire: calls of clients' functions. Jupyter's clients have no such channel.
TOOLS = "tools"

#: Most bytes of one message, as on the kernel wire.
MAX_BYTES = 64 * 1024 * 1024
#: Most binary buffers of one message. ipywidgets with images use a few.
MAX_BUFFERS = 1024
#: Deepest JSON. Vega and plotly figures stay below 20.
MAX_DEPTH = 100
#: Most values in one JSON text, most arrays and objects of them, and most texts and keys in one with many brackets.
#: They limit the decoded objects to about 200 MB, and check and decoding to about 0.3 s. Other clients wait meanwhile.
MAX_VALUES = 2_000_000
MAX_CONTAINERS, MAX_STRINGS = 250_000, 300_000
#: Most numbers with a point or an exponent, and most of them that are decoded slowly: with an exponent of three digits
#: or with more than 24 digits. One of these takes up to 15 us, 200 times as long as an ordinary one.
MAX_FLOATS, MAX_SLOW_FLOATS = 600_000, 10_000
#: Number of commas up to which find() is used, which is ten times as fast as count().
FEW_VALUES = 1000
#: Size in bytes up to which a part is copied before it is decoded. A view costs more.
COPIED = 64 * 1024

_FIXED_PARTS = 5  # channel, header, parent header, metadata, content
_PLAIN = struct.Struct(f"<{_FIXED_PARTS + 2}Q")
_BY_BYTES = {name.encode(): name for name in (*CHANNELS, TOOLS)}
#: Possessive quantifiers (re, since 3.11) keep no positions to go back to: 0.6 s for 60 MiB of escapes, not 7 s.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NOT_BRACKETS = bytes(b for b in range(256) if b not in b"[]{}")
_DIGITS_AS_ZERO = bytes.maketrans(b"123456789E", b"000000000e")
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class JupyterMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message of the Jupyter protocol, with its channel."""

    channel: str
    header: dict[str, Any]
    parent_header: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    content: dict[str, Any] = {}
    buffers: tuple[bytes, ...] = ()

    @property
    def msg_id(self) -> str:
        """The id in the header, or ""."""
        return text_field(self.header, "msg_id")

    @property
    def msg_type(self) -> str:
        """The type in the header, or ""."""
        return text_field(self.header, "msg_type")

    @property
    def parent(self) -> str:
        """The ``msg_id`` of the request that this message answers, or ""."""
        return text_field(self.parent_header, "msg_id")


def text_field(mapping: dict[str, Any], name: str) -> str:
    """Return ``mapping[name]`` if it is text, else ""."""
    value = mapping.get(name)
    return value if isinstance(value, str) else ""


# --- JSON, bounded -----------------------------------------------------------------


def _structure(data: bytes | bytearray) -> bytes:
    """Return a JSON text without its strings.

    Raises:
        TooLarge: it holds too many of something.
    """
    structure, strings = _STRING.subn(b"", data, count=MAX_STRINGS + 1)
    containers = structure.count(b"[") + structure.count(b"{")
    for count, most, name in (
        (strings, MAX_STRINGS, "texts and keys"),
        (containers, MAX_CONTAINERS, "arrays and objects"),
        (containers + structure.count(b","), MAX_VALUES, "JSON values"),
    ):
        if count > most:
            raise TooLarge(f"A message holds more than {most} {name}. Send less, or in a buffer.")
    return structure


def _floats_ok(data: bytes | bytearray) -> bool:
    """Return whether all numbers of a JSON text can be decoded in about 0.5 s. What looks like one in a string counts.

    It is as fast as a scan can be, because it does not look at the numbers one by one.
    """
    plain = data.translate(_DIGITS_AS_ZERO, b"+-.")
    slow, exponents = plain.count(b"0" * 25), plain.count(b"e")
    if exponents > MAX_SLOW_FLOATS:
        # Counting more than one byte takes long where digits are many.
        slow += plain.count(b"e000")
        exponents -= data.count(b"true") + data.count(b"false")
    return slow <= MAX_SLOW_FLOATS and data.count(b".") + exponents <= MAX_FLOATS


def _depth(structure: bytes) -> int:
    depth = deepest = 0
    for byte in structure.translate(None, _NOT_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        if depth > deepest:
            deepest = depth
    return deepest


def check_json(data: bytes | bytearray, start: int = 0, end: int | None = None) -> None:
    """Refuse a JSON text that is nested too deep or holds too many values. Cheap for ordinary texts.

    Args:
        data: Contains the text.
        start: Offset of its first byte.
        end: Offset after its last byte. None: the end of ``data``.

    Raises:
        BadRequest: It is over a limit.
    """
    end = len(data) if end is None else end
    # With fewer commas or bytes than this, all numbers may be slow ones.
    few_values = end - start <= COPIED or count_at_most(data, b",", FEW_VALUES, start, end) >= 0
    flat = max_depth_ok(data, MAX_DEPTH, start, end)
    if flat and few_values:
        return
    part = data[start:end]
    few_keys = part.count(b":") <= MAX_STRINGS
    if flat and few_keys and part.count(b",") <= MAX_VALUES - MAX_DEPTH and _floats_ok(part):
        return
    structure = _structure(part)
    if _depth(structure) > MAX_DEPTH:
        raise BadRequest(f"A message's JSON is nested deeper than {MAX_DEPTH}. Flatten it.")
    if not few_values and not _floats_ok(structure):
        raise TooLarge(
            f"A message holds more than {MAX_FLOATS} numbers with a point or an exponent, or more than "
            f"{MAX_SLOW_FLOATS} with a large exponent or 25 digits. Send less, or in a buffer."
        )


def parse_json(data: bytes | bytearray, start: int = 0, end: int | None = None) -> Any:
    """Decode a JSON text. NaN, infinity and invalid UTF-8 are refused. A long text is decoded without a copy.

    Args:
        data: Contains the text.
        start: Offset of its first byte.
        end: Offset after its last byte. None: the end of ``data``.

    Raises:
        BadRequest: It is not JSON, or it is over a limit.
    """
    end = len(data) if end is None else end
    size = end - start
    if size == 2 and data[start:end] == b"{}":
        return {}
    try:
        if size < COPIED:
            # A text with fewer bytes or brackets than the depth's limit is within all limits.
            if size > MAX_DEPTH and (
                size > LONG or data.count(b"[", start, end) + data.count(b"{", start, end) > MAX_DEPTH
            ):
                check_json(data, start, end)
            return _decode(data[start:end])
        check_json(data, start, end)
        with memoryview(data) as view, view[start:end] as part:
            return _decode(part)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise BadRequest(f"A message is not valid JSON: {error}.") from None


def _object(data: bytes, what: str) -> dict[str, Any]:
    value = parse_json(data)
    if not isinstance(value, dict):
        raise BadRequest(f"A message's {what} must be a JSON object.")
    return value


# --- v1 ------------------------------------------------------------------------------


def encode_part(value: dict[str, Any]) -> bytes:
    """Return a part of a message as JSON."""
    return _encode(value)


def join_v1(channel: str, parts: Sequence[bytes]) -> bytes:
    """Frame encoded parts as v1: header, parent header, metadata, content, buffers."""
    pieces = [channel.encode(), *parts]
    offsets = list(itertools.accumulate(map(len, pieces), initial=8 * (len(pieces) + 2)))
    plain = len(pieces) == _FIXED_PARTS
    head = (
        _PLAIN.pack(len(offsets), *offsets) if plain else struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets)
    )
    return b"".join([head, *pieces])


def spans_v1(data: bytes | bytearray, start: int = 0, end: int | None = None) -> tuple[str, Sequence[int]]:
    """Find the parts of a v1 frame without decoding them.

    Returns:
        The channel, the offset in ``data`` of each part after it, and the offset of the end.

    Raises:
        BadRequest: The framing is wrong or over a limit.
    """
    end = len(data) if end is None else end
    size = end - start
    if size > MAX_BYTES:
        raise TooLarge(f"A message may have {MAX_BYTES} bytes, not {size}. Send less.")
    if size >= _PLAIN.size:  # fast path: nearly every message has no buffers
        count, a, b, c, d, e, f = _PLAIN.unpack_from(data, start)
        if count == _FIXED_PARTS + 1 and _PLAIN.size == a <= b <= c <= d <= e <= f == size:
            known = _BY_BYTES.get(bytes(data[start + a : start + b]))
            if known is not None:
                return known, (start + b, start + c, start + d, start + e, end)
    if size < 8:
        raise BadRequest("A message's frame is cut short.")
    count = int.from_bytes(data[start : start + 8], "little")
    if not _FIXED_PARTS < count <= _FIXED_PARTS + MAX_BUFFERS + 1 or size < 8 * (count + 1):
        raise BadRequest(f"A message's frame names {count} offsets, which is impossible.")
    offsets = struct.unpack_from(f"<{count}Q", data, start + 8)
    if offsets[0] != 8 * (count + 1) or offsets[-1] != size:
        raise BadRequest("A message's offsets do not cover its frame.")
    if sorted(offsets) != list(offsets):
        raise BadRequest("A message's offsets do not ascend.")
    channel = data[start + offsets[0] : start + offsets[1]].decode("ascii", "replace")
    if channel not in CHANNELS and channel != TOOLS:
        raise BadRequest(f"There is no channel {channel[:20]!r}. Use one of {', '.join(sorted(CHANNELS))}.")
    return channel, [start + offset for offset in offsets[1:]]


def split_v1(data: bytes) -> tuple[str, list[bytes]]:
    """Split a v1 frame into the channel and the encoded parts: header, parent header, metadata, content, buffers.

    Raises:
        BadRequest: The framing is wrong or over a limit.
    """
    channel, at = spans_v1(data)
    return channel, [data[a:b] for a, b in itertools.pairwise(at)]


def encode_v1(message: JupyterMessage) -> bytes:
    """Encode a message in the v1 framing."""
    fields = (message.header, message.parent_header, message.metadata, message.content)
    return join_v1(message.channel, [*map(_encode, fields), *message.buffers])


def decode_v1(data: bytes) -> JupyterMessage:
    """Decode a message in the v1 framing.

    Raises:
        BadRequest: The framing or a part is invalid.
    """
    channel, parts = split_v1(data)
    return JupyterMessage(
        channel=channel,
        header=_object(parts[0], "header"),
        parent_header=_object(parts[1], "parent header"),
        metadata=_object(parts[2], "metadata"),
        content=_object(parts[3], "content"),
        buffers=tuple(parts[4:]),
    )


# --- json ------------------------------------------------------------------------------


def _plain(message: JupyterMessage) -> dict[str, Any]:
    return {
        "channel": message.channel,
        "header": message.header,
        "msg_id": message.msg_id,
        "msg_type": message.msg_type,
        "parent_header": message.parent_header,
        "metadata": message.metadata,
        "content": message.content,
    }


def encode_json(message: JupyterMessage) -> str | bytes:
    """Encode a message in the older framing: text, or binary if it has buffers."""
    if not message.buffers:
        return _encode({**_plain(message), "buffers": []}).decode()
    parts = [_encode(_plain(message)), *message.buffers]
    offset = 4 * (len(parts) + 1)
    offsets = []
    for part in parts:
        offsets.append(offset)
        offset += len(part)
    return b"".join([struct.pack(f">{len(parts) + 1}I", len(parts), *offsets), *parts])


def _split_json(data: bytes) -> list[bytes]:
    if len(data) < 4:
        raise BadRequest("A message's frame is cut short.")
    count = int.from_bytes(data[:4], "big")
    if not 0 < count <= MAX_BUFFERS + 1 or len(data) < 4 * (count + 1):
        raise BadRequest(f"A message's frame names {count} parts, which is impossible.")
    offsets = [*struct.unpack_from(f">{count}I", data, 4), len(data)]
    if offsets[0] != 4 * (count + 1) or any(a > b for a, b in itertools.pairwise(offsets)):
        raise BadRequest("A message's offsets do not fit its frame.")
    return [data[a:b] for a, b in itertools.pairwise(offsets)]


def _field(plain: dict[str, Any], name: str) -> dict[str, Any]:
    value = plain.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest(f"A message's {name.replace('_', ' ')} must be a JSON object.")
    return value


def decode_json(data: str | bytes) -> JupyterMessage:
    """Decode a message in the older framing. A missing ``channel`` means ``shell``, as clients expect.

    Raises:
        BadRequest: The framing or a field is invalid.
    """
    if len(data) > MAX_BYTES:
        raise TooLarge(f"A message may have {MAX_BYTES} bytes, not {len(data)}. Send less.")
    parts = [data.encode("utf-8", "replace")] if isinstance(data, str) else _split_json(data)
    plain = _object(parts[0], "text")
    channel = plain.get("channel") or "shell"
    if channel not in CHANNELS if isinstance(channel, str) else True:
        raise BadRequest(f"There is no such channel. Use one of {', '.join(sorted(CHANNELS))}.")
    return JupyterMessage(
        channel=cast("str", channel),
        header=_field(plain, "header"),
        parent_header=_field(plain, "parent_header"),
        metadata=_field(plain, "metadata"),
        content=_field(plain, "content"),
        buffers=tuple(parts[1:]),
    )
