"""Parameters and results of the methods of the native API. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from kernelsvc.model.limits import LimitsRequest, Network
from kernelsvc.model.network.ports import Port
from kernelsvc.model.objects import (
    CallState,
    CellInfo,
    CellOutline,
    CellRequest,
    Id,
    Labels,
    PtySize,
    SessionInfo,
    SessionRequest,
    SessionState,
    ToolCallInfo,
    ValueFormat,
)
from kernelsvc.model.storage.workspaces import MAX_SHARES, Pattern, WorkspaceName
from kernelsvc.model.tool_calls.offers import MAX_OFFERS, Offer, ProviderId, ToolFilter, ToolName
from kernelsvc.model.tracing.context import RequestMeta

#: Most cells of one batch, and most branches of one call.
MAX_BATCH = 1000
MAX_BRANCHES = 256

#: The id of a call: the kernel's id, and a number.
CallId = Annotated[str, Meta(min_length=1, max_length=256)]
Position = Annotated[int, Meta(ge=0, le=2**53)]
Text = Annotated[str, Meta(max_length=1024 * 1024)]
PageSize = Annotated[int, Meta(ge=1, le=1000)]


class NoParams(Struct, kw_only=True, forbid_unknown_fields=True):
    """Parameters of a method that has none."""


class SessionParams(Struct, kw_only=True, forbid_unknown_fields=True):
    """Parameters of a method on one session."""

    session: Id


class CreateParams(SessionRequest, kw_only=True, forbid_unknown_fields=True):
    """``session.create``."""

    attach: bool = True


class ListParams(Struct, kw_only=True, forbid_unknown_fields=True):
    """``session.list``. ``label`` is ``name=value`` or ``name``.

    ``principal`` names another principal, or ``*`` for every one, and needs the scope ``audit``.
    """

    state: SessionState | None = None
    label: Annotated[str, Meta(max_length=513)] | None = None
    limit: PageSize = 100
    page: Annotated[str, Meta(max_length=256)] | None = None
    principal: Annotated[str, Meta(min_length=1, max_length=128)] | None = None


class AttachParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """``session.attach``: all events with ``seq > after``."""

    after: Position = 0


class CloseParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """``session.close``."""

    reason: Annotated[str, Meta(min_length=1, max_length=256)] = "closed"


class NetworkParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """``session.network``. Without ``network`` the session gets the server's rules."""

    network: Network | None = None


class PurgeParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """``session.purge``. ``force`` ends an open session first."""

    force: bool = False


class ExecuteParams(CellRequest, kw_only=True, forbid_unknown_fields=True):
    """``session.execute``."""

    session: Id
    wait: Literal["finished", "queued"] = "finished"


class BatchParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """``session.batch``: several cells in one request."""

    cells: Annotated[list[CellRequest], Meta(min_length=1, max_length=MAX_BATCH)]
    on_error: Literal["stop", "continue"] = "stop"
    wait: Literal["finished", "queued"] = "finished"
    meta: RequestMeta | None = field(default=None, name="_meta")


class CellParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """Parameters of a method on one cell."""

    cell: Id


class CellsParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """``session.cells``: a page of them, the oldest first. A page of large cells has fewer than ``limit``."""

    limit: PageSize = 100
    offset: Position = 0


class OutlineParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """``session.outline``: one line about each cell, a page of them, the oldest first."""

    limit: PageSize = 1000
    offset: Position = 0


class SearchParams(Struct, kw_only=True, forbid_unknown_fields=True):
    """``session.search``: cells whose code has all of these words, or words that begin with them.

    ``principal`` names another principal, or ``*`` for every one, and needs the scope ``audit``.
    """

    text: Annotated[str, Meta(max_length=1000)] = ""
    limit: PageSize = 50
    principal: Annotated[str, Meta(min_length=1, max_length=128)] | None = None


