"""The tools as data: name, description, arguments and results. Models read the descriptions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from kernelsvc.errors import BadRequest
from kernelsvc.model.objects import Seconds

#: Seconds. Most MCP clients time out a call after 60 seconds. A model waits for a longer cell with wait_for_cell.
DEFAULT_WAIT = 50.0
#: Default for the characters of a cell's text in one result.
DEFAULT_TEXT = 20_000
MAX_TEXT = 200_000
#: Bytes of a file in one result.
DEFAULT_PIECE = 64 * 1024
MAX_PIECE = 1024 * 1024

SessionName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$(?!\n)")]
#: Of a parameter that is accepted and not listed.
HIDDEN = "x-hidden"
_HIDDEN = Meta(extra_json_schema={HIDDEN: True})
Budget = Annotated[int, Meta(ge=200, le=20_000, description="Tokens of the answer, about.")]
DEFAULT_BUDGET = 3000
#: A cell's number, or its id.
CellNumber = Annotated[int | str, Meta(description="A number. Default: the last.")]
FromLine = Annotated[int, Meta(ge=1, description="First line.")]
Lines = Annotated[int, Meta(ge=1)]
Find = Annotated[str, Meta(max_length=200, description="Only lines that match this regex.")]
Path = Annotated[str, Meta(max_length=4096, description="Path relative to the session's working directory, with /.")]
Wait = Annotated[
    float,
    Meta(
        ge=0,
        le=3600,
        description="Seconds to wait for the cell to end. A cell that takes longer continues, and the result says so.",
    ),
]
MaxText = Annotated[
    int, Meta(ge=200, le=MAX_TEXT, description="Maximum length of the output in the result. read_output has the rest.")
]
Offset = Annotated[int, Meta(ge=0, description="Start position: next_offset of an earlier result.")]


class Arguments(Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of the arguments of all tools."""


class InSession(Arguments, kw_only=True):
    """Base of the arguments of tools that use a session."""

    session: SessionName | None = None


class RunCode(InSession, kw_only=True):
    """``run_code``."""

    session: Annotated[SessionName, Meta(description="A name. Default: yours.")] | None = None

    code: Annotated[
        str,
        Meta(
            min_length=1,
            description="A cell: %magics, !shell and top-level await work.",
        ),
    ]
    seconds: Annotated[Seconds, Meta(description="Interrupt the code after so long.")] | None = None
    budget: Budget = DEFAULT_BUDGET
    wait_seconds: Annotated[Wait, _HIDDEN] = DEFAULT_WAIT
    timeout_seconds: Annotated[Seconds, _HIDDEN] | None = None
    max_text: Annotated[MaxText, _HIDDEN] | None = None


class WaitArguments(InSession, kw_only=True):
    """``wait``."""

    cell: CellNumber | None = None
    seconds: Annotated[float, Meta(ge=0, le=3600, description="At most. Default: 50.")] = DEFAULT_WAIT
    budget: Annotated[Budget, _HIDDEN] = DEFAULT_BUDGET


class WaitForCell(InSession, kw_only=True):
    """``wait_for_cell``, the former ``wait``."""

    cell: CellNumber | None = None
    wait_seconds: Wait = DEFAULT_WAIT
    max_text: MaxText | None = None


class ReadOutput(InSession, kw_only=True):
    """``read_output``. ``name``, ``offset`` and ``limit`` read one stream in characters, as earlier versions did."""

    cell: CellNumber | None = None
    from_line: FromLine | None = None
    lines: Lines | None = None
    find: Find | None = None
    picture: Annotated[int, Meta(ge=1, description="Show this picture.")] | None = None
    budget: Annotated[Budget, _HIDDEN] = DEFAULT_BUDGET
    name: Annotated[Literal["stdout", "stderr"], _HIDDEN] | None = None
    offset: Annotated[Offset, _HIDDEN] | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_TEXT, extra_json_schema={HIDDEN: True})] = DEFAULT_TEXT


class Undo(InSession, kw_only=True):
    """``undo``."""

    cell: Annotated[int | str, Meta(description="Undo this cell and all after it. Default: the last.")] | None = None
    to: Annotated[str, Meta(max_length=128, description="A name of keep.")] | None = None


class Fork(InSession, kw_only=True):
    """``fork``."""

    count: Annotated[int, Meta(ge=1, le=64)] = 1
    from_kept: Annotated[str, Meta(max_length=128, description="A name of keep. Default: now.")] | None = None


class ReadFile(InSession, kw_only=True):
    """``read_file``."""

    path: Annotated[str, Meta(max_length=4096)] = ""
    from_line: FromLine | None = None
    lines: Lines | None = None
    find: Find | None = None


