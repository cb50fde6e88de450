"""One session's events on one connection.

An attachment is a cursor in a log (``Subscription``). It hears that there is more,
and is asked for it when something is about to leave (``ws.send_queue``). There is no
queue of events: a reader that doesn't read is not asked, and the log waits on disk.

Two promises about order, both kept here:

* The answer to ``session.attach`` (or ``create``) is sent before the first event.
* The events of a cell are sent before the answer to the ``execute`` that ran it,
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
    from kernelsvc.service import Subscription

log = logging.getLogger(__name__)

#: Seconds that the news of a cell's beginning wait for its output, or for its end: most cells are done by then.
LINGER = 0.002
#: What such a line begins with.
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
    """One session's log on one connection: an ``outlet.Source``."""

    def __init__(self, session: str, subscription: Subscription, after: int, connection: EventConnection) -> None:
        self.session = session
        self.sent = after
        self.ended = False
        self._subscription = subscription
        self._connection = connection
        self._waiting: list[tuple[int, Callable[[], object]]] = []

    def start(self) -> None:
        """Begin to send events; called after the answer that announced them."""
        if not self.ended:
            self._subscription.on_lines(self._on_lines)
            self._connection.schedule(self)

    def stop(self) -> None:
        """Send nothing more, from now on."""
        self.ended = True
        self._subscription.close()
        self._release()

    def when_sent(self, seq: int, callback: Callable[[], object]) -> None:
        """Call ``callback`` when everything up to ``seq`` is sent, or the attachment has ended; now if it is."""
        if not self.ended and self.sent < seq:
            self._connection.collect()
        if self.ended or self.sent >= seq:
            callback()
        else:
            self._waiting.append((seq, callback))

    async def reached(self, seq: int) -> None:
        """Wait until everything up to ``seq`` is sent, or the attachment has ended. Safe to cancel."""
        future = asyncio.get_running_loop().create_future()
        self.when_sent(seq, lambda: None if future.done() else future.set_result(None))
        await future

    def _on_lines(self, line: bytes) -> None:
        # What an answer follows in this very turn goes with it: nothing need be scheduled for it.
        followed = line.startswith(_BEGINNINGS) or (
            line.startswith(_END) and self._connection.has_pending_reply(self.session)
        )
        self._connection.schedule(self, LINGER if followed else 0.0)

    def take(self) -> Sequence[bytes]:
        """See ``outlet.Source``."""
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
        """See ``outlet.Source``."""
        self.sent = self._subscription.last_seq
        self._release()

    def _detached_frame(self, error: Exception) -> bytes:
        """The reader must know that no event will follow, and why."""
        if not isinstance(error, KernelsvcError):
            log.error("attachment failed", exc_info=error, extra={"action": "pump_failed", "session": self.session})
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
