"""One cell, built from its events and rendered as the API's ``Cell`` and as a notebook cell."""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import msgspec
from msgspec import UNSET

from kernelsvc.model import events as ev
from kernelsvc.model.events import Event, Reason
from kernelsvc.model.limits import CellUsage
from kernelsvc.model.objects import CellError, CellInfo, CellState, SeqRange
from kernelsvc.model.outputs import Outputs, clean_count, error_output, slim, text_of
from kernelsvc.model.tool_calls.fold import CallsFold

NbCell = dict[str, Any]

#: Most refused destinations that a cell's text names.
MAX_DENIED = 4
_NOT_QUEUED = ev.CellQueued()
_CELL_ID = re.compile(r"(?!kernelsvc-)[a-zA-Z0-9_-]{1,64}")


def nb_id(cell: str, *, session: str = "") -> str:
    """Return a cell's id in the form that nbformat allows: stable, and different for different cells.

    nbformat 4.5 allows 1 to 64 of ``a-zA-Z0-9-_`` (JEP 62).

    Args:
        cell: The id that the client chose.
        session: The session it comes from, for a cell that a branch has from its parent.
    """
    if not session and _CELL_ID.fullmatch(cell):
        return cell
    return f"kernelsvc-{sha256(f'{session}/{cell}'.encode()).hexdigest()[:32]}"


