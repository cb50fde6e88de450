# ruff: noqa: D102 - the methods are documented once, on the classes that implement them
"""The port of the service, which every public API of the server uses: values, session ids and streams.

A front on another machine can implement it by forwarding: no path of the server, no file and no live object crosses
it. ``service.service.Service`` implements it here. The import contracts in ``pyproject.toml`` hold that
``server`` imports nothing else of ``service``.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Literal, Protocol

import msgspec

from kernelsvc.model.events import ModelAnswered
from kernelsvc.model.files import FileEvent, FileStatus, StoredFile
from kernelsvc.model.limits import LimitsRequest, Network
from kernelsvc.model.network.ports import Access, PortAddress, PortInfo, Ticket
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
    OutputPage,
    Principal,
    ProgramView,
    PtySize,
    SessionInfo,
    SessionRequest,
    ToolCallInfo,
    ValueData,
    ValueRequest,
    Variable,
)
from kernelsvc.model.storage.workspaces import WorkspaceInfo
from kernelsvc.model.tool_calls.offers import Offer, ProviderId, ToolFilter
from kernelsvc.model.tracing.context import RequestMeta
from kernelsvc.model.usage_history import UsageSample
from kernelsvc.model.view.request import ViewRequest
from kernelsvc.protocol.kernel_messages import KernelRequest

NotebookFormat = Literal["ipynb", "html", "py"]
# Named, because ``list`` means a method inside the class below.
Cells = list[CellInfo]
ProgramViews = list[ProgramView]
Checkpoints = list[Checkpoint]
Files = list[FileStatus]
Lines = list[bytes]
Sessions = list[SessionInfo]
Variables = list[Variable]
ToolCallInfos = list[ToolCallInfo]
Blocks = list[dict[str, Any]]
Page = tuple[Sessions, str | None]
Outline = tuple[list[CellOutline], int]
Matches = list[CellMatch]
#: Called in the event loop when a cell has ended, with a function that reads the cell. It must not raise.
OnFinished = Callable[[Callable[[], CellInfo]], None]
#: Which stream of a program wrote, and what.
ProgramStream = Literal["stdout", "stderr", "pty"]
ProgramPiece = tuple[ProgramStream, bytes]
#: The trace of the request that is being served, if its transport carried one. Cells that name no trace get this one.
#: It holds for the task of a request, and never for a connection that carries many requests.
REQUEST_META: ContextVar[RequestMeta | None] = ContextVar("request_meta", default=None)


class Subscription(Protocol):
    """A reader of one session's journal. It holds a position and no entries."""

    last_seq: int

    async def next(self) -> list[bytes]:
        """Wait for entries after the position and return them as JSON objects without a newline.

        An empty list means that the session is closed and everything was read. Safe to cancel: no entry is skipped.
        """

    def next_nowait(self) -> list[bytes]:
        """Return a bounded number of entries without waiting, or an empty list."""

    async def wait(self) -> int:
        """Wait for entries after the position. Return at most how many bytes they have. 0: the end. Safe to cancel."""

    def on_lines(self, news: Callable[[bytes], None]) -> None:
        """Have ``news`` called with the last line of each new portion, until ``close``.

        ``news`` must not call ``next_nowait`` itself, but in a later turn of the event loop.
        """

    @property
    def exhausted(self) -> bool:
        """Whether the session is closed and everything was read."""

    def close(self) -> None:
        """Stop reading."""


class ProgramInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A program that runs in a session's sandbox, next to its kernel.

    Attributes:
        id: its number, which this server never uses again.
        pid: the process id inside the sandbox.
        argv: the program and its arguments.
        env: the environment variables that the caller added.
        cwd: the directory where it started, or "" for the session's directory.
        tag: the caller's own name for it.
    """

    id: int
    pid: int
    argv: list[str]
    env: dict[str, str]
    cwd: str
    tag: str | None


class ProgramOutput(Protocol):
    """The output of a program from one moment on. A reader that does not read slows the program down."""

    async def next(self) -> ProgramPiece | None:
        """Wait for output. None means that the program has ended. Safe to cancel: nothing is lost."""

    @property
    def status(self) -> int | None:
        """The wait status (wait(2)) of a program that has ended, or None if it is not known."""

    def close(self) -> None:
        """Stop reading. The program continues."""


class ProgramApi(Protocol):
    """Programs in sessions' sandboxes: shell commands, servers, terminals."""

    async def start(
        self,
        who: Principal,
        session: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        tag: str | None = None,
        with_input: bool = True,
        terminal: tuple[int, int] | None = None,
    ) -> tuple[ProgramInfo, ProgramOutput]: ...
    def running(self, who: Principal, session: str) -> list[ProgramInfo]: ...
    def find(self, who: Principal, session: str, *, pid: int | None = None, tag: str | None = None) -> ProgramInfo: ...
    def watch(self, who: Principal, session: str, program: int) -> ProgramOutput: ...
    def write(self, who: Principal, session: str, program: int, data: bytes) -> None: ...
    def close_input(self, who: Principal, session: str, program: int) -> None: ...
    def signal(self, who: Principal, session: str, program: int, number: int) -> None: ...
    def resize(self, who: Principal, session: str, program: int, columns: int, rows: int) -> None: ...


