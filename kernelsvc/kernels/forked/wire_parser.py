"""Frames from a kernel, checked and turned into what a session understands. Pure.

Every byte was written by what the user ran. Whatever the wire's description does
not allow ends in ``WireViolation``; the adapter then ends the kernel.
"""

from __future__ import annotations

import itertools
from typing import Any, Literal

import msgspec

from kernelsvc.errors import BadRequest
from kernelsvc.guest.wire_frames import ACK as ACK
from kernelsvc.guest.wire_frames import CONTROL as CONTROL
from kernelsvc.guest.wire_frames import HEADER as HEADER
from kernelsvc.guest.wire_frames import HELLO as HELLO
from kernelsvc.guest.wire_frames import MAX_TEXT as MAX_TEXT
from kernelsvc.guest.wire_frames import MESSAGE as MESSAGE
from kernelsvc.guest.wire_frames import REPLY as REPLY
from kernelsvc.guest.wire_frames import STREAM as STREAM
from kernelsvc.guest.wire_frames import VERSION as VERSION
from kernelsvc.kernels.port import KernelMessage, Output, StreamText
from kernelsvc.protocol import jupyter

#: Longest payload of a STREAM frame: its head, the longest id, and text.
MAX_STREAM = 3 + 0xFFFF + MAX_TEXT
#: Longest REPLY or WELCOME.
MAX_ANSWER = 1024 * 1024
MAX_ID = 1024

#: Frames from this size on are decoded where they were gathered; a shorter one is copied.
LARGE = 64 * 1024
#: After so many text frames in a row, more are looked for in one go.
FEW = 4

_LIMITS = {STREAM: MAX_STREAM, REPLY: MAX_ANSWER}
_unpack = HEADER.unpack_from
_SIZE = HEADER.size
_PLAIN = 5  # where header, parent header, metadata and content begin, and where the last ends


class WireViolation(Exception):
    """The kernel sent what it may not send."""


class Reply(msgspec.Struct, frozen=True):
    """The answer to a CONTROL request."""

    request: int
    body: dict[str, Any]


class _Header(msgspec.Struct):
    msg_id: str = ""
    msg_type: str = ""


class Welcome(msgspec.Struct):
    """A kernel's description of itself. Nothing in it is trusted.

    Attributes:
        refused: why a branch could not take its identity, with every other field left out, or "" if it did.
    """

    version: int
    refused: str = ""
    kernel: str = ""
    session: str = ""
    pid: int = 0
    python: str = ""
    ipykernel: str = ""
    execution_count: int = 0
    workdir: str = ""
    seen: list[str] = []
    cell: str = ""
    busy: str | None = None


_header = msgspec.json.Decoder(_Header).decode
_welcome = msgspec.json.Decoder(Welcome).decode


