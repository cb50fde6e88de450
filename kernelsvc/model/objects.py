"""Objects of the API: sessions, cells, and requests.

Every server decodes and encodes these. OpenAPI and OpenRPC documents are generated from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from kernelsvc.model.events import KernelInfo, Reason, SandboxReport
from kernelsvc.model.limits import CellUsage, Limits, LimitsRequest, Usage
from kernelsvc.model.storage.mounts import MAX_MOUNTS, MountName
from kernelsvc.model.storage.workspaces import WorkspaceAddress
from kernelsvc.model.tool_calls.offers import CallStatus, ToolFilter, ToolPatterns
from kernelsvc.model.tracing.context import RequestMeta

Scope = Literal["run", "read", "approve", "provide", "delegate", "audit", "operate", "admin"]
#: Scopes of a token that names none. An agent that must not approve its own calls gets a token with ``run`` alone.
DEFAULT_SCOPES: frozenset[Scope] = frozenset({"run", "read", "approve"})
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$(?!\n)")]
Label = Annotated[str, msgspec.Meta(max_length=256)]
#: Most labels of one session. Each list of sessions has them.
MAX_LABELS = 100
Labels = Annotated[dict[Label, Label], msgspec.Meta(max_length=MAX_LABELS)]
#: Most expressions of one cell. Jupyter's clients use a handful.
MAX_EXPRESSIONS = 64
Expressions = Annotated[
    dict[Annotated[str, msgspec.Meta(max_length=256)], Annotated[str, msgspec.Meta(max_length=65536)]],
    msgspec.Meta(max_length=MAX_EXPRESSIONS, description="Evaluated after the cell, if it did not fail."),
]
Code = Annotated[str, msgspec.Meta(description="Source text as in a Jupyter cell.")]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=7 * 24 * 3600)]


class SessionState(StrEnum):
    """State of a session."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    RESTORING = "restoring"
    HIBERNATED = "hibernated"
    PAUSED = "paused"
    DEAD = "dead"
    CLOSED = "closed"


class CellState(StrEnum):
    """State of a cell."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """The owner that a token names.

    Attributes:
        name: Owner of sessions. Several tokens may have one name.
        scopes: The operations that this token allows, implied ones included.
        max_sessions: Open sessions at the same time. None takes the server's setting.
        token_sha256: Hex digest of the token. Secrets made for this caller are bound to it. Empty outside of requests.
        backend: The principal of the token, if it acts for one of its own users. Quotas count for it.
    """

    name: str
    scopes: frozenset[str] = frozenset({"run", "read"})
    max_sessions: int | None = None
    token_sha256: str = ""
    backend: str = ""

    @property
    def account(self) -> str:
        """The name for which quotas count."""
        return self.backend or self.name

    def owns(self, owner: str) -> bool:
        """Whether a session of this owner is one of this principal, or of a user for which it may act."""
        return owner == self.name or ("delegate" in self.scopes and is_user_of(owner, self.name))


def is_user_of(name: str, backend: str) -> bool:
    """Return whether a principal's name is that of a user of this backend."""
    return name.startswith(f"{backend}/")


#: When the kernel is forked after a cell: "auto" when the policy finds it worth its cost, "every" always.
CheckpointMode = Literal["auto", "every"]


_PLAIN_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[^/\0]{1,255}){1,16}")


class SessionRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``session.create``."""

    template: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    name: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    labels: Labels = {}
    limits: LimitsRequest = LimitsRequest()
    env: Annotated[
        dict[Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$(?!\n)")], str],
        msgspec.Meta(max_length=1000),
    ] = {}
    idempotency_key: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    sidecar_of: (
        Annotated[str, msgspec.Meta(max_length=128, description="A session whose directory it shares.")] | None
    ) = None
    beside: Annotated[str, msgspec.Meta(max_length=128, description="The old name of `sidecar_of`.")] | None = None
    checkpoint: Annotated[
        CheckpointMode, msgspec.Meta(description="`every`: a checkpoint after each cell, before the next one.")
    ] = "auto"
    tools: (
        Annotated[ToolFilter, msgspec.Meta(description="The functions of clients that its code may call.")] | None
    ) = None
    mounts: Annotated[
        list[MountName],
        msgspec.Meta(max_length=MAX_MOUNTS, description="Mounts of the settings to show at `/data/NAME`, read-only."),
    ] = []
    workspace: (
        Annotated[
            WorkspaceAddress,
            msgspec.Meta(description="A workspace at `/workspace`: `NAME`, or another principal's as `OWNER/NAME`."),
        ]
        | None
    ) = None
    workspace_path: (
        Annotated[
            str,
            msgspec.Meta(
                max_length=1024,
                description="A further path at which the session sees its workspace, as a link to `/workspace`.",
            ),
        ]
        | None
    ) = None

    def __post_init__(self) -> None:
        if self.workspace_path is not None and self.workspace is None:
            raise ValueError("`workspace_path` is for a session with a `workspace`. Name one")
        if self.workspace_path is not None and not _PLAIN_PATH.fullmatch(self.workspace_path):
            raise ValueError("`workspace_path` must be an absolute path without '.' and '..', such as /mnt/data")
        if self.beside is not None:
            if self.sidecar_of not in (None, self.beside):
                raise ValueError("`sidecar_of` and its old name have different values. Send only `sidecar_of`")
            self.sidecar_of = self.beside


class CellRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One cell of ``session.execute`` or ``session.batch``."""

    code: Code
    cell: Id | None = None
    timeout_seconds: Seconds | None = None
    on_error: Literal["stop", "continue"] = "stop"
    silent: bool = False
    allow_stdin: bool = False
    store_history: bool = True
    user_expressions: Expressions = {}
    on_disconnect: Literal["keep", "interrupt"] = "keep"
    metadata: dict[str, Any] = {}
    checkpoint: (
        Annotated[
            CheckpointMode,
            msgspec.Meta(description="`every`: a checkpoint after this cell. Default: the session's mode."),
        ]
        | None
    ) = None
    changes: Annotated[
        bool,
        msgspec.Meta(
            description="The cell is a model's: `cell_finished` has the changes of variables and files, and the "
            "traceback has the short form only. Forked kernels."
        ),
    ] = False
    max_text: (
        Annotated[
            int,
            msgspec.Meta(ge=0, le=2**53, description="Most characters of the answer's `text`: its head and its tail."),
        ]
        | None
    ) = None
    tools: (
        Annotated[
            bool | ToolPatterns,
            msgspec.Meta(description="Whether the cell may call functions of clients, or which of them."),
        ]
        | None
    ) = None
    reuse_calls: (
        Annotated[
            Id,
            msgspec.Meta(
                description="An earlier cell. A call that it made, too, with the same arguments, gets the recorded "
                "result and is not carried out again."
            ),
        ]
        | None
    ) = None
    within: (
        Annotated[str, msgspec.Meta(min_length=1, max_length=256, description="The call whose function runs the cell.")]
        | None
    ) = None
    meta: RequestMeta | None = msgspec.field(default=None, name="_meta")


class CellOutline(msgspec.Struct, kw_only=True):
    """One line about a cell, for a list of many.

    Attributes:
        first_line: of its code, at most 200 characters.
        lines: of its code.
        at: when it was accepted.
        principal: who sent it.
        wall_ms: how long it ran. None if it has not ended.
        undone: whether a rollback undid it.
        last: position of its last entry in the log.
    """

    id: str
    state: CellState
    reason: Reason | None = None
    execution_count: int | None = None
    first_line: str = ""
    lines: int = 0
    at: str = ""
    principal: str = ""
    wall_ms: float | None = None
    undone: bool = False
    first: int = 0
    last: int = 0


class CellMatch(msgspec.Struct, frozen=True, kw_only=True):
    """A cell whose code matches a search, with the part of the code that matches."""

    session: str
    cell: str
    seq: int
    snippet: str


class CellError(msgspec.Struct, kw_only=True):
    """The exception of a cell."""

    ename: str
    evalue: str
    traceback: list[str]


class SeqRange(msgspec.Struct, kw_only=True):
    """Range of log positions that contains the events of a cell."""

    first: int
    last: int


#: Statuses of a call: it waits for a person, the provider has it, or it has ended.
CallState = Literal["pending", "running", "ended"]


class CallSummary(msgspec.Struct, kw_only=True):
    """A call of a cell to a client's function, as the cell and the notebook show it.

    Attributes:
        arguments: Those that the log has, if they are short.
        status: How it ended. None while it is open.
        ms: Time of the provider, in milliseconds.
        decided_by: Who approved or denied it.
        bytes: Size of the result as JSON.
    """

    call: str
    tool: str
    arguments: Any = None
    status: CallStatus | None = None
    ms: float | None = None
    decided_by: str | None = None
    bytes: int = 0


