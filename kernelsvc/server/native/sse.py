"""Event streams: journal lines as server-sent events (WHATWG HTML, section 9.2).

One event of ours is one event there, ``id`` its ``seq`` and ``data`` its journal
line, byte for byte; a line has no newline, so that it needs no escaping. A
client that comes back with ``Last-Event-ID`` gets the next one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from kernelsvc.errors import KernelsvcError
from kernelsvc.protocol import jsonrpc
from kernelsvc.server.handler import ApiHandler, as_error

if TYPE_CHECKING:
    from kernelsvc.service import Subscription

log = logging.getLogger(__name__)

CHUNK_BYTES = 256 * 1024
KEEPALIVE = b": keepalive\n\n"


class _Head(msgspec.Struct):
    type: str
    cell: str | None = None


_heads = msgspec.json.Decoder(_Head)


def frame(seq: int, line: bytes) -> bytes:
    """One journal line as one server-sent event."""
    return b"id: %d\ndata: %b\n\n" % (seq, line)


def joined(frames: list[bytes], bound: int) -> Iterator[bytes]:
    """Frames joined up to about ``bound`` bytes each."""
    size, parts = 0, []
    for each in frames:
        parts.append(each)
        size += len(each)
        if size >= bound:
            yield b"".join(parts)
            size, parts = 0, []
    if parts:
        yield b"".join(parts)


class Selection:
    """Which events a stream carries, and when it is over.

    Args:
        cells: only events of these, until each has ended; None takes everything.
        until: the last position; None goes on until the session is closed.
    """

    def __init__(self, cells: set[str] | None = None, until: int | None = None) -> None:
        self._cells = cells
        self._pending = set(cells or ())
        self._until = until

    def over(self, seq: int) -> bool:
        """Whether nothing more is wanted after this position."""
        return (self._cells is not None and not self._pending) or (self._until is not None and seq >= self._until)

    def wants(self, line: bytes) -> bool:
        """Whether this line belongs into the stream."""
        if self._cells is None:
            return True
        head = _heads.decode(line)
        if head.type == "cell_finished" and head.cell is not None:
            self._pending.discard(head.cell)
        return head.cell in self._cells


async def stream(handler: ApiHandler, subscription: Subscription, after: int, selection: Selection) -> None:
    """Send events until the selection is over or the session is closed. Safe to cancel.

    Raises:
        StreamClosedError: the client is gone.
    """
    start_stream(handler)
    try:
        await _pump(handler, subscription, after, selection)
    except KernelsvcError as error:
        await _tell(handler, error)
    finally:
        subscription.close()


def start_stream(handler: ApiHandler) -> None:
    """The head of an event stream."""
    handler.set_header("Content-Type", "text/event-stream")
    handler.set_header("X-Accel-Buffering", "no")
    connection_stream = getattr(handler.request.connection, "stream", None)
    if connection_stream is not None:
        connection_stream.set_nodelay(True)


async def _pump(handler: ApiHandler, subscription: Subscription, after: int, selection: Selection) -> None:
    seq = after
    await handler.flush()
    while not selection.over(seq):
        lines = await _next(handler, subscription)
        if not lines:
            return
        frames = []
        for line in lines:
            seq += 1
            if selection.wants(line):
                frames.append(frame(seq, line))
            if selection.over(seq):
                break
        for data in joined(frames, CHUNK_BYTES):
            handler.write(data)
            await handler.flush()


async def _next(handler: ApiHandler, subscription: Subscription) -> list[bytes]:
    """The next lines; sends a comment whenever it stays silent for long, so that no proxy takes us for dead."""
    while True:
        try:
            async with asyncio.timeout(handler.context.settings.keepalive_seconds):
                return await subscription.next()
        except TimeoutError:
            handler.write(KEEPALIVE)
            await handler.flush()


async def _tell(handler: ApiHandler, error: KernelsvcError) -> None:
    shape = msgspec.json.encode(jsonrpc.error_json(as_error(error)))
    handler.write(b"event: error\ndata: %b\n\n" % shape)
    await handler.flush()
