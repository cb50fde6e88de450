"""The state machine of one answer: pieces of a model's output and ends of cells in, notices and effects out. Pure.

One turn is one call of the model. A turn with calls of the code interpreter is followed by another one, until a turn
has none, or a budget is used up. *Each call that the model made ends exactly once, with its cell's result or with the
reason why it did not run, before the model is asked again.*
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from kernelsvc.model.answers.values import (
    ArgumentsPiece,
    CallBegan,
    CallEnded,
    CellOutcome,
    CodeItem,
    Entry,
    FunctionItem,
    ItemStatus,
    MessageItem,
    ModelFault,
    ModelPiece,
    OutputItem,
    ReasoningItem,
    ReasoningPiece,
    ServerNote,
    TextPiece,
    TokenUsage,
    is_shown,
)

AnswerStatus = Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]
#: The same code with the same result so often adds a hint to the result, and so often ends the calls.
REPEATS_HINT, REPEATS_END = 3, 5

ONE_AT_A_TIME = "Not run: make one call at a time. Send this call again."
OVER_LIMIT = "Not run: the limit of tool calls is reached. Answer with the results that you have."
NO_MORE = "Answer now with the results that you have. The tools are not available any more."
CONTINUE = "Your answer was interrupted here. Continue it."
_HINT = "\n[This code has returned the same result {} times. Do something else, or answer.]"
_BUSY = "Not run: the answer has ended."


class AnswerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Budgets and rules of one answer. None is no limit of its own.

    Attributes:
        max_turns: Calls of the model.
        max_tool_calls: Cells.
        max_output_tokens: Tokens of all turns together.
        parallel: Whether a turn may have several calls.
        force: Whether the first turn must call a tool: the name of one, or ``required``. None leaves it to the model.
        tools: Whether the model may call tools at all.
    """

    max_turns: int = 30
    max_tool_calls: int | None = None
    max_output_tokens: int | None = None
    parallel: bool = True
    force: str | None = None
    tools: bool = True


# --- what follows ----------------------------------------------------------------------


class ItemAdded(msgspec.Struct, frozen=True):
    """A new item of the output."""

    index: int


class ItemGrew(msgspec.Struct, frozen=True):
    """More text of an item: of a message, reasoning, code or arguments."""

    index: int
    text: str


class InputComplete(msgspec.Struct, frozen=True):
    """The code of a call is complete, and its cell starts."""

    index: int


class ItemDone(msgspec.Struct, frozen=True):
    """An item is complete."""

    index: int


class AnswerEnded(msgspec.Struct, frozen=True):
    """The last notice. ``reason`` says why an answer is incomplete, ``fault`` why it failed."""

    status: AnswerStatus
    reason: str = ""
    fault: ModelFault | None = None


class AskModel(msgspec.Struct, frozen=True, kw_only=True):
    """Effect: start a turn.

    Attributes:
        turn: Its number, from 1.
        tools: Whether the model may call tools.
        force: As in ``AnswerLimits``.
        max_tokens: Tokens that are left.
    """

    turn: int
    tools: bool
    force: str | None
    max_tokens: int | None


class RunCell(msgspec.Struct, frozen=True):
    """Effect: run the code of an item as a cell with the item's id."""

    index: int


class CloseModel(msgspec.Struct, frozen=True):
    """Effect: close the connection to the model's server."""


class InterruptCells(msgspec.Struct, frozen=True):
    """Effect: interrupt the cells of this answer."""


Step = ItemAdded | ItemGrew | InputComplete | ItemDone | AnswerEnded | AskModel | RunCell | CloseModel | InterruptCells


