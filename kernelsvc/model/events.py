"""The closed union of the events of a session.

One journal line is one event. Clients receive the same JSON, so the log, the stream, the notebook and the audit always
agree. The state machine creates events without the envelope. Only the journal sets ``session``, ``seq``, ``at`` and
``prev``, when it appends.

To add a type: a class here, a rule in ``model.notebook``, and ``make docs``. Tests fail if one is missing.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from kernelsvc.model.limits import CellUsage, Limits
from kernelsvc.model.network.rules import NetworkRules
from kernelsvc.model.tool_calls.offers import CallStatus, OfferedTool
from kernelsvc.model.tracing.context import CellTrace

#: Version of the journal's format. A reader refuses a larger one.
SCHEMA = 1


class Reason(StrEnum):
    """Why a cell ended. Every accepted cell ends with exactly one of these."""

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
        session: The session's id.
        seq: 1 for the first event of a session. No gaps, never reused.
        at: UTC, ISO 8601 with microseconds and ``Z``.
        cell: The cell that caused it. Absent (``UNSET``) if no cell did.
        frame: Number of the last kernel frame that this event completes. The server has all frames up to the highest
            one since the kernel's start (``docs/reference/wire.md``).
        request: The client's message that caused it, if that was no cell (a comm message). Absent otherwise.
        prev: SHA-256 (hex) of the previous line. Empty in the first.
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
    """The process of a session's kernel."""

    kind: Literal["forked", "cold"] = "forked"
    pid: int = 0
    python: str = ""
    id: str = ""
    language: str = "python"


class NotEnforced(msgspec.Struct, frozen=True, kw_only=True):
    """A layer of confinement that is missing, and why."""

    layer: str
    why: str


class SandboxReport(msgspec.Struct, frozen=True, kw_only=True):
    """The confinement that a session actually has."""

    policy: Literal["required", "best-effort", "off"] = "off"
    isolation: str = "none"
    enforced: list[str] = []
    not_enforced: list[NotEnforced] = []
    limits: dict[str, str] = {}


class SessionStarted(Event):
    """First event: the session's settings. ``mounts`` and ``workspace`` are left out if it has none."""

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
    mounts: list[str] | UnsetType = UNSET
    workspace: str | UnsetType = UNSET


class KernelDied(Event):
    """The kernel's process ended without a request."""

    cause: str = ""
    message: str = ""
    signal: int | None = None
    exit_code: int | None = None


class KernelRestored(Event):
    """A checkpoint took the place of a kernel that died."""

    checkpoint: str = ""
    after_cell: str | None = None
    kernel: KernelInfo = KernelInfo()


class KernelRestarted(Event):
    """A new kernel with empty variables. The log continues."""

    why: str = ""
    kernel: KernelInfo = KernelInfo()


class SessionAdopted(Event):
    """A restarted server found the session again."""

    kernel: KernelInfo = KernelInfo()


class LimitReached(Event):
    """A limit was reached. ``value`` and ``bound`` have the limit's own unit."""

    limit: str = ""
    value: float | None = None
    bound: float | None = None
    enforced_by: str = ""
    message: str = ""


class Egress(Event):
    """A connection, or a request that the proxy has read, that the network's rules allowed. Recorded at its end.

    Attributes:
        rule: The rule that allowed it.
        host: The name that the session looked up, or the address that its code wrote.
        address: The address that the proxy connected to. Empty if there was none.
        port: The port.
        method: For a request: its method.
        path: For a request: its path, without its query.
        status: For a request: the status of the answer.
        secrets: For a request: names of the secrets that its rule allows.
        sent: Bytes that the session sent.
        received: Bytes that it received.
        seconds: Time since the connection began.
        end: Why it ended: closed, idle, quota, or failed with the error.
    """

    rule: str = ""
    host: str = ""
    address: str = ""
    port: int = 0
    method: str | UnsetType = UNSET
    path: str | UnsetType = UNSET
    status: int | UnsetType = UNSET
    secrets: list[str] | UnsetType = UNSET
    sent: int = 0
    received: int = 0
    seconds: float = 0.0
    end: str = ""