class CellFold:
    """One cell, built from its events.

    Args:
        budget: Characters of output that are stored. None stores all.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.id = ""
        self.queued = _NOT_QUEUED
        self.state = CellState.QUEUED
        self.first = self.last = 0
        self.started_at = self.finished_at = ""
        self.finished: ev.CellFinished | None = None
        self.execution_count: int | None = None
        self.error: CellError | None = None
        self.error_lines: list[str] | None = None
        self.undone: dict[str, Any] | None = None
        self.outputs = Outputs(budget)
        self.calls: CallsFold | None = None
        self.decision: dict[str, str | None] | None = None
        self.held = False  # it waits for a person's decision
        self.denied: list[str] = []

    def feed(self, event: Event) -> None:
        """Add the cell's next event. Other events are ignored."""
        if event.seq:
            self.last = event.seq
            self.first = self.first or event.seq
        rule = _RULES.get(type(event))
        if rule is None:
            self.outputs.feed(event)
        else:
            rule(self, event)

    def _queue(self, event: Event) -> None:
        assert isinstance(event, ev.CellQueued)
        self.queued = event
        self.id = event.cell if isinstance(event.cell, str) else ""

    def _start(self, event: Event) -> None:
        assert isinstance(event, ev.CellStarted)
        self.state, self.started_at = CellState.RUNNING, event.at
        self.execution_count = clean_count(event.execution_count)

    def _input_requested(self, event: Event) -> None:
        assert isinstance(event, ev.InputRequested)
        self.outputs.write("stdout", event.prompt)

    def _input_given(self, event: Event) -> None:
        assert isinstance(event, ev.InputGiven)
        self.outputs.write("stdout", f"{event.text if event.text is not None else '········'}\n")

    def _hold(self, event: Event) -> None:
        self.held = True

    def _decide(self, event: Event) -> None:
        assert isinstance(event, ev.CellDecided)
        self.held = False
        self.decision = {"decision": event.decision, "by": event.by, "reason": event.reason}

    def _fail(self, event: Event) -> None:
        assert isinstance(event, ev.Error)
        self.outputs.feed(event)
        self.error_lines = event.model
        small = slim(error_output(event), 64 * 1024)
        self.error = CellError(ename=small["ename"], evalue=small["evalue"], traceback=small["traceback"])

    def _finish(self, event: Event) -> None:
        assert isinstance(event, ev.CellFinished)
        self.state, self.finished, self.finished_at = CellState.FINISHED, event, event.at
        count = clean_count(event.execution_count)
        self.execution_count = self.execution_count if count is None else count

    def _deny(self, event: Event) -> None:
        assert isinstance(event, ev.EgressDenied)
        if event.message not in self.denied and len(self.denied) < MAX_DENIED:
            self.denied.append(event.message)

    def _call(self, event: Event) -> None:
        self.calls = self.calls or CallsFold()
        self.calls.feed(event)

    @property
    def size(self) -> int:
        """Characters of output that the fold has."""
        return self.outputs.size

    @property
    def cut(self) -> int:
        """Characters of output that the fold omits, as the budget needs it."""
        return self.outputs.cut

    def render(self) -> list[dict[str, Any]]:
        """Return the outputs in nbformat's form."""
        return self.outputs.render("; the log has all of it")

    def text(self, outputs: list[dict[str, Any]] | None = None) -> str:
        """Return output, results and error as text in order, then refused destinations and the reason of the end."""
        text = text_of(self.render() if outputs is None else outputs)
        end, more = self.finished, [f"[{line}]" for line in self.denied]
        if end is not None and end.message and end.reason is not Reason.OK:
            more.append(f"[{end.reason}] {end.message}")
        for line in more:
            text = f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{line}\n"
        return text

    def cell(self, session: str) -> CellInfo:
        """Return the cell in the API's form."""
        end, outputs = self.finished, self.render()
        info = self._info(session, outputs, end)
        if self.calls is not None:
            info.calls = self.calls.summary()
            info.waits_for = self.calls.waits_for or UNSET
        return info

    def _info(self, session: str, outputs: list[dict[str, Any]], end: ev.CellFinished | None) -> CellInfo:
        return CellInfo(
            id=self.id,
            session=session,
            code=self.queued.code,
            state=self.state,
            reason=end.reason if end else None,
            execution_count=self.execution_count,
            outputs=outputs,
            text=self.text(outputs),
            error=self.error,
            usage=end.usage if end else CellUsage(),
            seq=SeqRange(first=self.first, last=self.last),
            metadata=self.queued.metadata,
            message=end.message if end else None,
            variables_kept=end.variables_kept if end else None,
        )

    def nb_cell(self) -> NbCell:
        """Return the cell in the notebook's form."""
        return {
            "cell_type": "code",
            "execution_count": self.execution_count,
            "id": nb_id(self.id),
            "metadata": self._metadata(),
            "outputs": self.render(),
            "source": self.queued.code,
        }

    def _metadata(self) -> dict[str, Any]:
        end, own = self.finished, self._own_metadata()
        meta: dict[str, Any] = {"kernelsvc": own}
        if self.started_at:
            meta["execution"] = {"iopub.execute_input": self.started_at}
            if self.finished_at:
                meta["execution"]["shell.execute_reply"] = self.finished_at
        tags = ["raises-exception"] * bool(end and end.reason is Reason.ERROR) + ["undone"] * bool(self.undone)
        return {**meta, "tags": tags} if tags else meta

    def _own_metadata(self) -> dict[str, Any]:
        end = self.finished
        own: dict[str, Any] = {
            "cell": self.id,
            "state": str(self.state),
            "seq": {"first": self.first, "last": self.last},
            "queued_at": self.queued.at,
            "started_at": self.started_at or None,
            "finished_at": self.finished_at or None,
            "principal": self.queued.principal,
            "metadata": self.queued.metadata,
        }
        if end:
            own |= {"reason": str(end.reason), "usage": msgspec.to_builtins(end.usage)}
            own |= {"message": end.message} if end.message else {}
            own |= {"variables_kept": end.variables_kept} if end.variables_kept is not None else {}
        if self.calls is not None:
            own["calls"] = self.calls.metadata()
        own |= {"decision": self.decision} if self.decision is not None else {}
        return {**own, "undone": self.undone} if self.undone else own


#: Rules by event type. All other events are output.
_RULES: dict[type[Event], Callable[[CellFold, Event], None]] = {
    ev.CellQueued: CellFold._queue,
    ev.CellStarted: CellFold._start,
    ev.CellFinished: CellFold._finish,
    ev.InputRequested: CellFold._input_requested,
    ev.InputGiven: CellFold._input_given,
    ev.CellHeld: CellFold._hold,
    ev.CellDecided: CellFold._decide,
    ev.Error: CellFold._fail,
    ev.EgressDenied: CellFold._deny,
    ev.ToolCalled: CellFold._call,
    ev.ToolDecided: CellFold._call,
    ev.ToolReturned: CellFold._call,
}
