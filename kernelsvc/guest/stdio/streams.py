"""``sys.stdout`` and ``sys.stderr`` of a session.

While a process has one thread, every write is sent immediately: no thread could send it later, and a cell may compute
in C code for an hour after its last print. ``print`` writes each argument by itself, so with several threads the text
of a thread is kept until its line is complete, and lines of threads do not mix. A thread that exists only meanwhile
sends lines that stay incomplete.

A write belongs to the cell whose code runs it, also in tasks that outlive their cell. Threads inherit no context
(contextvars) and write for the cell that runs. The cell is known here and not in ``sys.stdout``, where user code may
put anything: its writes arrive here all the same.
"""

from __future__ import annotations

import _thread
import codecs
import contextlib
import io
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar, Token
from typing import Any, Protocol

from kernelsvc.guest.private_modules import os, threading
from kernelsvc.guest.wire_frames import stream_prefix

#: Number of Python threads besides the main thread. The C function: it is called for each write.
_other_threads = _thread._count
_ident = _thread.get_ident
#: Seconds for which an incomplete line waits for its end, and most characters of it.
_LINE_SECONDS, _LINE_LENGTH = 0.05, 8192
_IN_PLACE = contextlib.nullcontext()


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
    """A text stream whose writes are STREAM frames.

    Attributes:
        outlet: The destination of the text.
        unfinished: Incomplete lines by thread, each with the prefix that it is sent with.
    """

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
        self.unfinished: dict[int, tuple[bytes, str]] = {}
        self._new_lock()

    def _new_lock(self) -> None:
        # Reentrant: a signal handler may print in the middle of a write.
        self._lock = threading.RLock()
        self._settled = threading.Event()
        self._sender: threading.Thread | None = None

    def set_parent(self, parent: dict[str, Any]) -> None:
        """Assign all further text of this context to this request."""
        self._prefix = self._prefix_of(parent)
        self._context_prefix.set(self._prefix)

    def set_thread_parent(self, parent: dict[str, Any]) -> Token[bytes]:
        """Assign further text of this thread or task to this request, as ``ipykernel.iostream.OutStream`` does.

        Returns:
            The argument for ``reset_thread_parent``.
        """
        return self._context_prefix.set(self._prefix_of(parent))

    def reset_thread_parent(self, token: Token[bytes]) -> None:
        """Undo the ``set_thread_parent`` that returned this token."""
        self._context_prefix.reset(token)

    def _is_master_process(self) -> bool:
        """Whether this is not a process that user code forked. ``OutStream`` has this method, and code calls it."""
        return not self.outlet.foreign

    def _prefix_of(self, parent: dict[str, Any]) -> bytes:
        header = parent.get("header") or parent
        return stream_prefix(self._name, str(header.get("msg_id", "")))

    def write(self, text: str, /) -> int:
        """Send ``text`` now, or with the rest of its line if there are other threads."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if text:
            outlet = self.outlet
            if self.unfinished or _other_threads() or outlet.foreign:
                self._write_lines(text)
            else:
                outlet.text(self._context_prefix.get(self._prefix), text)
        return len(text)

    def _write_lines(self, text: str) -> None:
        """Send the complete lines of this thread, and keep the rest."""
        prefix = self._context_prefix.get(self._prefix)
        with self._lock:
            before, kept = self.unfinished.pop(_ident(), (prefix, ""))
            if before != prefix:  # The beginning of the line is another cell's.
                self._send(before, kept)
                kept = ""
            text = kept + text
            end = len(text) if len(text) > _LINE_LENGTH else text.rfind("\n") + 1
            if end < len(text):
                self.unfinished[_ident()] = (prefix, text[end:])
            if end:
                self._send(prefix, text[:end])
            if self.unfinished and not self._start_sender():
                self._send_all()

    def _send(self, prefix: bytes, text: str) -> None:
        if text and self.outlet.foreign:
            # In a process that user code forked, write to the pipe, like any subprocess.
            data = memoryview(text.encode("utf-8", "replace"))
            while data:
                data = data[os.write(self._fd, data) :]
        elif text:
            self.outlet.text(prefix, text)

    def _send_all(self) -> None:
        with self._lock:
            while self.unfinished:
                self._send(*self.unfinished.popitem()[1])

    def _start_sender(self) -> bool:
        """Have a thread send incomplete lines. Return False if there can be none.

        A process that user code forked has none: its lines wait for their end or for ``flush``, as in any program.
        """
        if self._sender is None and not self.outlet.foreign:
            self._settled.clear()
            sender = threading.Thread(target=self._send_later, name="incomplete lines", daemon=True)
            try:
                sender.start()
            except RuntimeError:  # The session's limit of processes.
                return False
            self._sender = sender
        return True

    def _send_later(self) -> None:
        seen: dict[int, tuple[bytes, str]] = {}
        while not self._settled.wait(_LINE_SECONDS):
            with self._lock:
                for thread, line in seen.items():
                    if self.unfinished.get(thread) is line:
                        self._send(*self.unfinished.pop(thread))
                seen = dict(self.unfinished)
                if not seen:
                    break
        with self._lock:
            self._sender = None

    def settle(self) -> None:
        """At the end of a cell: send incomplete lines, and end the thread for them, which a fork would not have."""
        if self.unfinished or self._sender is not None:
            self._send_all()
            self._settled.set()
            sender = self._sender
            if sender is not None:
                sender.join(_LINE_SECONDS)

    def after_fork(self) -> None:
        """In a process that user code forked: forget the lines of threads that do not exist here (fork(2))."""
        self.unfinished = {}
        self._new_lock()

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
        """Send this thread's incomplete line."""
        if self.unfinished:
            with self._lock:
                self._send(*self.unfinished.pop(_ident(), (b"", "")))

    def close(self) -> None:
        """Do nothing: a library that closes its output must not silence the session."""

    def reconfigure(self, **_: Any) -> None:
        """Do nothing, for programs that reconfigure a text stream."""