class NetworkChanged(Event):
    """The owner replaced the rules of the session's network.

    Attributes:
        network: The rules from now on.
    """

    network: NetworkRules = NetworkRules(allow=())


class EgressDenied(Event):
    """The network's rules refused a look-up, a connection or a request.

    A repeat in the same cell is recorded when it is the 10th, the 100th and so on.

    Attributes:
        via: Kind of the refused request: dns (a look-up), tls, http or tcp.
        host: The name or the address.
        port: The port, which a look-up does not have.
        why: The reason.
        count: How often this was refused in the cell so far.
        message: The same for people and models, with the allowed hosts.
    """

    via: str = ""
    host: str = ""
    port: int | None = None
    why: str = ""
    count: int = 1
    message: str = ""


class PortShared(Event):
    """The owner gave out the address of a port of the session, or made it public.

    Attributes:
        port: The port. 0 stands for every port.
        public: Whether requests need no token and no signature.
        seconds: For a signed address: how long it is valid.
    """

    port: int = 0
    public: bool = False
    seconds: float = 0.0


class PortUnshared(Event):
    """The owner closed a port: no address of it is valid any more. Requests with a token are still answered."""

    port: int = 0


class PortUsed(Event):
    """Requests to a server in the session. Recorded some seconds after the first one, for all of them together.

    Attributes:
        port: The port. 0 stands for the further ports if there were many.
        access: How they were allowed: token, signed or public.
        requests: Requests, and WebSockets that were opened.
        failed: Those of them that the session's server did not accept.
        sent: Bytes that the session sent.
        received: Bytes that it received.
    """

    port: int = 0
    access: str = ""
    requests: int = 0
    failed: int = 0
    sent: int = 0
    received: int = 0


class ClientAttached(Event):
    """A reader attached."""

    client: str = ""
    after: int = 0


class ClientDetached(Event):
    """A reader detached."""

    client: str = ""


class FilesChanged(Event):
    """The principal ``by`` wrote or deleted files through the API."""

    files: list[dict[str, Any]] = []
    by: str = ""


class ProgramStarted(Event):
    """The principal ``by`` started a program in the sandbox. ``program`` is its pid as seen inside."""

    program: int = 0
    argv: list[str] = []
    cwd: str = ""
    by: str = ""


class ProgramEnded(Event):
    """The program ended. ``exit_code`` is the negative number of a signal that ended it, or null if it is unknown."""

    program: int = 0
    exit_code: int | None = None
    output_bytes: int = 0


class SessionClosed(Event):
    """Last event before the signature. ``by`` is the principal who closed the session, or empty."""

    reason: str = ""
    by: str = ""


class JournalSigned(Event):
    """The head of the chain up to here, signed (Ed25519, base64)."""

    head: str = ""
    key: str = ""
    signature: str = ""


class NotAsWritten(Event):
    """The server found entries that it can't vouch for. If ``refused``, the log is never signed."""

    first: int = 0
    last: int = 0
    refused: bool = False
    message: str = ""


# --- cells -----------------------------------------------------------------------


class CellQueued(Event):
    """A cell was accepted. Written before its code runs.

    Attributes:
        tools: Whether it may call functions of clients, or which of them. Absent: all that the session may call.
        reuse_calls: The cell whose recorded results its calls get. Absent if there is none.
        within: The call whose function runs this cell. Absent if there is none.
        trace: The trace that its request carried. Absent if it carried none.
    """

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
    checkpoint: Literal["auto", "every"] | None = None
    changes: bool = False
    tools: bool | list[str] | UnsetType = UNSET
    reuse_calls: str | UnsetType = UNSET
    within: str | UnsetType = UNSET
    trace: CellTrace | UnsetType = UNSET


class CellStarted(Event):
    """The cell went to the kernel. For a kernelspec kernel: the kernel reports that it runs the cell."""

    execution_count: int | None = None


class Stream(Event):
    """Text on stdout or stderr."""

    name: Literal["stdout", "stderr"] = "stdout"
    text: str = ""


