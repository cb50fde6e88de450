"""The writer of one session's journal: append, sync, report the ends of cells, recover.

When a write fails, the session accepts no cells and does not acknowledge the kernel's output, so the kernel soon
blocks. The writer tries to write again once a second. When that succeeds, the session continues.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Literal

from kernelsvc.errors import AtCapacity
from kernelsvc.model import events as ev
from kernelsvc.model.events import Event
from kernelsvc.session.ports import Log

log = logging.getLogger(__name__)

#: Events that must be on disk before a client receives them.
_SYNCED = (ev.CellFinished, ev.SessionClosed, ev.SessionStarted)

#: Seconds between attempts to write after a failed write.
RECOVER_SECONDS = 1.0


class JournalWriter:
    """The writer of one session's journal. Called from the server's event loop.

    Args:
        session: its id, for log lines.
        log: the journal.
        sync: when to make the journal durable. ``ack``: before the end of a cell is reported. ``run``: also before a
            cell is sent. ``off``: never.
        finished: returns whether the journal contains the end of a cell.
        recovered: called when the journal is writable again.

    Attributes:
        fault: the error of the failed write, None while the journal is writable.
    """

    def __init__(
        self,
        session: str,
        log: Log,
        *,
        sync: Literal["ack", "run", "off"],
        finished: Callable[[str], bool],
        recovered: Callable[[], None],
    ) -> None:
        self._session = session
        self._log = log
        self._sync = sync
        self._finished = finished
        self._recovered = recovered
        self._loop = asyncio.get_running_loop()
        self._waiters: dict[str, list[Callable[[], object]]] = {}
        self._closed = False
        self.fault: OSError | None = None

    def append(self, events: Sequence[Event]) -> None:
        """Write all of the events, or none.

        Raises:
            OSError: the write failed. Recovery has begun.
        """
        try:
            self._log.append(events)
        except OSError as error:
            self._failed(error)
            raise

    def sync_ends(self, events: Sequence[Event]) -> list[Event]:
        """Return those of the events that a client may wait for. If there are any, make the journal durable first."""
        ends: list[Event] = [event for event in events if isinstance(event, _SYNCED)]
        if ends and self._sync != "off":
            self._sync_log()
        return ends

    def sync_before_cell(self) -> None:
        """Make the journal durable before a cell is sent, if ``sync`` is ``run``."""
        if self._sync == "run":
            self._sync_log()

    def report(self, ends: Sequence[Event]) -> None:
        """Call the waiters of these cells. If the journal is not durable now, recovery calls them later."""
        for event in ends:
            if isinstance(event.cell, str) and self.fault is None:
                self._call_waiters(event.cell)

    def when_finished(self, cell: str, call: Callable[[], object]) -> None:
        """Call ``call`` once when the end of the cell is in the journal, now if it is there. It must not raise."""
        if self._finished(cell) and self.fault is None:
            call()
        else:
            self._waiters.setdefault(cell, []).append(call)

    def require_writable(self) -> None:
        """Raise an error if the journal is not writable.

        Raises:
            AtCapacity: the last write failed.
        """
        if self.fault is not None:
            raise AtCapacity(
                f"The session's log is not writable ({self.fault.strerror}). Free disk space. The session then "
                "continues by itself.",
                disk=True,
            )

    def retry(self, call: Callable[..., None], *args: object) -> None:
        """Call ``call`` after ``RECOVER_SECONDS``, when the next attempt to write is due."""
        self._loop.call_later(RECOVER_SECONDS, call, *args)

    def finish(self, sign: Callable[[], Event] | None) -> list[Event]:
        """Sign the complete journal, call all waiters, and return the events that this wrote."""
        signed: list[Event] = []
        try:
            if sign is not None:
                signed = [sign()]
                self._log.append(signed)
                self._log.sync()
        except OSError as error:
            signed = []
            log.error("session %s: could not sign the journal, it ends without a signature: %s", self._session, error)
        for cell in list(self._waiters):
            if self.fault is None:
                self._call_waiters(cell)
        self._closed = True
        return signed

    def close(self) -> None:
        """Close the journal. Readers end after its last entry."""
        self._closed = True
        self._log.close()

    def _sync_log(self) -> None:
        try:
            self._log.sync()
        except OSError as error:
            self._failed(error)

    def _call_waiters(self, cell: str) -> None:
        for call in self._waiters.pop(cell, ()):
            call()

    def _failed(self, error: OSError) -> None:
        if self.fault is None:
            log.error(
                "session %s: the journal is not writable: %s. The session accepts no cells until a write succeeds",
                self._session,
                error,
            )
            self.retry(self._recover)
        self.fault = error

    def _recover(self) -> None:
        if self._closed:
            return
        try:
            self._log.recover()
            self._log.sync()
        except OSError as error:
            self.fault = error
            self.retry(self._recover)
            return
        log.warning("session %s: the journal is writable again, the session continues", self._session)
        self.fault = None
        for cell in list(self._waiters):
            if self._finished(cell):
                self._call_waiters(cell)
        self._recovered()
