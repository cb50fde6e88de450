"""``sys.stdout`` and ``sys.stderr`` of a session.

Every write goes out at once: there is no thread that could send it later, and
a cell may sit in C code for an hour after its last print. A write belongs to
the cell whose code it is, also in tasks that outlive their cell; threads, which
inherit no context, write for the cell that runs.
"""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, Protocol

from kernelsvc.guest.wire_frames import stream_prefix


class TextSink(Protocol):
    """Where text goes; ``wire.Wire``."""

    foreign: bool

    def text(self, prefix: bytes, text: str) -> None:
        """Send it."""


class _Bytes(io.RawIOBase):
    """``sys.stdout.buffer``: bytes in, text out."""

    def __init__(self, stream: OutputStream) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, data: Any, /) -> int:
        self._stream.write(self._decoder.decode(bytes(data)))
        return len(memoryview(data).cast("B"))

    def close(self) -> None:
        """Stay open, as the stream does."""


class OutputStream(io.TextIOBase):
    """A text stream whose writes are STREAM frames."""

    encoding = "utf-8"
    errors = "replace"
    newlines = None
    line_buffering = True

    def __init__(self, name: str, outlet: TextSink) -> None:
        """Make the stream.

        Args:
            name: ``stdout`` or ``stderr``.
            outlet: where text goes.
        """
        self.name = f"<{name}>"
        self._name = name
        self._fd = 1 if name == "stdout" else 2
        self._prefix = stream_prefix(name, "")
        self._here: ContextVar[bytes] = ContextVar(name)
        self.outlet = outlet
        self.buffer = _Bytes(self)

    def set_parent(self, parent: dict[str, Any]) -> None:
        """What is written from here on belongs to this request."""
        header = parent.get("header") or parent
        self._prefix = stream_prefix(self._name, str(header.get("msg_id", "")))
        self._here.set(self._prefix)

    def write(self, text: str, /) -> int:
        """Send ``text`` now."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if text:
            outlet = self.outlet
            if outlet.foreign:
                self._write_raw(text)
            else:
                outlet.text(self._here.get(self._prefix), text)
        return len(text)

    def _write_raw(self, text: str) -> None:
        """In a process that the user forked, text goes the way of every subprocess's."""
        data = memoryview(text.encode("utf-8", "replace"))
        while data:
            data = data[os.write(self._fd, data) :]

    def writelines(self, lines: Iterable[Any], /) -> None:
        """Send them as one text."""
        self.write("".join(lines))

    def writable(self) -> bool:
        """Always."""
        return True

    def isatty(self) -> bool:
        """Never: nobody sits at a terminal."""
        return False

    def fileno(self) -> int:
        """The raw descriptor, for those who hand it to a subprocess; it ends up in the cell too."""
        return self._fd

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Stay open: a library that closes what it was given must not silence the session."""

    def reconfigure(self, **_: Any) -> None:
        """Accepted and ignored, as programs expect of a text stream."""
