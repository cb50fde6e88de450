"""The closed union of what can happen in a session.

One journal line is one event. Its JSON is also what every client receives, so
the log, the stream, the notebook and the audit can't disagree. The machine
makes events without the envelope; the journal alone stamps ``session``,
``seq``, ``at``, ``prev`` when it appends.

Adding a type means: a class here, a rule in ``model.notebook``, a line in
``docs/reference/events.md``. Tests fail when one is missing.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from kernelsvc.model.limits import CellUsage, Limits

#: Version of the journal's format; a reader refuses a larger one.
SCHEMA = 1


class Reason(StrEnum):
    """Why a cell ended. Closed: every accepted cell ends with exactly one."""

    OK = "ok"
    ERROR = "error"
    INTERRUPTED = "interrupted"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    KERNEL_DIED = "kernel_died"
    CANCELLED = "cancelled"
    SESSION_CLOSED = "session_closed"


def _snake(name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")


class Event(msgspec.Struct, kw_only=True, tag_field="type", tag=_snake):
    """The envelope.

    Attributes:
        session: the session's id.
        seq: 1 for the first event of a session, no gap, never reused.
        at: UTC, ISO 8601 with microseconds and ``Z``.
        cell: the cell that caused it; absent (``UNSET``) where none did.
        frame: the number of the last kernel frame that this event completes;
            the highest since the kernel's start is what the server holds
            (``docs/reference/wire.md``).
        request: the client's message that caused it, where that was no cell (a comm message); absent otherwise.
        prev: SHA-256 (hex) of the line before; empty in the first.
    """

    session: str = ""
    seq: int = 0
    at: str = ""
    cell: str | UnsetType = UNSET
    frame: int | UnsetType = UNSET
    request: str | UnsetType = UNSET
    prev: str = ""


# --- the session and its kernel ------------------------------------------------


class KernelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The process behind a session."""

    kind: Literal["forked", "cold"] = "forked"
    pid: int = 0
    python: str = ""
    id: str = ""
    language: str = "python"


class NotEnforced(msgspec.Struct, frozen=True, kw_only=True):
    """One layer of confinement that is missing, and why."""

    layer: str
    why: str


class SandboxReport(msgspec.Struct, frozen=True, kw_only=True):
    """What really confines a session; nothing is assumed."""

    policy: Literal["required", "best-effort", "off"] = "off"
    isolation: str = "none"
    enforced: list[str] = []
    not_enforced: list[NotEnforced] = []
    limits: dict[str, str] = {}


class SessionStarted(Event):
    """First event: what the session is."""

    schema: int = SCHEMA
    principal: str = ""
    template: str = ""
    name: str | None = None
    labels: dict[str, str] = {}
    limits: Limits = Limits()
    env_names: list[str] = []
    kernel: KernelInfo = KernelInfo()
    sandbox: SandboxReport = SandboxReport()
    versions: dict[str, str] = {}
    parent: dict[str, Any] | None = None


class KernelDied(Event):
    """The kernel's process ended without being asked to."""

    cause: str = ""
    message: str = ""
    signal: int | None = None
    exit_code: int | None = None


class KernelRestored(Event):
    """A checkpoint was woken in place of a kernel that died."""

    checkpoint: str = ""
    after_cell: str | None = None
    kernel: KernelInfo = KernelInfo()


class KernelRestarted(Event):
    """A new kernel with empty variables; the log goes on."""

    why: str = ""
    kernel: KernelInfo = KernelInfo()


class SessionAdopted(Event):
    """A restarted server found the session again."""

    kernel: KernelInfo = KernelInfo()


class LimitReached(Event):
    """A cap struck. ``value`` and ``bound`` are in the limit's own unit."""

    limit: str = ""
    value: float | None = None
    bound: float | None = None
    enforced_by: str = ""
    message: str = ""


class ClientAttached(Event):
    """A reader attached."""

    client: str = ""
    after: int = 0


class ClientDetached(Event):
    """A reader went away."""

    client: str = ""


class FilesChanged(Event):
    """Files were put or deleted through the API."""

    files: list[dict[str, Any]] = []


class ProgramStarted(Event):
    """A program began beside the kernel, in its sandbox; ``program`` is its pid as seen inside."""

    program: int = 0
    argv: list[str] = []
    cwd: str = ""


class ProgramEnded(Event):
    """It ended; ``exit_code`` is minus the signal's number where one ended it, and null where nobody saw it."""

    program: int = 0
    exit_code: int | None = None
    output_bytes: int = 0


class SessionClosed(Event):
    """Last event but for the signature."""

    reason: str = ""


class JournalSigned(Event):
    """The head of the chain up to here, signed (Ed25519, base64)."""

    head: str = ""
    key: str = ""
    signature: str = ""


# --- cells -----------------------------------------------------------------------


class CellQueued(Event):
    """A cell was accepted. Written before its code runs."""

    code: str = ""
    timeout_seconds: float | None = None
    on_error: Literal["stop", "continue"] = "stop"
    on_disconnect: Literal["keep", "interrupt"] = "keep"
    silent: bool = False
    allow_stdin: bool = False
    store_history: bool = True
    user_expressions: dict[str, str] = {}
    metadata: dict[str, Any] = {}
    principal: str = ""


class CellStarted(Event):
    """The cell was given to a kernel that had no other, or, from a cold kernel, that one says that it runs it."""

    execution_count: int | None = None


class Stream(Event):
    """Text on stdout or stderr."""

    name: Literal["stdout", "stderr"] = "stdout"
    text: str = ""


class Display(Event):
    """A MIME bundle shown by the cell."""

    data: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    display_id: str | None = None


