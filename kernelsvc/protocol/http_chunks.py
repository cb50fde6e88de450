"""Bodies with ``Transfer-Encoding: chunked`` (RFC 9112, section 7.1) out of bytes that arrive in pieces."""

from __future__ import annotations

#: Most bytes of a line: the size of a chunk with its extensions, or a trailer.
MAX_LINE = 8 * 1024
_DIGITS = b"0123456789abcdefABCDEF"


class ChunkDecoder:
    """Decoder of one body.

    Attributes:
        ended: Whether the body is complete.
    """

    def __init__(self) -> None:
        self.ended = False
        self._line = b""
        # Bytes that the present chunk still lacks, and whether its line end or a trailer follows.
        self._left = 0
        self._after_chunk = self._trailers = False

    def feed(self, piece: bytes) -> bytes:
        """Take more bytes. Return those of the body, without the framing.

        Raises:
            ValueError: The framing is not valid.
        """
        found: list[bytes] = []
        at = 0
        while at < len(piece) and not self.ended:
            if self._left:
                data = piece[at : at + self._left]
                found.append(data)
                at += len(data)
                self._left -= len(data)
                self._after_chunk = not self._left
                continue
            end = piece.find(b"\n", at) + 1
            self._line += piece[at : end or len(piece)]
            if len(self._line) > MAX_LINE:
                raise ValueError("a line of the framing is too long")
            at = end or len(piece)
            if end:
                line, self._line = self._line.rstrip(b"\r\n"), b""
                self._take(line)
        return found[0] if len(found) == 1 else b"".join(found)

    def _take(self, line: bytes) -> None:
        if self._trailers:
            self.ended = not line
        elif self._after_chunk:
            if line:
                raise ValueError("a chunk is longer than its size")
            self._after_chunk = False
        else:
            size = line.partition(b";")[0].strip(b" \t")
            # int() would take a sign, underscores and "0x" as well.
            if not size or size.strip(_DIGITS) or len(size) > 16:
                raise ValueError("the size of a chunk is not valid")
            self._left = int(size, 16)
            self._trailers = not self._left
