# ruff: noqa: D102 - what each method does stands once, on ``service.core.Service``
"""The port that transports are written against.

A transport knows this module, ``model`` and ``protocol``, and not one name more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from kernelsvc.model.limits import LimitsRequest
from kernelsvc.model.objects import (
    Call,
    CellInfo,
    CellRequest,
    Checkpoint,
    Principal,
    SessionInfo,
    SessionRequest,
    Variable,
)
from kernelsvc.service.environment import SessionEnvironment
from kernelsvc.service.leases import Leases
from kernelsvc.service.programs import Programs
from kernelsvc.service.resource_monitor import UsageSamples
from kernelsvc.service.session_tokens import SessionTokens

NotebookFormat = Literal["ipynb", "html", "py"]
# Named, because ``list`` means a method inside the class below.
Cells = list[CellInfo]
Checkpoints = list[Checkpoint]
Lines = list[bytes]
Sessions = list[SessionInfo]
Variables = list[Variable]
Page = tuple[Sessions, str | None]
#: Told of a cell's end, with what reads the cell. Called in the event loop; raises nothing.
OnFinished = Callable[[Callable[[], CellInfo]], None]


class Subscription(Protocol):
    """A reader of one session's log: a cursor, never a queue."""

    last_seq: int

    async def next(self) -> list[bytes]:
        """Journal lines (JSON objects, no newline) after the cursor, at least one; waits for it.

        An empty list says that the session is closed and all was read. Safe to cancel: nothing is skipped.
        """

    def next_nowait(self) -> list[bytes]:
        """What ``next`` would give without waiting, a bounded portion; empty if there is nothing yet."""

    def on_lines(self, news: Callable[[bytes], None]) -> None:
        """Have ``news`` called when there is more, with the last line of it, until ``close``.

        It only takes note; ``next_nowait`` is for a later turn of the event loop.
        """

    @property
    def exhausted(self) -> bool:
        """Whether nothing follows any more."""

    def close(self) -> None:
        """Let go."""


class ServiceApi(Protocol):
    """What transports call. Every method raises ``KernelsvcError`` for what the caller must know.

    ``who`` owns what it makes; another's session is ``not_found``. Awaiting
    methods may be cancelled: what was accepted goes on.
    """

    @property
    def access(self) -> SessionTokens:
        """Secrets that stand for one session, for doors whose clients show one."""

    @property
    def surroundings(self) -> SessionEnvironment:
        """What a session's cells find around them."""

    @property
    def programs(self) -> Programs:
        """Programs beside sessions' kernels."""

    @property
    def leases(self) -> Leases:
        """Sessions' time, and sessions beside others."""

    @property
    def samples(self) -> UsageSamples:
        """What sessions used over their lives."""

    def authenticate(self, token: str | None) -> Principal: ...
    def info(self) -> dict[str, Any]: ...
    def templates(self) -> list[dict[str, Any]]: ...
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
    ) -> Page: ...
    async def close(self, who: Principal, session: str, *, reason: str = "closed") -> SessionInfo: ...
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
        self, who: Principal, session: str, request: CellRequest, told: OnFinished, *, client: object
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
    def client_gone(self, client: object) -> None:
        """A connection that submitted cells is gone: those with on_disconnect="interrupt" are interrupted."""

    async def call(self, who: Principal, call: Call) -> dict[str, Any]:
        """``POST /v1/execute``: the cell as JSON, plus ``value`` for a function."""

    async def input(self, who: Principal, session: str, cell: str, text: str) -> None: ...
    def cell(self, who: Principal, session: str, cell: str) -> CellInfo: ...
    def cells(self, who: Principal, session: str) -> Cells: ...
    def output(
        self, who: Principal, session: str, cell: str, *, name: str = "stdout", offset: int = 0, limit: int = 65536
    ) -> dict[str, Any]:
        """``{name, offset, text, next_offset, total}`` in characters, from the journal."""

    def attach(self, who: Principal, session: str, *, after: int = 0) -> Subscription: ...
    def events(self, who: Principal, session: str, *, after: int = 0, limit: int = 1000) -> Lines: ...

    async def complete(self, who: Principal, session: str, code: str, cursor_pos: int | None) -> dict[str, Any]: ...
    async def inspect(
        self, who: Principal, session: str, code: str, cursor_pos: int | None, detail_level: int
    ) -> dict[str, Any]: ...
    async def request_kernel(
        self, who: Principal, session: str, msg_type: str, content: dict[str, Any], *, timeout: float = 10.0
    ) -> dict[str, Any]: ...
    async def send_comm(
        self,
        who: Principal,
        session: str,
        msg_type: str,
        content: dict[str, Any],
        *,
        msg_id: str,
        metadata: dict[str, Any] | None = None,
        buffers: Sequence[bytes] = (),
    ) -> None: ...
    async def variables(self, who: Principal, session: str) -> Variables: ...

    async def checkpoint(self, who: Principal, session: str, name: str | None = None) -> Checkpoint: ...
    def checkpoints(self, who: Principal, session: str) -> Checkpoints: ...
    async def drop_checkpoint(self, who: Principal, session: str, checkpoint: str) -> None: ...
    async def rollback(self, who: Principal, session: str, to: str | None = None) -> SessionInfo: ...
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
    ) -> Sessions: ...
    async def hibernate(self, who: Principal, session: str) -> SessionInfo: ...

    async def notebook(self, who: Principal, session: str, format: NotebookFormat = "ipynb") -> bytes: ...
    def journal_path(self, who: Principal, session: str) -> Path: ...
    def files_dir(self, who: Principal, session: str) -> Path:
        """The session's working directory as the server sees it; hostile content, open it with ``transports.files``."""

    def files_changed(self, who: Principal, session: str, files: Sequence[dict[str, Any]]) -> None:
        """Record an upload or a deletion."""
