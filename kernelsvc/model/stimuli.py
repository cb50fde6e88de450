"""Stimuli, the causes of a session's transitions, and effects, the actions that the session must then carry out.

Both are plain values. ``Machine.decide`` turns a stimulus into a ``Decision``, which contains events and effects. They
are msgspec structs, because each cell makes about ten, and a frozen dataclass sets each field by a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from kernelsvc.model.events import Event, Reason, ToolReturned
from kernelsvc.model.objects import CellRequest
from kernelsvc.model.tool_calls.offers import Approval, CallStatus, Offer

# --- stimuli --------------------------------------------------------------------


class Submit(msgspec.Struct, frozen=True):
    """A client sends cells. The session accepts all or none. The client or the session chose the ``ids``."""

    requests: tuple[CellRequest, ...]
    ids: tuple[str, ...]
    principal: str = ""


class CellBegan(msgspec.Struct, frozen=True):
    """The kernel reports that it runs a cell."""

    cell: str
    execution_count: int | None
    frame: int | None = None


class KernelReplied(msgspec.Struct, frozen=True):
    """The kernel's ``execute_reply``.

    Attributes:
        outputs: the cell's last outputs, which are journaled together with its end.
    """

    cell: str
    status: str
    execution_count: int | None = None
    ename: str = ""
    evalue: str = ""
    traceback: tuple[str, ...] = ()
    cpu_ms: float | None = None
    peak_rss_bytes: int | None = None
    frame: int | None = None
    struck: str = ""  # limit that its exception names (``limit_causes``)
    expressions: Mapping[str, Any] = {}  # name -> MIME bundle or error
    model: tuple[str, ...] = ()  # traceback for language models
    changes: Mapping[str, list[str]] | None = None  # kind of change -> descriptions
    room: int | None = None  # size of the scratch space that was full, bytes
    outputs: tuple[Event, ...] = ()


class KernelIdle(msgspec.Struct, frozen=True):
    """The kernel's idle status for a cell."""

    cell: str
    frame: int | None = None


class KernelExited(msgspec.Struct, frozen=True):
    """The kernel's process has ended.

    Attributes:
        restorable: whether a checkpoint's process can replace it.
    """

    cause: str
    message: str
    signal: int | None = None
    exit_code: int | None = None
    restorable: bool = False


class KernelReady(msgspec.Struct, frozen=True):
    """A kernel is ready: a new one, a resumed checkpoint, or one that an earlier server started.

    Attributes:
        event: records how it was started or resumed.
        ordered: whether its messages arrive in one order (``kernels.port``).
    """

    event: Event
    ordered: bool = False


class JournalReplayed(msgspec.Struct, frozen=True):
    """A new server has rebuilt the session. The time without a server does not count as idle time."""


class DeliveryKnown(msgspec.Struct, frozen=True):
    """A new server knows which cells the earlier server sent.

    Attributes:
        received: cells that the kernel has received, or may have received. Such a cell must not run twice.
        ordered: as in ``KernelReady``.
    """

    received: frozenset[str]
    ordered: bool = False


class StartFailed(msgspec.Struct, frozen=True):
    """No kernel could be started."""

    message: str


class Interrupt(msgspec.Struct, frozen=True):
    """Stop the running cell, which then ends with ``reason``."""

    why: str = "requested"
    reason: Reason = Reason.INTERRUPTED
    by: str = ""


class Hold(msgspec.Struct, frozen=True):
    """Hold cells back until a person decides about each (``mode`` is "ask"), or let go (``off``).

    Attributes:
        seconds: time that a held cell waits.
        then: what happens to it after that time.
    """

    mode: Literal["off", "ask"]
    seconds: float
    then: Literal["refuse", "approve"]
    by: str = ""


class DecideCells(msgspec.Struct, frozen=True):
    """A person decides about held cells."""

    cells: tuple[str, ...]
    decision: Literal["approve", "refuse"]
    reason: str | None = None
    by: str = ""


class Restart(msgspec.Struct, frozen=True):
    """Replace the kernel by a new one with empty variables."""

    why: str = "requested"