class WireParser:
    """Bytes in, outputs and replies out.

    What a kernel sends is looked at where it lies: nothing is copied but the texts and the parts of short messages.
    The rest of a read, half a frame, waits in ``_rest``; a large frame grows there and is decoded from there.

    Attributes:
        last: number of the last whole frame; the next must be one more.
    """

    def __init__(self, *, last: int = 0, max_frame: int = jupyter.MAX_BYTES) -> None:
        self.last = last
        self.max_frame = max_frame
        self.replies: list[Reply] = []
        self._rest = bytearray()
        self._need = 0  # bytes of the frame that ``_rest`` begins with; of its header while that is not whole

    @property
    def pending(self) -> int:
        """Bytes of a frame that is not whole yet."""
        return len(self._rest)

    def reset(self) -> None:
        """Another connection begins: half a frame of the old one is void."""
        self._rest.clear()

    def feed(self, chunk: bytes) -> list[Output]:
        """What the bytes read so far make whole. Text frames of one kind in a row become one ``StreamText``.

        Raises:
            Violation: a frame that may not be. What came before it in this chunk is lost with it.
        """
        found: list[Output] = []
        if not self._rest:
            self._walk(chunk, found)
            return found
        self._rest += chunk
        while LARGE <= self._need <= len(self._rest):
            self._take_large(found)
        if not self._rest or len(self._rest) < self._need:
            return found
        whole, self._rest = bytes(self._rest), bytearray()
        following: list[Output] = []
        self._walk(whole, following)
        return joined(found, following)

    def _take_large(self, found: list[Output]) -> None:
        """Take the frame that ``_rest`` begins with and holds whole, and look how much the next one needs."""
        rest, end = self._rest, self._need
        _, kind, number = _unpack(rest)
        if kind == STREAM:
            found[:] = joined(found, [self._large_text(rest, number, end)])
        else:
            self._other(kind, number, rest, _SIZE, end, found)
        del rest[:end]
        self._need = _SIZE
        if len(rest) >= _SIZE:
            length, kind, _ = _unpack(rest)
            self._check_length(kind, length)
            self._need = _SIZE + length

    def _large_text(self, data: bytearray, number: int, end: int) -> StreamText:
        if number != self.last + 1:
            raise WireViolation(f"frame {number} came after frame {self.last}")
        at = _SIZE + 3 + int.from_bytes(data[_SIZE + 1 : _SIZE + 3], "little")
        if at > end:
            raise WireViolation(f"a text frame of {end - _SIZE} bytes")
        self.last = number
        with memoryview(data) as view, view[at:end] as said:
            return _text(bytes(data[_SIZE:at]), str(said, "utf-8", "replace"), number)

    def _walk(self, data: bytes, found: list[Output]) -> None:
        at, size = 0, len(data)
        runs = True
        while size - at >= _SIZE:
            length, kind, number = _unpack(data, at)
            start = at + _SIZE
            end = start + length
            if end > size:
                self._check_length(kind, length)
                if number != self.last + 1:
                    raise WireViolation(f"frame {number} came after frame {self.last}")
                self._need = _SIZE + length
                break
            if kind == STREAM:
                at, runs = self._texts(data, at, found, runs)
            else:
                self._check_length(kind, length)
                self._other(kind, number, data, start, end, found)
                at = end
        else:
            self._need = _SIZE
        if at < size:
            self._rest = bytearray(data[at:] if at else data)

    def _texts(self, data: bytes, at: int, found: list[Output], runs: bool) -> tuple[int, bool]:
        """Take the whole text frames of one kind that begin at ``at``.

        Returns:
            where they end, and whether it is worth while to look for more of them in one go.
        """
        size, number = len(data), self.last
        pieces: list[bytes] = []
        prefix = b""
        while size - at >= _SIZE:
            length, kind, numbered = _unpack(data, at)
            start = at + _SIZE
            end = start + length
            if kind != STREAM or end > size:
                break
            if numbered != number + 1:
                raise WireViolation(f"frame {numbered} came after frame {number}")
            text_at = start + 3 + int.from_bytes(data[start + 1 : start + 3], "little")
            if length > MAX_STREAM or text_at > end:
                raise WireViolation(f"a text frame of {length} bytes")
            if not prefix:
                prefix = data[start:text_at]
            elif data[start:text_at] != prefix:
                break
            pieces.append(data[text_at:end])
            number, at = numbered, end
            if runs and len(pieces) == FEW:
                more, at = run(data, at, prefix, number)
                pieces += more
                number += len(more)
                runs = False
        self.last = number
        found.append(_text(prefix, b"".join(pieces).decode("utf-8", "replace"), number))
        return at, runs

    def _check_length(self, kind: int, length: int) -> None:
        limit = self.max_frame if kind == MESSAGE else _LIMITS.get(kind)
        if limit is None:
            raise WireViolation(f"a frame of kind {kind}")
        if length > limit:
            raise WireViolation(f"a frame of {length} bytes where {limit} are allowed")

    def _other(
        self, kind: int, number: int, data: bytes | bytearray, start: int, end: int, found: list[Output]
    ) -> None:
        if number != self.last + 1:
            raise WireViolation(f"frame {number} came after frame {self.last}")
        try:
            if kind == MESSAGE:
                found.append(message(data, start, end, number))
            else:
                self.replies.append(_reply(data[start:end]))
        except BadRequest as error:
            raise WireViolation(error.message) from None
        self.last = number


