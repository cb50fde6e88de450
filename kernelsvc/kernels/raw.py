"""What C code and subprocesses write to descriptors 1 and 2, as text."""

from __future__ import annotations

import codecs
import fcntl
import os
import sys
import termios
from typing import Literal

from kernelsvc.kernels.port import Text

#: Most bytes taken in one go, so that one kernel's flood lets the others have their turn.
CHUNK = 256 * 1024
_INT = bytes(4)


class RawPipe:
    """The server's reference of the read end of one pipe.

    Attributes:
        ended: every writer is gone.
    """

    def __init__(self, fd: int, name: Literal["stdout", "stderr"]) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.name = name
        self.ended = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def available(self) -> int:
        """Bytes that can be read now."""
        try:
            return int.from_bytes(fcntl.ioctl(self.fd, termios.FIONREAD, _INT), sys.byteorder)
        except OSError:
            return 0

    def read(self, most: int = CHUNK) -> Text | None:
        """Up to ``most`` bytes as text, or None if there are none. A character cut in two waits for its rest."""
        try:
            data = os.read(self.fd, most)
        except OSError:
            return None
        self.ended = not data
        text = self._decoder.decode(data)
        return Text(name=self.name, text=text) if text else None

    def drain(self) -> list[Text]:
        """All that is there now, but not what is written meanwhile."""
        left = self.available()
        if not left:
            return []
        found = []
        while left > 0:
            text = self.read(min(left, CHUNK))
            left -= CHUNK
            if text is not None:
                found.append(text)
        return found

    def close(self) -> None:
        """Let go."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