def _in_sys() -> tuple[Any, Any]:
    """Return what stands in ``sys`` as the two streams. User code may have deleted it (``del sys.stdout``)."""
    return getattr(sys, "stdout", None), getattr(sys, "stderr", None)


class StandardStreams:
    """The two streams of a session, and what user code puts in their place.

    Attributes:
        out: standard output.
        err: standard error.
    """

    def __init__(self, outlet: TextSink) -> None:
        self.out, self.err = OutputStream("stdout", outlet), OutputStream("stderr", outlet)
        # Those of the process write to descriptors 1 and 2 and keep text back.
        self._replaced = [one for one in (sys.__stdout__, sys.__stderr__) if isinstance(one, io.TextIOWrapper)]

    def install(self) -> None:
        """Make them ``sys.stdout`` and ``sys.stderr``, also under the names that a program restores them from."""
        streams: Any = sys  # typeshed has TextIOWrapper for two of these.
        streams.stdout = streams.__stdout__ = self.out
        streams.stderr = streams.__stderr__ = self.err

    def set_parent(self, parent: dict[str, Any]) -> None:
        """Assign all further text to this request, whatever it is written through."""
        self.out.set_parent(parent)
        self.err.set_parent(parent)

    def flush(self) -> None:
        """Flush everything that stands in ``sys`` or stood there at the start. Ignore its errors."""
        self.flush_lines()
        out, err = _in_sys()
        for stream in (out, err, *self._replaced):
            if not (stream is self.out or stream is self.err or stream is None):
                try:  # Not ``contextlib.suppress``, which costs more than the flush. This runs for every cell.
                    stream.flush()
                except Exception:  # The object is the user's own, and its failure must not end the cell's reply.
                    continue

    def flush_lines(self) -> None:
        """Send the incomplete lines of this thread, before something else is shown."""
        if self.out.unfinished or self.err.unfinished:
            self.out.flush()
            self.err.flush()

    def in_place(self) -> contextlib.AbstractContextManager[None]:
        """Flush, and put them into ``sys`` for a moment: not everything that user code puts there can be flushed."""
        self.flush_lines()
        out, err = _in_sys()
        return _IN_PLACE if out is self.out and err is self.err else self._put_in_place()

    @contextlib.contextmanager
    def _put_in_place(self) -> Iterator[None]:
        self.flush()
        replaced = _in_sys()
        sys.stdout, sys.stderr = self.out, self.err
        try:
            yield
        finally:
            sys.stdout, sys.stderr = replaced

    def end_cell(self) -> None:
        """Send everything that the cell has written. ``sys.stdout`` that is None or deleted ends with its cell."""
        self.flush()
        self.out.settle()
        self.err.settle()
        out, err = _in_sys()
        if out is None:
            sys.stdout = self.out
        if err is None:
            sys.stderr = self.err

    def after_fork(self) -> None:
        """See ``OutputStream.after_fork``."""
        self.out.after_fork()
        self.err.after_fork()