class CommandApi(Protocol):
    """Programs with ids that clients choose, whose output is read from a position on."""

    async def start(
        self,
        who: Principal,
        session: str,
        *,
        argv: Sequence[str],
        program: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        stdin: bool = False,
        terminal: PtySize | None = None,
        background: bool = False,
    ) -> ProgramView: ...
    async def read(
        self, who: Principal, session: str, program: str, after: int, limit: int, wait_seconds: float
    ) -> OutputPage: ...
    def write(
        self, who: Principal, session: str, program: str, data: bytes, at: int | None, end: bool
    ) -> ProgramView: ...
    def signal(self, who: Principal, session: str, program: str, number: int) -> None: ...
    def resize(self, who: Principal, session: str, program: str, columns: int, rows: int) -> None: ...
    def list(self, who: Principal, session: str) -> ProgramViews: ...


class HoldsApi(Protocol):
    """Cells that wait for a person."""

    def set(
        self,
        who: Principal,
        session: str,
        *,
        mode: Literal["off", "ask"],
        seconds: float,
        then: Literal["refuse", "approve"],
    ) -> SessionInfo: ...
    def decide(
        self,
        who: Principal,
        session: str,
        cells: Sequence[str],
        *,
        decision: Literal["approve", "refuse"],
        reason: str | None,
    ) -> Cells: ...


class EnvironmentApi(Protocol):
    """The environment variables and the current directory of sessions."""

    async def change(
        self, who: Principal, session: str, environ: Mapping[str, str | None], directory: str | None = None
    ) -> dict[str, str | None]: ...


class LeaseApi(Protocol):
    """How long sessions live, and the sessions that share the directory and the lease of another."""

    def grant(
        self,
        who: Principal,
        session: str,
        seconds: float,
        *,
        then: Literal["close", "pause"] | None = None,
        at_least: bool = False,
    ) -> SessionInfo: ...
    async def pause(self, who: Principal, session: str) -> SessionInfo: ...
    def keep(self, who: Principal, session: str) -> SessionInfo: ...
    def sidecars(self, who: Principal, session: str) -> list[SessionInfo]: ...


class NetworkApi(Protocol):
    """The network rules of running sessions."""

    async def update(self, who: Principal, session: str, *, network: Network | None = None) -> SessionInfo: ...


class UsageApi(Protocol):
    """What sessions have used."""

    def samples(self, who: Principal, session: str) -> list[UsageSample]: ...


class Signed(Protocol):
    """A value that a secret has signed, for example ``protocol.e2b.SignedAddress``."""

    def is_signed_with(self, secret: str) -> bool:
        """Return whether this secret made the signature. The comparison takes constant time."""


class TokenApi(Protocol):
    """Secrets that are derived from a token, each for one session and one purpose."""

    def secret(self, who: Principal, session: str, purpose: str) -> str: ...
    def holder(self, session: str, purposes: Iterable[str], *given: str, owner: str | None = None) -> Principal: ...
    def signer(self, session: str, purpose: str, signed: Signed) -> Principal: ...
    def search(self, purpose: str, signed: Signed) -> tuple[Principal, str]: ...


class ByteStream(Protocol):
    """Bytes that are read in pieces, at the reader's pace."""

    size: int

    async def next(self) -> bytes:
        """Return the next piece, or nothing at the end. Safe to cancel."""

    def close(self) -> None:
        """Stop reading."""


#: The parts of a closed session's record that the archive has.
RecordPart = Literal["journal", "notebook"]


class RecordsApi(Protocol):
    """The records of closed sessions in the archive (setting ``archive_url``)."""

    async def open(self, who: Principal, session: str, part: RecordPart) -> ByteStream | None:
        """Return a part of a record, or None if the archive does not have it. Safe to cancel.

        Raises:
            NotFound: the record is another principal's, and the caller may not read those.
            AtCapacity: the archive does not answer.
        """

    async def convert(self, who: Principal, notebook: ByteStream, format: Literal["html", "py"]) -> bytes:
        """Return a notebook of the archive in another format. Safe to cancel.

        Raises:
            Internal, Timeout, TooLarge: it could not be converted.
            AtCapacity: too many notebooks are being converted, or the archive does not answer.
        """


