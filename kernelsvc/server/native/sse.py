"""Event streams: journal lines as server-sent events (WHATWG HTML, section 9.2).

Each event has its ``seq`` as ``id`` and its journal line, byte for byte, as ``data``.
A line contains no newline, so it needs no escaping. A client that reconnects with
``Last-Event-ID`` gets the next event.
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
    from kernelsvc.service.api import Subscription

log = logging.getLogger(__name__)

CHUNK_BYTES = 256 * 1024
KEEPALIVE = b": keepalive\n\n"


class _Head(msgspec.Struct):
    type: str
    cell: str | None = None


_heads = msgspec.json.Decoder(_Head)


def frame(seq: int, line: bytes) -> bytes:
    """Encode one journal line as one server-sent event."""
    return b"id: %d\ndata: %b\n\n" % (seq, line)


def joined(frames: list[bytes], bound: int) -> Iterator[bytes]:
    """Join frames into chunks of about ``bound`` bytes."""
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
    """The events that a stream carries, and its end.

    Args:
        cells: Only events of these cells, until each has finished. None: all events.
        until: The last position. None: until the session is closed.
    """

    def __init__(self, cells: set[str] | None = None, until: int | None = None) -> None:
        self._cells = cells
        self._pending = set(cells or ())
        self._until = until

    def over(self, seq: int) -> bool:
        """Return whether the stream ends after this position."""
        return (self._cells is not None and not self._pending) or (self._until is not None and seq >= self._until)

    def wants(self, line: bytes) -> bool:
        """Return whether this line belongs to the stream."""
        if self._cells is None:
            return True
        head = _heads.decode(line)
        if head.type == "cell_finished" and head.cell is not None:
            self._pending.discard(head.cell)
        return head.cell in self._cells


async def stream(handler: ApiHandler, subscription: Subscription, after: int, selection: Selection) -> None:
    """Send events until the selection or the session ends. Safe to cancel.

    Raises:
        StreamClosedError: The client disconnected.
    """
    start_stream(handler)
    try:
        await _pump(handler, subscription, after, selection)
    except KernelsvcError as error:
        await _tell(handler, error)
    finally:
        subscription.close()


def start_stream(handler: ApiHandler) -> None:
    """Set the headers of an event stream."""
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
    """Return the next lines. During a long silence, send comments so that proxies keep the connection open."""
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