class Display(Event):
    """A MIME bundle that the cell displayed."""

    data: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    display_id: str | None = None


class DisplayUpdated(Event):
    """New content of all outputs that have this display id."""

    data: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    display_id: str | None = None


class OutputCleared(Event):
    """Clients must remove the cell's outputs, immediately or when the next output arrives (``wait``)."""

    wait: bool = False


class Result(Event):
    """The value of the cell's last expression."""

    data: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    execution_count: int | None = None
    display_id: str | None = None


class Error(Event):
    """The cell raised an exception.

    Attributes:
        model: The traceback in the short form for language models, a line each. None if the kernel made none.
    """

    ename: str = ""
    evalue: str = ""
    traceback: list[str] = []
    model: list[str] | None = None


class Comm(Event):
    """A comm message from the kernel. ``buffers`` are base64."""

    msg_type: Literal["comm_open", "comm_msg", "comm_close"] = "comm_msg"
    content: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    buffers: list[str] = []


class DebugEvent(Event):
    """An event of the debugger, for example that a cell is stopped at a breakpoint.

    Attributes:
        content: An event of the Debug Adapter Protocol.
    """

    content: dict[str, Any] = {}


class OutputTruncated(Event):
    """The cell's output exceeded its budget. The journal still has all of it.

    The first such event of a cell is sent when the output exceeds the budget. The last one, with the final figures,
    comes just before ``cell_finished``.
    """

    kept: int = 0
    dropped: int = 0


class ReplyRepeated(Event):
    """The kernel replied again to a cell that had ended. Code in the kernel forged one of the two replies.

    The cell's end in the log may be too early, and output after it may be the cell's.
    """


class InputRequested(Event):
    """The cell waits in ``input()`` or ``getpass``, until a client answers or the cell ends."""

    prompt: str = ""
    password: bool = False


class InputGiven(Event):
    """The principal ``by`` answered. The text of a password is not recorded."""

    text: str | None = None
    by: str = ""


class Interrupted(Event):
    """An interrupt was sent to the running cell, requested by the principal ``by``. Empty: the server decided it."""

    why: str = ""
    by: str = ""


class CellFinished(Event):
    """The only end of the cell, on disk before any client gets it.

    Attributes:
        reason: Why it ended.
        message: The cause in words, if the outputs don't show it.
        variables_kept: False if the kernel was lost with its variables. None if they were not affected.
        user_expressions: Results of the request's expressions, as in Jupyter's ``execute_reply``: a MIME bundle each,
            or the error.
        changes: Names of variables and files by the kind of change: ``new``, ``changed``, ``gone`` and ``files``, a
            list of descriptions each. None if the kernel did not compare.
    """

    reason: Reason = Reason.OK
    execution_count: int | None = None
    usage: CellUsage = CellUsage()
    message: str | None = None
    variables_kept: bool | None = None
    user_expressions: dict[str, Any] = {}
    changes: dict[str, list[str]] | None = None


class SessionHeld(Event):
    """From now on cells wait for a person's decision (``mode`` is ``ask``), or no longer (``off``).

    Attributes:
        seconds: Time that a held cell waits.
        then: What happens to a cell that is still undecided by then.
        by: The name of the principal who wants it.
    """

    mode: Literal["off", "ask"] = "ask"
    seconds: float = 0.0
    then: Literal["refuse", "approve"] = "refuse"
    by: str = ""


class CellHeld(Event):
    """The cell waits for a person's decision before it runs."""


class CellDecided(Event):
    """The principal ``by`` decided whether a held cell runs. Empty: its time was over, and the server decided."""

    decision: Literal["approve", "refuse"] = "refuse"
    reason: str | None = None
    by: str = ""


# --- calls of a client's functions ------------------------------------------------------


class ToolsOffered(Event):
    """The functions that code may call have changed.

    Attributes:
        provider: The client that carries them out.
        by: The name of its principal.
        tools: New or changed offers.
        withdrawn: Names of functions that can't be called any more.
    """

    provider: str = ""
    by: str = ""
    tools: list[OfferedTool] = []
    withdrawn: list[str] = []


