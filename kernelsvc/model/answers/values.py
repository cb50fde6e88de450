"""Values of an answer: parts of a model's output, items of a conversation, faults. They have no vendor's format."""

from __future__ import annotations

from typing import Literal

import msgspec

ItemStatus = Literal["in_progress", "completed", "incomplete", "failed"]

# --- the output of a model, in the order in which it arrives ---------------------------


class TextPiece(msgspec.Struct, frozen=True):
    """More text for the user."""

    text: str


class ReasoningPiece(msgspec.Struct, frozen=True):
    """More of the model's reasoning."""

    text: str


class CallBegan(msgspec.Struct, frozen=True, kw_only=True):
    """The model calls a tool. Its name is known, its arguments follow.

    Attributes:
        key: Number of the call within its turn.
        call_id: The model server's id of the call, which its result must repeat.
        name: Name of the tool.
        runs_code: Whether the tool is the code interpreter. Otherwise it is a function of the client.
    """

    key: int
    call_id: str
    name: str
    runs_code: bool


class ArgumentsPiece(msgspec.Struct, frozen=True):
    """More of a call's input: of the code for the interpreter, of the JSON text for a function."""

    key: int
    text: str


class CallEnded(msgspec.Struct, frozen=True, kw_only=True):
    """The input of a call is complete.

    Attributes:
        key: Number of the call within its turn.
        arguments: Its arguments as the model wrote them.
        code: The code to run. None if the arguments hold none.
        problem: Why they hold none, for the model.
    """

    key: int
    arguments: str
    code: str | None = None
    problem: str = ""


ModelPiece = TextPiece | ReasoningPiece | CallBegan | ArgumentsPiece | CallEnded


class TokenUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of tokens."""

    input: int = 0
    output: int = 0
    cached: int = 0
    reasoning: int = 0

    def plus(self, other: TokenUsage) -> TokenUsage:
        """Return the sum of both."""
        return TokenUsage(
            input=self.input + other.input,
            output=self.output + other.output,
            cached=self.cached + other.cached,
            reasoning=self.reasoning + other.reasoning,
        )


class ModelFault(msgspec.Struct, frozen=True, kw_only=True):
    """Why a model did not answer.

    Attributes:
        code: Machine-readable, such as ``rate_limit_exceeded``.
        message: For the user. It names neither the address nor the key of the model's server.
        http_status: Status of a response that has not begun.
        retry_after: Seconds after which the model's server may answer, as its header says.
        repeatable: Whether the same request may succeed immediately, as after a refused connection.
    """

    code: str
    message: str
    http_status: int = 502
    retry_after: str | None = None
    repeatable: bool = False


# --- a conversation --------------------------------------------------------------------


class Picture(msgspec.Struct, frozen=True):
    """A picture as a data URI."""

    url: str


class InputMessage(msgspec.Struct, frozen=True, kw_only=True, tag="input"):
    """A message that the client sent."""

    role: Literal["user", "assistant", "system"]
    text: str
    pictures: list[Picture] = []
    id: str = ""


class ReasoningItem(msgspec.Struct, kw_only=True, tag="reasoning"):
    """A model's reasoning before a message or a call. ``sealed`` is the text encrypted for the client, or ""."""

    id: str
    turn: int = 0
    status: ItemStatus = "in_progress"
    text: str = ""
    sealed: str = ""


class Citation(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the container that a message names. ``start`` and ``end`` are positions in its text, or both 0."""

    path: str
    start: int = 0
    end: int = 0


class MessageItem(msgspec.Struct, kw_only=True, tag="message"):
    """A message of the model."""

    id: str
    turn: int = 0
    status: ItemStatus = "in_progress"
    text: str = ""
    citations: list[Citation] = []


class CodeItem(msgspec.Struct, kw_only=True, tag="code"):
    """A call of the code interpreter. Its id is the id of the cell, so that a repeated request does not run it again.

    Attributes:
        id: Of the item and of the cell.
        call_id: The model server's id of the call.
        code: The code.
        arguments: The arguments as the model wrote them.
        container: Id of the container.
        result: Text that the model reads.
        pictures: Number of pictures that the cell made.
        ran: Whether a cell ran.
        shown: Whether clients see it. An attempt above ``max_tool_calls`` is answered, and is no item.
    """

    id: str
    call_id: str = ""
    turn: int = 0
    status: ItemStatus = "in_progress"
    code: str = ""
    arguments: str = ""
    container: str = ""
    result: str = ""
    pictures: int = 0
    ran: bool = False
    shown: bool = True


class FunctionItem(msgspec.Struct, kw_only=True, tag="function"):
    """A call of one of the client's own functions."""

    id: str
    call_id: str
    name: str
    turn: int = 0
    status: ItemStatus = "in_progress"
    arguments: str = ""


class FunctionResult(msgspec.Struct, frozen=True, kw_only=True, tag="function_result"):
    """The result of a function, from the client."""

    call_id: str
    output: str
    id: str = ""


class ItemReference(msgspec.Struct, frozen=True, kw_only=True, tag="reference"):
    """An item of an earlier response, by its id. The service replaces it before the first turn."""

    id: str


class ServerNote(msgspec.Struct, frozen=True, kw_only=True, tag="note"):
    """A message of this server to the model. Clients do not see it."""

    text: str


OutputItem = ReasoningItem | MessageItem | CodeItem | FunctionItem
Entry = OutputItem | InputMessage | FunctionResult | ItemReference | ServerNote


def is_shown(entry: Entry) -> bool:
    """Return whether an entry is an item of a response's output."""
    return isinstance(entry, ReasoningItem | MessageItem | FunctionItem) or (
        isinstance(entry, CodeItem) and entry.shown
    )


class CellOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a cell, for the model.

    Attributes:
        status: ``completed`` also for code that raised. ``failed`` if the kernel died.
        text: What the model reads.
        pictures: Number of pictures.
        ran: Whether the code has run.
    """

    status: Literal["completed", "failed", "incomplete"]
    text: str
    pictures: int = 0
    ran: bool = True
