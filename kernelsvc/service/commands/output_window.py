"""The newest output of one program, for readers that ask for it from a position on."""

from __future__ import annotations

import asyncio
from collections import deque

from kernelsvc.service.api import ProgramPiece

#: Bytes of output that the server keeps of one program.
WINDOW_BYTES = 1024 * 1024


class OutputWindow:
    """Output of a program between what its reader has acknowledged and what the program has written.

    A read with a position acknowledges all output before it. A full window makes the program wait, as a full pipe
    does, or forgets its oldest output.

    Args:
        drop: whether a full window forgets.

    Attributes:
        first: position of the oldest byte in it.
        last: position after the newest byte.
        ended: whether no output follows.
    """

    def __init__(self, *, drop: bool) -> None:
        self.first = self.last = 0
        self.ended = False
        self._drop = drop
        self._pieces: deque[ProgramPiece] = deque()
        self._changed = asyncio.Event()

    @property
    def size(self) -> int:
        """The bytes in it."""
        return self.last - self.first

    async def put(self, piece: ProgramPiece) -> None:
        """Add a piece, and wait while the window is full. Safe to cancel: the piece is then not added."""
        while self.size >= WINDOW_BYTES and not self._drop and not self.ended:
            await self._change()
        self._pieces.append(piece)
        self.last += len(piece[1])
        while self.size > WINDOW_BYTES and self._drop:
            self._forget(self.size - WINDOW_BYTES)
        self._notify()

    def end(self) -> None:
        """Note that no output follows."""
        self.ended = True
        self._notify()

    async def wait(self, after: int, seconds: float) -> None:
        """Wait until there is output after a position, or until the end. Return after ``seconds`` at the latest."""
        try:
            async with asyncio.timeout(seconds):
                while self.last <= after and not self.ended:
                    await self._change()
        except TimeoutError:
            pass

    def read(self, after: int, limit: int) -> tuple[list[ProgramPiece], int]:
        """Forget the output before a position. Return the output from there on, at most ``limit`` bytes.

        Returns:
            the pieces, and the position of the first one. It is higher than ``after`` if output was dropped.
        """
        self._forget(min(after, self.last) - self.first)
        found: list[ProgramPiece] = []
        for stream, data in self._pieces:
            if limit <= 0:
                break
            found.append((stream, data[:limit]))
            limit -= len(data)
        self._notify()
        return found, max(self.first, after)

    def _forget(self, count: int) -> None:
        while count > 0:
            stream, data = self._pieces.popleft()
            if len(data) > count:
                self._pieces.appendleft((stream, data[count:]))
            taken = min(len(data), count)
            self.first += taken
            count -= taken

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self) -> None:
        await self._changed.wait()