class ToolCalled(Event):
    """Code called a function of a client. Written before the provider gets the call.

    Attributes:
        call: Its id, which is unique in the session.
        arguments: Without the redacted parts.
        arguments_ref: Reserved for a file that holds the arguments. Always null.
        redacted: JSON pointers of the parts that are left out.
        bytes: Size of all arguments as JSON.
        provider: The client that carries it out. Empty if none is connected.
        approval: Whether a person must decide (``pending``), or has decided for this tool before (``remembered``).
        deadline_seconds: Time for the provider, from the approval on.
        parent_call: The call whose function runs this cell.
        effects: Those of the offer. Rolled-back calls that are not ``read`` stay in effect.
        idempotent: Whether it may be carried out twice.
        approval_seconds: Time to decide. Null if no approval is needed.
        redact_result: Whether the result stays out of the log.
        reused: The earlier call whose recorded result this one gets. Absent if the function is carried out.
    """

    call: str = ""
    tool: str = ""
    arguments: Any = None
    arguments_ref: str | None = None
    redacted: list[str] = []
    bytes: int = 0
    provider: str = ""
    approval: Literal["none", "pending", "remembered"] = "none"
    deadline_seconds: float = 60.0
    parent_call: str | None = None
    effects: str = "unknown"
    idempotent: bool = False
    approval_seconds: float | None = None
    redact_result: bool = False
    reused: str | UnsetType = UNSET


class ToolDecided(Event):
    """A person decided whether a call is carried out.

    Attributes:
        by: The name of the principal who decided.
        remembered: Further calls of this tool that the decision holds for.
    """

    call: str = ""
    decision: Literal["approved", "denied"] = "denied"
    by: str = ""
    reason: str | None = None
    remembered: Literal["cell", "session"] | None = None


class ToolReturned(Event):
    """The only end of a call. In the log before any code gets the result.

    Attributes:
        value: The result, or its size (``$redacted``) if the offer keeps it out of the log.
        value_ref: Reserved for a file that holds the value. Always null.
        bytes: Size of the value as JSON.
        error: ``{type, message}``, and perhaps ``data`` and ``traceback``.
        ms: Time since the call went to the provider, in milliseconds.
        waited_ms: Time until a person had decided, in milliseconds.
        delivered: Whether code waited for the result.
        form: ``content`` if the value is a list of content blocks, ``rows`` if it is a list of objects.
    """

    call: str = ""
    status: CallStatus = "ok"
    value: Any = None
    value_ref: str | None = None
    bytes: int = 0
    error: dict[str, Any] | None = None
    ms: float = 0.0
    waited_ms: float = 0.0
    delivered: bool = True
    form: Literal["", "content", "rows"] = ""


class ToolProgress(Event):
    """The provider reports how far a call is. At most one a second for each call."""

    call: str = ""
    progress: float = 0.0
    total: float | None = None
    message: str | None = None


# --- checkpoints and branches ---------------------------------------------------------


class CheckpointMade(Event):
    """A checkpoint exists: a parked fork of the kernel.

    Attributes:
        checkpoint: Its id, which remains when it is used and replaced.
        kernel: The id of the fork.
        name: The name that the client gave.
        auto: Made after a cell by the server.
        after_cell: The last cell before it.
        cost_ms: How long the kernel was blocked.
        private_bytes: Memory that the fork did not share at the start, from its page faults.
        warnings: Resources that both processes use, or that ``force`` lost.
        by: The name of the principal who requested it, or empty.
    """

    checkpoint: str = ""
    kernel: str = ""
    name: str | None = None
    auto: bool = False
    after_cell: str | None = None
    cost_ms: float = 0.0
    private_bytes: int | None = None
    warnings: list[str] = []
    by: str = ""


class CheckpointSkipped(Event):
    """The server skipped an automatic checkpoint, and why."""

    why: list[str] = []


class CheckpointDropped(Event):
    """A checkpoint no longer exists. ``by`` is the principal who dropped it, or empty."""

    checkpoint: str = ""
    why: str = ""
    by: str = ""


