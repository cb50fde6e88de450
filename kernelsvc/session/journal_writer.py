"""The writing side of one session's journal: append, sync, wait for the end of a cell, recover.

When the disk refuses, the session takes no cells and the kernel's output is not acknowledged, so the kernel blocks
soon. The writer tries once a second to write again, and then the session continues where it was.
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

#: Events that are on disk before a client learns of them.
_SYNCED = (ev.CellFinished, ev.SessionClosed, ev.SessionStarted)

#: Seconds between attempts to write again after the disk refused.
RECOVER_SECONDS = 1.0


class JournalWriter:
    """Writes one session's journal. Called from the server's event loop.

    Args:
        session: its id, for log lines.
        log: the journal.
        sync: ``ack``: before the end of a cell is reported. ``run``: also before a cell is sent. ``off``: never.
        finished: whether the journal holds the end of a cell.
        recovered: called when the journal can be written again.

    Attributes:
        fault: why the journal can't be written now, None if it can.
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
            OSError: the disk refuses; recovery begins.
        """
        try:
            self._log.append(events)
        except OSError as error:
            self._failed(error)
            raise

    def sync_ends(self, events: Sequence[Event]) -> list[Event]:
        """Make the journal durable if the events hold an end that a client may wait for, and return those ends."""
        ends: list[Event] = [event for event in events if isinstance(event, _SYNCED)]
        if ends and self._sync != "off":
            self._sync_log()
        return ends

    def sync_before_cell(self) -> None:
        """Make the journal durable before a cell is sent, if the setting wants it."""
        if self._sync == "run":
            self._sync_log()

    def report(self, ends: Sequence[Event]) -> None:
        """Call the waiters of these cells, unless their end is not durable yet. Recovery calls them then."""
        for event in ends:
            if isinstance(event.cell, str) and self.fault is None:
                self._call_waiters(event.cell)

    def when_finished(self, cell: str, call: Callable[[], object]) -> None:
        """Call ``call`` once, when the end of the cell is in the journal: now if it is. It must not raise."""
        if self._finished(cell) and self.fault is None:
            call()
        else:
            self._waiters.setdefault(cell, []).append(call)

    def require_writable(self) -> None:
        """Do nothing if the journal can be written.

        Raises:
            AtCapacity: it can't now.
        """
        if self.fault is not None:
            raise AtCapacity(
                f"The session's log is not writable ({self.fault.strerror}). Free disk space. The session then "
                "continues by itself.",
                disk=True,
            )

    def retry(self, call: Callable[..., None], *args: object) -> None:
        """Call ``call`` when the next attempt to write is due."""
        self._loop.call_later(RECOVER_SECONDS, call, *args)

    def finish(self, sign: Callable[[], Event] | None) -> list[Event]:
        """Sign the complete journal, release all waiters and close it. Return the events that were written."""
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
        """Take no more entries; readers come to an end."""
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
