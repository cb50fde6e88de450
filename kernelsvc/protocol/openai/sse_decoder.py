"""Server-sent events (WHATWG HTML, section 9.2.6) out of bytes that arrive in pieces."""

from __future__ import annotations

from kernelsvc.errors import TooLarge

#: Most bytes of one event.
MAX_EVENT = 16 * 1024 * 1024


class SseDecoder:
    """Decoder of one stream. Only the data of events is returned."""

    def __init__(self) -> None:
        #: Pieces of a line that has no end yet. They are joined once, because a line may come in single bytes.
        self._line: list[bytes] = []
        self._data: list[bytes] = []
        self._size = self._held = 0
        self._after_cr = False

    def feed(self, piece: bytes) -> list[str]:
        """Take more bytes. Return the data of each event that is complete.

        Raises:
            TooLarge: An event exceeds 16 MiB.
        """
        if self._after_cr and piece[:1] == b"\n":
            piece = piece[1:]  # the second half of a CR LF
        if not piece:
            return []
        self._after_cr = piece.endswith(b"\r")
        lines = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        rest = lines.pop()
        found = []
        for line in lines:
            if self._line:
                line = b"".join((*self._line, line))
                self._line, self._held = [], 0
            if not line:
                if self._data:
                    found.append(b"\n".join(self._data).decode("utf-8", "replace"))
                self._data, self._size = [], 0
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
                self._size += len(line)
        if rest:
            self._line.append(rest)
            self._held += len(rest)
        if self._size + self._held > MAX_EVENT:
            raise TooLarge("The model's server sent an event of more than 16 MiB.")
        return found

    def end(self) -> list[str]:
        """Return the data of an event that lacks its empty line. Some servers leave it out at the end."""
        return self.feed(b"\n\n")