class FileReader(Protocol):
    """A regular file that is open for reading. The same file is read also if its name gets another one meanwhile."""

    @property
    def status(self) -> FileStatus:
        """Its description at the time of ``open``."""

    async def read(self, offset: int, limit: int) -> bytes:
        """Return some of the bytes from ``offset``: at most ``limit``, and none at the end. Safe to cancel."""

    def close(self) -> None:
        """Close the file. Idempotent."""


class FileWriter(Protocol):
    """A file that is being written, under a temporary name until ``commit``. Each writer ends with ``close``."""

    @property
    def replaces(self) -> FileStatus | None:
        """The present file of this name, which ``commit`` replaces. None if there was none at the start."""

    async def write(self, data: bytes) -> None:
        """Append data. After an error, or a cancelled call, only ``close`` is possible."""

    async def commit(self) -> StoredFile:
        """Give the file its name, and record the change as an event of the session. Do not cancel it."""

    def close(self) -> None:
        """Remove the temporary file if ``commit`` did not succeed. Idempotent."""


class FileWatch(Protocol):
    """A watch of a directory, until ``close``."""

    def close(self) -> None:
        """Stop watching. Idempotent."""


#: Called in the event loop with each change. It must not raise.
OnFileEvent = Callable[[FileEvent], None]


class FilesApi(Protocol):
    """Files of sessions' working directories.

    A path is relative to the directory, percent-decoded, and may hold any bytes but NUL. b"" is the directory itself. A
    cell may put links and special files there at any time: no call follows a link or leaves the directory.
    Calls that change something need an open session and record the change as an event, unless ``record`` is False.
    """

    async def stat(self, who: Principal, session: str, path: bytes, *, attributes: bool = False) -> FileStatus: ...
    async def list(
        self,
        who: Principal,
        session: str,
        path: bytes,
        *,
        depth: int | None = 1,
        limit: int = 1000,
        attributes: bool = False,
    ) -> tuple[Files, bool]: ...
    async def open(self, who: Principal, session: str, path: bytes) -> FileReader: ...
    async def write(
        self,
        who: Principal,
        session: str,
        path: bytes,
        *,
        attributes: Mapping[str, bytes] | None = None,
        record: bool = True,
    ) -> FileWriter: ...
    async def put(
        self, who: Principal, session: str, path: bytes, data: bytes, *, record: bool = True
    ) -> StoredFile: ...
    async def make_directory(self, who: Principal, session: str, path: bytes) -> None: ...
    async def move(self, who: Principal, session: str, source: bytes, target: bytes) -> None: ...
    async def remove(
        self, who: Principal, session: str, path: bytes, *, recursive: bool = False, record: bool = True
    ) -> None: ...
    async def watch(
        self,
        who: Principal,
        session: str,
        path: bytes,
        on_event: OnFileEvent,
        *,
        recursive: bool = False,
        statuses: bool = False,
    ) -> FileWatch: ...


class OffersApi(Protocol):
    """Functions of clients that code in sessions may call, and the calls."""

    def offer(
        self,
        who: Principal,
        offers: Sequence[Offer],
        *,
        session: str | None,
        provider: ProviderId,
        holding: Sequence[str],
        replace: bool,
        client: object,
    ) -> dict[str, Any]: ...
    def withdraw(self, who: Principal, *, names: Sequence[str] | None, session: str | None, client: object) -> None: ...
    async def list(
        self, who: Principal, session: str, *, search: str | None, detail: Literal["brief", "full"], limit: int
    ) -> dict[str, Any]: ...
    def answer(
        self,
        who: Principal,
        session: str,
        call: str,
        *,
        status: Literal["ok", "error"],
        value: Any,
        content: Blocks | None,
        error: dict[str, Any] | None,
    ) -> None: ...
    def progress(
        self, who: Principal, session: str, call: str, *, progress: float, total: float | None, message: str | None
    ) -> None: ...
    async def decide(
        self,
        who: Principal,
        session: str,
        calls: Sequence[str],
        *,
        approve: bool,
        reason: str | None,
        remember: Literal["cell", "session"] | None,
    ) -> ToolCallInfos: ...
    async def calls(
        self, who: Principal, session: str, *, cell: str | None, state: CallState | None, offset: int, limit: int
    ) -> tuple[ToolCallInfos, int]:
        """Return a page of calls, which ends early if they are large, and how many calls there are."""

    async def find_call(self, who: Principal, session: str, call: str) -> ToolCallInfo: ...


