"""Parse frames from a kernel, and check them. Pure.

User code may have written every byte. Everything that the description of the wire does not allow raises
``WireViolation``, and the adapter then ends the kernel.
"""

from __future__ import annotations

import codecs
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
from kernelsvc.guest.wire_frames import RAW as RAW
from kernelsvc.guest.wire_frames import REPLY as REPLY
from kernelsvc.guest.wire_frames import STREAM as STREAM
from kernelsvc.guest.wire_frames import VERSION as VERSION
from kernelsvc.kernels.port import KernelMessage, Output, StreamText
from kernelsvc.protocol import jupyter

#: Maximum bytes of the payload of a STREAM frame: its head, the longest id, and text.
MAX_STREAM = 3 + 0xFFFF + MAX_TEXT
#: Maximum bytes of a REPLY or WELCOME.
MAX_ANSWER = 1024 * 1024
MAX_ID = 1024

#: Bytes from which a frame is decoded in the buffer. A shorter one is copied.
LARGE = 64 * 1024
#: Consecutive text frames after which ``take_run`` is tried.
RUN_AFTER = 4

_LIMITS = {STREAM: MAX_STREAM, REPLY: MAX_ANSWER}
_unpack = HEADER.unpack_from
_SIZE = HEADER.size
_PLAIN = 5  # offsets of header, parent header, metadata and content, and the end of the last


class WireViolation(Exception):
    """The kernel broke the protocol. The text says how."""


class Reply(msgspec.Struct, frozen=True):
    """The reply to a CONTROL request.

    Attributes:
        request: number of the request.
        body: fields of the reply.
    """

    request: int
    body: dict[str, Any]


class _Header(msgspec.Struct):
    msg_id: str = ""
    msg_type: str = ""


class Welcome(msgspec.Struct):
    """A kernel's description of itself. Nothing in it is trusted.

    Attributes:
        refused: why a branch could not take its identity, with every other field left out, or "" if it did.
        pipes: the kernel's numbers of the descriptors that come with WELCOME.
    """

    version: int
    refused: str = ""
    pipes: list[int] = []
    kernel: str = ""
    session: str = ""
    pid: int = 0
    python: str = ""
    ipykernel: str = ""
    execution_count: int = 0
    workdir: str = ""
    seen: list[str] = []
    cell: str = ""
    answer: str = ""
    busy: str | None = None
    calls: list[str] = []


_header = msgspec.json.Decoder(_Header).decode
_welcome = msgspec.json.Decoder(Welcome).decode


class WireParser:
    """Parses bytes into outputs and replies.

    Input is parsed in place: only texts and the parts of short messages are copied. The rest of a read, an incomplete
    frame, waits in ``_rest``. A large frame grows there and is decoded from there.

    Args:
        last: number of the last frame that was parsed before.
        max_frame: maximum bytes of a message.

    Attributes:
        last: number of the last complete frame. The next one must be one more.
        replies: replies that were parsed. The caller clears them.
        decoders: of the bytes of the pipes for standard output and error, which the server reads, too.
    """

    def __init__(self, *, last: int = 0, max_frame: int = jupyter.MAX_BYTES) -> None:
        self.last = last
        self.max_frame = max_frame
        self.replies: list[Reply] = []
        self.decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(2)]
        self._rest = bytearray()
        self._need = 0  # length of the frame at the start of ``_rest``, or of its header while that is incomplete

    @property
    def pending(self) -> int:
        """Bytes of the incomplete frame."""
        return len(self._rest)

    def reset(self) -> None:
        """Drop an incomplete frame: another connection starts."""
        self._rest.clear()

    def feed(self, chunk: bytes) -> list[Output]:
        """Return the outputs that these bytes complete. Consecutive text frames of one kind become one ``StreamText``.

        Raises:
            WireViolation: a frame is not valid. Invalid data also discards the rest of the same read.
        """
        outputs: list[Output] = []
        if not self._rest:
            self._walk(chunk, outputs)
            return outputs
        self._rest += chunk
        while LARGE <= self._need <= len(self._rest):
            self._take_large(outputs)
        if not self._rest or len(self._rest) < self._need:
            return outputs
        whole, self._rest = bytes(self._rest), bytearray()
        following: list[Output] = []
        self._walk(whole, following)
        return merge_texts(outputs, following)

    def _take_large(self, outputs: list[Output]) -> None:
        """Parse the complete frame at the start of ``_rest``, and find the length of the next one."""
        rest, end = self._rest, self._need
        _, kind, number = _unpack(rest)
        if kind == STREAM:
            outputs[:] = merge_texts(outputs, [self._large_text(rest, number, end)])
        else:
            self._other(kind, number, rest, _SIZE, end, outputs)
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
        with memoryview(data) as view, view[at:end] as parsed:
            prefix = bytes(data[_SIZE:at])
            return _text(prefix, self._decode(prefix[0], parsed), number)

    def _walk(self, data: bytes, outputs: list[Output]) -> None:
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
                at, runs = self._texts(data, at, outputs, runs)
            else:
                self._check_length(kind, length)
                self._other(kind, number, data, start, end, outputs)
                at = end
        else:
            self._need = _SIZE
        if at < size:
            self._rest = bytearray(data[at:] if at else data)

    def _texts(self, data: bytes, at: int, outputs: list[Output], runs: bool) -> tuple[int, bool]:
        """Parse the complete text frames of one stream and cell that start at ``at``.

        Returns:
            The end of the last one, and whether it pays to look for more of them with ``take_run``.
        """
        size, number = len(data), self.last
        pieces: list[bytes] = []
        prefix = b""
        texts: list[str] = []  # of the frames before ``pieces``
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
            head = data[start:text_at]
            if head != prefix:
                if prefix and (head[0] ^ prefix[0] != RAW or head[1:] != prefix[1:]):
                    break
                if prefix:
                    texts.append(self._decode(prefix[0], b"".join(pieces)))
                    pieces.clear()
                prefix = head
            pieces.append(data[text_at:end])
            number, at = numbered, end
            if runs and len(pieces) == RUN_AFTER:
                more, at = take_run(data, at, prefix, number)
                pieces += more
                number += len(more)
                runs = False
        self.last = number
        text = "".join([*texts, self._decode(prefix[0], b"".join(pieces))])
        if text or not prefix[0] & RAW:  # a pipe's bytes may be the beginning of a character
            outputs.append(_text(prefix, text, number))
        return at, runs

    def _decode(self, kind: int, data: bytes | memoryview) -> str:
        return self.decoders[kind & 3 == 2].decode(data) if kind & RAW else str(data, "utf-8", "replace")

    def _check_length(self, kind: int, length: int) -> None:
        limit = self.max_frame if kind == MESSAGE else _LIMITS.get(kind)
        if limit is None:
            raise WireViolation(f"a frame of kind {kind}")
        if length > limit:
            raise WireViolation(f"a frame of {length} bytes where {limit} are allowed")

    def _other(
        self, kind: int, number: int, data: bytes | bytearray, start: int, end: int, outputs: list[Output]
    ) -> None:
        if number != self.last + 1:
            raise WireViolation(f"frame {number} came after frame {self.last}")
        try:
            if kind == MESSAGE:
                outputs.append(parse_message(data, start, end, number))
            else:
                self.replies.append(_reply(data[start:end]))
        except BadRequest as error:
            raise WireViolation(error.message) from None
        self.last = number


