"""Answers that a server's sessions give to a model, searched for paths of the server.

A view of a cell is a pure function of the session's log, so the logs that a test's server leaves behind have every
answer that it gave, through each of its APIs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.corpus import LEAK
from kernelsvc.model import events as ev
from kernelsvc.model.cell_fold import CellFold
from kernelsvc.model.view.cell_view import view_cell
from kernelsvc.model.view.request import ViewRequest

#: Bytes of a log. Those of floods are longer, and have nothing else.
MOST = 1 << 20


def answers_with_paths(data_dir: Path) -> list[str]:
    """Return each cell below a data directory whose view names a path of the server that its code does not name."""
    return [found for path in sorted(data_dir.glob("sessions/*/journal.jsonl")) for found in _of_log(path)]


def _of_log(path: Path) -> Iterator[str]:
    if path.stat().st_size > MOST:
        return
    folds: dict[str, CellFold] = {}
    hidden = True
    for line in path.read_bytes().splitlines():
        try:
            event = ev.decode(line)
        except (msgspec.MsgspecError, ValueError):
            return  # tests damage logs, too
        if isinstance(event, ev.SessionStarted):
            # Without a mount namespace the places are those of the machine.
            hidden = event.kernel.kind == "forked" and event.sandbox.isolation == "full"
        if isinstance(event, ev.CellQueued):
            folds[event.cell] = CellFold(None)
        if hidden and isinstance(event.cell, str) and event.cell in folds:
            folds[event.cell].feed(event)
    for number, (cell, fold) in enumerate(folds.items(), 1):
        code = fold.queued.code
        if (found := LEAK.search(view_cell(fold, number, "s", ViewRequest()).text)) and not LEAK.search(code):
            yield f"{path.parent.name} {cell}: {found.group()} in the answer to {code[:200]!r}"
