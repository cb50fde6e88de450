"""The methods of the native API as data: parameters, results, scopes and the call of each. Pure.

``METHODS`` is read by the WebSocket dispatcher, the REST routes, the OpenRPC
document and the reference page. A new method is a new row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct, to_builtins

from kernelsvc.errors import BadRequest
from kernelsvc.model.network.ports import PortAddress, PortInfo
from kernelsvc.model.objects import (
    Call,
    CellInfo,
    CellMatch,
    CellView,
    Checkpoint,
    Deletion,
    OutputPage,
    ProgramView,
    Scope,
    SessionInfo,
    SessionRequest,
    ToolCallInfo,
    ValueData,
    ValueRequest,
    Variable,
)
from kernelsvc.model.storage.workspaces import WorkspaceInfo
from kernelsvc.model.usage_history import UsageSample
from kernelsvc.model.view.request import ViewRequest
from kernelsvc.protocol.method_params import (
    Attached,
    AttachParams,
    BatchParams,
    BranchParams,
    CallPage,
    CallParams,
    CallsParams,
    CellPage,
    CellParams,
    CellsParams,
    CheckpointParams,
    CloseParams,
    CompleteParams,
    CreateParams,
    DecideCellsParams,
    DecideParams,
    DropCheckpointParams,
    ExecuteParams,
    HoldParams,
    InputParams,
    InspectParams,
    ListParams,
    NetworkParams,
    NoParams,
    Offered,
    OfferParams,
    OutlinePage,
    OutlineParams,
    Output,
    OutputParams,
    PortParams,
    ProgressParams,
    PurgeParams,
    ReadProgramParams,
    ResizeProgramParams,
    ReturnParams,
    RollbackParams,
    SearchParams,
    SessionPage,
    SessionParams,
    SetWorkspaceParams,
    SharePortParams,
    SignalProgramParams,
    StartProgramParams,
    ToolList,
    ToolsParams,
    ValueParams,
    ViewParams,
    WithdrawParams,
    WorkspaceParams,
    WriteProgramParams,
)

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
    named = {name: getattr(params, name) for name in ("cell", "state", "offset", "limit")}
    return (params.session,), named


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
    _row(
        "session.cells", CellsParams, CellPage, "read", "The cells of a session.",
        arguments=_in_order("session", "offset", "limit"),
    ),
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
    _row("session.hold", HoldParams, SessionInfo, "approve", "Hold cells until a person decides, or let go.",
         calls="holds.set"),
    _row(
        "session.decide_cells", DecideCellsParams, list[CellInfo], "approve", "Approve or refuse held cells.",
        calls="holds.decide",
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
        cells, total = value
        return page_of_cells(cells, total, params.offset)
    if method.name == "session.calls":
        calls, total = value
        end = params.offset + len(calls)
        return CallPage(calls=calls, next_offset=end if calls and end < total else None)
    return None if method.result is None else value


def page_of_cells(cells: list[CellInfo], total: int, offset: int) -> CellPage:
    """Return one page of a session's cells."""
    end = offset + len(cells)
    return CellPage(cells=cells, next_offset=end if cells and end < total else None)
