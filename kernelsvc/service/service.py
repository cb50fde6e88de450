"""The composition root: everything a transport may call, and nothing else.

``ServiceApi`` is the port that transports are written against; ``Service`` is
what stands behind it. A transport knows this module, ``model`` and ``protocol``,
and not one name more. The service addresses everything by session id, so that
a front on another machine could route by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NoReturn, cast
from weakref import WeakKeyDictionary

import msgspec

from kernelsvc import __version__
from kernelsvc.errors import (
    AtCapacity,
    BadRequest,
    Conflict,
    Forbidden,
    KernelsvcError,
    NotFound,
    NotSupported,
    Recovering,
    SessionClosed,
    Timeout,
    TooLarge,
)
from kernelsvc.kernels.launchers import Launchers
from kernelsvc.model import events as ev
from kernelsvc.model.admission import Ceilings, Reservation, admit
from kernelsvc.model.checkpoint_policy import CheckpointBudget
from kernelsvc.model.events import SCHEMA, Event
from kernelsvc.model.hash_chain import timestamp
from kernelsvc.model.limits import Limits, LimitsRequest, Usage
from kernelsvc.model.objects import (
    Call,
    CellInfo,
    CellRequest,
    Checkpoint,
    Principal,
    Scope,
    SessionInfo,
    SessionRequest,
    SessionState,
)
from kernelsvc.model.state import Policy
from kernelsvc.model.tokens import authenticate
from kernelsvc.protocol import function_call as call_protocol
from kernelsvc.service import api
from kernelsvc.service.api import Cells, Checkpoints, Lines, NotebookFormat, Page, Sessions, Subscription, Variables
from kernelsvc.service.branching import BranchCreator, branch_about
from kernelsvc.service.environment import SessionEnvironment
from kernelsvc.service.host_settings import host_settings
from kernelsvc.service.leases import Leases
from kernelsvc.service.loading.adoption import Adoption
from kernelsvc.service.loading.background_loading import BackgroundLoads, brief, ids_in
from kernelsvc.service.loading.session_loading import about_of, is_large, life_of
from kernelsvc.service.programs import Programs
from kernelsvc.service.projections import Projections
from kernelsvc.service.resource_monitor import ResourceMonitor, UsageSamples
from kernelsvc.service.retention import Retention
from kernelsvc.service.session_tokens import SessionTokens
from kernelsvc.service.warm_pool import WarmPool, WarmSession
from kernelsvc.session import Session, SessionSpec, new_id, new_kernel_id
from kernelsvc.settings import Settings
from kernelsvc.store.index import SessionRow
from kernelsvc.store.journal import Journal
from kernelsvc.store.sessions import SessionDirectories, SessionDirectory
from kernelsvc.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


#: What clients of the Jupyter protocol may ask a kernel besides running cells.
QUESTIONS = frozenset(
    f"{name}_request" for name in ("kernel_info", "complete", "inspect", "is_complete", "history", "comm_info")
)
COMMS = frozenset({"comm_open", "comm_msg", "comm_close"})
#: Idempotency keys remembered at once.
KEYS_KEPT = 10_000
#: Closed sessions kept open for reading.
PAST_KEPT = 64
#: Seconds given to sessions to end at a stop of the server.
STOP_SECONDS = 10.0


def versions() -> dict[str, str]:
    """What runs here, for the record."""
    names = ("ipykernel", "ipython", "jupyter_client", "tornado", "nbformat")
    return {"kernelsvc": __version__, "python": sys.version.split()[0], **{n: version(n) for n in names}}


class Service:
    """Sessions by id, and everything that may be done with them. Implements ``ServiceApi``."""

    def __init__(self, settings: Settings, *, metrics: Metrics | None = None) -> None:
        self.settings = settings
        self.versions = versions()
        self.metrics = metrics or Metrics()
        self._store = SessionDirectories(settings.data_path())
        self._projections = Projections(self._store, self.metrics)
        self._launchers = Launchers(host_settings(settings), start_host=settings.start_host)
        self._live: dict[str, Session] = {}
        self._past: OrderedDict[str, Session] = OrderedDict()
        self._account = CheckpointBudget(len(os.sched_getaffinity(0)), asyncio.get_running_loop().time())
        self._promised: dict[str, Reservation] = {}
        self._warm = WarmPool(settings.warm_pool, settings.limits, self._store, self._launchers, self._has_room)
        self._made: dict[tuple[str, str], asyncio.Future[str] | str] = {}
        self._clients: WeakKeyDictionary[object, set[str]] = WeakKeyDictionary()
        self._branching = BranchCreator(self._store, self._promised, self._begin_copy)
        self._watch = ResourceMonitor(self._live, settings.watch_seconds)
        self.samples = UsageSamples(self._find, self._watch)
        self._launchers.host.on_limit_hit = self._watch.counted
        self._recoveries = BackgroundLoads(settings.start_seconds)
        self._adoption = Adoption(
            self._projections,
            self._launchers,
            self._recoveries,
            self._live,
            self._promised,
            self._made,
            self._session,
            self._keep,
            self._store.discard,
        )
        self._watching: asyncio.Future[None] | None = None
        self._retiring: asyncio.Future[None] | None = None
        self._stopping = False
        self.surroundings = SessionEnvironment(self._find)
        self.programs = Programs(self._find, self.surroundings, self._launchers.host)
        self.leases = Leases(self._find, self._live, self._view, settings.limits)
        self.access = SessionTokens(
            self._projections.secret("access"), settings.tokens, self._owner, lambda: [*self._live]
        )

    # -- life ------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the kernel host and find again every session that an earlier server left.

        Raises:
            KernelsvcError: the kernel host can't be started.
        """
        await self._launchers.start()
        self._store.sweep()
        await self._adoption.run(self._store.scan())
        self._watching = asyncio.ensure_future(self._watch.run())
        self._warm.start(self.settings.default_template)
        if self.settings.retention_seconds is not None:
            self._retiring = asyncio.ensure_future(self._retention(self.settings.retention_seconds).run())

    def _retention(self, age: float) -> Retention:
        action, finish = self.settings.retention_action, self._projections.last_notebook
        return Retention(self._store, self._projections.index, age, action, lambda id: self._past.pop(id, None), finish)

    async def stop(self, *, end_sessions: bool) -> None:
        """Let go of every session, or end them all. Nothing is accepted any more."""
        self._stopping = True
        await self.programs.end_all()
        if end_sessions:
            await self._recoveries.all(STOP_SECONDS)
            ending = [s.close("server stopped") for s in list(self._live.values())]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await asyncio.gather(*ending, return_exceptions=True)
        for task in (self._watching, self._retiring):
            if task is not None:
                task.cancel()
        self._recoveries.close()
        await self._warm.close()
        for session in self._live.values():
            session.detach()
        await self._projections.close()
        await self._launchers.stop(end_kernels=end_sessions)

    def ready(self) -> bool:
        """Whether a session asked for now would not wait for its template."""
        return self._launchers.ready() and not self._stopping

    # -- who and what ------------------------------------------------------------------

    def authenticate(self, token: str | None) -> Principal:
        """Who this token names.

        Raises:
            Unauthenticated: nobody.
        """
        return authenticate(self.settings.tokens, token)

    def info(self) -> dict[str, Any]:
        """What this server is, allows and enforces."""
        return {
            "name": "kernelsvc",
            "version": __version__,
            "schema": SCHEMA,
            "versions": self.versions,
            "limits": self.settings.limits,
            "sandbox": self._launchers.sandbox(),
            "journal_sync": self.settings.journal_sync,
            "public_key": self._projections.public_key,
            "default_template": self.settings.default_template,
        }

    def templates(self) -> list[dict[str, Any]]:
        """What a session can be made from."""
        return self._launchers.templates()

    def _may(self, who: Principal, scope: Scope) -> None:
        if scope not in who.scopes:
            raise Forbidden(f"This token lacks the scope '{scope}'; use one that has it.", scope=scope)

    def _find(self, who: Principal, session: str, scope: Scope = "read") -> Session:
        self._may(who, scope)
        self._recoveries.check(session, who.name)
        found = self._live.get(session) or self._reopen(session)
        if found is None or found.about.principal != who.name:
            raise NotFound(f"There is no session {session!r}; list your sessions.")
        return found

    def _reopen(self, session: str) -> Session | None:
        """A closed session, read back from its directory."""
        found = self._past.get(session)
        if found is None:
            try:
                directory = self._store.directory(session)
                if is_large(directory.journal):
                    self._read_later(directory)
                journal = Journal.open(directory.journal, directory.id, read_only=True)
                found = self._session(about_of(directory, journal), directory, journal, live=False)
                found.rebuild(life_of(journal))
            except (NotFound, OSError, msgspec.ValidationError):
                return None
            self._keep(found)
        return found

    def _read_later(self, directory: SessionDirectory) -> NoReturn:
        """Read a large log of a closed session in a thread; whoever asks waits in ``present``."""
        about = msgspec.convert(directory.read_about(), SessionSpec)

        async def read() -> None:
            journal = await asyncio.to_thread(Journal.open, directory.journal, directory.id, read_only=True)
            found = self._session(about, directory, journal, live=False)
            await asyncio.to_thread(found.rebuild, life_of(journal))
            self._keep(found)

        self._recoveries.begin(directory.id, about.principal, read)
        raise Recovering(session=directory.id)

    async def ensure_loaded(self, named: str) -> None:
        """Have the sessions read that a request names; waits ``start_seconds`` at most. Safe to cancel."""
        for session in ids_in(named):
            if session not in self._live and session not in self._recoveries:
                with contextlib.suppress(Recovering):
                    self._reopen(session)
        await self._recoveries.named(named)

    def _owner(self, session: str) -> str | None:
        found = self._live.get(session) or self._reopen(session)
        return found.about.principal if found else None

    def _keep(self, session: Session) -> None:
        self._past[session.id] = session
        while len(self._past) > PAST_KEPT:
            self._past.popitem(last=False)

    def _session(
        self, about: SessionSpec, directory: SessionDirectory, journal: Journal, *, live: bool = True
    ) -> Session:
        limits = about.limits
        if live:
            self._projections.open(directory, journal)
        policy = Policy(
            cell_seconds=limits.cell_seconds,
            idle_seconds=limits.idle_seconds,
            lifetime_seconds=limits.lifetime_seconds,
            grace_seconds=self.settings.interrupt_grace_seconds,
            max_queued=self.settings.max_queued_cells,
            output_bytes=limits.output_bytes,
            max_cell_output_bytes=self.settings.max_cell_output_bytes,
            hibernate_seconds=self.settings.hibernate_seconds,
            limits=limits,
        )
        return Session(
            about,
            journal,
            self._launchers.launcher(about.template) if live else None,
            policy,
            sync=self.settings.journal_sync,
            observer=self._observe,
            versions=self.versions,
            checkpoints=self.settings.checkpoints,
            checkpoint_max_bytes=self.settings.checkpoint_max_bytes,
            account=self._account,
            sign=self._projections.signer(about.id, journal),
            saved=directory.saved,
        )

    # -- sessions ----------------------------------------------------------------------

    async def create(self, who: Principal, request: SessionRequest) -> SessionInfo:
        """A new session, ready for its first cell. Cancelling it leaves nothing behind.

        Raises:
            NotFound: no such template.
            Conflict: the idempotency key belongs to another request.
            LimitTooHigh, QuotaExceeded, AtCapacity, SandboxUnavailable, Timeout: nothing was made.
        """
        self._may(who, "run")
        if request.idempotency_key is None:
            return self._view(await self._create(who, request))
        key = (who.name, request.idempotency_key)
        made = self._made.get(key)
        if made is None:
            made = asyncio.ensure_future(self._create_id(who, request))
            self._remember(key, made)
        known = made if isinstance(made, str) else await asyncio.shield(made)
        await self._recoveries.named(known)
        return self._view(self._find(who, known))

    async def _create_id(self, who: Principal, request: SessionRequest) -> str:
        """What is remembered for a key: the id alone, or each of the last 10,000 sessions would stay in memory."""
        return (await self._create(who, request)).id

    def _remember(self, key: tuple[str, str], made: asyncio.Future[str]) -> None:
        def settle(done: asyncio.Future[str]) -> None:
            if done.cancelled() or done.exception() is not None:
                self._made.pop(key, None)
            elif key in self._made:
                self._made[key] = done.result()  # the task would hold on to what it was begun with

        self._made[key] = made
        made.add_done_callback(settle)
        while len(self._made) > KEYS_KEPT:
            self._made.pop(next(iter(self._made)))

    async def _create(self, who: Principal, request: SessionRequest) -> Session:
        if self._stopping:
            raise Conflict("The server is stopping; try again when it is back.")
        host = self._find_live(who, request.beside) if request.beside else None
        template = request.template or (host.about.template if host else self.settings.default_template)
        self._launchers.launcher(template)
        limits = (host.about.limits if host else self.settings.limits).lowered(request.limits)
        env = {**(host.about.env if host else {}), **request.env}
        warm = self._warm.take(template, limits) if host is None else None
        try:
            self._admit(who, limits)
        except KernelsvcError:
            if warm is not None:
                self._warm.put_back(warm)
            raise
        session_id = warm.about.id if warm else new_id("s")
        self._promised[session_id] = Reservation(principal=who.name, memory_bytes=limits.memory_bytes)
        try:
            about = SessionSpec(
                id=session_id,
                principal=who.name,
                template=template,
                workdir="",
                kernel=warm.about.kernel if warm else new_kernel_id(),
                created_at=timestamp(self._store.clock()),
                limits=limits,
                name=request.name,
                labels=request.labels,
                env=env,
                idempotency_key=request.idempotency_key,
                beside=request.beside,
                family=host.about.family if host else "",
            )
            return await self._begin(about, beside=Path(host.about.workdir) if host else None, warm=warm)
        finally:
            del self._promised[session_id]

    def _admit(self, who: Principal, limits: Limits, count: int = 1) -> None:
        settings = self.settings
        ceilings = Ceilings(
            sessions=settings.max_sessions,
            sessions_per_principal=who.max_sessions or settings.max_sessions_per_principal,
            memory_bytes=settings.max_total_memory_bytes,
        )
        live = [
            Reservation(principal=s.about.principal, memory_bytes=s.about.limits.memory_bytes)
            for s in self._live.values()
        ] + [*self._promised.values()]
        try:
            admit([*live, *self._warm.lives()], ceilings, who.name, limits, count=count)
        except AtCapacity:
            if not self._warm.evict_all():
                raise
            admit(live, ceilings, who.name, limits, count=count)

    def _has_room(self) -> bool:
        """Whether one more session, of nobody in particular, would be admitted, and none is being made now."""
        settings, count = self.settings, len(self._live) + len(self._warm)
        promised = sum(s.about.limits.memory_bytes or 0 for s in self._live.values())
        promised += (len(self._warm) + 1) * (settings.limits.memory_bytes or 0)
        most = settings.max_total_memory_bytes
        return not self._promised and count < settings.max_sessions and (most is None or promised <= most)

    async def _begin_copy(self, about: SessionSpec, parent: Path, place: Path, forked: asyncio.Future[Any]) -> Session:
        return await self._begin(about, parent=parent, place=place, forked=forked)

    async def _begin(
        self,
        about: SessionSpec,
        *,
        parent: Path | None = None,
        place: Path | None = None,
        forked: asyncio.Future[Any] | None = None,
        beside: Path | None = None,
        warm: WarmSession | None = None,
    ) -> Session:
        started = time.perf_counter()
        try:
            if warm is not None:
                directory, journal = warm.directory, warm.journal
            else:
                directory, journal = self._store.create(about.id, {}, parent=parent, place=place, beside=beside)
        except OSError as error:
            raise AtCapacity(
                f"No session can be recorded ({error.strerror}); free disk space and try again."
            ) from error
        about.workdir = str(directory.working())
        if parent is None and beside is None:
            about.family = str(directory.home.resolve())
        session = self._session(about, directory, journal)
        try:
            if forked is not None:
                await asyncio.shield(forked)
            directory.write_about(msgspec.to_builtins(about))
            async with asyncio.timeout(self.settings.start_seconds):
                await session.start(copy=parent is not None)
        except BaseException as error:
            session.detach()
            if warm is not None:
                await asyncio.shield(self._launchers.discard(about.kernel))
            self._projections.forget(about.id)
            self._store.discard(about.id)
            if isinstance(error, TimeoutError):
                raise Timeout("The session did not start in time; try again.") from None
            if isinstance(error, OSError):
                raise AtCapacity("No session can be recorded; free disk space and try again.") from error
            raise
        self._live[about.id] = session
        self.leases.began(session)
        self.metrics.create_seconds.observe(time.perf_counter() - started)
        return session

    def get(self, who: Principal, session: str) -> SessionInfo:
        """One session; also a closed one."""
        return self._view(self._find(who, session))

    def list(
        self,
        who: Principal,
        *,
        state: str | None = None,
        label: str | None = None,
        limit: int = 100,
        page: str | None = None,
    ) -> Page:
        """The caller's sessions, newest first, and the next page's name."""
        self._may(who, "read")
        rows, following = self._projections.index.page(who.name, state=state, label=label, limit=limit, page=page)
        found = []
        for row in rows:
            with contextlib.suppress(NotFound):
                found.append(self._brief(row) or self._view(self._find(who, row.id)))
        return found, following

    def _brief(self, row: SessionRow) -> SessionInfo | None:
        """How a list shows a session whose log is large and not read."""
        if row.id in self._live or row.id in self._past or not (row.id in self._recoveries or row.state == "closed"):
            return None
        return brief(row, self._store.directory(row.id))

    async def close(self, who: Principal, session: str, *, reason: str = "closed") -> SessionInfo:
        """End a session; its record stays. Closing a closed one changes nothing."""
        found = self._find(who, session, "run")
        if found.state is not SessionState.CLOSED:
            await found.close(reason)
        return self._view(found)

    async def interrupt(self, who: Principal, session: str) -> SessionInfo:
        """Interrupt the running cell."""
        found = self._find(who, session, "run")
        found.interrupt()
        return self._view(found)

    async def restart(self, who: Principal, session: str) -> SessionInfo:
        """A new kernel with empty variables; waits until it is there. Safe to cancel: it comes anyway."""
        found = self._find(who, session, "run")
        found.restart()
        async with asyncio.timeout(self.settings.start_seconds):
            await found.settled()
        return self._view(found)

    def _view(self, session: Session) -> SessionInfo:
        return session.view(self._watch.usage.get(session.id, Usage()))

    # -- cells ----------------------------------------------------------------------------

    def _check_code(self, requests: Sequence[CellRequest]) -> None:
        for request in requests:
            if len(request.code) > self.settings.max_code_bytes:
                raise TooLarge(
                    f"The code has {len(request.code)} characters and may have {self.settings.max_code_bytes}; "
                    "upload data as a file instead.",
                    limit=self.settings.max_code_bytes,
                )

    async def execute(
        self,
        who: Principal,
        session: str,
        request: CellRequest,
        *,
        wait: Literal["finished", "queued"] = "finished",
        client: object | None = None,
    ) -> CellInfo:
        """Run one cell. Cancelling it, or losing the connection, leaves the cell running."""
        return (await self.batch(who, session, [request], on_error=request.on_error, wait=wait, client=client))[0]

    async def batch(
        self,
        who: Principal,
        session: str,
        cells: Sequence[CellRequest],
        *,
        on_error: Literal["stop", "continue"] = "stop",
        wait: Literal["finished", "queued"] = "finished",
        client: object | None = None,
    ) -> Cells:
        """Run cells in order in one trip; accepted all or none."""
        found = self._find(who, session, "run")
        if len(cells) > 1:
            cells = [msgspec.structs.replace(c, on_error=on_error) for c in cells]
        ids = self._submit(found, who, cells, client)
        if wait == "finished":
            for cell in ids:
                await found.wait(cell)
        return [found.reading.cell(cell) for cell in ids]

    def execute_then(
        self, who: Principal, session: str, request: CellRequest, told: api.OnFinished, *, client: object
    ) -> None:
        """``execute`` without a task: ``told``, which raises nothing, is called with what reads the finished cell."""
        found = self._find(who, session, "run")
        (cell,) = self._submit(found, who, [request], client)
        found.when_finished(cell, lambda: told(lambda: found.reading.cell(cell)))

    def _submit(self, found: Session, who: Principal, cells: Sequence[CellRequest], client: object) -> Sequence[str]:
        if not cells:
            raise BadRequest("A batch needs at least one cell.")
        self._check_code(cells)
        ids = found.submit(cells, principal=who.name, client=client)
        if client is not None and any(cell.on_disconnect == "interrupt" for cell in cells):
            self._clients.setdefault(client, set()).add(found.id)
        return ids

    def client_gone(self, client: object) -> None:
        """A connection that submitted cells is gone: what wanted to be interrupted then is."""
        for session in self._clients.pop(client, ()):
            if session in self._live:
                self._live[session].client_disconnected(client)

    async def call(self, who: Principal, call: Call) -> dict[str, Any]:
        """One shot: a session is made, used, recorded and closed."""
        if (call.code is None) == (call.function is None):
            raise BadRequest("Give either 'code' or 'function'.")
        source = call.code
        if source is None:
            source = call_protocol.function_cell(call.function or "", call.args, call.kwargs)
        request = SessionRequest(template=call.template, limits=call.limits, name="execute")
        session = (await self.create(who, request)).id
        try:
            self._put_files(who, session, call.files)
            cell = await self.execute(who, session, CellRequest(code=source, timeout_seconds=call.timeout_seconds))
        finally:
            await asyncio.shield(self.close(who, session, reason="executed"))
        result: dict[str, Any] = msgspec.to_builtins(cell)
        if call.function is not None:
            result["value"] = call_protocol.value_of(cell)
        return result

    def _put_files(self, who: Principal, session: str, files: dict[str, str]) -> None:
        directory = self._store.directory(session).files
        owner = directory.stat()
        for name, text in files.items():
            if not name or "/" in name or name in (".", "..") or "\0" in name:
                raise BadRequest(f"The file name {name!r} has a path in it; give a plain name.")
            # The session has run nothing yet, so the directory holds what we put there and nothing else.
            path = directory / name
            path.write_text(text, "utf-8")
            os.chown(path, owner.st_uid, owner.st_gid)
        if files:
            self.files_changed(who, session, [{"path": name, "action": "put"} for name in files])

    async def input(self, who: Principal, session: str, cell: str, text: str) -> None:
        """Answer a cell's ``input()``."""
        self._find(who, session, "run").give_input(cell, text)

    def cell(self, who: Principal, session: str, cell: str) -> CellInfo:
        """One cell."""
        return self._find(who, session).reading.cell(cell)

    def cells(self, who: Principal, session: str) -> Cells:
        """Every cell, in the order they were accepted."""
        found = self._find(who, session)
        return [found.reading.cell(cell) for cell in found.machine.cells]

    def output(
        self, who: Principal, session: str, cell: str, *, name: str = "stdout", offset: int = 0, limit: int = 65536
    ) -> dict[str, Any]:
        """A page of what a cell wrote, from the journal, whatever the budget cut."""
        return self._find(who, session).reading.output(cell, name, offset, limit)

    # -- the log ------------------------------------------------------------------------------

    def attach(self, who: Principal, session: str, *, after: int = 0) -> Subscription:
        """A reader of the log from ``after`` on.

        Raises:
            CursorUnknown: the log has no such position.
        """
        return self._find(who, session).log.reader(after)

    def events(self, who: Principal, session: str, *, after: int = 0, limit: int = 1000) -> Lines:
        """A page of the log."""
        journal = self._find(who, session).log
        journal.reader(after).close()
        return [*journal.lines(after + 1, after + limit)]

    # -- asking the kernel ------------------------------------------------------------------------

    async def complete(self, who: Principal, session: str, code: str, cursor_pos: int | None) -> dict[str, Any]:
        """Jupyter's ``complete_reply``."""
        found = self._find(who, session, "run")
        content = {"code": code, "cursor_pos": len(code) if cursor_pos is None else cursor_pos}
        return await found.request("complete_request", content)

    async def inspect(
        self, who: Principal, session: str, code: str, cursor_pos: int | None, detail_level: int
    ) -> dict[str, Any]:
        """Jupyter's ``inspect_reply``."""
        found = self._find(who, session, "run")
        position = len(code) if cursor_pos is None else cursor_pos
        content = {"code": code, "cursor_pos": position, "detail_level": detail_level}
        return await found.request("inspect_request", content)

    async def request_kernel(
        self, who: Principal, session: str, msg_type: str, content: dict[str, Any], *, timeout: float = 10.0
    ) -> dict[str, Any]:
        """What the kernel answers to one of Jupyter's questions (``QUESTIONS``), as it is."""
        found = self._find(who, session, "run")
        if msg_type not in QUESTIONS:
            raise BadRequest(f"{msg_type[:64]!r} can't be asked; there are {', '.join(sorted(QUESTIONS))}.")
        return await found.request(msg_type, content, timeout=timeout)

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
    ) -> None:
        """Give the kernel a comm message; returns when it was handled. What it causes is on record."""
        found = self._find(who, session, "run")
        if msg_type not in COMMS:
            raise BadRequest(f"{msg_type[:64]!r} is no comm message; there are {', '.join(sorted(COMMS))}.")
        await found.send_comm(msg_type, content, msg_id=msg_id, metadata=metadata, buffers=buffers)

    async def variables(self, who: Principal, session: str) -> Variables:
        """The session's variables, without running any code of theirs."""
        found = self._find(who, session, "run")
        if found.info is not None and found.info.kind != "forked":
            raise NotSupported("Only forked kernels list their variables; run a cell that prints them.")
        reply = await found.request("kernelsvc_variables_request", {})
        try:
            return msgspec.convert(reply.get("variables", []), Variables)
        except msgspec.ValidationError:
            return []

    # -- notebook and files ---------------------------------------------------------------------------

    async def notebook(self, who: Principal, session: str, format: NotebookFormat = "ipynb") -> bytes:
        """The session as a notebook, at any time."""
        found = self._find(who, session)
        return await self._projections.export(self._store.directory(session), cast("Journal", found.log), format)

    def journal_path(self, who: Principal, session: str) -> Path:
        """The journal's file."""
        return self._store.directory(self._find(who, session).id).journal

    def files_dir(self, who: Principal, session: str) -> Path:
        """The working directory as the server sees it; hostile content."""
        return self._store.directory(self._find(who, session).id).working()

    def files_changed(self, who: Principal, session: str, files: Sequence[dict[str, Any]]) -> None:
        """Record an upload or a deletion; a closed session's files can't change."""
        self._find(who, session, "run").record(ev.FilesChanged(files=list(files)))

    # -- after an event -----------------------------------------------------------------------------------

    def _observe(self, session: Session, events: Sequence[Event]) -> None:
        self._projections.feed(session.id, events)
        self._projections.index.set_state(session.id, session.state)
        last = events[-1]
        if isinstance(last, ev.SessionClosed):
            self._live.pop(session.id, None)
            self._watch.usage.pop(session.id, None)
            self._keep(session)
            self.programs.end(session.id)
            self.leases.ended(session.id)
        elif isinstance(last, ev.JournalSigned):
            self._projections.finish(session.id)

    # -- checkpoints, undo, branches --------------------------------------------------------

    async def checkpoint(self, who: Principal, session: str, name: str | None = None) -> Checkpoint:
        """A parked copy of the session as it is after everything sent so far."""
        found = self._find_live(who, session)
        await found.succession.ensure_running()
        return await found.copies.make(name)

    def checkpoints(self, who: Principal, session: str) -> Checkpoints:
        """The copies that are kept."""
        return [*self._find(who, session).machine.checkpoints.values()]

    async def drop_checkpoint(self, who: Principal, session: str, checkpoint: str) -> None:
        """End a copy."""
        await self._find_live(who, session).copies.drop(checkpoint)

    async def rollback(self, who: Principal, session: str, to: str | None = None) -> SessionInfo:
        """Make the variables those of an earlier moment; the record keeps everything."""
        found = self._find_live(who, session)
        await found.succession.rollback(to)
        return self._view(found)

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
    ) -> Sessions:
        """New sessions from this one's live state or a checkpoint, independent from then on.

        Args:
            who: the caller.
            session: the parent.
            at: a checkpoint's id or name, or None for now.
            count: how many.
            labels: on top of the parent's.
            limits: each branch's, where they are to be lower than the parent's.
            force: go on although something will be lost.

        Raises:
            CannotFork: what the session holds would not survive; nothing was made.
            NotSupported: a cold kernel.
            LimitTooHigh: a branch can't have more than its parent.
            TooLarge: the directory holds more than a branch may have.
            QuotaExceeded, AtCapacity: they don't fit.
        """
        found = self._find_live(who, session)
        now = self._store.clock()
        # A microsecond apart, so that lists show siblings in the order in which they were given.
        abouts = [branch_about(found, now + n / 1e6, at=at, labels=labels, limits=limits) for n in range(count)]
        self._admit(who, abouts[0].limits, count)
        await found.succession.ensure_running()
        made, warnings = await self._branching.branch(found, abouts, at=at, force=force)
        found.record(ev.Branched(sessions=[one.id for one in made], checkpoint=at, warnings=warnings))
        for one in made:
            self._projections.inherit(self._store.directory(one.id), self._store.directory(session), one.about.parent)
        return [self._view(one) for one in made]

    async def hibernate(self, who: Principal, session: str) -> SessionInfo:
        """Save the variables to disk and give the memory back; the next cell wakes the session."""
        found = self._find_live(who, session)
        await found.succession.hibernate()
        return self._view(found)

    def _find_live(self, who: Principal, session: str) -> Session:
        found = self._find(who, session, "run")
        if found.state is SessionState.CLOSED:
            raise SessionClosed()
        return found