def take_run(data: bytes, at: int, prefix: bytes, last: int) -> tuple[list[bytes], int]:
    """Return the texts of consecutive frames with one prefix, from ``at`` on, and their end.

    A program that prints sends thousands of such frames, and parsing each one is most of their cost. Split at the
    prefix in one call, the frames are right if every piece has the length that the header before it gives, by
    induction: the first header gives the start of the second frame, and there the second header was found. The run
    ends at the first piece that does not fit, which the caller parses. That includes a text that contains the prefix.
    """
    pieces = data[at + _SIZE :].split(prefix)[:-1]  # the last piece is cut off, or continues into other frames
    if len(pieces) < 2 or pieces[0]:
        return [], at
    del pieces[0]
    heads = b"".join([data[at : at + _SIZE], *[piece[-_SIZE:] for piece in pieces[:-1]]])
    if len(heads) != _SIZE * len(pieces):
        return [], at
    around = len(prefix) - _SIZE
    parsed = list(HEADER.iter_unpack(heads))
    true = [(len(piece) + around, STREAM, number) for number, piece in enumerate(pieces, last + 1)]
    if parsed != true:
        del pieces[next(i for i, head in enumerate(parsed) if head != true[i]) :]
    texts = [piece[:-_SIZE] for piece in pieces if _SIZE <= len(piece) <= MAX_STREAM - around]
    if len(texts) != len(pieces):
        return [], at
    return texts, at + sum(map(len, pieces)) + len(prefix) * len(pieces)


def _text(prefix: bytes, text: str, number: int) -> StreamText:
    name: Literal["stdout", "stderr"] = "stderr" if prefix[0] & 3 == 2 else "stdout"
    return StreamText(name=name, text=text, parent=prefix[3:].decode("utf-8", "replace")[:MAX_ID], frame=number)


def merge_texts(one: list[Output], two: list[Output]) -> list[Output]:
    """Return two batches as one. A text that continues across the boundary becomes one text."""
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


def parse_message(data: bytes | bytearray, start: int, end: int, number: int | None) -> KernelMessage:
    """Parse the payload of a MESSAGE frame, ``data[start:end]``, in place.

    Raises:
        BadRequest: it is not a Jupyter message within the limits.
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


def parse_welcome(data: bytearray) -> tuple[Welcome, int] | None:
    """Remove WELCOME from the front of ``data``.

    Return it with the number of the first frame, or None if it is incomplete.

    Raises:
        WireViolation: it is another frame, or not valid.
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
        parsed = _welcome(payload)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise WireViolation(f"a WELCOME that can't be read: {error}") from None
    if parsed.version != VERSION:
        raise WireViolation(f"version {parsed.version} of the wire; this server speaks {VERSION}")
    return parsed, number
