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
    """The kernel's process is gone."""

    cause: str
    message: str
    signal: int | None = None
    exit_code: int | None = None
    restorable: bool = False


@dataclass(frozen=True)
class KernelReady:
    """A kernel is there: a new one, a woken checkpoint, or one found again."""

    event: Event


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
    | StartFailed
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
    """The events that happened and the effects that follow."""

    events: list[Event] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