class WorkspacesApi(Protocol):
    """Folders that outlive sessions. ``workspace`` is ``NAME`` of the caller's own, or ``OWNER/NAME``."""

    @property
    def files(self) -> FilesApi:
        """Their files, by address instead of a session's id. Changes are in no session's log."""

    def list(self, who: Principal) -> Sequence[WorkspaceInfo]: ...
    async def get(self, who: Principal, workspace: str) -> WorkspaceInfo: ...
    def set(
        self, who: Principal, workspace: str, *, shared_with: Sequence[str] | None = None, max_bytes: int | None = None
    ) -> WorkspaceInfo: ...
    async def remove(self, who: Principal, workspace: str) -> None: ...
    async def set_mode(self, who: Principal, workspace: str, path: bytes, mode: int) -> None: ...


class PortLink(Protocol):
    """A connection to a server in a session. Each ends with ``close``.

    Attributes:
        socket: connected and not blocking. Bytes go to and come from the session's server.
    """

    socket: socket.socket

    def count(self, *, sent: int = 0, received: int = 0) -> None:
        """Count bytes that the session sent or received, for the log."""

    def fail(self) -> None:
        """Count a request that the session's server did not answer."""

    def on_end(self, call: Callable[[], None]) -> None:
        """Have ``call`` called when the connection must end at once. It must not raise."""

    def close(self) -> None:
        """Close it. Idempotent."""


class PortsApi(Protocol):
    """Servers in sessions, reached from outside. ``visitor`` and ``holder`` return the caller of such a request."""

    def list(self, who: Principal, session: str) -> Sequence[PortInfo]: ...
    def share(
        self, who: Principal, session: str, port: int, *, public: bool = False, seconds: float = 3600.0
    ) -> PortAddress: ...
    def unshare(self, who: Principal, session: str, port: int) -> None: ...
    def visitor(self, session: str, port: int) -> Principal | None: ...
    def holder(self, text: str) -> tuple[Principal, Ticket]: ...
    async def connect(self, who: Principal, session: str, port: int, access: Access) -> PortLink: ...


