"""The tools as data: name, description, arguments and results. Models read the descriptions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from kernelsvc.model.objects import Seconds

#: Seconds. Most MCP clients time out a call after 60 seconds. A model waits for a longer cell with wait_for_cell.
DEFAULT_WAIT = 50.0
#: Default for the characters of a cell's text in one result.
DEFAULT_TEXT = 20_000
MAX_TEXT = 200_000
#: Bytes of a file in one result.
DEFAULT_PIECE = 64 * 1024
MAX_PIECE = 1024 * 1024

SessionName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="The session: an id from an earlier result, or a name of your choice, such as 'analysis'. "
        "Default: your default session. run_code and upload_file create a session that does not exist yet.",
    ),
]
CellId = Annotated[str, Meta(min_length=1, max_length=128, description="A cell's id, from an earlier result.")]
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

    code: Annotated[
        str,
        Meta(
            min_length=1,
            description="Python code, as in a Jupyter cell. The value of the last expression is shown. %magics, "
            "top-level await and plots work.",
        ),
    ]
    wait_seconds: Wait = DEFAULT_WAIT
    timeout_seconds: (
        Annotated[Seconds, Meta(description="Interrupt the cell after this many seconds of wall time.")] | None
    ) = None
    max_text: MaxText = DEFAULT_TEXT


class WaitForCell(InSession, kw_only=True):
    """``wait_for_cell``."""

    cell: Annotated[CellId, Meta(description="The cell. Default: the session's last one.")] | None = None
    wait_seconds: Wait = DEFAULT_WAIT
    max_text: MaxText = DEFAULT_TEXT


class ReadOutput(InSession, kw_only=True):
    """``read_output``."""

    cell: CellId
    name: Annotated[Literal["stdout", "stderr"], Meta(description="The stream.")] = "stdout"
    offset: Offset = 0
    limit: Annotated[int, Meta(ge=1, le=MAX_TEXT, description="Maximum number of characters to read.")] = DEFAULT_TEXT


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
        Meta(
            min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="For rollback and branch."
        ),
    ]


class Branch(InSession, kw_only=True):
    """``branch``."""

    count: Annotated[int, Meta(ge=1, le=64, description="Number of branches.")] = 1
    at: Annotated[str, Meta(max_length=128, description="Checkpoint to start from. Default: now.")] | None = None


class UploadFile(InSession, kw_only=True):
    """``upload_file``."""

    path: Path
    text: Annotated[str, Meta(description="Content of a text file.")] | None = None
    base64: Annotated[str, Meta(description="Content of any other file, in base64.")] | None = None


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

    format: Annotated[Literal["ipynb", "html", "py"], Meta(description="Format of the notebook.")] = "ipynb"
    save_as: (
        Annotated[str, Meta(max_length=4096, description="Also write it to this path in the working directory.")] | None
    ) = None


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
        about="Run Python code in a session that keeps its variables, imports and files from call to call. Returns the "
        "printed text, the last value, the error and the plots. A cell that takes longer than wait_seconds continues: "
        "get its result with wait_for_cell. If it crashes Python, the variables from before it are restored.",
    ),
    Tool(
        name="wait_for_cell", title="Wait for a cell", arguments=WaitForCell, result=CellResult, reads=True,
        about="Wait for a cell that is still running, or get the result of an ended one again. Use it after run_code "
        "returned before the cell's end, or after a call timed out. It runs nothing.",
    ),
    Tool(
        name="read_output", title="Read a cell's output", arguments=ReadOutput, result=OutputResult, reads=True,
        about="Read a cell's output in parts, if run_code's result had to leave out some of it.",
    ),
    Tool(
        name="interrupt", title="Interrupt", arguments=InSession, result=SessionResult, repeats=True,
        about="Interrupt the running cell, like Ctrl-C. The variables stay.",
    ),
    Tool(
        name="restart", title="Restart", arguments=InSession, result=SessionResult, destroys=True,
        about="Start a new Python process without variables. The files and the notebook stay. "
        "To undo one step, use rollback.",
    ),
    Tool(
        name="variables", title="Variables", arguments=InSession, result=VariablesResult, reads=True,
        about="List the variables that cells have defined, each with type, size and a summary.",
    ),
    Tool(
        name="checkpoint", title="Checkpoint", arguments=MakeCheckpoint, result=SessionResult,
        about="Save the present variables under a name, for rollback or branch.",
    ),
    Tool(
        name="rollback", title="Undo", arguments=Rollback, result=SessionResult, destroys=True,
        about="Restore the variables to an earlier state: before the last cell, before a given cell, or at a "
        "checkpoint. If that state was not saved, the cells since the last saved state run again, with all their "
        "effects. Files are not restored. The notebook keeps the undone cells, and marks them.",
    ),
    Tool(
        name="branch", title="Branch", arguments=Branch, result=SessionsResult,
        about="Fork the session into new sessions with copies of its variables and files, independent from then on. "
        "Try a different approach in each (run_code with its id), compare, continue in the best, close the others.",
    ),
    Tool(
        name="upload_file", title="Write a file", arguments=UploadFile, result=FileResult, destroys=True, repeats=True,
        about="Write a file to the session's working directory, where code can open it by its relative path.",
    ),
    Tool(
        name="download_file", title="Read a file", arguments=DownloadFile, result=FileResult, reads=True,
        about="Read a file of the session's working directory: a text, an image, or any other file in base64.",
    ),
    Tool(
        name="list_files", title="List files", arguments=ListFiles, result=FilesResult, reads=True,
        about="List the session's working directory.",
    ),
    Tool(
        name="export_notebook", title="Export the notebook", arguments=ExportNotebook, result=FileResult, repeats=True,
        about="Export the session as a Jupyter notebook, a web page or a script. Works for a closed session too.",
    ),
    Tool(
        name="list_sessions", title="Sessions", arguments=ListSessions, result=SessionsResult, reads=True,
        about="List your sessions, newest first.",
    ),
    Tool(
        name="close_session", title="Close a session", arguments=CloseSession, result=SessionResult, destroys=True,
        repeats=True,
        about="Close a session and free its memory. Its variables are lost. Its notebook and files stay readable.",
    ),
)  # fmt: skip

#: The tools by name, in the order for models.
TOOLS: dict[str, Tool] = {tool.name: tool for tool in _TOOLS}

#: Instructions for models, for protocols that have a field for them.
INSTRUCTIONS = (
    "A stateful Python interpreter. run_code runs a cell in a session. Variables, imports and files stay from call to "
    "call. Without 'session' a call uses your default session. Give a name to separate tasks, and if several "
    "conversations may share this server, choose a name for yours. Work in small steps, as in a notebook. numpy, "
    "pandas and matplotlib are installed. Show a plot with plt.show() to see it. There is no network unless you were "
    "told otherwise. If a cell takes long, get its result with wait_for_cell. If a step was wrong, undo it with "
    "rollback. To try several approaches, use branch. Each step is recorded: export_notebook makes a notebook for the "
    "user."
)