class OutputParams(CellParams, kw_only=True, forbid_unknown_fields=True):
    """``session.output``: a cell's text from the log, in characters."""

    name: Literal["stdout", "stderr"] = "stdout"
    offset: Position = 0
    limit: Annotated[int, Meta(ge=1, le=4 * 1024 * 1024)] = 65536


class ViewParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """``session.view``: a cell as a language model reads it. ``cell`` is an id, or a number from 1. Default: the last.

    Without ``from_line``, ``find`` and ``picture`` it is the whole cell within the budget.
    """

    cell: Id | None = None
    budget: Annotated[int, Meta(ge=200, le=20_000, description="About how many tokens the text may have.")] = 3000
    from_line: Annotated[int, Meta(ge=1, le=2**53, description="Read the whole output from this line on.")] | None = (
        None
    )
    lines: Annotated[int, Meta(ge=1, le=2**53, description="Most lines to read.")] | None = None
    find: Annotated[str, Meta(max_length=200, description="Read the lines that match this pattern.")] | None = None
    picture: Annotated[int, Meta(ge=1, le=2**53, description="Read this picture.")] | None = None
    after_line: Annotated[int, Meta(ge=0, le=2**53, description="Only what comes after this line.")] = 0


class ValueParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """``session.value``: the data of a variable, for programs.

    A long value comes in parts: ask again with ``from_row`` = ``next_row``. Objects that a format has no type for are
    text. No code of the session runs.
    """

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    format: Annotated[
        ValueFormat, Meta(description="``best``: arrow or csv for a table, and json for other values.")
    ] = "best"
    from_row: Position = 0
    rows: Annotated[int, Meta(ge=1, le=2**53, description="Most rows. Default: as many as fit.")] | None = None
    columns: (
        Annotated[list[Annotated[str, Meta(max_length=1000)]], Meta(max_length=10_000, description="Default: all.")]
        | None
    ) = None


class InputParams(CellParams, kw_only=True, forbid_unknown_fields=True):
    """``session.input``: the reply to an ``input_requested``."""

    text: Text


class CompleteParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """``session.complete``. ``cursor_pos`` is in characters, by default the end."""

    code: Text
    cursor_pos: Position | None = None


class InspectParams(CompleteParams, kw_only=True, forbid_unknown_fields=True):
    """``session.inspect``."""

    detail_level: Literal[0, 1] = 0


class CheckpointParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """``session.checkpoint``."""

    name: Annotated[str, Meta(min_length=1, max_length=128)] | None = None


class DropCheckpointParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """``session.drop_checkpoint``: by id (``checkpoint``) or by ``name``."""

    checkpoint: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    name: Annotated[str, Meta(min_length=1, max_length=128)] | None = None


class RollbackParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """``session.rollback``: to a checkpoint, or to before a cell. By default before the last cell."""

    to: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    replay: Annotated[
        bool, Meta(description="If the state has no checkpoint, run the cells since the one before it again.")
    ] = True


class BranchParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """``session.branch``."""

    at: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    count: Annotated[int, Meta(ge=1, le=MAX_BRANCHES)] = 1
    labels: Labels | None = None
    limits: LimitsRequest | None = None
    force: bool = False
    isolate: Annotated[
        bool, Meta(description="Give each branch a sandbox of its own. It gets the variables that pickle can copy.")
    ] = False
    tools: (
        Annotated[ToolFilter, Meta(description="Of the parent's functions, those that the branches may call.")] | None
    ) = None


class OfferParams(Struct, kw_only=True, forbid_unknown_fields=True):
    """``tools.offer``: functions that code may call, in one session or in all of the principal's.

    ``holding`` names the calls that the provider has begun or answered, after a lost connection.
    """

    offers: Annotated[list[Offer], Meta(max_length=MAX_OFFERS)]
    provider: ProviderId
    session: Id | None = None
    holding: Annotated[list[CallId], Meta(max_length=10_000)] = []
    replace: bool = True


class WithdrawParams(Struct, kw_only=True, forbid_unknown_fields=True):
    """``tools.withdraw``: some functions, or all, of this connection's provider."""

    names: Annotated[list[ToolName], Meta(max_length=MAX_OFFERS)] | None = None
    session: Id | None = None


class ToolsParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """``session.tools``: the functions that code may call, or those that match some words."""

    search: Annotated[str, Meta(max_length=400)] | None = None
    detail: Literal["brief", "full"] = "brief"
    limit: PageSize = 50


class ReportedError(Struct, kw_only=True, forbid_unknown_fields=True):
    """The exception of a function. Code gets the traceback only if there is one here."""

    type: Annotated[str, Meta(max_length=200)] = ""
    message: Annotated[str, Meta(max_length=64 * 1024)] = ""
    data: Any = None
    traceback: Annotated[str, Meta(max_length=256 * 1024)] | None = None


class CallParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """Parameters of a method on one call of a function."""

    call: CallId


class ReturnParams(CallParams, kw_only=True, forbid_unknown_fields=True):
    """``tool.return``: a value, or blocks as in MCP's results, or an error. The same again changes nothing."""

    status: Literal["ok", "error"]
    value: Any = None
    content: Annotated[list[dict[str, Any]], Meta(max_length=1000)] | None = None
    error: ReportedError | None = None


class ProgressParams(CallParams, kw_only=True, forbid_unknown_fields=True):
    """``tool.progress``: how far a call is. At most one a second is recorded."""

    progress: float
    total: float | None = None
    message: Annotated[str, Meta(max_length=1000)] | None = None


class DecideParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """``session.decide``: approve or deny calls that wait for a person.

    With ``remember``, the approval holds for all calls of the same functions in this cell or session.
    """

    calls: Annotated[list[CallId], Meta(min_length=1, max_length=1000)]
    decision: Literal["approve", "deny"]
    reason: Annotated[str, Meta(max_length=1000)] | None = None
    remember: Literal["cell", "session"] | None = None


class HoldParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """``session.hold``: with ``ask`` each cell waits for a decision, at most ``seconds``, and then for ``then``.

    ``off`` lets go: the cells that wait run.
    """

    mode: Literal["off", "ask"] = "ask"
    seconds: Annotated[float, Meta(ge=1, le=86400)] = 600.0
    then: Literal["refuse", "approve"] = "refuse"


class DecideCellsParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """``session.decide_cells``: approve or refuse held cells, all or none. The code's client gets the reason."""

    cells: Annotated[list[Id], Meta(min_length=1, max_length=1000)]
    decision: Literal["approve", "refuse"]
    reason: Annotated[str, Meta(max_length=1000)] | None = None


class CallsParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """``session.calls``: a page of them, the oldest first, without results."""

    cell: Id | None = None
    state: CallState | None = None
    limit: PageSize = 100
    offset: Position = 0


class ToolView(Struct, kw_only=True):
    """A function that code may call. The fields after ``summary`` are only in full detail."""

    name: str
    identifier: str
    signature: str
    summary: str
    documentation: str = ""
    parameters: dict[str, Any] = {}
    returns: dict[str, Any] | None = None
    effects: str = ""
    approval: str = ""
    timeout_seconds: float = 0.0
    idempotent: bool = False


class ToolList(Struct, kw_only=True):
    """Functions that code may call, and how many there are."""

    tools: list[ToolView]
    total: int


class Offered(Struct, kw_only=True):
    """``tools.offer`` is accepted.

    Attributes:
        offered: Name, identifier in code and digest of each function.
        cancelled: Calls of ``holding`` that have ended.
    """

    offered: list[dict[str, str]]
    cancelled: list[str]


class CallPage(Struct, kw_only=True):
    """A page of calls, the oldest first, and the offset of the next page."""

    calls: list[ToolCallInfo]
    next_offset: int | None = None


Argument = Annotated[str, Meta(max_length=128 * 1024)]


class StartProgramParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """``program.start``."""

    argv: Annotated[list[Argument], Meta(min_length=1, max_length=4096)]
    program: Annotated[Id, Meta(description="An id of your choice. The same id again starts nothing.")] | None = None
    env: dict[Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$(?!\n)")], str] = {}
    cwd: Annotated[str, Meta(max_length=4096, description="Default: the session's directory.")] = ""
    stdin: Annotated[bool, Meta(description="Whether it has a standard input. Otherwise it reads an empty one.")] = (
        False
    )
    terminal: Annotated[PtySize, Meta(description="Give it a terminal of this size.")] | None = None
    background: Annotated[
        bool,
        Meta(description="Drop the oldest unread output. Otherwise the program waits for its reader."),
    ] = False


class ProgramParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """Parameters of a method on one program."""

    program: Id


class ReadProgramParams(ProgramParams, kw_only=True, forbid_unknown_fields=True):
    """``program.read``: output from a position on. The server forgets the output before it."""

    after: Position = 0
    limit: Annotated[int, Meta(ge=1, le=1024 * 1024, description="Most bytes.")] = 256 * 1024
    wait_seconds: Annotated[float, Meta(ge=0, le=300, description="Time to wait for output, or for the end.")] = 30.0


class WriteProgramParams(ProgramParams, kw_only=True, forbid_unknown_fields=True):
    """``program.write``: bytes for its standard input, or its terminal.

    With ``at`` (``received`` of the program, as the client knows it) the same request again writes nothing twice.
    """

    data: bytes = b""
    at: Position | None = None
    end: Annotated[bool, Meta(description="Close the standard input after these bytes.")] = False


class SignalProgramParams(ProgramParams, kw_only=True, forbid_unknown_fields=True):
    """``program.signal``: to the program and its process group. 15 is SIGTERM, 9 is SIGKILL."""

    signal: Annotated[int, Meta(ge=1, le=64)] = 15


class ResizeProgramParams(ProgramParams, kw_only=True, forbid_unknown_fields=True):
    """``program.resize``: the size of its terminal, in characters."""

    columns: Annotated[int, Meta(ge=1, le=10_000)]
    rows: Annotated[int, Meta(ge=1, le=10_000)]


class WorkspaceParams(Struct, kw_only=True, forbid_unknown_fields=True):
    """Parameters of a method on one workspace: a ``name``, and its ``owner`` if that is another principal."""

    name: WorkspaceName
    owner: Pattern | None = None


class SetWorkspaceParams(WorkspaceParams, kw_only=True, forbid_unknown_fields=True):
    """``workspace.set``. An absent field changes nothing."""

    shared_with: Annotated[list[Pattern], Meta(max_length=MAX_SHARES)] | None = None
    max_bytes: Annotated[int, Meta(ge=1)] | None = None


class PortParams(SessionParams, kw_only=True, forbid_unknown_fields=True):
    """Parameters of a method on one port of a session."""

    port: Port


class SharePortParams(PortParams, kw_only=True, forbid_unknown_fields=True):
    """``session.share_port``: an address that needs no token."""

    public: Annotated[bool, Meta(description="Everybody may use the port, until it is unshared.")] = False
    seconds: Annotated[float, Meta(gt=0, description="How long a signed address is valid.")] = 3600.0


class SessionPage(Struct, kw_only=True):
    """A page of sessions, and the name of the next page (None: this is the last)."""

    sessions: list[SessionInfo]
    next_page: str | None = None


class CellPage(Struct, kw_only=True):
    """A page of cells, the oldest first, and the offset of the next page."""

    cells: list[CellInfo]
    next_offset: int | None = None


class OutlinePage(Struct, kw_only=True):
    """A page of lines about cells, and how many cells the session has."""

    cells: list[CellOutline]
    total: int


class Attached(Struct, kw_only=True):
    """``session.attach`` is accepted. Events up to ``last_seq`` are old, later ones are live."""

    session: str
    last_seq: int


class Output(Struct, kw_only=True):
    """A piece of a cell's text, in characters. ``next_offset`` is None at the end."""

    name: str
    offset: int
    text: str
    next_offset: int | None
    total: int