class ToolCallInfo(CallSummary, kw_only=True):
    """A call with everything that the log has about it.

    Attributes:
        state: Whether it waits for a person, runs, or has ended.
        value: The result, or what the log has in its place.
    """

    session: str
    cell: str | None = None
    state: CallState = "running"
    provider: str = ""
    redacted: list[str] = []
    approval: str = "none"
    deadline_seconds: float = 0.0
    parent_call: str | None = None
    called_at: str = ""
    ended_at: str | None = None
    reason: str | None = None
    value: Any = None
    error: dict[str, Any] | None = None
    delivered: bool | None = None
    waited_ms: float = 0.0
    form: str = ""


class CellCalls(msgspec.Struct, kw_only=True):
    """The calls of a cell: how many by tool and status, and the first 100.

    Attributes:
        counts: By ``tool``, then by status. ``open`` counts those without an end.
    """

    counts: dict[str, dict[str, int]] = {}
    first: list[CallSummary] = []

    def __iter__(self) -> Iterator[CallSummary]:
        return iter(self.first)

    def __len__(self) -> int:
        return len(self.first)


class CellInfo(msgspec.Struct, kw_only=True):
    """A cell as the API shows it.

    Attributes:
        calls: Its calls of clients' functions. Left out if it made none.
        waits_for: Whether it has a call that waits for a person or a provider. Left out if it has none.
    """

    id: str
    session: str
    code: str
    state: CellState
    reason: Reason | None = None
    execution_count: int | None = None
    outputs: list[dict[str, Any]] = []
    text: str = ""
    error: CellError | None = None
    usage: CellUsage = CellUsage()
    seq: SeqRange
    metadata: dict[str, Any] = {}
    message: str | None = None
    variables_kept: bool | None = None
    calls: CellCalls | UnsetType = UNSET
    waits_for: Literal["approval", "tool"] | UnsetType = UNSET


class Checkpoint(msgspec.Struct, kw_only=True):
    """A checkpoint: a parked fork of a session's kernel.

    Attributes:
        id: Remains when the checkpoint is used and replaced.
        name: The name that the client gave. Automatic ones have none.
        auto: Made after a cell by the server.
        after_cell: The last cell before it. None if there is none.
        seq: Position of its last event.
        cost_ms: How long the kernel was blocked.
        private_bytes: Memory that the fork did not share at the start, from its page faults. It grows with the
            kernel's later writes.
        warnings: Resources that both processes use, or that ``force`` lost.
    """

    id: str
    name: str | None = None
    auto: bool = False
    after_cell: str | None = None
    seq: int = 0
    cost_ms: float = 0.0
    private_bytes: int | None = None
    warnings: list[str] = []


class HoldInfo(msgspec.Struct, kw_only=True):
    """Cells of a session wait for a person.

    Attributes:
        by: who holds them.
        since: when that began.
        seconds: time that each held cell waits.
        then: what happens to a cell that is still undecided by then.
        cells: ids of those that wait, the oldest first.
    """

    by: str
    since: str
    seconds: float
    then: Literal["refuse", "approve"]
    cells: list[str]


class SessionInfo(msgspec.Struct, kw_only=True):
    """A session as the API shows it. ``input_cell`` waits for input. It is left out if no cell does."""

    id: str
    name: str | None
    template: str
    state: SessionState
    created_at: str
    last_activity_at: str
    expires_at: str | None
    principal: str
    labels: dict[str, str]
    limits: Limits
    usage: Usage
    last_seq: int
    execution_count: int
    parent: dict[str, Any] | None
    kernel: KernelInfo | None
    sandbox: SandboxReport
    checkpoints: list[Checkpoint]
    queued: int = 0
    running: str | None = None
    sidecar_of: str | None = None
    beside: str | None = None
    paused: bool = False
    calls_open: int | UnsetType = UNSET
    approvals_pending: int | UnsetType = UNSET
    mounts: list[str] | UnsetType = UNSET
    workspace: str | UnsetType = UNSET
    input_cell: str | UnsetType = UNSET
    hold: HoldInfo | UnsetType = UNSET


class Variable(msgspec.Struct, kw_only=True):
    """One name in the session's namespace."""

    name: str
    type: str
    summary: str
    size_bytes: int | None = None