class ServiceApi(Protocol):
    """The methods that the public APIs call. Each raises ``KernelsvcError`` for an error that the caller must know.

    ``who`` owns the sessions that it creates. Another principal's session is
    ``not_found``. Methods that wait are safe to cancel: accepted work continues.
    """

    @property
    def access(self) -> TokenApi:
        """Secrets for one session, for APIs whose clients send one."""

    @property
    def environment(self) -> EnvironmentApi:
        """Environment variables and the current directory."""

    @property
    def files(self) -> FilesApi:
        """Files of sessions' working directories."""

    @property
    def holds(self) -> HoldsApi:
        """Cells that wait for a person."""

    @property
    def offers(self) -> OffersApi:
        """Functions of clients."""

    @property
    def programs(self) -> ProgramApi:
        """Programs in sessions' sandboxes."""

    @property
    def commands(self) -> CommandApi:
        """Programs for the native API."""

    @property
    def ports(self) -> PortsApi:
        """Servers in sessions."""

    @property
    def leases(self) -> LeaseApi:
        """Leases, pauses and sidecars."""

    @property
    def network(self) -> NetworkApi:
        """The rules of sessions' networks."""

    @property
    def records(self) -> RecordsApi | None:
        """The archive of closed sessions. None: there is none."""

    @property
    def usage(self) -> UsageApi:
        """Samples of the resources that sessions have used."""

    @property
    def workspaces(self) -> WorkspacesApi:
        """Folders that outlive sessions."""

    def authenticate(self, token: str | None, user: str | None = None) -> Principal: ...
    def void_tokens(self, hashes: frozenset[str]) -> frozenset[str]: ...
    def info(self) -> dict[str, Any]: ...
    def templates(self) -> list[dict[str, Any]]: ...
    def environment_owner(self, name: str) -> str | None: ...
    def ready(self) -> bool: ...
    async def ensure_loaded(self, named: str) -> None: ...

    async def create(self, who: Principal, request: SessionRequest) -> SessionInfo: ...
    def get(self, who: Principal, session: str) -> SessionInfo: ...
    def list(
        self,
        who: Principal,
        *,
        state: str | None = None,
        label: str | None = None,
        limit: int = 100,
        page: str | None = None,
        principal: str | None = None,
    ) -> Page: ...
    async def search(self, who: Principal, *, text: str, limit: int = 50, principal: str | None = None) -> Matches: ...
    async def outline(self, who: Principal, session: str, offset: int = 0, limit: int = 1000) -> Outline: ...
    async def close(self, who: Principal, session: str, *, reason: str = "closed") -> SessionInfo: ...
    async def purge(self, who: Principal, session: str, *, force: bool = False) -> Deletion: ...
    async def interrupt(self, who: Principal, session: str) -> SessionInfo: ...
    async def restart(self, who: Principal, session: str) -> SessionInfo: ...

    async def execute(
        self,
        who: Principal,
        session: str,
        request: CellRequest,
        *,
        wait: Literal["finished", "queued"] = "finished",
        client: object | None = None,
    ) -> CellInfo: ...
    def execute_then(
        self, who: Principal, session: str, request: CellRequest, on_finished: OnFinished, *, client: object
    ) -> None: ...

    async def batch(
        self,
        who: Principal,
        session: str,
        cells: Sequence[CellRequest],
        *,
        on_error: Literal["stop", "continue"] = "stop",
        wait: Literal["finished", "queued"] = "finished",
        client: object | None = None,
    ) -> Cells: ...
    def record_answer(self, who: Principal, session: str, answer: ModelAnswered) -> None: ...
    def client_gone(self, client: object) -> None:
        """Interrupt the cells with ``on_disconnect="interrupt"`` that a lost connection had submitted."""

    async def call(self, who: Principal, call: Call) -> dict[str, Any]:
        """``POST /v1/execute``: return the cell as JSON, and ``value`` for a function."""

    async def input(self, who: Principal, session: str, cell: str, text: str) -> None: ...
    def cell(self, who: Principal, session: str, cell: str) -> CellInfo: ...
    def cells(self, who: Principal, session: str, offset: int = 0, limit: int = 1000) -> tuple[Cells, int]:
        """Return a page of cells, which ends early if they are large, and how many cells there are."""

    async def output(
        self, who: Principal, session: str, cell: str, *, name: str = "stdout", offset: int = 0, limit: int = 65536
    ) -> dict[str, Any]:
        """Return ``{name, offset, text, next_offset, total}`` in characters, from the journal."""

    async def view(self, who: Principal, session: str, cell: str | None, request: ViewRequest) -> CellView:
        """Return a cell as a language model reads it. ``cell`` is an id or a number. None is the last one."""

    def attach(self, who: Principal, session: str, *, after: int = 0) -> Subscription: ...
    def events(self, who: Principal, session: str, *, after: int = 0, limit: int = 1000) -> Lines: ...

    async def complete(self, who: Principal, session: str, code: str, cursor_pos: int | None) -> dict[str, Any]: ...
    async def inspect(
        self, who: Principal, session: str, code: str, cursor_pos: int | None, detail_level: int
    ) -> dict[str, Any]: ...
    async def request_kernel(
        self, who: Principal, session: str, msg_type: str, content: dict[str, Any], *, timeout: float = 10.0
    ) -> dict[str, Any]: ...
    async def send_comm(self, who: Principal, session: str, message: KernelRequest) -> None: ...
    async def variables(self, who: Principal, session: str) -> Variables: ...
    async def value(self, who: Principal, session: str, wanted: ValueRequest, *, whole: bool = False) -> ValueData: ...

    async def checkpoint(self, who: Principal, session: str, name: str | None = None) -> Checkpoint: ...
    def checkpoints(self, who: Principal, session: str) -> Checkpoints: ...
    async def drop_checkpoint(self, who: Principal, session: str, checkpoint: str) -> None: ...
    async def rollback(
        self, who: Principal, session: str, to: str | None = None, replay: bool = True
    ) -> SessionInfo: ...
    async def branch(
        self,
        who: Principal,
        session: str,
        *,
        at: str | None = None,
        count: int = 1,
        labels: dict[str, str] | None = None,
        limits: LimitsRequest | None = None,
        force: bool = False,
        isolate: bool = False,
        tools: ToolFilter | None = None,
    ) -> Sessions: ...
    async def hibernate(self, who: Principal, session: str) -> SessionInfo: ...

    async def notebook(self, who: Principal, session: str, format: NotebookFormat = "ipynb") -> bytes: ...
    async def notebook_file(self, who: Principal, session: str) -> ByteStream | None:
        """Return the file of a closed session's notebook if ``notebook`` refuses it as too large. The caller closes it.

        None if it is smaller, not complete, or not signed by this server.
        """

    def journal(self, who: Principal, session: str) -> ByteStream:
        """Return the journal's present complete lines. The caller closes the stream."""
