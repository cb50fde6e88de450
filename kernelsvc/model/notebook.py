"""The notebook: a projection of a session's events into nbformat 4.5.

Theory of operation
-------------------
``CellFold`` builds one cell from its events. The API's ``Cell`` and the notebook's cell are two renderings of it.
``NotebookFold`` builds the whole notebook and takes one event at a time, so that a running session processes each event
once. Every event type has a rule in ``RULES``. A test fails if one is missing.

A cell gets its place in the notebook when it starts, or when it ends without a start. Notes in Markdown between cells
tell an auditor about deaths and restores of the kernel, restarts, rollbacks and changed files. A finished cell takes
late output (of a background task) until the next one ends. Later output becomes an entry of its own. So a settled entry
changes only by a ``Patch``: a mark that the cell was undone, or new content of a display.

``take`` returns settled entries to the writer of the file and forgets them, which keeps the memory of a long session
constant.

The texts of notes are part of cell digests (``model.audit``): a changed text would make verification of exported
notebooks against their journals fail.
"""

from __future__ import annotations

import html
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from msgspec import UNSET

from kernelsvc.model import events as ev
from kernelsvc.model.cell_fold import CellFold, NbCell, nb_id
from kernelsvc.model.events import Event, Reason
from kernelsvc.model.limits import Limits
from kernelsvc.model.outputs import DisplayUpdate, Outputs, size_of

__all__ = ["RULES", "CellFold", "NbCell", "NotebookFold", "Patch", "fold", "inherited", "nb_id", "notebook"]

#: Display ids of settled cells that can still be updated. Older ones can't.
DISPLAYS_KEPT = 1000
#: Number of cells that an entry of late output names.
LATE_CELLS = 16
#: Characters of patches after which ``heavy`` is true.
HEAVY = 1 << 20
#: Characters of a program's command line in its note. The log has all of it.
MAX_COMMAND = 500


class Note:
    """A Markdown cell of the server."""

    def __init__(self, text: str, event: Event, seq: int) -> None:
        self.first = self.last = seq
        self.text = text
        self._at = event.at
        self._type = type(event).__name__

    def nb_cell(self) -> NbCell:
        """Return the note in the notebook's form."""
        own = {"note": self._type, "seq": {"first": self.first, "last": self.last}, "at": self._at}
        return {
            "cell_type": "markdown",
            "id": f"kernelsvc-note-{self.first}",
            "metadata": {"kernelsvc": own},
            "source": f"> **kernelsvc:** {self.text}",
        }


class Late:
    """Output of background tasks after the end of their cells."""

    def __init__(self, budget: int | None, seq: int) -> None:
        self.cells: dict[str, None] = {}
        self.first = self.last = seq
        self.outputs = Outputs(budget)

    def feed(self, event: Event, seq: int) -> None:
        """Add one output event."""
        self.last = seq
        if isinstance(event.cell, str) and len(self.cells) < LATE_CELLS:
            self.cells[event.cell] = None
        self.outputs.feed(event)

    def nb_cell(self) -> NbCell:
        """Return the output as a cell without code."""
        own = {"late_output_of": list(self.cells), "seq": {"first": self.first, "last": self.last}}
        return {
            "cell_type": "code",
            "execution_count": None,
            "id": f"kernelsvc-late-{self.first}",
            "metadata": {"kernelsvc": own},
            "outputs": self.outputs.render("; the journal holds all of it"),
            "source": f"# output that came after its cell had ended: {', '.join(self.cells) or 'of no cell'}",
        }


Entry = CellFold | Note | Late


class Patch(msgspec.Struct, frozen=True, kw_only=True):
    """A change of an entry that ``take`` has returned: an undone mark ({} removes it), or a display's new content."""

    id: str
    undone: dict[str, Any] | None = None
    output: int | None = None
    data: dict[str, Any] = {}
    metadata: dict[str, Any] = {}

    def apply(self, cell: NbCell) -> None:
        """Change a notebook cell in place. A patch that does not fit changes nothing."""
        if self.undone:
            cell["metadata"]["kernelsvc"]["undone"] = self.undone
            cell["metadata"]["tags"] = sorted({*cell["metadata"].get("tags", ()), "undone"})
        elif self.undone is not None:
            cell["metadata"]["kernelsvc"].pop("undone", None)
            left = [tag for tag in cell["metadata"].pop("tags", ()) if tag != "undone"]
            cell["metadata"] |= {"tags": left} if left else {}
        if self.output is not None and self.output < len(cell.get("outputs", ())):
            cell["outputs"][self.output] |= {"data": self.data, "metadata": self.metadata}