#: Formats of a variable's data.
ValueFormat = Literal["best", "parquet", "arrow", "csv", "json"]


class ValueRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which data of a variable to read.

    Attributes:
        name: of the variable.
        format: "best" is arrow or csv for a table, and json for other values.
        from_row: the first row.
        rows: most rows. None: as many as fit.
        columns: of a table. None: all.
    """

    name: str
    format: ValueFormat = "best"
    from_row: int = 0
    rows: int | None = None
    columns: list[str] | None = None


class ValueData(msgspec.Struct, kw_only=True):
    """Rows of a variable's data.

    Attributes:
        type: the value's type in the session.
        format: of the data.
        from_row: the first row, from 0.
        rows: how many. A value that is no table and no list is one row.
        total: rows of the whole value now.
        next_row: where the rest begins, or None at the end.
        data: base64 text.
    """

    name: str
    type: str
    format: Literal["parquet", "arrow", "csv", "json"]
    from_row: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    rows: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    total: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    next_row: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None
    data: bytes


class PtySize(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The size of a terminal, in characters."""

    columns: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 80
    rows: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 24


class ProgramView(msgspec.Struct, kw_only=True):
    """A program in a session's sandbox, next to its kernel.

    Attributes:
        id: The id that the client chose, or the server.
        pid: As seen inside the sandbox.
        cwd: The directory where it started. Empty for the session's directory.
        exit_code: Its exit code, or the negative number of the signal that ended it. None while it runs, and if its
            end is not known.
        written: Bytes of output so far.
        received: Bytes of standard input so far.
    """

    id: str
    session: str
    pid: int
    argv: list[str]
    cwd: str = ""
    state: Literal["running", "ended"] = "running"
    exit_code: int | None = None
    written: int = 0
    received: int = 0


class OutputPiece(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that a program wrote (base64), and to which stream. ``pty`` is its terminal."""

    stream: Literal["stdout", "stderr", "pty"]
    data: bytes


class OutputPage(msgspec.Struct, kw_only=True):
    """The next output of a program.

    Attributes:
        program: The program as it is now. It is ``ended`` only after its last output.
        next: Position after these pieces, in bytes of all streams together.
        dropped: Bytes from the requested position on that the server no longer has.
    """

    program: ProgramView
    pieces: list[OutputPiece]
    next: int
    dropped: int = 0


class Deletion(msgspec.Struct, kw_only=True):
    """The signed record of a session that was deleted for good. It holds nothing of the session's content.

    Attributes:
        session: The session's id.
        at: When.
        by: The principal that deleted it.
        principal: The principal that owned it.
        seq: Position of its log's last entry. 0 if the log was missing.
        head: SHA-256 of that entry, with which a copy of the log can be recognized.
        key, signature: Public key and signature (Ed25519, base64) of ``statement``.
    """

    session: str
    at: str
    by: str
    principal: str
    seq: int
    head: str
    key: str = ""
    signature: str = ""

    def statement(self) -> bytes:
        """Return the signed bytes: the record as JSON without key and signature, with sorted names."""
        unsigned = msgspec.structs.replace(self, key="", signature="")
        return b"kernelsvc deletion v1\n" + msgspec.json.encode(unsigned, order="sorted")


class Call(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/execute``: code, or a function with arguments."""

    code: Code | None = None
    function: Code | None = None
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    template: str | None = None
    files: dict[str, str] = {}
    limits: LimitsRequest = LimitsRequest()
    timeout_seconds: Seconds | None = None
    meta: RequestMeta | None = msgspec.field(default=None, name="_meta")


class ViewPicture(msgspec.Struct, kw_only=True):
    """A picture of a cell.

    Attributes:
        number: its place among the cell's pictures, from 1.
        data: base64.
    """

    number: int
    mime: str
    data: str


class CellView(msgspec.Struct, kw_only=True):
    """What a language model reads of a cell.

    Attributes:
        number: the cell's place among the session's cells, from 1.
        text: the part of the output that was asked for, and a last line with the cell's number and its end.
        lines: how many lines the whole output has.
        next_line: ``after_line`` of a later request that wants only what is new.
        pictures: the first ones, or the one that was asked for.
    """

    session: str
    cell: str
    number: int
    state: CellState
    reason: Reason | None = None
    text: str = ""
    lines: int = 0
    next_line: int = 0
    pictures: list[ViewPicture] = []
