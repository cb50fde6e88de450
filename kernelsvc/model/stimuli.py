"""What may happen to a session, and what the session must then do: values only.

``machine.decide`` turns a stimulus into an ``Decision`` of events and effects.
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
    """The kernel says that it runs a cell."""

    cell: str
    execution_count: int | None
    frame: int | None = None


@dataclass(frozen=True)
class KernelReplied:
    """The kernel's ``execute_reply``.

    Attributes:
        outputs: what the cell put out last, which goes on record together with its end.
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
    struck: str = ""  # of ``caps.STRIKES``: the cap that its exception tells of
    expressions: Mapping[str, Any] = field(default_factory=dict)  # what the kernel says of each
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
    """Stop the running cell; ``reason`` is what it will have ended of."""

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
    """Another copy of the kernel is about to take over (rollback); refused while a cell runs or waits."""


@dataclass(frozen=True)
class AbortSwitch:
    """The switch came to nothing; the old kernel goes on."""


@dataclass(frozen=True)
class StateSaved:
    """The variables are saved; the kernel is let go."""

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
    """Output has come: is it more than the log may take of one cell?"""


@dataclass(frozen=True)
class RecordEvents:
    """Something happened that the machine only has to know of."""

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
    """SIGINT; at ``kill_at`` (monotonic seconds) it is killed if the cell still runs."""

    reason: Reason
    kill_at: float


@dataclass(frozen=True)
class KillKernel:
    """SIGKILL to all of it; an ``KernelExited`` follows."""


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
    """Wake the newest checkpoint in place of the dead kernel."""


@dataclass(frozen=True)
class PauseQueue:
    """Send no cell until a kernel is ready."""


@dataclass(frozen=True)
class ResumeQueue:
    """Cells may be sent again."""


@dataclass(frozen=True)
class Hibernate:
    """It has rested for long: save the variables and let the kernel go."""


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
        stimulus: what was decided on; None for events that are only recorded.
    """

    events: list[Event] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    stimulus: Stimulus | None = field(default=None, compare=False)