class Sessions(Arguments, kw_only=True):
    """``sessions``."""

    restart: Annotated[SessionName, Meta(description="Restart this one: no variables, same files.")] | None = None
    close: Annotated[SessionName, Meta(description="End this one.")] | None = None


class Rollback(InSession, kw_only=True):
    """``rollback``."""

    to: (
        Annotated[
            str,
            Meta(
                max_length=128,
                description="A checkpoint's name, or a cell's id for the state before that cell. Default: before the "
                "last cell.",
            ),
        ]
        | None
    ) = None
    replay: Annotated[
        bool, Meta(description="If the state was not saved, run the cells since the last saved state again.")
    ] = True


class MakeCheckpoint(InSession, kw_only=True):
    """``checkpoint``."""

    name: Annotated[
        str,
        Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$(?!\n)"),
    ]


class Branch(InSession, kw_only=True):
    """``branch``."""

    count: Annotated[int, Meta(ge=1, le=64, description="Number of branches.")] = 1
    at: Annotated[str, Meta(max_length=128, description="Checkpoint to start from. Default: now.")] | None = None


class UploadFile(InSession, kw_only=True):
    """``upload_file``."""

    path: Annotated[str, Meta(max_length=4096)]
    text: str | None = None
    base64: str | None = None


class DownloadFile(InSession, kw_only=True):
    """``download_file``."""

    path: Path
    offset: Offset = 0
    limit: Annotated[int, Meta(ge=1, le=MAX_PIECE, description="Maximum number of bytes to read.")] = DEFAULT_PIECE


class ListFiles(InSession, kw_only=True):
    """``list_files``."""

    path: Path = ""
    recursive: Annotated[bool, Meta(description="Whether to list subdirectories too.")] = False


class ExportNotebook(InSession, kw_only=True):
    """``export_notebook``."""

    format: Literal["ipynb", "html", "py"] = "ipynb"
    path: Annotated[str, Meta(max_length=4096, description="Also write it there.")] | None = None
    save_as: Annotated[str, Meta(max_length=4096, extra_json_schema={HIDDEN: True})] | None = None


class ListSessions(Arguments, kw_only=True):
    """``list_sessions``."""

    closed: Annotated[bool, Meta(description="Whether to list closed sessions too.")] = False


class CloseSession(Arguments, kw_only=True):
    """``close_session``."""

    session: SessionName


# --- results ---------------------------------------------------------------------------


class ErrorShown(Struct, kw_only=True):
    """The exception that a cell raised."""

    ename: str
    evalue: str


class CellResult(Struct, kw_only=True, omit_defaults=True):
    """The state of a cell, for a model.

    Attributes:
        truncated: whether ``text`` lacks a part of the cell's output.
        next: the next step, if the state does not imply it.
        note: a notice about the session.
    """

    session: str
    cell: str
    state: str
    text: str
    number: int = 0
    reason: str | None = None
    execution_count: int | None = None
    error: ErrorShown | None = None
    variables_kept: bool | None = None
    images: int = 0
    truncated: bool = False
    next: str | None = None
    note: str | None = None


class SessionResult(Struct, kw_only=True, omit_defaults=True):
    """A session."""

    session: str
    state: str
    name: str | None = None
    execution_count: int = 0
    created_at: str | None = None
    checkpoints: list[str] = []
    note: str | None = None


class SessionsResult(Struct, kw_only=True):
    """Sessions."""

    sessions: list[SessionResult]


class OutputResult(Struct, kw_only=True, omit_defaults=True):
    """A part of a cell's output. The last part has no ``next_offset``."""

    session: str
    cell: str
    text: str
    total: int
    next_offset: int | None = None


class VariableShown(Struct, kw_only=True, omit_defaults=True):
    """One variable."""

    name: str
    type: str
    summary: str
    size_bytes: int | None = None


class VariablesResult(Struct, kw_only=True):
    """The variables that cells have defined."""

    session: str
    variables: list[VariableShown]


class FileShown(Struct, kw_only=True):
    """One file or directory."""

    path: str
    kind: str
    size: int


class FilesResult(Struct, kw_only=True):
    """A directory listing."""

    session: str
    files: list[FileShown]
    truncated: bool


class FileResult(Struct, kw_only=True, omit_defaults=True):
    """A file, or a part of one. The last part has no ``next_offset``."""

    session: str
    path: str
    size: int
    next_offset: int | None = None
    uri: str | None = None
    note: str | None = None


class Tool(Struct, frozen=True, kw_only=True):
    """One tool.

    Attributes:
        name: name in a call.
        title: display name.
        about: description, for models.
        arguments: type of the arguments.
        result: type of the result's facts.
        reads: whether it only reads. MCP's readOnlyHint.
        destroys: whether it may destroy data. MCP's destructiveHint.
        repeats: whether a second call with the same arguments has no further effect. MCP's idempotentHint.
    """

    name: str
    title: str
    about: str
    arguments: type[Struct]
    result: Any
    reads: bool = False
    destroys: bool = False
    repeats: bool = False