class RolledBack(Event):
    """The variables are those of an earlier moment. The log keeps the ``undone`` cells.

    Attributes:
        to: The checkpoint that was used. "" for the moment before the first cell, for which a new kernel is started.
        after_cell: The last cell whose effects remain.
        undone: Cells whose effects are gone.
        redone: Cells that were undone before and whose effects are in the checkpoint.
        replayed: Cells that ran again, because the state had no checkpoint. Their effects outside of the kernel
            happened again.
        kernel: The kernel that continues.
        by: The name of the principal who requested it.
    """

    to: str = ""
    after_cell: str | None = None
    undone: list[str] = []
    redone: list[str] = []
    replayed: list[str] = []
    kernel: KernelInfo = KernelInfo()
    by: str = ""


class Branching(Event):
    """The directory is being copied for new branches. Sent once a second until the copy is done.

    Attributes:
        sessions: The ids of the branches.
        copied_bytes: Bytes copied so far, for all branches.
        total_bytes: Bytes to copy, for all branches.
    """

    sessions: list[str] = []
    copied_bytes: int = 0
    total_bytes: int = 0


class Branched(Event):
    """The principal ``by`` forked new sessions from this one."""

    sessions: list[str] = []
    checkpoint: str | None = None
    warnings: list[str] = []
    by: str = ""


class Hibernated(Event):
    """The variables are on disk and the kernel has ended. The next cell resumes it."""

    saved: int = 0
    bytes: int = 0
    lost: dict[str, str] = {}


class Woken(Event):
    """The variables were loaded from disk into a new kernel."""

    kernel: KernelInfo = KernelInfo()
    lost: dict[str, str] = {}


class Leased(Event):
    """The owner set the session's remaining time, its end and whether it is paused.

    Attributes:
        seconds: Time from now. The session's own lifetime and idle limits no longer count.
        then: "close" ends the session. "pause" writes its variables to disk.
        paused: The API that paused the session refuses cells until it gets more time.
    """

    seconds: float = 0.0
    then: Literal["close", "pause"] = "close"
    paused: bool = False


class ModelAnswered(Event):
    """An answer of a model, whose code ran in this session, has ended. Its texts are not in the log, their digests are.

    Attributes:
        response: Id of the response.
        model: Name of the model in the request.
        status: How the answer ended, in the words of the Responses API.
        turns: Calls of the model.
        calls: Cells.
        input_tokens: Tokens that the model has read, in all turns.
        output_tokens: Tokens that it has written.
        seconds: From the request to the end.
        input_sha256: Digest (hex) of the request's input as JSON.
        output_sha256: Digest (hex) of the answer's items as JSON.
    """

    response: str = ""
    model: str = ""
    status: str = ""
    turns: int = 0
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    input_sha256: str = ""
    output_sha256: str = ""


AnyEvent = (
    SessionStarted | KernelDied | KernelRestored | KernelRestarted | SessionAdopted | LimitReached | Egress
    | EgressDenied | NetworkChanged | PortShared | PortUnshared | PortUsed | ClientAttached | ClientDetached
    | FilesChanged | ProgramStarted | ProgramEnded | SessionClosed | JournalSigned | NotAsWritten | CellQueued
    | CellStarted | Stream | Display | DisplayUpdated | OutputCleared | Result | Error | Comm | DebugEvent
    | OutputTruncated | ReplyRepeated | InputRequested | InputGiven | Interrupted | CellFinished | SessionHeld
    | CellHeld | CellDecided | CheckpointMade | CheckpointSkipped | CheckpointDropped | RolledBack | Branching
    | Branched | Hibernated | Woken | Leased | ModelAnswered | ToolsOffered | ToolCalled | ToolDecided
    | ToolReturned | ToolProgress
)  # fmt: skip

encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


def decode(line: bytes) -> AnyEvent:
    """Decode one journal line.

    Raises:
        msgspec.DecodeError: The line is not JSON or not a known event.
    """
    return _decoder.decode(line)
