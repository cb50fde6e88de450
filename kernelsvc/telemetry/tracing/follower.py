"""New entries of all journals of a data directory, as spans.

The journals are read where they lie, so the server does nothing for it, and a receiver that is away costs no memory:
the journals are the queue. An entry is read only when two looks have found it. So the tail of a journal that a failed
write takes back is not read, unless the process ends meanwhile and takes all that is there (``settle``).
"""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec import Struct

from kernelsvc.linux.line_file import read_lines
from kernelsvc.model.tracing.spans import Content, Span, SpanFold
from kernelsvc.telemetry.tracing.cursor import COMPLETE

log = logging.getLogger(__name__)

#: Most spans of one batch, and most characters of their values, roughly. New Relic takes 1 MB a request.
BATCH_SPANS, BATCH_CHARACTERS = 256, 400_000
#: Journals whose state is in memory. The others are read from their beginning again when they grow.
MAX_FOLDS = 2000
#: Seconds after a change of the directory in which it is listed at each look: its time stamp is that coarse.
RELIST_SECONDS = 5.0
#: Beginning of the last line of a complete journal, and most bytes of that line.
_LAST, _LAST_BYTES = b'{"type":"journal_signed"', 4096


class Batch(Struct, kw_only=True):
    """Spans to send, and the positions that are reached when a receiver has them.

    Attributes:
        characters: about how many bytes the spans take.
    """

    spans: list[Span] = []
    moves: dict[str, int] = {}
    characters: int = 0

    def is_full(self) -> bool:
        """Whether the next spans belong into the next batch."""
        return len(self.spans) >= BATCH_SPANS or self.characters >= BATCH_CHARACTERS

    def add(self, span: Span) -> None:
        """Add a span."""
        self.spans.append(span)
        self.characters += 300 + sum(len(value) for value in span.attributes.values() if isinstance(value, str))


class _Followed:
    """A journal that is being read."""

    def __init__(self, fold: SpanFold) -> None:
        self.fold = fold
        self.offset = 0
        self.complete = False


