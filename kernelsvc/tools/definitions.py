"""The tools, as data: name, wording, arguments and results. The wording is read by models; each says the next step."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from kernelsvc.model.objects import Seconds

#: Most clients give a call 60 seconds; a cell that takes longer is picked up again.
DEFAULT_WAIT = 50.0
#: Characters of a cell's text in one result, unless the call says otherwise.
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
        description="The session: an id from an earlier result, or a name of your own choice, such as 'analysis'. "
        "Left out: your default session. What does not exist yet is made by run_code and upload_file.",
    ),
]
CellId = Annotated[str, Meta(min_length=1, max_length=128, description="A cell's id, from an earlier result.")]
Path = Annotated[
    str, Meta(max_length=4096, description="Relative to the session's working directory, with / for directories.")
]
Wait = Annotated[
    float,
    Meta(
        ge=0,
        le=3600,
        description="Seconds to wait for the cell's end before answering that it still runs. It runs on either way.",
    ),
]
MaxText = Annotated[
    int, Meta(ge=200, le=MAX_TEXT, description="Characters of output in the answer; read_output has the rest.")
]
Offset = Annotated[int, Meta(ge=0, description="Where to begin, from an earlier answer's next_offset.")]


class Arguments(Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of what tools take."""


class InSession(Arguments, kw_only=True):
    """Base of what happens in a session."""

    session: SessionName | None = None


