"""Event streams: journal lines as server-sent events (WHATWG HTML, section 9.2).

Each event has its ``seq`` as ``id`` and its journal line, byte for byte, as ``data``.
A line contains no newline, so it needs no escaping. A client that reconnects with
``Last-Event-ID`` gets the next event.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import msgspec

from kernelsvc.errors import KernelsvcError
from kernelsvc.protocol import jsonrpc
from kernelsvc.server.handler import ApiHandler, as_error

if TYPE_CHECKING:
    from kernelsvc.service.api import Subscription

log = logging.getLogger(__name__)

KEEPALIVE = b": keepalive\n\n"


class _Head(msgspec.Struct):
    type: str
    cell: str | None = None


_heads = msgspec.json.Decoder(_Head)


def frame(seq: int, line: bytes) -> bytes:
    """Encode one journal line as one server-sent event."""
    return b"id: %d\ndata: %b\n\n" % (seq, line)


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
    seq, context = after, handler.context
    await handler.flush()
    while not selection.over(seq):
        try:
            async with (
                asyncio.timeout(context.settings.keepalive_seconds) as silence,
                context.entries(handler.who, subscription) as lines,
            ):
                silence.reschedule(None)
                if not lines:
                    return
                handler.write(_frames(lines, seq, selection))
                seq += len(lines)
                flushed = handler.flush()
        except TimeoutError:  # proxies close a connection that is silent for long
            handler.write(KEEPALIVE)
            flushed = handler.flush()
        await flushed


def _frames(lines: list[bytes], seq: int, selection: Selection) -> bytes:
    """Return the selected lines after the position as events."""
    frames = []
    for number, line in enumerate(lines, seq + 1):
        if selection.wants(line):
            frames.append(frame(number, line))
        if selection.over(number):
            break
    return b"".join(frames)


async def _tell(handler: ApiHandler, error: KernelsvcError) -> None:
    shape = msgspec.json.encode(jsonrpc.error_json(as_error(error)))
    handler.write(b"event: error\ndata: %b\n\n" % shape)
    await handler.flush()
