"""The cells of a session, computed from its log: folded while they run, read from the journal later."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice
from typing import Any

from kernelsvc.errors import NotFound
from kernelsvc.model import events as ev
from kernelsvc.model.events import Event
from kernelsvc.model.notebook import CellFold
from kernelsvc.model.objects import CellInfo, CellOutline, CellState, CellView
from kernelsvc.model.state import CellRecord, MachineState, size_of
from kernelsvc.model.view.request import ViewRequest
from kernelsvc.session.ports import Log

#: Folded cells kept in memory per session. Older ones are folded again from the journal.
FOLDS_KEPT = 8
#: Size of the finished ones among them, and seconds for which the clients that wait for a cell read a larger one.
KEPT_BYTES, KEPT_SECONDS = 1024 * 1024, 1.0
#: Most characters of a line of code in an outline.
OUTLINE_CHARACTERS = 200
#: Size of code and output after which a page of cells ends. To read a MiB takes the event loop 50 ms.
PAGE_BYTES = 4 * 1024 * 1024
#: Most characters of a cell's output that a view reads from the journal. Of more it has the start and the end.
VIEWED = 16 * 1024 * 1024
#: Characters of output up to which a view is made on the event loop, in 20 ms. A MiB of odd lines takes a second.
SMALL = 32 * 1024
#: Entries of a cell up to which its output is read on the event loop.
FEW_ENTRIES = 32


class CellViews:
    """The cells of one session as the API shows them.

    Args:
        session: its id.
        log: the journal to read finished cells from.
        machine: is only read here.
        budget: output that a cell may show, in characters. None for no limit.
    """

    def __init__(self, session: str, log: Log, machine: MachineState, budget: int | None) -> None:
        self._session = session
        self._log = log
        self._machine = machine
        self._budget = budget
        self._folds: OrderedDict[str, CellFold] = OrderedDict()
        self._trimming: asyncio.TimerHandle | None = None

    def feed(self, event: Event) -> None:
        """Fold one appended event."""
        cell = event.cell
        if not isinstance(cell, str):
            return
        if isinstance(event, ev.CellQueued):
            self._keep(cell, CellFold(self._budget))
        fold = self._folds.get(cell)
        if fold is not None:
            fold.feed(event)
            # Not all folds are measured for each cell. They are too large together only if one of them is.
            if self._trimming is None and _bytes_of(fold) > KEPT_BYTES // FOLDS_KEPT:
                self._trimming = asyncio.get_running_loop().call_later(KEPT_SECONDS, self._trim)

    def _trim(self) -> None:
        """Forget the oldest finished cells that are too large together."""
        self._trimming, size = None, sum(map(_bytes_of, self._folds.values()))
        for cell, fold in [*self._folds.items()]:
            if size > KEPT_BYTES and fold.finished is not None:
                size -= _bytes_of(fold)
                del self._folds[cell]

    def _keep(self, cell: str, fold: CellFold) -> None:
        self._folds[cell] = fold
        while len(self._folds) > FOLDS_KEPT:
            oldest = next(
                (c for c in self._folds if c not in self._machine.queue and c not in self._machine.held), None
            )
            if oldest is None:
                break
            del self._folds[oldest]

    def _record(self, cell: str) -> CellRecord:
        record = self._machine.find_cell(cell)
        if record is None:
            raise NotFound(f"There is no cell {cell!r} in this session. List its cells.")
        return record

    def cells(self, offset: int, limit: int) -> list[CellInfo]:
        """Return a page of cells, in the order in which they were accepted. It ends early if they are large."""
        found: list[CellInfo] = []
        size = 0
        for cell in islice(self._machine.cells, offset, offset + limit):
            info = self.cell(cell)
            found.append(info)
            size += len(info.code) + info.usage.output_bytes
            if size >= PAGE_BYTES:
                break
        return found

    def cell(self, cell: str) -> CellInfo:
        """Return a cell, folded from the log.

        Raises:
            NotFound: no such cell.
        """
        return self._fold(cell).cell(self._session)

    def outline(self, offset: int, limit: int) -> list[CellOutline]:
        """Return one line about each of some cells, from the first and the last entry of each in the log."""
        return [self._outline(record) for record in self._machine.cell_records()[offset : offset + limit]]

    def _outline(self, record: CellRecord) -> CellOutline:
        queued, ended = (self._entry(seq) for seq in (record.first_seq, record.last_seq))
        code = queued.code if isinstance(queued, ev.CellQueued) else ""
        return CellOutline(
            id=record.id,
            state=record.state,
            reason=record.reason,
            execution_count=record.execution_count,
            first_line=code.strip().partition("\n")[0][:OUTLINE_CHARACTERS],
            lines=code.count("\n") + 1,
            at=queued.at if queued else "",
            principal=queued.principal if isinstance(queued, ev.CellQueued) else "",
            wall_ms=ended.usage.wall_ms if isinstance(ended, ev.CellFinished) else None,
            undone=record.undone,
            first=record.first_seq,
            last=record.last_seq,
        )

    def _entry(self, seq: int) -> Event | None:
        return next((ev.decode(line) for line in self._log.lines(seq, seq)), None)

    def _fold(self, cell: str) -> CellFold:
        record = self._record(cell)
        fold = self._folds.get(cell)
        if fold is None:
            fold = CellFold(self._budget)
            for event in self._events(record, cell):
                fold.feed(event)
            if record.state is CellState.FINISHED and _bytes_of(fold) <= KEPT_BYTES // FOLDS_KEPT:
                self._keep(cell, fold)
        return fold

    async def output(self, cell: str, name: str, offset: int, limit: int) -> dict[str, Any]:
        """Return a page of a cell's text on one stream, read from the journal. Safe to cancel.

        Args:
            cell: the cell's id.
            name: ``stdout`` or ``stderr``.
            offset: where the page starts, in characters from the start of the stream.
            limit: the longest page, in characters.

        Raises:
            NotFound: no such cell.
        """
        record = self._record(cell)
        events = self._events(record, cell)
        if record.last_seq - record.first_seq <= FEW_ENTRIES:
            return _page_of(events, name, offset, limit)
        return await asyncio.to_thread(_page_of, events, name, offset, limit)

    async def view(self, cell: str | None, request: ViewRequest) -> CellView:
        """Return a cell as a language model reads it. Safe to cancel.

        Args:
            cell: its id, or its number from 1 in the order of the cells. None is the last one.
            request: which part of it.

        Raises:
            NotFound: no such cell.
            BadRequest: a pattern that can't be searched.
        """
        # Imported late: sessions without such readers do without it.
        from kernelsvc.model.view.cell_view import view_cell

        number, found = self._numbered(cell)
        fold = self._fold(found)
        if not fold.cut and fold.size <= SMALL:
            return view_cell(fold, number, self._session, request)
        # The fold for programs left out a part if it is cut. This thread's own one does not change meanwhile.
        budget, events = VIEWED if fold.cut else self._budget, self._events(self._record(found), found)

        def read() -> CellView:
            own = CellFold(budget)
            for event in events:
                own.feed(event)
            return view_cell(own, number, self._session, request)

        return await asyncio.to_thread(read)

    def _numbered(self, cell: str | None) -> tuple[int, str]:
        ids = [*self._machine.cells]
        if cell is None:
            if not ids:
                raise NotFound("No cell has run in this session yet. Run one.")
            return len(ids), ids[-1]
        if cell in self._machine.cells:
            return ids.index(cell) + 1, cell
        if cell.isdecimal() and 0 < int(cell[:9]) <= len(ids):
            return int(cell), ids[int(cell) - 1]
        raise NotFound(f"There is no cell {cell!r} in this session. It has {len(ids)} cells, with numbers from 1.")

    def _events(self, record: CellRecord, cell: str) -> Iterable[Event]:
        return _events_of(self._log.lines(record.first_seq, record.last_seq), cell)


def _bytes_of(fold: CellFold) -> int:
    return 0 if fold.finished is None else fold.size + size_of(fold.queued)


def _page_of(events: Iterable[Event], name: str, offset: int, limit: int) -> dict[str, Any]:
    position, page = 0, []
    for event in events:
        if isinstance(event, ev.Stream) and event.name == name:
            start, stop = max(0, offset - position), max(0, offset + limit - position)
            page.append(event.text[start:stop])
            position += len(event.text)
    text = "".join(page)
    following = offset + len(text) if offset + len(text) < position else None
    return {"name": name, "offset": offset, "text": text, "next_offset": following, "total": position}


def _events_of(lines: Iterable[bytes], cell: str) -> Iterable[Event]:
    mark = cell.encode()  # skips most lines of other cells without decoding them
    for line in lines:
        if mark in line:
            event = ev.decode(line)
            if event.cell == cell:
                yield event