class RunCode(InSession, kw_only=True):
    """``run_code``."""

    code: Annotated[
        str,
        Meta(
            min_length=1,
            description="Python, as in a Jupyter cell: the last expression's value is shown; %magics, "
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

    cell: Annotated[CellId, Meta(description="The cell; left out: the session's last one.")] | None = None
    wait_seconds: Wait = DEFAULT_WAIT
    max_text: MaxText = DEFAULT_TEXT


class ReadOutput(InSession, kw_only=True):
    """``read_output``."""

    cell: CellId
    name: Annotated[Literal["stdout", "stderr"], Meta(description="Which stream.")] = "stdout"
    offset: Offset = 0
    limit: Annotated[int, Meta(ge=1, le=MAX_TEXT, description="Characters to read.")] = DEFAULT_TEXT


class Rollback(InSession, kw_only=True):
    """``rollback``."""

    to: (
        Annotated[
            str,
            Meta(
                max_length=128,
                description="A checkpoint's name, or a cell's id: the state before that cell. Left out: before the "
                "last cell.",
            ),
        ]
        | None
    ) = None


class MakeCheckpoint(InSession, kw_only=True):
    """``checkpoint``."""

    name: Annotated[
        str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="To go back to it.")
    ]


class Branch(InSession, kw_only=True):
    """``branch``."""

    count: Annotated[int, Meta(ge=1, le=64, description="How many.")] = 1
    at: Annotated[str, Meta(max_length=128, description="A checkpoint to start from, by name.")] | None = None


class UploadFile(InSession, kw_only=True):
    """``upload_file``."""

    path: Path
    text: Annotated[str, Meta(description="The content, for a text file.")] | None = None
    base64: Annotated[str, Meta(description="The content in base64, for any other file.")] | None = None


class DownloadFile(InSession, kw_only=True):
    """``download_file``."""

    path: Path
    offset: Offset = 0
    limit: Annotated[int, Meta(ge=1, le=MAX_PIECE, description="Bytes to read.")] = DEFAULT_PIECE


class ListFiles(InSession, kw_only=True):
    """``list_files``."""

    path: Path = ""
    recursive: Annotated[bool, Meta(description="Whether to list directories within.")] = False


class ExportNotebook(InSession, kw_only=True):
    """``export_notebook``."""

    format: Annotated[Literal["ipynb", "html", "py"], Meta(description="ipynb, html or py.")] = "ipynb"
    save_as: (
        Annotated[str, Meta(max_length=4096, description="Write it to this path of the working directory as well.")]
        | None
    ) = None


class ListSessions(Arguments, kw_only=True):
    """``list_sessions``."""

    closed: Annotated[bool, Meta(description="Whether to list those that have ended, too.")] = False


class CloseSession(Arguments, kw_only=True):
    """``close_session``."""

    session: SessionName


# --- results ---------------------------------------------------------------------------


class ErrorShown(Struct, kw_only=True):
    """What a cell raised."""

    ename: str
    evalue: str


class CellResult(Struct, kw_only=True, omit_defaults=True):
    """A cell, as a model wants it.

    Attributes:
        truncated: whether ``text`` lacks some of what the cell wrote.
        next: what to do next, where that is not plain.
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
    """A piece of what a cell wrote; no ``next_offset`` at the end."""

    session: str
    cell: str
    text: str
    total: int
    next_offset: int | None = None


class VariableShown(Struct, kw_only=True, omit_defaults=True):
    """One name."""

    name: str
    type: str
    summary: str
    size_bytes: int | None = None


class VariablesResult(Struct, kw_only=True):
    """The names that cells have made."""

    session: str
    variables: list[VariableShown]


class FileShown(Struct, kw_only=True):
    """One file or directory."""

    path: str
    kind: str
    size: int


class FilesResult(Struct, kw_only=True):
    """A directory."""

    session: str
    files: list[FileShown]
    truncated: bool


class FileResult(Struct, kw_only=True, omit_defaults=True):
    """A file, or a piece of one; no ``next_offset`` at the end."""

    session: str
    path: str
    size: int
    next_offset: int | None = None
    uri: str | None = None
    note: str | None = None


class Tool(Struct, frozen=True, kw_only=True):
    """One tool.

    Attributes:
        name: what a call names.
        title: for people.
        about: for models.
        arguments: what a call's arguments are decoded into.
        result: what the facts of its outcome are.
        reads: whether it changes nothing.
        destroys: whether it may lose something.
        repeats: whether calling it again with the same arguments changes nothing more.
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
        about="Run Python in a session that keeps its variables, imports and files from call to call, and return what "
        "it printed, its last value, its error and its plots. A cell that outlasts wait_seconds runs on: pick it up "
        "with wait_for_cell. If it crashes Python, the variables from before it are restored.",
    ),
    Tool(
        name="wait_for_cell", title="Wait for a cell", arguments=WaitForCell, result=CellResult, reads=True,
        about="Go on waiting for a cell that still runs, or see again how one ended. Use it after run_code said that "
        "the cell still runs, or when a call of yours timed out: nothing is run twice.",
    ),
    Tool(
        name="read_output", title="Read a cell's output", arguments=ReadOutput, result=OutputResult, reads=True,
        about="Read what a cell wrote, a piece at a time, where run_code's answer was cut.",
    ),
    Tool(
        name="interrupt", title="Interrupt", arguments=InSession, result=SessionResult, repeats=True,
        about="Interrupt the running cell, as Ctrl-C would. Variables stay.",
    ),
    Tool(
        name="restart", title="Restart", arguments=InSession, result=SessionResult, destroys=True,
        about="Give the session a new Python process with no variables; files and notebook stay. "
        "To undo a step, use rollback.",
    ),
    Tool(
        name="variables", title="Variables", arguments=InSession, result=VariablesResult, reads=True,
        about="List the names that cells have made, with type, size and a summary of each.",
    ),
    Tool(
        name="checkpoint", title="Checkpoint", arguments=MakeCheckpoint, result=SessionResult,
        about="Keep the present variables under a name, to go back to with rollback or to branch from.",
    ),
    Tool(
        name="rollback", title="Undo", arguments=Rollback, result=SessionResult, destroys=True,
        about="Make the variables those of an earlier moment: before the last cell, before a given cell, or at a "
        "checkpoint. Files are not changed back. The notebook keeps what was undone, marked so.",
    ),
    Tool(
        name="branch", title="Branch", arguments=Branch, result=SessionsResult,
        about="Fork the session: new sessions with copies of all its variables and files, independent from then on. "
        "Try a different approach in each (run_code with its id), compare, go on in the best and close the others.",
    ),
    Tool(
        name="upload_file", title="Write a file", arguments=UploadFile, result=FileResult, destroys=True, repeats=True,
        about="Put a file into the session's working directory, where code opens it by its relative path.",
    ),
    Tool(
        name="download_file", title="Read a file", arguments=DownloadFile, result=FileResult, reads=True,
        about="Read a file of the session's working directory: text as text, a picture as a picture, else base64.",
    ),
    Tool(
        name="list_files", title="List files", arguments=ListFiles, result=FilesResult, reads=True,
        about="List the session's working directory.",
    ),
    Tool(
        name="export_notebook", title="Export the notebook", arguments=ExportNotebook, result=FileResult, repeats=True,
        about="The session so far as a Jupyter notebook, a web page or a script; also of a session that has ended.",
    ),
    Tool(
        name="list_sessions", title="Sessions", arguments=ListSessions, result=SessionsResult, reads=True,
        about="List your sessions, newest first.",
    ),
    Tool(
        name="close_session", title="Close a session", arguments=CloseSession, result=SessionResult, destroys=True,
        repeats=True,
        about="End a session and give its memory back. Its variables are gone; its notebook and files stay readable.",
    ),
)  # fmt: skip

#: Every tool by its name, in the order in which models are shown them.
TOOLS: dict[str, Tool] = {tool.name: tool for tool in _TOOLS}

#: How to work with them, for protocols that have a place for it.
INSTRUCTIONS = (
    "A Python interpreter that keeps state. run_code runs a cell in a session; variables, imports and files live on "
    "from call to call. Leave 'session' out for your default session, or give a name to keep separate pieces of work "
    "apart; when several conversations may share this server, choose a name for yours. Work in small steps, as in a "
    "notebook. numpy, pandas and matplotlib are there; show a plot with plt.show() and you see it. There is no "
    "network unless you were told so. If a cell takes long, wait_for_cell picks it up again; if a step was wrong, "
    "rollback undoes it; to try several ways, branch. Every step is recorded: export_notebook gives it to the user."
)