class AnswerMachine:
    """The state of one answer.

    Args:
        limits: Budgets and rules.
        new_id: Makes an id with a prefix.

    Attributes:
        items: The output, as clients see it.
        transcript: The same with the attempts that did not become items, and notes. The model reads it again.
        usage: Tokens so far.
        turn: Number of the present turn.
    """

    def __init__(self, limits: AnswerLimits, new_id: Callable[[str], str]) -> None:
        self.items: list[OutputItem] = []
        self.transcript: list[Entry] = []
        self.usage = TokenUsage()
        self.turn = 0
        self.ended = False
        self._limits, self._new_id = limits, new_id
        self._asking = False
        # Whether the next turn must be the last one, and whether this one is.
        self._final = self._last = False
        self._text: int | None = None
        self._reasoning: int | None = None
        self._calls: dict[int, CodeItem | FunctionItem] = {}
        self._running: set[int] = set()
        self._cells = 0
        self._repeats: Counter[str] = Counter()

    # --- inputs --------------------------------------------------------------------------

    def begin(self) -> list[Step]:
        """Start the first turn."""
        return self._ask(self._limits.force)

    def resume(self, transcript: Sequence[Entry], usage: TokenUsage) -> list[Step]:
        """Continue an answer that a kill of the server has cut, in place of ``begin``.

        Complete items stay. A call whose input was complete is run: its cell has the item's id, so that one which has
        run or runs is joined. The rest of the turn is lost, and the model is asked again.

        Args:
            transcript: What was stored of the answer.
            usage: Tokens of the turns whose end was stored.
        """
        self.usage = usage
        for each in transcript:
            half = isinstance(each, OutputItem) and each.status == "in_progress"
            if half and not (isinstance(each, CodeItem) and each.shown and each.arguments):
                continue
            self.transcript.append(each)
            if isinstance(each, OutputItem) and is_shown(each):
                self.items.append(each)
                self.turn = max(self.turn, each.turn)
        last = [each for each in self.transcript if isinstance(each, OutputItem) and each.turn == self.turn]
        self._calls = dict(enumerate(each for each in last if isinstance(each, CodeItem | FunctionItem)))
        self._cells = sum(isinstance(each, CodeItem) for each in self.items)
        self._running = {number for number, each in enumerate(self.items) if each.status == "in_progress"}
        if self._running:
            return [RunCell(number) for number in sorted(self._running)]
        if self._calls:
            return self._after_turn()
        if last:
            self.transcript.append(ServerNote(text=CONTINUE))
        return self._ask(None if self.items else self._limits.force)

    def grows(self, piece: ModelPiece) -> bool:
        """Return whether a piece only adds to an item that is open, so that its steps have no effect."""
        match piece:
            case TextPiece():
                return self._text is not None
            case ReasoningPiece():
                return self._reasoning is not None
            case _:
                return isinstance(piece, ArgumentsPiece)

    def on_piece(self, piece: ModelPiece) -> list[Step]:
        """Take a part of the model's output. Parts that follow the end of the turn or the answer are dropped."""
        if self.ended or not self._asking:
            return []
        match piece:
            case TextPiece():
                return [*self._close_reasoning(), *self._grow_message(piece.text)]
            case ReasoningPiece():
                return [*self._close_message(), *self._grow_reasoning(piece.text)]
            case CallBegan():
                return [*self._close_reasoning(), *self._close_message(), *self._begin_call(piece)]
            case ArgumentsPiece():
                return self._grow_call(piece)
            case CallEnded():
                return self._end_call(piece)

    def on_turn_ended(self, usage: TokenUsage, *, cut: bool) -> list[Step]:
        """Take the end of the model's output.

        Args:
            usage: Tokens of this turn.
            cut: Whether the model reached a limit of tokens.
        """
        if self.ended or not self._asking:
            return []
        self._asking = False
        self.usage = self.usage.plus(usage)
        steps: list[Step] = [*self._close_reasoning(), *self._close_message(cut=cut)]
        for key, item in list(self._calls.items()):
            # A call without an end lacks a part of its input: it must not run.
            if item.status == "in_progress" and not self._is_running(item):
                if cut:
                    steps += self._finish(item, "incomplete")
                else:
                    steps += self._end_call(CallEnded(key=key, arguments=item.arguments, problem="it has no end"))
        if cut:
            return [*steps, *self._end("incomplete", "max_output_tokens")]
        return steps if self._running else [*steps, *self._after_turn()]

    def on_cell_ended(self, index: int, outcome: CellOutcome) -> list[Step]:
        """Take the end of a cell that ``RunCell`` started."""
        if self.ended or index not in self._running:
            return []
        self._running.discard(index)
        item = self.items[index]
        assert isinstance(item, CodeItem)
        item.result, item.pictures, item.ran = outcome.text, outcome.pictures, outcome.ran
        same = hashlib.sha256(f"{item.code}\0{outcome.text}".encode("utf-8", "surrogatepass")).hexdigest()
        self._repeats[same] += 1
        if self._repeats[same] >= REPEATS_HINT:
            item.result += _HINT.format(self._repeats[same])
        if self._repeats[same] >= REPEATS_END:
            self._final = True
        steps = self._finish(item, outcome.status)
        return steps if self._running or self._asking else [*steps, *self._after_turn()]

    def on_fault(self, fault: ModelFault) -> list[Step]:
        """End the answer, because the model, or the container, failed."""
        return [] if self.ended else self._stop("failed", fault=fault)

    def on_timeout(self) -> list[Step]:
        """End the answer, because its time is over."""
        return [] if self.ended else self._stop("incomplete", reason="max_messages")

    def on_cancel(self) -> list[Step]:
        """End the answer, because the client does not want it any more."""
        return [] if self.ended else self._stop("cancelled")

    @property
    def unfinished(self) -> bool:
        """Whether a call still lacks its end."""
        return any(each.status == "in_progress" for each in self._calls.values())

    # --- parts of the output -----------------------------------------------------------

    def _grow_message(self, text: str) -> list[Step]:
        steps: list[Step] = []
        if self._text is None:
            self._text, steps = self._add(MessageItem(id=self._new_id("msg"), turn=self.turn))
        item = self.items[self._text]
        assert isinstance(item, MessageItem)
        _append(item, "text", text)
        return [*steps, ItemGrew(self._text, text)]

    def _grow_reasoning(self, text: str) -> list[Step]:
        steps: list[Step] = []
        if self._reasoning is None:
            self._reasoning, steps = self._add(ReasoningItem(id=self._new_id("rs"), turn=self.turn))
        item = self.items[self._reasoning]
        assert isinstance(item, ReasoningItem)
        _append(item, "text", text)
        return [*steps, ItemGrew(self._reasoning, text)]

    def _close_message(self, *, cut: bool = False) -> list[Step]:
        if self._text is None:
            return []
        item, self._text = self.items[self._text], None
        return self._finish(item, "incomplete" if cut else "completed")

    def _close_reasoning(self) -> list[Step]:
        if self._reasoning is None:
            return []
        item, self._reasoning = self.items[self._reasoning], None
        return self._finish(item, "completed")

    # --- calls ---------------------------------------------------------------------------

    def _begin_call(self, piece: CallBegan) -> list[Step]:
        if piece.key in self._calls:
            return []
        if not piece.runs_code:
            item = FunctionItem(id=self._new_id("fc"), call_id=piece.call_id, name=piece.name, turn=self.turn)
            self._calls[piece.key] = item
            return self._add(item)[1]
        code = CodeItem(id=self._new_id("ci"), call_id=piece.call_id, turn=self.turn)
        others = [each for each in self._calls.values() if isinstance(each, CodeItem)]
        self._calls[piece.key] = code
        most = self._limits.max_tool_calls
        if self._final or not self._limits.tools or (most is not None and self._cells >= most):
            return self._hide(code, OVER_LIMIT)
        if others and not self._limits.parallel:
            return self._hide(code, ONE_AT_A_TIME)
        self._cells += 1
        return self._add(code)[1]

    def _hide(self, code: CodeItem, why: str) -> list[Step]:
        code.shown, code.result = False, why
        self.transcript.append(code)
        return []

    def _grow_call(self, piece: ArgumentsPiece) -> list[Step]:
        item = self._calls.get(piece.key)
        if item is None or item.status != "in_progress":
            return []
        if isinstance(item, FunctionItem):
            _append(item, "arguments", piece.text)
        else:
            _append(item, "code", piece.text)
            if not item.shown:
                return []
        return [ItemGrew(self._index(item), piece.text)]

    def _end_call(self, piece: CallEnded) -> list[Step]:
        item = self._calls.get(piece.key)
        if item is None or item.status != "in_progress" or self._is_running(item):
            return []
        item.arguments = piece.arguments
        if isinstance(item, FunctionItem):
            return self._finish(item, "completed")
        item.code = item.code if piece.code is None else piece.code
        if not item.shown:
            item.status = "completed"
            return []
        index = self._index(item)
        if piece.code is None:
            item.result = f"Not run: {piece.problem}"
            return [InputComplete(index), *self._finish(item, "failed")]
        self._running.add(index)
        return [InputComplete(index), RunCell(index)]

    # --- turns ---------------------------------------------------------------------------

    def _ask(self, force: str | None) -> list[Step]:
        self.turn += 1
        self._asking, self._calls, self._last = True, {}, self._final
        tools = self._limits.tools and not self._final
        left = self._limits.max_output_tokens
        left = None if left is None else left - self.usage.output
        return [AskModel(turn=self.turn, tools=tools, force=force if tools else None, max_tokens=left)]

    def _after_turn(self) -> list[Step]:
        calls = list(self._calls.values())
        answered = any(isinstance(each, MessageItem) and each.turn == self.turn for each in self.items)
        if not calls or any(isinstance(each, FunctionItem) for each in calls):
            return self._end("completed")
        if self._last:
            # The model called a tool although there is none. Another turn would do the same.
            return self._end("completed") if answered else self._end("incomplete", "max_messages")
        most = self._limits.max_output_tokens
        if most is not None and self.usage.output >= most:
            return self._end("incomplete", "max_output_tokens")
        cells = self._limits.max_tool_calls
        if self.turn + 1 >= self._limits.max_turns or (cells is not None and self._cells >= cells):
            self._final = True
        if self.turn >= self._limits.max_turns:
            return self._end("incomplete", "max_messages")
        if self._final:
            self.transcript.append(ServerNote(text=NO_MORE))
        # A forced call is forced once. Otherwise the model could never answer.
        return self._ask(None)

    def _stop(self, status: AnswerStatus, *, reason: str = "", fault: ModelFault | None = None) -> list[Step]:
        steps: list[Step] = [CloseModel()] if self._asking else []
        if self._running:
            steps.append(InterruptCells())
        self._asking, self._text, self._reasoning = False, None, None
        for item in list(self.items):
            if item.status == "in_progress":
                if isinstance(item, CodeItem) and self._is_running(item):
                    item.ran = True  # the session's log has its result
                elif isinstance(item, CodeItem) and not item.result:
                    item.result = _BUSY
                steps += self._finish(item, "incomplete")
        self._running.clear()
        return [*steps, *self._end(status, reason, fault)]

    def _end(self, status: AnswerStatus, reason: str = "", fault: ModelFault | None = None) -> list[Step]:
        self.ended = True
        return [AnswerEnded(status, reason, fault)]

    # --- items ---------------------------------------------------------------------------

    def _add(self, item: OutputItem) -> tuple[int, list[Step]]:
        self.items.append(item)
        self.transcript.append(item)
        return len(self.items) - 1, [ItemAdded(len(self.items) - 1)]

    def _finish(self, item: OutputItem, status: ItemStatus) -> list[Step]:
        item.status = status
        return [ItemDone(self._index(item))] if not isinstance(item, CodeItem) or item.shown else []

    def _index(self, item: OutputItem) -> int:
        return next(number for number, each in enumerate(self.items) if each is item)

    def _is_running(self, item: CodeItem | FunctionItem) -> bool:
        return isinstance(item, CodeItem) and item.shown and self._index(item) in self._running


def _append(item: OutputItem, field: str, piece: str) -> None:
    """Append to a text of an item. CPython appends in place if a local variable has the only reference to the text.

    ``item.text += piece`` copies the text: 8 MiB in pieces of 200 characters take 20 s.
    """
    text: str = getattr(item, field)
    setattr(item, field, "")
    text += piece
    setattr(item, field, text)