_TOOLS = (
    Tool(
        name="run_code", title="Run Python", arguments=RunCode, result=CellResult, destroys=True,
        about="Run Python in a session that keeps variables and files. Answers with output, last value, error and "
        "plots, and [n], the cell's number. After 50 seconds it answers while the code runs on: call wait.{PLACE}",
    ),
    Tool(
        name="wait", title="Wait for a cell", arguments=WaitArguments, result=CellResult, reads=True,
        about="Wait for a running cell. Answers with what is new.",
    ),
    Tool(
        name="read_output", title="Read a cell's output", arguments=ReadOutput, result=OutputResult, reads=True,
        about="Read any lines or picture of a cell's whole output, where an answer has a gap.",
    ),
    Tool(
        name="interrupt", title="Interrupt", arguments=InSession, result=SessionResult, repeats=True,
        about="Stop the running cell. Variables stay.",
    ),
    Tool(
        name="undo", title="Undo", arguments=Undo, result=SessionResult, destroys=True,
        about="Set the variables back to before a cell. Files stay as they are.",
    ),
    Tool(
        name="write_file", title="Write a file", arguments=UploadFile, result=FileResult, destroys=True, repeats=True,
        about="Write a file, as text or base64.",
    ),
    Tool(
        name="read_file", title="Read a file", arguments=ReadFile, result=FileResult, reads=True,
        about="Read a text or picture, or list a directory.",
    ),
    Tool(
        name="keep", title="Keep a state", arguments=MakeCheckpoint, result=SessionResult,
        about="Keep the present variables under a name, for undo and fork.",
    ),
    Tool(
        name="fork", title="Fork", arguments=Fork, result=SessionsResult,
        about="Copy the session with its variables and files, to try several ways. Answers with the copies' names.",
    ),
    Tool(
        name="variables", title="Variables", arguments=InSession, result=VariablesResult, reads=True,
        about="List the variables, with types and sizes.",
    ),
    Tool(
        name="sessions", title="Sessions", arguments=Sessions, result=SessionsResult, destroys=True,
        about="List the sessions, or restart or close one.",
    ),
    Tool(
        name="export_notebook", title="Export the notebook", arguments=ExportNotebook, result=FileResult, repeats=True,
        about="Make a Jupyter notebook, page or script of the session for the user.",
    ),
)  # fmt: skip

#: The tools by name, in the order for models. The order is fixed, for caches of prompts.
TOOLS: dict[str, Tool] = {tool.name: tool for tool in _TOOLS}

#: Names of the tools that most work needs.
CORE = ("run_code", "wait", "read_output", "interrupt", "undo", "write_file", "read_file")


def _old(name: str, arguments: type[Struct], result: Any, **hints: bool) -> Tool:
    return Tool(name=name, title=name, about="", arguments=arguments, result=result, **hints)


#: Tools of earlier versions, which are accepted until December 2027 and not listed.
OLD_TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        _old("wait_for_cell", WaitForCell, CellResult, reads=True),
        _old("restart", InSession, SessionResult, destroys=True),
        _old("checkpoint", MakeCheckpoint, SessionResult),
        _old("rollback", Rollback, SessionResult, destroys=True),
        _old("branch", Branch, SessionsResult),
        _old("upload_file", UploadFile, FileResult, destroys=True, repeats=True),
        _old("download_file", DownloadFile, FileResult, reads=True),
        _old("list_files", ListFiles, FilesResult, reads=True),
        _old("list_sessions", ListSessions, SessionsResult, reads=True),
        _old("close_session", CloseSession, SessionResult, destroys=True, repeats=True),
    )
}


def selected(chosen: str | None) -> list[str]:
    """Return the names that ``core``, ``all``, or names with commas select. None is all.

    Raises:
        BadRequest: there is no such tool.
    """
    if chosen in (None, "", "all"):
        return [*TOOLS]
    names = [*CORE] if chosen == "core" else [name.strip() for name in (chosen or "").split(",")]
    if unknown := [name for name in names if name not in TOOLS]:
        raise BadRequest(f"There is no tool {unknown[0][:64]!r}. Choose core, all, or names of {', '.join(TOOLS)}.")
    return [name for name in TOOLS if name in names]


#: Instructions for models, for protocols that have a field for them.
INSTRUCTIONS = (
    "A stateful Python interpreter. Work in small steps, as in a notebook. If several conversations may share this "
    "server, name your session. If a step was wrong, undo it. To try several ways, fork. Each step is recorded: "
    "export_notebook makes a notebook for the user."
)