class Answer(msgspec.Struct, frozen=True):
    """A client answers the running cell, which waits for it (``MachineState.waiting_for``)."""

    cell: str
    text: str
    by: str = ""


class AnswerLost(msgspec.Struct, frozen=True):
    """The kernel has not received the last answer in the journal: the earlier server ended before it sent it."""


class BeginProgram(msgspec.Struct, frozen=True):
    """A program is about to start in the session's container. The session does not hibernate before it has ended.

    Attributes:
        number: below 0. Identifies the start until the program has a pid.
    """

    number: int


class ProgramBegun(msgspec.Struct, frozen=True):
    """The start of a program has succeeded, with its event in the log, or has failed."""

    number: int


class Resume(msgspec.Struct, frozen=True):
    """Start a kernel with the saved variables for a hibernated session."""


class BeginSwitch(msgspec.Struct, frozen=True):
    """The session is about to replace or end its kernel (rollback, hibernation). Illegal while a cell runs or waits."""


class AbortSwitch(msgspec.Struct, frozen=True):
    """The rollback or hibernation failed. The session keeps its kernel."""


class StateSaved(msgspec.Struct, frozen=True):
    """The variables are saved and the kernel has ended."""

    event: Event


class Close(msgspec.Struct, frozen=True):
    """End the session."""

    reason: str
    by: str = ""


class Tick(msgspec.Struct, frozen=True):
    """Time has passed."""


class CheckOutputLimit(msgspec.Struct, frozen=True):
    """Output was journaled and may exceed the limit of the log."""


class RecordEvents(msgspec.Struct, frozen=True):
    """Events to journal that need no decision."""

    events: tuple[Event, ...]


class ToolRequested(msgspec.Struct, frozen=True):
    """Code in the session calls a client's function.

    Attributes:
        call: its id.
        tool: the function's full name.
        arguments: what the log may contain of the arguments.
        redacted: JSON pointers of the omitted parts.
        size: bytes of all arguments.
        cell: the cell that calls.
        offer: the function's offer. None if there is none, or if it may not be called.
        provider: id of the client that carries it out. Empty if none is connected.
        refusal: why it may not be called.
        approval: when a person must approve it. The server's settings may ask for more than the offer.
        parent_call: the call whose function runs this cell.
        frame: number of the kernel's frame.
        cell_runs: whether the cell still runs. Code of a later cell can name an ended one as its own, so an approval
            for a cell ends with it.
        recorded: the end of an earlier call whose result this one gets.
    """

    call: str
    tool: str
    arguments: Any
    redacted: tuple[str, ...]
    size: int
    cell: str | None
    offer: Offer | None
    provider: str = ""
    refusal: str = ""
    approval: Approval = "never"
    parent_call: str | None = None
    frame: int | None = None
    cell_runs: bool = True
    recorded: ToolReturned | None = None


class CallsDecided(msgspec.Struct, frozen=True):
    """A person approves or denies calls that wait for a decision.

    Attributes:
        remember: for which further calls of the same tools the approval holds.
    """

    calls: tuple[str, ...]
    approve: bool
    by: str
    reason: str | None = None
    remember: Literal["cell", "session"] | None = None


class CallAnswered(msgspec.Struct, frozen=True):
    """The provider has carried out a call, or failed to."""

    call: str
    status: Literal["ok", "error"]
    value: Any = None
    size: int = 0
    error: dict[str, Any] | None = None
    form: Literal["", "content", "rows"] = ""


class CallFailed(msgspec.Struct, frozen=True):
    """The server ends a call: its provider is gone, or its result is too large."""

    call: str
    status: CallStatus
    message: str


class CallAbandoned(msgspec.Struct, frozen=True):
    """The code that waited for a call does not wait any more: it was interrupted, or its task was cancelled."""

    call: str
    frame: int | None = None


Stimulus = (
    Submit
    | CellBegan
    | KernelReplied
    | KernelIdle
    | KernelExited
    | KernelReady
    | JournalReplayed
    | DeliveryKnown
    | StartFailed
    | Answer
    | AnswerLost
    | BeginProgram
    | ProgramBegun
    | Resume
    | Interrupt
    | Hold
    | DecideCells
    | Restart
    | BeginSwitch
    | AbortSwitch
    | StateSaved
    | Close
    | Tick
    | CheckOutputLimit
    | RecordEvents
    | ToolRequested
    | CallsDecided
    | CallAnswered
    | CallFailed
    | CallAbandoned
)


