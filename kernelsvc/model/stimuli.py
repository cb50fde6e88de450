"""Stimuli (what can happen to a session) and effects (what the session must then do): values only.

``Machine.decide`` turns a stimulus into a ``Decision``, which holds events and effects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kernelsvc.model.events import Event, Reason
from kernelsvc.model.objects import CellRequest

# --- stimuli: what may happen to a session ---------------------------------------


@dataclass(frozen=True)
class Submit:
    """A client sends cells, all or none. ``ids`` are chosen by the client or made by the session."""

    requests: tuple[CellRequest, ...]
    ids: tuple[str, ...]
    principal: str = ""


@dataclass(frozen=True)
class CellBegan:
    """The kernel reports that it runs a cell."""

    cell: str
    execution_count: int | None
    frame: int | None = None


@dataclass(frozen=True)
class KernelReplied:
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
    struck: str = ""  # the limit that its exception names (``limit_causes``)
    expressions: Mapping[str, Any] = field(default_factory=dict)  # the kernel's value for each
    room: int | None = None  # size of the scratch space that was full, bytes
    outputs: tuple[Event, ...] = ()


@dataclass(frozen=True)
class KernelIdle:
    """The kernel's idle status for a cell."""

    cell: str
    frame: int | None = None


@dataclass(frozen=True)
class KernelExited:
    """The kernel's process is gone.

    Attributes:
        restorable: a checkpoint's process waits to take its place.
    """

    cause: str
    message: str
    signal: int | None = None
    exit_code: int | None = None
    restorable: bool = False


@dataclass(frozen=True)
class KernelReady:
    """A kernel is there: a new one, a resumed checkpoint, or one that an earlier server started.

    Attributes:
        event: how it came to be.
        ordered: whether its messages come in one order (``kernels.port``).
    """

    event: Event
    ordered: bool = False


@dataclass(frozen=True)
class JournalReplayed:
    """A new server has rebuilt the session. The time without a server counts as no idle time."""


@dataclass(frozen=True)
class DeliveryKnown:
    """A new server has learned which cells an earlier one sent.

    Attributes:
        received: cells that the kernel has received, or may have: such a cell must not run twice.
        ordered: as in ``KernelReady``.
    """

    received: frozenset[str]
    ordered: bool = False


@dataclass(frozen=True)
class StartFailed:
    """No kernel could be started."""

    message: str


@dataclass(frozen=True)
class Interrupt:
    """Stop the running cell, which then ends with ``reason``."""

    why: str = "requested"
    reason: Reason = Reason.INTERRUPTED


@dataclass(frozen=True)
class Restart:
    """Give the session a new kernel with empty variables."""

    why: str = "requested"


@dataclass(frozen=True)
class Answer:
    """A client answers the running cell, which waits for it (``MachineState.waiting_for``)."""

    cell: str
    text: str


@dataclass(frozen=True)
class BeginProgram:
    """A program is about to start in the session's container; the session doesn't hibernate until it has ended.

    Attributes:
        number: names the start until the program has a pid.
    """

    number: int


@dataclass(frozen=True)
class ProgramBegun:
    """The start of a program is over: its event is in the log, or it failed."""

    number: int


@dataclass(frozen=True)
class Resume:
    """Give a hibernated session a kernel with the saved variables."""


@dataclass(frozen=True)
class BeginSwitch:
    """The kernel is about to be replaced or to end (rollback, hibernation). Refused while a cell runs or waits."""


@dataclass(frozen=True)
class AbortSwitch:
    """The switch failed; the session keeps its kernel."""


@dataclass(frozen=True)
class StateSaved:
    """The variables are saved and the kernel has ended."""

    event: Event


@dataclass(frozen=True)
class Close:
    """End the session."""

    reason: str


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class CheckOutputLimit:
    """Output was journaled: compare it with the limit of the log."""


@dataclass(frozen=True)
class RecordEvents:
    """Events that need no decision."""

    events: tuple[Event, ...]


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
    | BeginProgram
    | ProgramBegun
    | Resume
    | Interrupt
    | Restart
    | BeginSwitch
    | AbortSwitch
    | StateSaved
    | Close
    | Tick
    | CheckOutputLimit
    | RecordEvents
)


# --- effects: what the session must do -------------------------------------------


@dataclass(frozen=True)
class SendCell:
    """Send the cell's code to the kernel."""

    cell: str


@dataclass(frozen=True)
class AttachKernel:
    """Cells go to this kernel from now on."""

    ordered: bool


@dataclass(frozen=True)
class MarkSent:
    """Treat the cell as sent, and send nothing."""

    cell: str


@dataclass(frozen=True)
class MarkUnsent:
    """Treat the running cell as one that was never sent."""

    cell: str


@dataclass(frozen=True)
class ResetClocks:
    """Count idle time and the time until a kill from now on; programs ended with the server that ran them."""


@dataclass(frozen=True)
class MarkProgram:
    """Count a program that is being started; count it no more if it is ``over``."""

    number: int
    over: bool


@dataclass(frozen=True)
class SendAnswer:
    """Send a client's answer to the cell that waits for it."""

    cell: str
    text: str


@dataclass(frozen=True)
class InterruptKernel:
    """Send SIGINT. At ``kill_at`` (monotonic seconds) the kernel is killed if the cell still runs."""

    reason: Reason
    kill_at: float


@dataclass(frozen=True)
class KillKernel:
    """Send SIGKILL to all processes of the kernel. A ``KernelExited`` follows."""


@dataclass(frozen=True)
class NoteReply:
    """Remember the reply until the idle status comes."""

    reply: KernelReplied


@dataclass(frozen=True)
class NoteIdle:
    """Remember the idle status until the reply comes."""


@dataclass(frozen=True)
class StartKernel:
    """Start a new kernel in place of the old."""

    why: str


@dataclass(frozen=True)
class WakeCheckpoint:
    """Resume the newest checkpoint in place of the dead kernel."""


@dataclass(frozen=True)
class PauseQueue:
    """Send no cell until a kernel is ready."""


@dataclass(frozen=True)
class ResumeQueue:
    """Cells may be sent again."""


@dataclass(frozen=True)
class Hibernate:
    """Save the variables of an idle session and end its kernel."""


@dataclass(frozen=True)
class ResumeSaved:
    """Start a kernel and load the saved variables into it."""


@dataclass(frozen=True)
class EndKernel:
    """End the kernel for good."""


Effect = (
    SendCell
    | SendAnswer
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
