"""Server-sent events (WHATWG HTML, section 9.2.6) out of bytes that arrive in pieces."""

from __future__ import annotations

from kernelsvc.errors import TooLarge

#: Most bytes of one event.
MAX_EVENT = 16 * 1024 * 1024


class SseDecoder:
    """Decoder of one stream. Only the data of events is returned."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> list[str]:
        """Take more bytes. Return the data of each event that is complete.

        Raises:
            TooLarge: An event exceeds 16 MiB.
        """
        self._rest += piece
        # A CR may be the first half of a CR LF, so the last one waits for the next piece.
        held = b"\r" if self._rest.endswith(b"\r") else b""
        text = self._rest[: len(self._rest) - len(held)]
        lines = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + held
        if len(self._rest) + self._size > MAX_EVENT:
            raise TooLarge("The model's server sent an event of more than 16 MiB.")
        found = []
        for line in lines:
            if not line:
                if self._data:
                    found.append(b"\n".join(self._data).decode("utf-8", "replace"))
                self._data, self._size = [], 0
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
                self._size += len(line)
        return found

    def end(self) -> list[str]:
        """Return the data of an event that lacks its empty line. Some servers leave it out at the end."""
        return self.feed(b"\n\n")