# --- effects --------------------------------------------------------------------


class SendCell(msgspec.Struct, frozen=True):
    """Send the cell's code to the kernel."""

    cell: str


class AttachKernel(msgspec.Struct, frozen=True):
    """Send cells to this kernel from now on."""

    ordered: bool


class MarkSent(msgspec.Struct, frozen=True):
    """Treat the cell as running without sending it, because the kernel has received it."""

    cell: str


class MarkUnsent(msgspec.Struct, frozen=True):
    """Treat the running cell as not sent, because the kernel has not received it."""

    cell: str


class ResetClocks(msgspec.Struct, frozen=True):
    """Start idle time and grace time from now, and forget programs, which ended with the earlier server."""


class MarkProgram(msgspec.Struct, frozen=True):
    """Add a program that is being started to the running programs, or remove it if the start is ``over``."""

    number: int
    over: bool


class SendAnswer(msgspec.Struct, frozen=True):
    """Send a client's answer to the cell that waits for it.

    Attributes:
        msg_id: the message's id, by which an adopted kernel says that it has received it.
    """

    cell: str
    text: str
    msg_id: str


class AskAgain(msgspec.Struct, frozen=True):
    """Wait for another answer to the last question that was answered."""


class InterruptKernel(msgspec.Struct, frozen=True):
    """Send SIGINT. At ``kill_at`` (monotonic seconds) the kernel is killed if the cell still runs."""

    reason: Reason
    kill_at: float


class KillKernel(msgspec.Struct, frozen=True):
    """Send SIGKILL to all processes of the kernel. A ``KernelExited`` follows."""


class NoteReply(msgspec.Struct, frozen=True):
    """Keep the reply until the idle status arrives."""

    reply: KernelReplied


class NoteIdle(msgspec.Struct, frozen=True):
    """Keep the idle status until the reply arrives."""


class StartKernel(msgspec.Struct, frozen=True):
    """Replace the kernel by a new one."""

    why: str


class WakeCheckpoint(msgspec.Struct, frozen=True):
    """Resume the newest checkpoint in place of the dead kernel."""


class PauseQueue(msgspec.Struct, frozen=True):
    """Send no cell until a kernel is ready."""


class ResumeQueue(msgspec.Struct, frozen=True):
    """Send cells again."""


class Hibernate(msgspec.Struct, frozen=True):
    """Save the variables of an idle session and end its kernel."""


class ResumeSaved(msgspec.Struct, frozen=True):
    """Start a kernel and load the saved variables into it."""


class EndKernel(msgspec.Struct, frozen=True):
    """End the kernel and close the session's log."""


class DispatchCall(msgspec.Struct, frozen=True):
    """Give a call to its provider."""

    call: str


class DeliverResult(msgspec.Struct, frozen=True):
    """Send a call's result to the kernel.

    Attributes:
        returned: the end of the call, as in the log.
        value: the result, which the log may not contain.
    """

    returned: ToolReturned
    value: Any = None


class CancelCall(msgspec.Struct, frozen=True):
    """Tell the provider that no cell waits for a call any more."""

    call: str
    why: str


Effect = (
    SendCell
    | SendAnswer
    | AskAgain
    | AttachKernel
    | MarkSent
    | MarkUnsent
    | MarkProgram
    | ResetClocks
    | InterruptKernel
    | KillKernel
    | NoteReply
    | NoteIdle
    | StartKernel
    | WakeCheckpoint
    | PauseQueue
    | ResumeQueue
    | Hibernate
    | ResumeSaved
    | EndKernel
    | DispatchCall
    | DeliverResult
    | CancelCall
)


@dataclass
class Decision:
    """The events that happened and the effects that follow.

    Attributes:
        stimulus: the cause, None for events that are only recorded.
    """

    events: list[Event] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    stimulus: Stimulus | None = field(default=None, compare=False)