class JournalFollower:
    """Follows all journals below a directory.

    Args:
        sessions: the directory of the sessions.
        positions: up to where a receiver has the spans of each journal, in bytes.
        content: which content spans hold.
        sample: see ``SpanFold``.
        clock: returns seconds since the epoch.
    """

    def __init__(
        self,
        sessions: Path,
        positions: Mapping[str, int],
        *,
        content: Content = "off",
        sample: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._sessions = sessions
        self._sent = {session: size for session, size in positions.items() if size != COMPLETE}
        self._complete = {session for session, size in positions.items() if size == COMPLETE}
        self._content, self._sample, self._clock = content, sample, clock
        self._followed: OrderedDict[str, _Followed] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._settled: dict[str, int] = {}
        self._listed = -1
        self._gone: list[str] = []

    # --- what is new ---------------------------------------------------------------------

    def look(self) -> None:
        """Find journals that have grown. Entries that were there at the look before can be taken now."""
        self._list()
        for session in [*self._sent]:
            try:
                # Not below the session's own files: the directory belongs to the server.
                size = os.stat(self._journal(session), follow_symlinks=False).st_size
            except OSError:
                self._drop(session)
                continue
            # What a receiver has was settled before: the first look of a process has no other to compare with.
            self._settled[session] = min(size, self._sizes.get(session, self._sent[session]))
            self._sizes[session] = size

    def settle(self) -> None:
        """Let entries that were found at the last look be taken, before the process ends."""
        self._settled = dict(self._sizes)

    def _journal(self, session: str) -> Path:
        return self._sessions / session / "journal.jsonl"

    def _list(self) -> None:
        try:
            changed = os.stat(self._sessions).st_mtime_ns
            if changed == self._listed and self._clock() - changed / 1e9 > RELIST_SECONDS:
                return
            names = {entry.name for entry in os.scandir(self._sessions)}
        except OSError as error:
            log.warning("the sessions can't be listed: %s", error)
            return
        self._listed = changed
        for session in names - self._sent.keys() - self._complete:
            self._sent[session] = 0
        for session in (self._sent.keys() | self._complete) - names:
            self._drop(session)

    def take_gone(self) -> list[str]:
        """Return the journals that were found removed since the last call."""
        gone, self._gone = self._gone, []
        return gone

    def _drop(self, session: str) -> None:
        sent = self._sent.pop(session, None)
        if sent is not None and sent < self._sizes.get(session, 0):
            log.warning("session %s was removed before all of its spans were sent", session)
        self._complete.discard(session)
        for known in (self._sizes, self._settled, self._followed):
            known.pop(session, None)
        self._gone.append(session)

    def skip_all(self) -> dict[str, int]:
        """Treat all present entries as sent, and return the positions. For a first start beside older sessions."""
        self.look()
        moves = {session: self._end(session, size) for session, size in self._sizes.items()}
        self.sent(moves)
        return moves

    def _end(self, session: str, size: int) -> int:
        try:
            fd = self._open(session)
        except OSError:
            return size
        try:
            tail = os.pread(fd, _LAST_BYTES, max(0, size - _LAST_BYTES))
        finally:
            os.close(fd)
        return COMPLETE if tail[:-1].rpartition(b"\n")[2].startswith(_LAST) else size

    # --- spans ---------------------------------------------------------------------------

    def take(self) -> Batch | None:
        """Return the next spans, or None if no journal has a further entry.

        Call ``sent`` when a receiver has them. Without it the next call returns them again.
        """
        batch = Batch()
        for session, end in self._settled.items():
            sent = self._sent.get(session)
            if sent is None or sent == end:
                continue
            if sent > end:
                # The journal is shorter than it was: a loss of power took entries that were sent. All are sent again.
                self._followed.pop(session, None)
                self._sent[session] = 0
            followed = self._follow(session)
            if followed.offset > self._sent[session]:
                # The last batch was not sent. Its spans are made again, from the beginning, as they may span entries.
                del self._followed[session]
                followed = self._follow(session)
            if not self._read(session, followed, end, batch):
                continue
            position = COMPLETE if followed.complete else followed.offset
            if position != self._sent[session]:  # Equal if the last line is not whole yet.
                batch.moves[session] = position
            if batch.is_full():
                break
        return batch if batch.moves else None

    def sent(self, moves: Mapping[str, int]) -> None:
        """Note that a receiver has the spans up to these positions."""
        for session, position in moves.items():
            if position != COMPLETE:
                self._sent[session] = position
                continue
            self._complete.add(session)
            for known in (self._sent, self._sizes, self._settled, self._followed):
                known.pop(session, None)

    def _follow(self, session: str) -> _Followed:
        found = self._followed.get(session)
        if found is None:
            found = self._followed[session] = _Followed(SpanFold(session, content=self._content, sample=self._sample))
            if len(self._followed) > MAX_FOLDS:
                self._followed.popitem(last=False)
        self._followed.move_to_end(session)
        return found

    def _open(self, session: str) -> int:
        return os.open(self._journal(session), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def _read(self, session: str, followed: _Followed, end: int, batch: Batch) -> bool:
        """Read on to ``end``, or until the batch is full. Spans that a receiver has are left out.

        Returns:
            False if the journal is gone.
        """
        sent = self._sent[session]
        try:
            fd = self._open(session)
        except OSError:
            return False
        try:
            while followed.offset < end and not batch.is_full():
                lines = read_lines(fd, followed.offset, end)
                if not lines:
                    break
                for line in lines:
                    followed.offset += len(line) + 1
                    followed.complete = line.startswith(_LAST)
                    for span in followed.fold.feed_line(line):
                        if followed.offset > sent:
                            batch.add(span)
                    if batch.is_full():
                        break
        finally:
            os.close(fd)
        return True