class DisplayUpdated(Event):
    """A new bundle for every output that has this display id."""

    data: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    display_id: str | None = None


class OutputCleared(Event):
    """The cell's outputs are void, at once or when the next comes (``wait``)."""

    wait: bool = False


class Result(Event):
    """The value of the cell's last expression."""

    data: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    execution_count: int | None = None


class Error(Event):
    """The cell raised."""

    ename: str = ""
    evalue: str = ""
    traceback: list[str] = []


class Comm(Event):
    """A comm message from the kernel; ``buffers`` are base64."""

    msg_type: Literal["comm_open", "comm_msg", "comm_close"] = "comm_msg"
    content: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    buffers: list[str] = []


class OutputTruncated(Event):
    """The cell's output passed its budget; the journal still holds all of it.

    The first such event of a cell is sent when the budget is passed, the last
    one, with the final figures, just before ``cell_finished``.
    """

    kept: int = 0
    dropped: int = 0


class InputRequested(Event):
    """The cell waits in ``input()`` or ``getpass``."""

    prompt: str = ""
    password: bool = False


class InputGiven(Event):
    """A client answered; a password's text is not recorded."""

    text: str | None = None


class Interrupted(Event):
    """An interrupt was sent to the running cell."""

    why: str = ""


class CellFinished(Event):
    """The cell's one and only end. Synced before anyone is told.

    Attributes:
        reason: why it ended.
        message: the cause in words, when it isn't plain from the outputs.
        variables_kept: False when the kernel was lost with its variables; None
            when nothing happened to them.
        user_expressions: what became of those that the request named, as in Jupyter's
            ``execute_reply``: a MIME bundle each, or the error.
    """

    reason: Reason = Reason.OK
    execution_count: int | None = None
    usage: CellUsage = CellUsage()
    message: str | None = None
    variables_kept: bool | None = None
    user_expressions: dict[str, Any] = {}


# --- checkpoints and branches ---------------------------------------------------------


class CheckpointMade(Event):
    """A parked copy of the kernel exists; ``kernel`` is the copy's own id.

    Attributes:
        checkpoint: its id, which stays when the copy is woken and made again.
        kernel: the copy's own.
        name: as given.
        auto: made after a cell by itself.
        after_cell: the last cell that it has behind it.
        cost_ms: how long the kernel was held up.
        private_bytes: what the copy had to itself when it was made, by its page faults.
        warnings: what runs on in the original, or was lost by ``force``.
    """

    checkpoint: str = ""
    kernel: str = ""
    name: str | None = None
    auto: bool = False
    after_cell: str | None = None
    cost_ms: float = 0.0
    private_bytes: int | None = None
    warnings: list[str] = []


class CheckpointSkipped(Event):
    """No automatic checkpoint was made, and why."""

    why: list[str] = []


class CheckpointDropped(Event):
    """A checkpoint is gone."""

    checkpoint: str = ""
    why: str = ""


class RolledBack(Event):
    """The variables are those of an earlier moment; ``undone`` cells stay on record.

    Attributes:
        to: the checkpoint that was woken; "" for the moment before the first cell, which a fresh kernel has.
        after_cell: the last cell whose effects stand.
        undone: cells whose effects are gone.
        redone: cells that had been undone and whose effects are back, for the checkpoint has them.
        kernel: the one that goes on.
    """

    to: str = ""
    after_cell: str | None = None
    undone: list[str] = []
    redone: list[str] = []
    kernel: KernelInfo = KernelInfo()


class Branching(Event):
    """The directory is being copied for branches that are on their way; told once a second while it lasts.

    Attributes:
        sessions: the branches to be.
        copied_bytes: for all of them together, so far.
        total_bytes: for all of them together.
    """

    sessions: list[str] = []
    copied_bytes: int = 0
    total_bytes: int = 0


class Branched(Event):
    """New sessions were forked from this one."""

    sessions: list[str] = []
    checkpoint: str | None = None
    warnings: list[str] = []


class Hibernated(Event):
    """The variables are on disk and the kernel is gone; the next cell wakes it."""

    saved: int = 0
    bytes: int = 0
    lost: dict[str, str] = {}


class Woken(Event):
    """The variables were loaded from disk into a new kernel."""

    kernel: KernelInfo = KernelInfo()
    lost: dict[str, str] = {}


class Leased(Event):
    """The session's time was set by its owner: how long it has, what happens then, and whether it is paused.

    Attributes:
        seconds: from now; the session's own lifetime and idle time count no more.
        then: closed, or paused: its variables go to disk.
        paused: it takes no cells through the door that paused it until it is given time again.
    """

    seconds: float = 0.0
    then: Literal["close", "pause"] = "close"
    paused: bool = False


AnyEvent = (
    SessionStarted
    | KernelDied
    | KernelRestored
    | KernelRestarted
    | SessionAdopted
    | LimitReached
    | ClientAttached
    | ClientDetached
    | FilesChanged
    | ProgramStarted
    | ProgramEnded
    | SessionClosed
    | JournalSigned
    | CellQueued
    | CellStarted
    | Stream
    | Display
    | DisplayUpdated
    | OutputCleared
    | Result
    | Error
    | Comm
    | OutputTruncated
    | InputRequested
    | InputGiven
    | Interrupted
    | CellFinished
    | CheckpointMade
    | CheckpointSkipped
    | CheckpointDropped
    | RolledBack
    | Branching
    | Branched
    | Hibernated
    | Woken
    | Leased
)

encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


def decode(line: bytes) -> AnyEvent:
    """One journal line as an event.

    Raises:
        msgspec.DecodeError: the line is not JSON or not an event we know.
    """
    return _decoder.decode(line)
