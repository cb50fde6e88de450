"""``sys.stdout`` and ``sys.stderr`` of a session.

Every write is sent immediately: no thread could send it later, and a cell may compute in C code for an hour after its
last print. A write belongs to the cell whose code runs it, also in tasks that outlive their cell. Threads inherit no
context (contextvars) and write for the cell that runs.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterable
from contextvars import ContextVar, Token
from typing import Any, Protocol

from kernelsvc.guest.private_modules import os
from kernelsvc.guest.wire_frames import stream_prefix


class TextSink(Protocol):
    """Destination of text: ``WireServer``."""

    foreign: bool

    def text(self, prefix: bytes, text: str) -> None:
        """Send text."""


class _Bytes(io.RawIOBase):
    """``sys.stdout.buffer``: decodes bytes and writes text."""

    def __init__(self, stream: OutputStream) -> None:
        self._stream = stream
        # A character may be split between two writes of bytes.
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
        """Create a stream.

        Args:
            name: ``stdout`` or ``stderr``.
            outlet: The destination of the text.
        """
        self.name = f"<{name}>"
        self._name = name
        self._fd = 1 if name == "stdout" else 2
        self._prefix = stream_prefix(name, "")
        self._context_prefix: ContextVar[bytes] = ContextVar(name)
        self.outlet = outlet
        self.buffer = _Bytes(self)

    def set_parent(self, parent: dict[str, Any]) -> None:
        """Assign all further text of this context to this request."""
        header = parent.get("header") or parent
        self._prefix = stream_prefix(self._name, str(header.get("msg_id", "")))
        self._context_prefix.set(self._prefix)

    def set_thread_parent(self, parent: dict[str, Any]) -> Token[bytes]:
        """Assign further text of this thread or task to this request, as ``ipykernel.iostream.OutStream`` does.

        Returns:
            The argument for ``reset_thread_parent``.
        """
        header = parent.get("header") or parent
        return self._context_prefix.set(stream_prefix(self._name, str(header.get("msg_id", ""))))

    def reset_thread_parent(self, token: Token[bytes]) -> None:
        """Undo the ``set_thread_parent`` that returned this token."""
        self._context_prefix.reset(token)

    def _is_master_process(self) -> bool:
        """Whether this is not a process that user code forked. ``OutStream`` has this method, and code calls it."""
        return not self.outlet.foreign

    def write(self, text: str, /) -> int:
        """Send ``text`` now."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if text:
            outlet = self.outlet
            if outlet.foreign:
                self._write_raw(text)
            else:
                outlet.text(self._context_prefix.get(self._prefix), text)
        return len(text)

    def _write_raw(self, text: str) -> None:
        """In a process that user code forked, write to the pipe, like any subprocess."""
        data = memoryview(text.encode("utf-8", "replace"))
        while data:
            data = data[os.write(self._fd, data) :]

    def writelines(self, lines: Iterable[Any], /) -> None:
        """Send all lines as one text."""
        self.write("".join(lines))

    def writable(self) -> bool:
        """Return True."""
        return True

    def isatty(self) -> bool:
        """Return False: a session has no terminal."""
        return False

    def fileno(self) -> int:
        """Return the raw descriptor, for use in a subprocess. Its output appears in the cell too."""
        return self._fd

    def flush(self) -> None:
        """Do nothing: no text is buffered."""

    def close(self) -> None:
        """Do nothing: a library that closes its output must not silence the session."""

    def reconfigure(self, **_: Any) -> None:
        """Do nothing, for programs that reconfigure a text stream."""
