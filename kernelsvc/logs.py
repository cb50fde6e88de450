"""Logging of the server and the kernel host: text or JSON lines, and a limit of records per place in the code.

A client or a kernel may cause the same event as often as it likes. Without a limit
the records of that event fill the disk.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

#: Records of one place in the code that are written in one period. The others are counted.
BURST = 20
PERIOD_SECONDS = 60.0
#: Longest message and longest traceback that are written, in characters.
MAX_MESSAGE, MAX_TRACEBACK = 4096, 16 * 1024

_formatter = logging.Formatter()
#: Attributes that each record has. The others were given as ``extra``.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "summary", "without_limit", "taskName"}


class _Source:
    """The records of one place in the code."""

    def __init__(self, record: logging.LogRecord, since: float) -> None:
        self.record, self.since, self.written, self.left_out = record, since, 0, 0


class RateLimit(logging.Filter):
    """Lets ``BURST`` records of each place (file and line) pass per period, and shortens long ones.

    Of the records that do not pass, a summary follows when the period is over and any record comes, or
    ``flush`` is called. Records below INFO are for debugging and are not limited.

    Args:
        handler: writes the summaries. The filter is added to it.
        clock: returns seconds that only grow.
    """

    def __init__(self, handler: logging.Handler, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._handler, self._clock = handler, clock
        self._sources: dict[tuple[str, int], _Source] = {}
        self._lock = threading.RLock()
        handler.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """See ``logging.Filter``: whether to write this record."""
        if record.levelno < logging.INFO or getattr(record, "summary", False):
            return True
        if getattr(record, "without_limit", False):
            _shorten(record)
            return True
        with self._lock:
            now = self._clock()
            self._summarise(now)
            source = self._sources.setdefault((record.pathname, record.lineno), _Source(record, now))
            if source.written >= BURST:
                source.left_out += 1
                return False
            source.written += 1
        _shorten(record)
        return True

    def flush(self) -> None:
        """Write the summaries that are due."""
        with self._lock:
            self._summarise(self._clock())

    def _summarise(self, now: float) -> None:
        over = {key: one for key, one in self._sources.items() if now >= one.since + PERIOD_SECONDS}
        for key, source in over.items():
            del self._sources[key]
            if source.left_out:
                self._handler.handle(_summary(source, now))


def _summary(source: _Source, now: float) -> logging.LogRecord:
    first = source.record
    text = "%d more records like the last %d of %s line %d were left out in %.0f s"
    args = (source.left_out, source.written, first.module, first.lineno, now - source.since)
    record = logging.LogRecord(first.name, first.levelno, first.pathname, first.lineno, text, args, None)
    record.summary = True
    return record


def _shorten(record: logging.LogRecord) -> None:
    message = record.getMessage()
    if len(message) > MAX_MESSAGE:
        record.msg, record.args = message[:MAX_MESSAGE] + " [shortened]", None
    if record.exc_info and not record.exc_text:
        # A formatter takes this text if it is there (logging.Formatter.format).
        record.exc_text = _formatter.formatException(record.exc_info)
    if record.exc_text and len(record.exc_text) > MAX_TRACEBACK:
        record.exc_text = record.exc_text[-MAX_TRACEBACK:]


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object: ``at``, ``level``, ``logger``, ``message``, and the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry = {"at": at, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        entry |= {key: value for key, value in vars(record).items() if key not in _STANDARD and value is not None}
        if record.exc_info or record.exc_text:
            entry["traceback"] = record.exc_text or self.formatException(record.exc_info)  # type: ignore[arg-type]
        return json.dumps(entry, default=str)


def configure(level: int, *, operator_level: int = logging.WARNING, form: Literal["text", "json"] = "text") -> None:
    """Log to standard error, with a limit of records per place. Call it once.

    Args:
        level: the lowest level that is written.
        operator_level: the lowest level of the operator's log (``telemetry.operator_log``).
        form: lines of text, or JSON lines.
    """
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("kernelsvc.telemetry.operator_log").setLevel(min(level, operator_level))
    for handler in logging.getLogger().handlers:
        RateLimit(handler)
        if form == "json":
            handler.setFormatter(JsonLines())


def flush() -> None:
    """Write the summaries that are due, of all handlers."""
    for handler in logging.getLogger().handlers:
        for limit in handler.filters:
            if isinstance(limit, RateLimit):
                limit.flush()


async def flush_regularly() -> None:
    """Write summaries also when no other record comes. Runs until it is cancelled."""
    while True:
        await asyncio.sleep(PERIOD_SECONDS)
        flush()
