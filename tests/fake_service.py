"""A small honest service in memory, for tests of the transports alone.

It implements ``ServiceApi``: sessions that belong to principals, a gapless log
per session that subscriptions read by cursor, cells that really run (Python, in
this process, one at a time per session, awaiting allowed), end exactly once and
are found again by their id. What it does not have (branches, notebooks by
nbformat) it answers plausibly.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import itertools
from pathlib import Path
from typing import Any

import msgspec

from kernelsvc.errors import AtCapacity, BadRequest, CellExists, CursorUnknown, NotFound, QuotaExceeded, SessionClosed
from kernelsvc.model import events as ev
from kernelsvc.model.limits import CellUsage, Limits, Usage
from kernelsvc.model.objects import (
    CellError,
    CellInfo,
    CellRequest,
    CellState,
    Checkpoint,
    Principal,
    SeqRange,
    SessionInfo,
    SessionState,
    Variable,
)
from kernelsvc.model.tokens import TokenRecord, authenticate, hash_token
from kernelsvc.service.session_tokens import SessionTokens

AT = "2026-01-01T00:00:00.000000Z"
TOKENS = {
    "alice-token": TokenRecord(name="alice", sha256=hash_token("alice-token")),
    "bob-token": TokenRecord(name="bob", sha256=hash_token("bob-token")),
    "reader-token": TokenRecord(name="alice", sha256=hash_token("reader-token"), scopes=frozenset({"read"})),
}


class FakeSession:
    def __init__(self, id: str, who: Principal, request: Any, root: Path) -> None:
        self.id, self.owner, self.request = id, who.name, request
        self.lines: list[bytes] = []
        self.listeners: list[Any] = []
        self.grown = asyncio.Condition()
        self.cells: dict[str, CellInfo] = {}
        self.clients: dict[str, tuple[object, CellRequest]] = {}
        self.finished: dict[str, asyncio.Event] = {}
        self.queue: asyncio.Queue[str] = asyncio.Queue()
        self.namespace: dict[str, Any] = {}
        self.state = SessionState.IDLE
        self.running: tuple[str, asyncio.Task[Any]] | None = None
        self.limits = Limits().lowered(request.limits)
        self.files = root / id / "files"
        self.files.mkdir(parents=True)
        self.worker = asyncio.create_task(self.work())
        self.count, self.open = 0, True
        self.add(ev.SessionStarted(principal=who.name, template="python3", name=request.name, labels=request.labels))

    @property
    def last(self) -> int:
        return len(self.lines)

    def add(self, event: ev.Event) -> int:
        event.session, event.seq, event.at = self.id, self.last + 1, AT
        self.lines.append(ev.encode(event))
        for news in self.listeners:
            news(self.lines[-1])
        asyncio.get_running_loop().create_task(self.wake())
        return self.last

    async def wake(self) -> None:
        async with self.grown:
            self.grown.notify_all()

    def submit(self, request: CellRequest, client: object) -> CellInfo:
        id = request.cell or f"cell-{len(self.cells) + 1}"
        if id in self.cells:
            if self.cells[id].code != request.code:
                raise CellExists
            return self.cells[id]
        if self.state is SessionState.CLOSED:
            raise SessionClosed
        if self.queue.qsize() >= 1000:
            raise QuotaExceeded("Too many cells are queued; wait for some.")
        seq = self.add(ev.CellQueued(cell=id, code=request.code, metadata=request.metadata))
        self.cells[id] = CellInfo(
            id=id, session=self.id, code=request.code, state=CellState.QUEUED, seq=SeqRange(first=seq, last=seq),
            metadata=request.metadata,
        )  # fmt: skip
        self.clients[id] = (client, request)
        self.finished[id] = asyncio.Event()
        self.queue.put_nowait(id)
        return self.cells[id]

    async def work(self) -> None:
        while self.open:
            id = await self.queue.get()
            await self.run(self.cells[id])

    async def run(self, cell: CellInfo) -> None:
        self.count += 1
        cell.state, cell.execution_count, self.state = CellState.RUNNING, self.count, SessionState.BUSY
        self.add(ev.CellStarted(cell=cell.id, execution_count=self.count))
        task = asyncio.create_task(self.evaluate(cell))
        self.running = (cell.id, task)
        reason = ev.Reason.OK
        try:
            await task
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            reason = ev.Reason.INTERRUPTED
        except Exception as error:
            reason = ev.Reason.ERROR
            cell.error = CellError(ename=type(error).__name__, evalue=str(error), traceback=[])
            self.add(ev.Error(cell=cell.id, ename=cell.error.ename, evalue=str(error)))
        self.finish(cell, reason)

    def finish(self, cell: CellInfo, reason: ev.Reason) -> None:
        self.running = None
        self.state = SessionState.IDLE
        cell.seq.last = self.add(ev.CellFinished(cell=cell.id, reason=reason, usage=CellUsage(wall_ms=1.0)))
        cell.state, cell.reason = CellState.FINISHED, reason
        self.finished[cell.id].set()

    async def evaluate(self, cell: CellInfo) -> None:
        parts: list[str] = []
        try:
            await self.evaluate_into(cell, parts)
        finally:
            cell.text = "".join(parts)

    async def evaluate_into(self, cell: CellInfo, parts: list[str]) -> None:
        def show(*values: object) -> None:
            text = " ".join(map(str, values)) + "\n"
            parts.append(text)
            self.add(ev.Stream(cell=cell.id, text=text))

        self.namespace |= {"print": show, "asyncio": asyncio}
        tree = ast.parse(cell.code)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        for mode, part in (("exec", tree), ("eval", last and ast.Expression(last.value))):
            if part is None:
                continue
            value = eval(compile(part, "cell", mode, flags), self.namespace)
            if inspect.iscoroutine(value):
                value = await value
            if mode == "eval" and value is not None:
                parts.append(repr(value))
                self.add(ev.Result(cell=cell.id, data={"text/plain": repr(value)}, execution_count=self.count))


class FakeSubscription:
    def __init__(self, session: FakeSession, after: int, batch: int) -> None:
        self.session, self.last_seq, self.batch, self.open = session, after, batch, True
        self.news: Any = None

    async def next(self) -> list[bytes]:
        session = self.session
        async with session.grown:
            await session.grown.wait_for(
                lambda: session.last > self.last_seq or session.state is SessionState.CLOSED or not self.open
            )
        return self.next_nowait()

    def next_nowait(self) -> list[bytes]:
        lines, room = [], 256 * 1024
        for line in self.session.lines[self.last_seq : self.last_seq + self.batch]:
            room -= len(line)
            if room < 0 and lines:
                break
            lines.append(line)
        self.last_seq += len(lines)
        return lines

    def on_lines(self, news) -> None:
        self.session.listeners.append(news)
        self.news = news

    @property
    def exhausted(self) -> bool:
        return not self.open or (self.session.state is SessionState.CLOSED and self.last_seq == self.session.last)

    def close(self) -> None:
        self.open = False
        if self.news is not None:
            self.session.listeners.remove(self.news)
            self.news = None


class FakeService:
    """See the module."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sessions: dict[str, FakeSession] = {}
        self.keys: dict[tuple[str, str], str] = {}
        self.numbers = itertools.count(1)
        self.gone: list[object] = []
        self.changed: list[Any] = []
        self.batch_size = 1000
        self.access = SessionTokens(b"k" * 32, [*TOKENS.values()], self)

    def owner(self, session: str) -> str | None:
        return self.sessions[session].owner if session in self.sessions else None

    def open_ids(self) -> list[str]:
        return [id for id, each in self.sessions.items() if each.state is not SessionState.CLOSED]

    async def aclose(self) -> None:
        for session in self.sessions.values():
            session.open = False
            session.worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await session.worker

    def find(self, who: Principal, id: str) -> FakeSession:
        session = self.sessions.get(id)
        if session is None or session.owner != who.name:
            raise NotFound(f"There is no session {id!r}; list what exists.")
        return session

    def shown(self, s: FakeSession) -> SessionInfo:
        return SessionInfo(
            id=s.id, name=s.request.name, template="python3", state=s.state, created_at=AT, last_activity_at=AT,
            expires_at=None, principal=s.owner, labels=s.request.labels, limits=s.limits, usage=Usage(),
            last_seq=s.last,
            execution_count=s.count, parent=None, kernel=ev.KernelInfo(), sandbox=ev.SandboxReport(), checkpoints=[],
        )  # fmt: skip

    def authenticate(self, token: str | None) -> Principal:
        return authenticate(TOKENS.values(), token)

    def info(self) -> dict[str, Any]:
        return {"version": "0", "limits": msgspec.to_builtins(Limits()), "sandbox": {"policy": "off"}}

    def templates(self) -> list[dict[str, Any]]:
        return [{"name": "python3"}]

    async def ensure_loaded(self, named: str) -> None:
        """Nothing is ever read back."""

    def ready(self) -> bool:
        return True

    async def create(self, who: Principal, request: Any) -> SessionInfo:
        key = (who.name, request.idempotency_key or "")
        if request.idempotency_key and key in self.keys:
            return self.shown(self.sessions[self.keys[key]])
        if request.template not in (None, "python3"):
            raise NotFound(f"There is no template {request.template!r}; GET /v1/templates lists them.")
        if len(self.sessions) >= 500:
            raise AtCapacity
        id = f"s{next(self.numbers)}"
        session = self.sessions[id] = FakeSession(id, who, request, self.root)
        if request.idempotency_key:
            self.keys[key] = id
        return self.shown(session)

    def get(self, who: Principal, session: str) -> SessionInfo:
        return self.shown(self.find(who, session))

    def list(self, who: Principal, *, state=None, label=None, limit=100, page=None):
        mine = [s for s in self.sessions.values() if s.owner == who.name and state in (None, s.state)]
        if label is not None:
            name, _, value = label.partition("=")
            mine = [
                s
                for s in mine
                if name in s.request.labels and s.request.labels[name] == (value or s.request.labels[name])
            ]
        if page is not None and not page.isdecimal():
            raise BadRequest("This page is not known; list from the first.")
        start = int(page or 0)
        more = str(start + limit) if len(mine) > start + limit else None
        return [self.shown(s) for s in mine[start : start + limit]], more

    async def close(self, who: Principal, session: str, *, reason: str = "closed") -> SessionInfo:
        s = self.find(who, session)
        if s.state is not SessionState.CLOSED:
            s.open = False
            s.worker.cancel()
            if s.running:
                s.running[1].cancel()
            for cell in s.cells.values():
                if cell.state is not CellState.FINISHED:
                    s.finish(cell, ev.Reason.SESSION_CLOSED)
            s.add(ev.SessionClosed(reason=reason))
            s.state = SessionState.CLOSED
            await s.wake()
        return self.shown(s)

    async def interrupt(self, who: Principal, session: str) -> SessionInfo:
        s = self.find(who, session)
        if s.running:
            s.running[1].cancel()
        return self.shown(s)

    async def restart(self, who: Principal, session: str) -> SessionInfo:
        s = self.find(who, session)
        if s.state is SessionState.CLOSED:
            raise SessionClosed
        s.namespace.clear()
        s.add(ev.KernelRestarted(why="asked"))
        return self.shown(s)

    async def execute(self, who, session, request, *, wait="finished", client=None) -> CellInfo:
        s = self.find(who, session)
        cell = s.submit(request, client)
        if wait == "finished":
            await s.finished[cell.id].wait()
        return cell

    def execute_then(self, who, session, request, on_finished, *, client) -> None:
        s = self.find(who, session)
        cell = s.submit(request, client)
        waiting = asyncio.ensure_future(s.finished[cell.id].wait())
        waiting.add_done_callback(lambda done: done.cancelled() or on_finished(lambda: cell))

    async def batch(self, who, session, cells, *, on_error="stop", wait="finished", client=None):
        s = self.find(who, session)
        made = [s.submit(request, client) for request in cells]
        if wait == "finished":
            for cell in made:
                await s.finished[cell.id].wait()
        return made

    def client_gone(self, client: object) -> None:
        self.gone.append(client)
        for s in self.sessions.values():
            if s.running:
                owner, request = s.clients[s.running[0]]
                if owner is client and request.on_disconnect == "interrupt":
                    s.running[1].cancel()

    async def call(self, who: Principal, call: Any) -> dict[str, Any]:
        from kernelsvc.model.objects import SessionRequest

        if (call.code is None) == (call.function is None):
            raise BadRequest("Give either code or function.")
        session = await self.create(who, SessionRequest())
        code = call.code if call.code is not None else f"({call.function})(*{call.args!r}, **{call.kwargs!r})"
        cell = await self.execute(who, session.id, CellRequest(code=code))
        await self.close(who, session.id)
        value = ast.literal_eval(cell.text) if call.function is not None and cell.text else None
        return {**msgspec.to_builtins(cell), "value": value}

    async def input(self, who: Principal, session: str, cell: str, text: str) -> None:
        self.cell(who, session, cell)

    def cell(self, who: Principal, session: str, cell: str) -> CellInfo:
        s = self.find(who, session)
        if cell not in s.cells:
            raise NotFound(f"There is no cell {cell!r} in this session; list its cells.")
        return s.cells[cell]

    def cells(self, who: Principal, session: str):
        return [*self.find(who, session).cells.values()]

    def output(self, who, session, cell, *, name="stdout", offset=0, limit=65536) -> dict[str, Any]:
        text = self.cell(who, session, cell).text
        piece = text[offset : offset + limit]
        end = offset + len(piece)
        more = end if end < len(text) else None
        return {"name": name, "offset": offset, "text": piece, "next_offset": more, "total": len(text)}

    def attach(self, who: Principal, session: str, *, after: int = 0) -> FakeSubscription:
        s = self.find(who, session)
        if after > s.last:
            raise CursorUnknown
        return FakeSubscription(s, after, self.batch_size)

    def events(self, who: Principal, session: str, *, after: int = 0, limit: int = 1000):
        s = self.find(who, session)
        if after > s.last:
            raise CursorUnknown
        return s.lines[after : after + limit]

    async def complete(self, who, session, code, cursor_pos) -> dict[str, Any]:
        self.find(who, session)
        return {"matches": [], "cursor_start": 0, "cursor_end": cursor_pos or len(code), "status": "ok"}

    async def inspect(self, who, session, code, cursor_pos, detail_level) -> dict[str, Any]:
        self.find(who, session)
        return {"found": False, "data": {}, "status": "ok"}

    async def variables(self, who, session):
        s = self.find(who, session)
        hidden = {"print", "asyncio", "__builtins__"}
        return [
            Variable(name=n, type=type(v).__name__, summary=repr(v)) for n, v in s.namespace.items() if n not in hidden
        ]

    async def checkpoint(self, who, session, name=None) -> Checkpoint:
        s = self.find(who, session)
        return Checkpoint(id="k1", name=name, seq=s.last)

    def checkpoints(self, who, session):
        self.find(who, session)
        return []

    async def drop_checkpoint(self, who, session, checkpoint) -> None:
        self.find(who, session)
        raise NotFound(f"There is no checkpoint {checkpoint!r}.")

    async def rollback(self, who, session, to=None) -> SessionInfo:
        return self.shown(self.find(who, session))

    async def branch(self, who, session, *, at=None, count=1, labels=None, limits=None, force=False):
        from kernelsvc.model.objects import SessionRequest

        self.find(who, session)
        if len(self.sessions) + count > 500:
            raise AtCapacity
        return [await self.create(who, SessionRequest(labels=labels or {})) for _ in range(count)]

    async def hibernate(self, who, session) -> SessionInfo:
        return self.shown(self.find(who, session))

    async def notebook(self, who, session, format="ipynb") -> bytes:
        s = self.find(who, session)
        if format == "ipynb":
            return msgspec.json.encode({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
        return (
            b"<script>alert(1)</script>" if format == "html" else "\n".join(c.code for c in s.cells.values()).encode()
        )

    def journal_path(self, who, session) -> Path:
        s = self.find(who, session)
        path = self.root / s.id / "journal.jsonl"
        path.write_bytes(b"".join(line + b"\n" for line in s.lines) + b'{"torn":')
        return path

    def files_dir(self, who, session) -> Path:
        return self.find(who, session).files

    def files_changed(self, who, session, files) -> None:
        s = self.find(who, session)
        self.changed.append(files)
        s.add(ev.FilesChanged(files=[*files]))