def run(data: bytes, at: int, prefix: bytes, last: int) -> tuple[list[bytes], int]:
    """The texts of the frames from ``at`` on that are text with this prefix and numbered one by one; and their end.

    A program that prints sends thousands of such frames, and looking at each is most of what they cost. Cut at the
    prefix all at once, they are right if every piece is as long as the header before it says, by induction: the
    first header says where the second frame begins, and there the second header was found. What is not right ends
    the run, and is for the caller to look at: so does a text that holds the prefix.
    """
    pieces = data[at + _SIZE :].split(prefix)[:-1]  # the last one ends where the read ended, or in other frames
    if len(pieces) < 2 or pieces[0]:
        return [], at
    del pieces[0]
    heads = b"".join([data[at : at + _SIZE], *[piece[-_SIZE:] for piece in pieces[:-1]]])
    if len(heads) != _SIZE * len(pieces):
        return [], at
    around = len(prefix) - _SIZE
    said = list(HEADER.iter_unpack(heads))
    true = [(len(piece) + around, STREAM, number) for number, piece in enumerate(pieces, last + 1)]
    if said != true:
        del pieces[next(i for i, head in enumerate(said) if head != true[i]) :]
    texts = [piece[:-_SIZE] for piece in pieces if _SIZE <= len(piece) <= MAX_STREAM - around]
    if len(texts) != len(pieces):
        return [], at
    return texts, at + sum(map(len, pieces)) + len(prefix) * len(pieces)


def _text(prefix: bytes, text: str, number: int) -> StreamText:
    name: Literal["stdout", "stderr"] = "stderr" if prefix[0] == 2 else "stdout"
    return StreamText(name=name, text=text, parent=prefix[3:].decode("utf-8", "replace")[:MAX_ID], frame=number)


def joined(one: list[Output], two: list[Output]) -> list[Output]:
    """Two batches as one; text that goes on over the seam is one text."""
    if not one or not two:
        return one + two
    last, first = one[-1], two[0]
    if (
        isinstance(last, StreamText)
        and isinstance(first, StreamText)
        and (last.name, last.parent) == (first.name, first.parent)
    ):
        return [*one[:-1], msgspec.structs.replace(first, text=last.text + first.text), *two[1:]]
    return one + two


def message(data: bytes | bytearray, start: int, end: int, number: int | None) -> KernelMessage:
    """A MESSAGE frame's payload, ``data[start:end]``, decoded where it lies.

    Raises:
        BadRequest: it is not a Jupyter message within the bounds.
    """
    channel, at = jupyter.spans_v1(data, start, end)
    try:
        header, parent = _header(data[at[0] : at[1]]), _header(data[at[1] : at[2]])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadRequest(f"a header that can't be read: {error}") from None
    metadata = jupyter.parse_json(data, at[2], at[3])
    content = jupyter.parse_json(data, at[3], at[4])
    if not isinstance(metadata, dict) or not isinstance(content, dict):
        raise BadRequest("a message whose content is not a JSON object")
    msg_id, msg_type, parent_id = header.msg_id, header.msg_type, parent.msg_id
    if len(msg_id) > MAX_ID or len(msg_type) > MAX_ID or len(parent_id) > MAX_ID:
        raise BadRequest(f"an id longer than {MAX_ID}")
    return KernelMessage(
        channel=channel,
        msg_type=msg_type,
        parent=parent_id,
        content=content,
        metadata=metadata,
        buffers=() if len(at) == _PLAIN else tuple(bytes(data[a:b]) for a, b in itertools.pairwise(at[4:])),
        msg_id=msg_id,
        frame=number,
    )


def _reply(payload: bytes | bytearray) -> Reply:
    body = jupyter.parse_json(payload)
    if not isinstance(body, dict) or not isinstance(body.get("request"), int):
        raise BadRequest("a reply that names no request")
    return Reply(body.pop("request"), body)


def welcome(data: bytearray) -> tuple[Welcome, int] | None:
    """Take WELCOME and the number of the first frame that follows from the front of ``data``, or None if not whole yet.

    Raises:
        Violation: it is something else.
    """
    if len(data) < _SIZE:
        return None
    length, kind, number = _unpack(data)
    if kind != HELLO or length > MAX_ANSWER or not 0 < number < 1 << 63:
        raise WireViolation("the first frame is not WELCOME")
    if len(data) < _SIZE + length:
        return None
    payload = bytes(data[_SIZE : _SIZE + length])
    del data[: _SIZE + length]
    try:
        said = _welcome(payload)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise WireViolation(f"a WELCOME that can't be read: {error}") from None
    if said.version != VERSION:
        raise WireViolation(f"version {said.version} of the wire; this server speaks {VERSION}")
    return said, number