class NotebookFold:
    """A session's notebook, built one event at a time.

    Attributes:
        started: The session's first event.
        last_seq: Number of the last event.
    """

    def __init__(self) -> None:
        self.started = ev.SessionStarted()
        self.last_seq = 0
        self.last_at = ""
        self.closed: str | None = None
        self._kernel = ev.KernelInfo()
        self._entries: list[Entry] = []
        self._waiting: dict[str, CellFold] = {}
        self._open: dict[str, CellFold] = {}
        self._last_finished: str | None = None
        self._seen: set[str] = set()
        self._silent: set[str] = set()
        #: The note on a kernel's death, until its successor is there: one note says all of it.
        self._death: Note | None = None
        self._displays: OrderedDict[str, list[tuple[str, int]]] = OrderedDict()
        self._patches: dict[tuple[str, int | None], Patch] = {}
        self._patch_size = 0

    @property
    def limits(self) -> Limits:
        """The session's limits."""
        return self.started.limits

    def feed(self, event: Event) -> None:
        """Add the session's next event."""
        self.last_seq, self.last_at = event.seq or self.last_seq + 1, event.at or self.last_at
        rule = RULES[type(event)]
        if rule is not None:
            rule(self, event)

    # -- rules ------------------------------------------------------------------

    def _on_session_started(self, event: Event) -> None:
        assert isinstance(event, ev.SessionStarted)
        self.started, self._kernel = event, event.kernel

    def _on_session_closed(self, event: Event) -> None:
        assert isinstance(event, ev.SessionClosed)
        self.closed, self._death = event.reason or "closed", None

    def _on_queued(self, event: Event) -> None:
        assert isinstance(event, ev.CellQueued)
        if not isinstance(event.cell, str) or event.cell in self._seen:
            return
        self._seen.add(event.cell)
        self._waiting[event.cell] = fold = CellFold(self.limits.output_bytes)
        fold.feed(event)
        if event.silent:
            self._silent.add(event.cell)

    def _on_cell_event(self, event: Event) -> None:
        """Add an event to the cell that it names. It creates no entry."""
        fold = self._find(event)
        if fold is not None and (fold.finished is None or not isinstance(event, ev.CellStarted)):
            fold.feed(event)

    def _find(self, event: Event) -> CellFold | None:
        """Return the open cell of an event. A waiting cell gets its place in the notebook now."""
        cell = event.cell
        if not isinstance(cell, str):
            return None
        # The order of cells is the order of their starts.
        waiting = self._waiting.pop(cell, None)
        if waiting is not None:
            self._open[cell] = waiting
            if not waiting.queued.silent:
                self._entries.append(waiting)
        return self._open.get(cell)

    def _on_output(self, event: Event) -> None:
        fold = self._find(event)
        if fold is not None:
            fold.feed(event)
        elif event.cell not in self._silent:
            self._late().feed(event, self.last_seq)

    def _late(self) -> Late:
        last = self._entries[-1] if self._entries else None
        if not isinstance(last, Late):
            last = Late(self.limits.output_bytes, self.last_seq)
            self._entries.append(last)
        return last

    def _on_display_updated(self, event: Event) -> None:
        assert isinstance(event, ev.DisplayUpdated)
        if event.display_id is None:
            return
        update, budget = DisplayUpdate(event), self.limits.output_bytes
        for entry in self._entries:
            if not isinstance(entry, Note):
                entry.outputs.update(update)
        places = self._displays.get(event.display_id, ())
        if places:
            output = update.content(None if budget is None else budget // 2)
            metadata = output["metadata"]
            self._patch_size += size_of(output)
            for cell, place in places:
                self._patches[cell, place] = Patch(id=cell, output=place, data=output["data"], metadata=metadata)

    def _on_finished(self, event: Event) -> None:
        assert isinstance(event, ev.CellFinished)
        fold = self._find(event)
        if fold is None or fold.finished is not None:
            return
        fold.feed(event)
        if self._last_finished is not None:
            self._open.pop(self._last_finished, None)
        self._last_finished = fold.id
        texts = []
        if event.reason not in (Reason.OK, Reason.ERROR):
            texts.append(f"the cell above ended: {event.reason}. {_plain(event.message or '')}")
        if fold.calls is not None and (calls := fold.calls.note()):
            texts.append(f"{_plain(calls)}.")
        if not texts or fold.queued.silent:
            return
        if self._death is not None and event.reason is not Reason.CANCELLED:
            # The reason of the cell's end names the cause of the death.
            self._death.text, self._death.last = " ".join(texts), self.last_seq
        else:
            self._note(event, " ".join(texts))

    def _note(self, event: Event, text: str) -> Note:
        note = Note(text.strip(), event, self.last_seq)
        self._entries.append(note)
        return note

    def _on_kernel_died(self, event: Event) -> None:
        assert isinstance(event, ev.KernelDied)
        self._death = self._note(event, f"the kernel died ({_plain(event.cause)}). {_plain(event.message)}")

    def _on_successor(self, event: Event, text: str) -> None:
        """Say which kernel came next, in the note on the death if there is one."""
        death, self._death = self._death, None
        if death is None:
            self._note(event, text)
        else:
            end = "" if death.text.endswith(".") else "."
            death.text, death.last = f"{death.text}{end} {text[0].upper()}{text[1:]}", self.last_seq

    def _on_kernel_restored(self, event: Event) -> None:
        assert isinstance(event, ev.KernelRestored)
        after = f" as they were after cell {_plain(event.after_cell)}" if event.after_cell else ""
        self._on_successor(event, f"a checkpoint was woken: the variables are back{after}.")

    def _on_kernel_restarted(self, event: Event) -> None:
        assert isinstance(event, ev.KernelRestarted)
        self._kernel = event.kernel
        why = "" if self._death is not None else f" {_plain(event.why)}"
        self._on_successor(event, f"the kernel was restarted; its variables are empty.{why}")

    def _on_rolled_back(self, event: Event) -> None:
        assert isinstance(event, ev.RolledBack)
        for cell in event.undone:
            self._undo(cell, {"seq": event.seq, "at": event.at, "to": event.to})
        for cell in event.redone:
            self._undo(cell, {})
        after = f"after cell {_plain(event.after_cell)}" if event.after_cell else "at the start"
        undone = f" {len(event.undone)} cells above are undone; they stay on record." if event.undone else ""
        redone = f" {len(event.redone)} cells that were undone stand again." if event.redone else ""
        self._note(event, f"rolled back: the variables are as they were {after}.{undone}{redone}")

    def _undo(self, cell: str, mark: dict[str, Any]) -> None:
        for entry in self._entries:
            if isinstance(entry, CellFold) and entry.id == cell:
                entry.undone = mark
                return
        if cell in self._seen and cell not in self._waiting and cell not in self._silent:
            self._patches[nb_id(cell), None] = Patch(id=nb_id(cell), undone=mark)

    def _on_limit(self, event: Event) -> None:
        assert isinstance(event, ev.LimitReached)
        # A limit that a cell reached is in the message of the cell's end.
        if event.cell is UNSET:
            self._note(event, f"limit reached: {_plain(event.limit)}. {_plain(event.message)}")

    def _on_denied(self, event: Event) -> None:
        assert isinstance(event, ev.EgressDenied)
        if event.cell is UNSET:
            self._note(event, _plain(event.message))
        else:
            self._on_cell_event(event)

    def _on_held(self, event: Event) -> None:
        assert isinstance(event, ev.SessionHeld)
        does = "no longer wait" if event.mode == "off" else "wait"
        self._note(event, f"cells {does} for a person, by {_plain(event.by)}.")

    def _on_decided(self, event: Event) -> None:
        # It has a place in the notebook when it starts or ends.
        if isinstance(event.cell, str) and (waiting := self._waiting.get(event.cell)) is not None:
            waiting.feed(event)

    def _on_files(self, event: Event) -> None:
        assert isinstance(event, ev.FilesChanged)
        names = [_plain(str(f.get("path") or f.get("name") or "?")) for f in event.files[:20]]
        more = f" and {len(event.files) - 20} more" if len(event.files) > 20 else ""
        self._note(event, f"files changed through the API: {', '.join(names)}{more}.")

    def _on_program(self, event: Event) -> None:
        assert isinstance(event, ev.ProgramStarted)
        line = " ".join(event.argv)
        cut = "…" if len(line) > MAX_COMMAND else ""
        self._note(event, f"a program was run beside the kernel: {_plain(line[:MAX_COMMAND])}{cut}")

    def _on_hibernated(self, event: Event) -> None:
        assert isinstance(event, ev.Hibernated)
        self._note(event, f"hibernated: {event.saved} variables saved.{_lost(event.lost)}")

    def _on_woken(self, event: Event) -> None:
        assert isinstance(event, ev.Woken)
        self._note(event, f"woken: the saved variables are back.{_lost(event.lost)}")

    def _on_branched(self, event: Event) -> None:
        assert isinstance(event, ev.Branched)
        names = ", ".join(_plain(s) for s in event.sessions[:20])
        self._note(event, f"branched into {len(event.sessions)} sessions: {names}.")

    # -- results --------------------------------------------------------------------

    def take(self) -> list[NbCell]:
        """Return the settled cells at the start, in order, and forget them."""
        count = 0
        while count < len(self._entries) and self._settled(count):
            count += 1
        taken, self._entries = self._entries[:count], self._entries[count:]
        for entry in taken:
            self._remember_displays(entry)
        return [entry.nb_cell() for entry in taken]

    def _settled(self, index: int) -> bool:
        entry = self._entries[index]
        if isinstance(entry, CellFold):
            return entry.id not in self._open
        if isinstance(entry, Note):
            return entry is not self._death
        return index + 1 < len(self._entries)

    def _remember_displays(self, entry: Entry) -> None:
        if isinstance(entry, Note):
            return
        where = nb_id(entry.id) if isinstance(entry, CellFold) else f"kernelsvc-late-{entry.first}"
        for display_id, place in entry.outputs.display_ids():
            self._displays.setdefault(display_id, []).append((where, place))
            self._displays.move_to_end(display_id)
            del self._displays[display_id][:-16]
        while len(self._displays) > DISPLAYS_KEPT:
            self._displays.popitem(last=False)

    def take_patches(self) -> list[Patch]:
        """Return changes of entries that ``take`` has returned, the last one for each place, and forget them."""
        patches, self._patches, self._patch_size = list(self._patches.values()), {}, 0
        return patches

    @property
    def heavy(self) -> bool:
        """Whether ``take`` and ``take_patches`` should be called soon, to limit memory."""
        return self._patch_size > HEAVY

    def rest(self) -> list[NbCell]:
        """Return the cells that ``take`` has not returned: open ones, then waiting ones."""
        waiting = [f for f in self._waiting.values() if not f.queued.silent]
        return [entry.nb_cell() for entry in (*self._entries, *waiting)]

    def _on_not_as_written(self, event: Event) -> None:
        assert isinstance(event, ev.NotAsWritten)
        if not self.closed:  # At the end it stands in for the signature.
            text = f"**not as written**: entries {event.first} to {event.last} of the log. {_plain(event.message)}"
            self._note(event, text)

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of the notebook."""
        started = self.started
        own = {
            "session": started.session,
            "name": started.name,
            "template": started.template,
            "principal": started.principal,
            "labels": started.labels,
            "created_at": started.at,
            "updated_at": self.last_at,
            "closed": self.closed,
            "versions": started.versions,
            "parent": started.parent,
            "sandbox": msgspec.to_builtins(started.sandbox),
            "limits": msgspec.to_builtins(started.limits),
            "last_seq": self.last_seq,
        }
        return {**_language(started, self._kernel), "kernelsvc": own}


def _language(started: ev.SessionStarted, kernel: ev.KernelInfo) -> dict[str, Any]:
    language = kernel.language or "python"
    if language != "python":
        name = started.template or language
        return {
            "kernelspec": {"name": name, "display_name": name, "language": language},
            "language_info": {"name": language},
        }
    name = started.template if kernel.kind == "cold" and started.template else "python3"
    info = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python", "pygments_lexer": "ipython3"}
    version = re.match(r"\d+(\.\d+)*", started.versions.get("python") or kernel.python)
    return {
        "kernelspec": {"name": name, "display_name": "Python 3 (ipykernel)", "language": "python"},
        "language_info": {**info, "version": version.group()} if version else info,
    }


def _plain(text: str) -> str:
    """Return text on one line, shortened and escaped for Markdown and HTML."""
    flat = " ".join(text.split())
    return re.sub(
        r"([\\`*_\[\]#|~])", r"\\\1", html.escape(flat if len(flat) <= 500 else flat[:500] + " …", quote=False)
    )


def _lost(lost: dict[str, str]) -> str:
    return f" Not saved: {', '.join(_plain(n) for n in sorted(lost)[:50])}." if lost else ""


Rule = Callable[[NotebookFold, Event], None]

#: Rule of each event type. None: no effect, on purpose.
RULES: dict[type[Event], Rule | None] = {
    ev.SessionStarted: NotebookFold._on_session_started,
    ev.SessionClosed: NotebookFold._on_session_closed,
    ev.KernelDied: NotebookFold._on_kernel_died,
    ev.KernelRestored: NotebookFold._on_kernel_restored,
    ev.KernelRestarted: NotebookFold._on_kernel_restarted,
    ev.SessionAdopted: None,
    ev.LimitReached: NotebookFold._on_limit,
    ev.Egress: None,
    ev.NetworkChanged: None,
    ev.EgressDenied: NotebookFold._on_denied,
    ev.PortShared: None,
    ev.PortUnshared: None,
    ev.PortUsed: None,
    ev.ClientAttached: None,
    ev.ClientDetached: None,
    ev.FilesChanged: NotebookFold._on_files,
    ev.ProgramStarted: NotebookFold._on_program,
    ev.ProgramEnded: None,
    ev.JournalSigned: None,
    ev.NotAsWritten: NotebookFold._on_not_as_written,
    ev.CellQueued: NotebookFold._on_queued,
    ev.CellStarted: NotebookFold._on_cell_event,
    ev.Stream: NotebookFold._on_output,
    ev.Display: NotebookFold._on_output,
    ev.DisplayUpdated: NotebookFold._on_display_updated,
    ev.OutputCleared: NotebookFold._on_cell_event,
    ev.Result: NotebookFold._on_output,
    ev.Error: NotebookFold._on_output,
    ev.Comm: None,
    ev.DebugEvent: None,
    ev.OutputTruncated: NotebookFold._on_cell_event,
    ev.ReplyRepeated: None,
    ev.InputRequested: NotebookFold._on_cell_event,
    ev.InputGiven: NotebookFold._on_cell_event,
    ev.Interrupted: None,
    ev.CellFinished: NotebookFold._on_finished,
    ev.SessionHeld: NotebookFold._on_held,
    ev.CellHeld: None,
    ev.CellDecided: NotebookFold._on_decided,
    ev.CheckpointMade: None,
    ev.CheckpointSkipped: None,
    ev.CheckpointDropped: None,
    ev.RolledBack: NotebookFold._on_rolled_back,
    ev.Branching: None,
    ev.Branched: NotebookFold._on_branched,
    ev.Hibernated: NotebookFold._on_hibernated,
    ev.Woken: NotebookFold._on_woken,
    ev.Leased: None,
    ev.ModelAnswered: None,
    ev.ToolsOffered: None,
    ev.ToolCalled: NotebookFold._on_cell_event,
    ev.ToolDecided: NotebookFold._on_cell_event,
    ev.ToolReturned: NotebookFold._on_cell_event,
    ev.ToolProgress: None,
}


def inherited(cell: NbCell, session: str) -> NbCell:
    """Return a parent's cell for its branch's notebook: marked, with its own id."""
    own = {"parent": session, **cell["metadata"].get("kernelsvc", {})}
    return {**cell, "id": nb_id(cell["id"], session=session), "metadata": {**cell["metadata"], "kernelsvc": own}}


def notebook(cells: list[NbCell], metadata: dict[str, Any]) -> dict[str, Any]:
    """Return cells and metadata as an nbformat 4.5 document."""
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def fold(events: Iterable[Event], parent: Iterable[NbCell] = ()) -> dict[str, Any]:
    """Return a session's whole notebook.

    Args:
        events: All events of the session, in order.
        parent: For a branch, the parent's cells up to the fork (``inherited``).
    """
    whole = NotebookFold()
    for event in events:
        whole.feed(event)
    return notebook([*parent, *whole.rest()], whole.metadata())
