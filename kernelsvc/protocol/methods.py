"""The methods of the native API as data: parameters, results, scopes and the call of each. Pure.

``METHODS`` is read by the WebSocket dispatcher, the REST routes, the OpenRPC
document and the reference page. A new method is a new row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field, to_builtins

from kernelsvc.errors import BadRequest
from kernelsvc.model.limits import LimitsRequest, Network
from kernelsvc.model.network.ports import Port, PortAddress, PortInfo
from kernelsvc.model.objects import (
    Call,
    CallState,
    CellInfo,
    CellMatch,
    CellOutline,
    CellRequest,
    CellView,
    Checkpoint,
    Deletion,
    Id,
    Label,
    OutputPage,
    ProgramView,
    PtySize,
    Scope,
    SessionInfo,
    SessionRequest,
    SessionState,
    ToolCallInfo,
    ValueData,
    ValueFormat,
    ValueRequest,
    Variable,
)
from kernelsvc.model.storage.workspaces import MAX_SHARES, Pattern, WorkspaceInfo, WorkspaceName
from kernelsvc.model.tool_calls.offers import MAX_OFFERS, Offer, ProviderId, ToolFilter, ToolName
from kernelsvc.model.tracing.context import RequestMeta
from kernelsvc.model.usage_history import UsageSample
from kernelsvc.model.view.request import ViewRequest

#: Most cells of one batch, and most branches of one call.
MAX_BATCH = 1000
MAX_BRANCHES = 256

#: The id of a call: the kernel's id, and a number.
CallId = Annotated[str, Meta(min_length=1, max_length=256)]
Position = Annotated[int, Meta(ge=0, le=2**53)]
Text = Annotated[str, Meta(max_length=1024 * 1024)]
PageSize = Annotated[int, Meta(ge=1, le=1000)]


# --- params and results ---------------------------------------------------------------


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
    """``session.cells``: a page of them, the oldest first."""

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
    labels: dict[Label, Label] | None = None
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
    env: dict[Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = {}
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


# --- the table ----------------------------------------------------------------------------

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _fields(params: Any) -> Arguments:
    """Pass ``session`` by position and the rest by name, as most methods of ``ServiceApi`` take them."""
    named = {name: getattr(params, name) for name in params.__struct_fields__}
    session = named.pop("session", None)
    return ((session,) if session is not None else ()), named


def _in_order(*names: str) -> Callable[[Any], Arguments]:
    """Pass these fields by position."""
    return lambda params: (tuple(getattr(params, name) for name in names), {})


def _request_of(kind: type[Struct], params: Any) -> Any:
    return kind(**{name: getattr(params, name) for name in kind.__struct_fields__})


def _create(params: CreateParams) -> Arguments:
    return (_request_of(SessionRequest, params),), {}


def _execute(params: ExecuteParams) -> Arguments:
    return (params.session, params), {"wait": params.wait}  # ExecuteParams is a ``CellRequest``


def _batch(params: BatchParams) -> Arguments:
    if params.meta is not None:
        for cell in params.cells:
            cell.meta = cell.meta or params.meta
    return (params.session, params.cells), {"on_error": params.on_error, "wait": params.wait}


def _output(params: OutputParams) -> Arguments:
    return (params.session, params.cell), {"name": params.name, "offset": params.offset, "limit": params.limit}


def _workspace(params: WorkspaceParams) -> Arguments:
    named = {name: getattr(params, name) for name in params.__struct_fields__ if name not in ("name", "owner")}
    return (params.name if params.owner is None else f"{params.owner}/{params.name}",), named


def _port(params: Any) -> Arguments:
    named = {name: getattr(params, name) for name in params.__struct_fields__ if name not in ("session", "port")}
    return (params.session, params.port), named


def _view(params: ViewParams) -> Arguments:
    request = ViewRequest(**{name: getattr(params, name) for name in ViewRequest.__struct_fields__})
    return (params.session, params.cell, request), {}


def _value(params: ValueParams) -> Arguments:
    return (params.session, _request_of(ValueRequest, params)), {}


def _call(params: Call) -> Arguments:
    return (params,), {}


def _drop(params: DropCheckpointParams) -> Arguments:
    chosen = params.checkpoint or params.name
    if not chosen:
        raise BadRequest("Say which checkpoint to drop: give 'checkpoint' (its id) or 'name'.")
    return (params.session, chosen), {}


def _offers(params: OfferParams) -> Arguments:
    named = {name: getattr(params, name) for name in ("session", "provider", "holding", "replace")}
    return (params.offers,), named


def _withdraw(params: WithdrawParams) -> Arguments:
    return (), {"names": params.names, "session": params.session}


def _on_call(params: Any) -> Arguments:
    """Pass session and call by position, and all other fields by name."""
    named = {name: getattr(params, name) for name in params.__struct_fields__ if name not in ("session", "call")}
    return (params.session, params.call), named


def _return(params: ReturnParams) -> Arguments:
    error = None if params.error is None else {k: v for k, v in to_builtins(params.error).items() if v is not None}
    if params.status == "error" and error is None:
        raise BadRequest("An answer with the status 'error' needs an 'error' with type and message.")
    named = {"status": params.status, "value": params.value, "content": params.content, "error": error}
    return (params.session, params.call), {**named, "error": error if params.status == "error" else None}


def _decide(params: DecideParams) -> Arguments:
    named = {"approve": params.decision == "approve", "reason": params.reason, "remember": params.remember}
    return (params.session, params.calls), named


def _calls(params: CallsParams) -> Arguments:
    return (params.session,), {"cell": params.cell, "state": params.state}


class Method(Struct, frozen=True, kw_only=True):
    """One row of the API.

    Attributes:
        name: The method's name on the wire.
        params: The type that the params object is decoded into.
        result: The type of the result, for the documents.
        scope: The scope that the caller's token needs.
        calls: The method of ``ServiceApi``.
        summary: One sentence.
        arguments: Converts params into positional and keyword arguments (after ``who``).
        client: Whether the call takes the connection that it came from.
        who: Whether the call takes the principal.
        repeatable: Whether a client may send the call again on another connection, when it has lost the one on which
            it sent it. Such a call changes nothing, or finds the work of the first one: a client gives each cell an
            id and each creation an idempotency key.
    """

    name: str
    params: type[Struct]
    result: Any
    scope: Scope
    calls: str
    summary: str
    arguments: Callable[[Any], Arguments] = _fields
    client: bool = False
    who: bool = True
    repeatable: bool = False


#: Methods that change something, and that a client may send twice.
_REPEATABLE = frozenset(
    f"session.{name}" for name in ("create", "execute", "batch", "close", "complete", "inspect", "variables", "value")
) | {
    *("program.start", "program.read", "program.write", "program.resize"),
    *("tools.offer", "tools.withdraw", "tool.return", "tool.progress", "workspace.set"),
}
#: Methods that only read, but have a meaning on one connection only.
_OF_ONE_CONNECTION = ("session.attach", "session.detach")


def _row(name: str, params: type[Struct], result: Any, scope: Scope, summary: str, **more: Any) -> Method:
    calls = more.pop("calls", name.rpartition(".")[2])
    repeatable = name in _REPEATABLE or (scope == "read" and name not in _OF_ONE_CONNECTION)
    return Method(
        name=name,
        params=params,
        result=result,
        scope=scope,
        summary=summary,
        calls=calls,
        repeatable=repeatable,
        **more,
    )


_ROWS = (
    _row("info", NoParams, dict[str, Any], "read", "Version, limits, and what the sandbox enforces.", who=False),
    _row("templates", NoParams, list[dict[str, Any]], "read", "Environments that a session can start from.", who=False),
    _row("call", Call, dict[str, Any], "run", "One shot: code, or a function with arguments.", arguments=_call),
    _row("session.create", CreateParams, SessionInfo, "run", "A new session, ready for a cell.", arguments=_create),
    _row("session.attach", AttachParams, Attached, "read", "Every event after a position, old ones first, then live."),
    _row("session.detach", SessionParams, None, "read", "No more events of this session on this connection."),
    _row("session.get", SessionParams, SessionInfo, "read", "A session as it is now."),
    _row("session.list", ListParams, SessionPage, "read", "The principal's sessions, newest first."),
    _row("session.close", CloseParams, SessionInfo, "run", "End a session; its record stays."),
    _row(
        "session.purge", PurgeParams, Deletion, "run",
        "Delete a closed session for good: log, notebook, files; a signed record without content stays.",
    ),
    _row("session.interrupt", SessionParams, SessionInfo, "run", "Interrupt the running cell."),
    _row("session.restart", SessionParams, SessionInfo, "run", "A new kernel with empty variables; the log goes on."),
    _row(
        "session.execute", ExecuteParams, CellInfo, "run", "Run a cell; the same cell id again runs nothing.",
        arguments=_execute, client=True,
    ),
    _row(
        "session.batch", BatchParams, list[CellInfo], "run", "Run several cells in one trip.",
        arguments=_batch, client=True,
    ),
    _row("session.cell", CellParams, CellInfo, "read", "One cell.", arguments=_in_order("session", "cell")),
    _row("session.cells", CellsParams, CellPage, "read", "The cells of a session.", arguments=_in_order("session")),
    _row(
        "session.outline", OutlineParams, OutlinePage, "read", "One line about each cell of a session.",
        arguments=_in_order("session", "offset", "limit"),
    ),
    _row("session.search", SearchParams, list[CellMatch], "read", "Cells by the words of their code, best first."),
    _row(
        "session.usage", SessionParams, list[UsageSample], "read", "Samples of a session's use over its life.",
        calls="usage.samples",
    ),
    _row("session.output", OutputParams, Output, "read", "A cell's whole text, a piece at a time.", arguments=_output),
    _row("session.view", ViewParams, CellView, "read", "A cell as a language model reads it.", arguments=_view),
    _row(
        "session.input", InputParams, None, "run", "Answer a cell that waits for input.",
        arguments=_in_order("session", "cell", "text"),
    ),
    _row(
        "session.complete", CompleteParams, dict[str, Any], "run", "Completions.",
        arguments=_in_order("session", "code", "cursor_pos"),
    ),
    _row(
        "session.inspect", InspectParams, dict[str, Any], "run", "Documentation of a name.",
        arguments=_in_order("session", "code", "cursor_pos", "detail_level"),
    ),
    _row("session.variables", SessionParams, list[Variable], "run", "The names that the user's code has set."),
    _row("session.value", ValueParams, ValueData, "run", "The data of a variable.", arguments=_value),
    _row("session.checkpoint", CheckpointParams, Checkpoint, "run", "Park a copy of the kernel."),
    _row("session.checkpoints", SessionParams, list[Checkpoint], "read", "The parked copies."),
    _row("session.drop_checkpoint", DropCheckpointParams, None, "run", "Let a parked copy go.", arguments=_drop),
    _row("session.rollback", RollbackParams, SessionInfo, "run", "Back to an earlier state; the record keeps both."),
    _row("session.branch", BranchParams, list[SessionInfo], "run", "New sessions from this one's live state."),
    _row(
        "tools.offer", OfferParams, Offered, "run", "Let code call functions of this client.",
        arguments=_offers, calls="offers.offer", client=True,
    ),
    _row(
        "tools.withdraw", WithdrawParams, None, "run", "End offers of this connection.", arguments=_withdraw,
        calls="offers.withdraw", client=True,
    ),
    _row("session.tools", ToolsParams, ToolList, "read", "Functions that code may call.", calls="offers.list"),
    _row(
        "tool.return", ReturnParams, None, "run", "The result of a call; the same again changes nothing.",
        arguments=_return, calls="offers.answer",
    ),
    _row(
        "tool.progress", ProgressParams, None, "run", "How far a call is.", arguments=_on_call,
        calls="offers.progress",
    ),
    _row(
        "session.decide", DecideParams, list[ToolCallInfo], "approve", "Approve or deny calls that wait for a person.",
        arguments=_decide, calls="offers.decide",
    ),
    _row("session.calls", CallsParams, CallPage, "read", "Calls of clients' functions.", arguments=_calls,
         calls="offers.calls"),
    _row("session.call", CallParams, ToolCallInfo, "read", "One call with its result.", arguments=_on_call,
         calls="offers.find_call"),
    _row(
        "program.start", StartProgramParams, ProgramView, "run", "Start a program next to the kernel.",
        calls="commands.start",
    ),
    _row(
        "program.read", ReadProgramParams, OutputPage, "run", "Wait for a program's output, or for its end.",
        arguments=_in_order("session", "program", "after", "limit", "wait_seconds"), calls="commands.read",
    ),
    _row(
        "program.write", WriteProgramParams, ProgramView, "run", "Write to a program's standard input.",
        arguments=_in_order("session", "program", "data", "at", "end"), calls="commands.write",
    ),
    _row(
        "program.signal", SignalProgramParams, None, "run", "Send a signal to a program.",
        arguments=_in_order("session", "program", "signal"), calls="commands.signal",
    ),
    _row(
        "program.resize", ResizeProgramParams, None, "run", "Change the size of a program's terminal.",
        arguments=_in_order("session", "program", "columns", "rows"), calls="commands.resize",
    ),
    _row(
        "session.programs", SessionParams, list[ProgramView], "read", "The programs that run, and recently ended ones.",
        calls="commands.list",
    ),
    _row(
        "workspace.list", NoParams, list[WorkspaceInfo], "read", "The workspaces that you may use.",
        calls="workspaces.list",
    ),
    _row(
        "workspace.get", WorkspaceParams, WorkspaceInfo, "read", "A workspace and its size.", arguments=_workspace,
        calls="workspaces.get",
    ),
    _row(
        "workspace.set", SetWorkspaceParams, WorkspaceInfo, "run", "Make a workspace, share it, limit its size.",
        arguments=_workspace, calls="workspaces.set",
    ),
    _row(
        "workspace.remove", WorkspaceParams, None, "run", "Remove a workspace with its files.", arguments=_workspace,
        calls="workspaces.remove",
    ),
    _row(
        "session.network", NetworkParams, SessionInfo, "run",
        "Replace the rules of the session's network, within the server's; open connections that they refuse end.",
        calls="network.update",
    ),
    _row("session.ports", SessionParams, list[PortInfo], "read", "The ports that were shared.", calls="ports.list"),
    _row(
        "session.share_port", SharePortParams, PortAddress, "run", "An address of a port that needs no token.",
        arguments=_port, calls="ports.share",
    ),
    _row(
        "session.unshare_port", PortParams, None, "run", "End every address of a port.", arguments=_port,
        calls="ports.unshare",
    ),
    _row("session.hibernate", SessionParams, SessionInfo, "run", "Give the memory back; the next cell wakes it."),
)  # fmt: skip


METHODS: dict[str, Method] = {row.name: row for row in _ROWS}


def shape(method: Method, params: Any, value: Any) -> Any:
    """Convert the value that ``ServiceApi`` returned into the method's result type."""
    if method.name == "session.list":
        sessions, page = value
        return SessionPage(sessions=sessions, next_page=page)
    if method.name == "session.outline":
        cells, total = value
        return OutlinePage(cells=cells, total=total)
    if method.name == "session.cells":
        return page_of_cells(value, params.offset, params.limit)
    if method.name == "session.calls":
        end = params.offset + params.limit
        return CallPage(calls=value[params.offset : end], next_offset=end if end < len(value) else None)
    return None if method.result is None else value


def page_of_cells(cells: list[CellInfo], offset: int, limit: int) -> CellPage:
    """Return one page of a session's cells."""
    end = offset + limit
    return CellPage(cells=cells[offset:end], next_offset=end if end < len(cells) else None)
