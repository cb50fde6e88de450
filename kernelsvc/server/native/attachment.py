"""One session's events on one connection.

An attachment is a cursor in a log (``Subscription``). The log reports that it has
more, and the attachment reads it when frames are about to be sent (``ws.send_queue``).
There is no queue of events: for a client that does not read, nothing is read from the
log, and the events wait on disk.

It guarantees two things about order:

* The reply to ``session.attach`` (or ``create``) is sent before the first event.
* The events of a cell are sent before the reply to the ``execute`` that ran it,
  if this connection is attached to the session.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from kernelsvc.errors import KernelsvcError
from kernelsvc.protocol import jsonrpc
from kernelsvc.server.handler import as_error
from kernelsvc.server.ws.send_queue import LARGE_FRAME, FrameSource

if TYPE_CHECKING:
    from kernelsvc.service.api import Subscription

log = logging.getLogger(__name__)

#: Seconds that the events of a cell's start wait for its output or its end. Most cells have finished by then.
LINGER = 0.002
#: Prefixes of these events' lines.
_BEGINNINGS = (b'{"type":"cell_queued"', b'{"type":"cell_started"')
_END = b'{"type":"cell_finished"'


class EventConnection(Protocol):
    """The part of a connection that its attachments use."""

    def schedule(self, source: FrameSource, linger: float = 0.0) -> None:
        """Ask ``source`` for frames within ``linger`` seconds, or in this turn of the event loop."""

    def collect(self) -> None:
        """Queue the frames that the scheduled sources have now."""

    def has_pending_reply(self, session: str) -> bool:
        """Whether a reply waits for a cell of this session to finish."""


class Attachment:
    """One session's log on one connection: a ``ws.send_queue.FrameSource``."""

    def __init__(self, session: str, subscription: Subscription, after: int, connection: EventConnection) -> None:
        self.session = session
        self.sent = after
        self.ended = False
        self._subscription = subscription
        self._connection = connection
        self._waiting: list[tuple[int, Callable[[], object]]] = []

    def start(self) -> None:
        """Begin to send events. Called after the reply that announced them."""
        if not self.ended:
            self._subscription.on_lines(self._on_lines)
            self._connection.schedule(self)

    def stop(self) -> None:
        """Send nothing more."""
        self.ended = True
        self._subscription.close()
        self._release()

    def when_sent(self, seq: int, callback: Callable[[], object]) -> None:
        """Call ``callback`` when all events up to ``seq`` are sent or the attachment has ended, at the latest."""
        if not self.ended and self.sent < seq:
            self._connection.collect()
        if self.ended or self.sent >= seq:
            callback()
        else:
            self._waiting.append((seq, callback))

    async def reached(self, seq: int) -> None:
        """Wait until all events up to ``seq`` are sent or the attachment has ended. Safe to cancel."""
        future = asyncio.get_running_loop().create_future()
        self.when_sent(seq, lambda: None if future.done() else future.set_result(None))
        await future

    def _on_lines(self, line: bytes) -> None:
        # The reply to the cell follows in this turn of the loop and is sent in the same write.
        followed = line.startswith(_BEGINNINGS) or (
            line.startswith(_END) and self._connection.has_pending_reply(self.session)
        )
        self._connection.schedule(self, LINGER if followed else 0.0)

    def take(self) -> Sequence[bytes]:
        """See ``FrameSource``."""
        if self.ended:
            return ()
        try:
            lines = self._subscription.next_nowait()
        except Exception as error:
            self.stop()
            return (self._detached_frame(error),)
        if not lines and self._subscription.exhausted:
            self.stop()
        if lines and max(map(len, lines)) >= LARGE_FRAME:
            return [piece for line in lines for piece in _event_pieces(line)]
        return [b"".join(map(jsonrpc.event_frame, lines))] if lines else ()

    def on_queued(self) -> None:
        """See ``FrameSource``."""
        self.sent = self._subscription.last_seq
        self._release()

    def _detached_frame(self, error: Exception) -> bytes:
        """Encode the frame that ends this session's events, with the cause."""
        if not isinstance(error, KernelsvcError):
            log.error(
                "Session %s: reading its events failed. Its client is detached",
                self.session,
                exc_info=error,
                extra={"action": "pump_failed", "session": self.session},
            )
        return jsonrpc.text_frame(jsonrpc.encode_detached(self.session, as_error(error)))

    def _release(self) -> None:
        if not self._waiting:
            return
        ready = [callback for seq, callback in self._waiting if self.ended or seq <= self.sent]
        self._waiting = [] if self.ended else [pair for pair in self._waiting if pair[0] > self.sent]
        for callback in ready:
            callback()


def _event_pieces(line: bytes) -> Sequence[bytes]:
    return (jsonrpc.event_frame(line),) if len(line) < LARGE_FRAME else jsonrpc.event_pieces(line)
