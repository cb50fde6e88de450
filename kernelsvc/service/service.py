"""The service: all sessions of one server, and everything that a transport may do with them.

``Service`` implements ``service.api.ServiceApi``. It builds the parts of the
service, finds the session that a call names, and passes the call on. It addresses
everything by session id, so that a front on another machine could route by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import logging
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, cast
from weakref import WeakKeyDictionary

import msgspec

from kernelsvc import __version__
from kernelsvc.errors import BadRequest, KernelsvcError, NotFound, NotSupported, TooLarge
from kernelsvc.kernels.launchers import KernelLaunchers, Launchers
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model import events as ev
from kernelsvc.model.events import SCHEMA, Event
from kernelsvc.model.limits import LimitsRequest
from kernelsvc.model.objects import (
    Call,
    CellInfo,
    CellRequest,
    CellView,
    Checkpoint,
    Deletion,
    Principal,
    SessionInfo,
    SessionRequest,
    SessionState,
    ValueData,
    ValueRequest,
)
from kernelsvc.model.outputs import cut_middle
from kernelsvc.model.tokens import present_name
from kernelsvc.model.tool_calls.offers import ToolFilter
from kernelsvc.model.view.request import ViewRequest
from kernelsvc.protocol.kernel_messages import KernelRequest
from kernelsvc.protocol.value_reply import value_data
from kernelsvc.service.access.holds import Holds
from kernelsvc.service.access.principals import Principals
from kernelsvc.service.access.session_tokens import SessionTokens
from kernelsvc.service.api import (
    REQUEST_META,
    Cells,
    Checkpoints,
    Lines,
    Matches,
    NotebookFormat,
    OnFinished,
    Outline,
    Page,
    Sessions,
    Subscription,
    Variables,
)
from kernelsvc.service.branching import BranchCreator
from kernelsvc.service.commands.commands import Commands
from kernelsvc.service.creation import SessionCreator
from kernelsvc.service.directories import follow_clock
from kernelsvc.service.disposal.disposal import Disposal
from kernelsvc.service.egress.connector import EgressConnector
from kernelsvc.service.egress.network_updates import NetworkUpdates
from kernelsvc.service.environment import SessionEnvironment
from kernelsvc.service.file_access.files import SessionFiles
from kernelsvc.service.file_access.workspaces import Workspaces
from kernelsvc.service.host_settings import follow_environments, host_settings
from kernelsvc.service.journal_stream import JournalStream
from kernelsvc.service.leases import Leases
from kernelsvc.service.loading.adoption import Adoption
from kernelsvc.service.loading.background_loading import BackgroundLoads, brief
from kernelsvc.service.loading.closed_sessions import ClosedSessions
from kernelsvc.service.loading.principal_names import update_principal_names
from kernelsvc.service.offers import Offers
from kernelsvc.service.one_shot import run_once
from kernelsvc.service.ports.ports import Ports
from kernelsvc.service.programs import Programs
from kernelsvc.service.projections import Projections, head_syslog
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.service.resource_monitor import ResourceMonitor
from kernelsvc.service.session_factory import SessionFactory
from kernelsvc.service.warm_pool import WarmPool
from kernelsvc.session import Session
from kernelsvc.settings import Settings
from kernelsvc.store.environments import EnvironmentStore
from kernelsvc.store.index import SessionRow
from kernelsvc.store.journal import Journal
from kernelsvc.store.keys import SigningKey
from kernelsvc.store.sessions import BACKUP_MARK, SessionDirectories
from kernelsvc.store.token_file import TokenFile
from kernelsvc.telemetry.metrics import Metrics
from kernelsvc.telemetry.tracing.status import FILE, ExportMetrics

#: The Jupyter requests that a client may send to a kernel besides cells.
REQUESTS = frozenset(
    f"{name}_request" for name in ("kernel_info", "complete", "inspect", "is_complete", "history", "comm_info", "debug")
)
COMMS = frozenset({"comm_open", "comm_msg", "comm_close"})
#: Seconds in which sessions must end when the server stops.
STOP_SECONDS = 10.0
#: Seconds for the conversion of a variable's data, and for the cell that runs before it.
VALUE_SECONDS = 120.0
#: Views of cells that are made at the same time. Each may take a thread.
VIEWS = 2
#: Cells of an outline that are read before others are served: each can take 5 ms in a large log.
OUTLINE_STEP = 10
#: Sessions that save their variables at the same time.
HIBERNATING = 8

#: Events after which the service itself has work. The events of an ordinary cell are none of them.
_OBSERVED = frozenset((ev.ToolReturned, ev.Leased, ev.SessionClosed, ev.JournalSigned, ev.NotAsWritten))

if TYPE_CHECKING:
    from kernelsvc.service.loading.moves import Moves
    from kernelsvc.service.node_state import NodeState

log = logging.getLogger(__name__)


def versions() -> dict[str, str]:
    """Return names and versions of the software that runs here, for the journal."""
    names = ("ipykernel", "ipython", "jupyter_client", "tornado", "nbformat")
    return {"kernelsvc": __version__, "python": sys.version.split()[0], **{n: version(n) for n in names}}


def _answer(session: Session, cell: str, request: CellRequest) -> CellInfo:
    """Return the answer to a request that ran a cell."""
    info = session.cell(cell)
    if request.max_text is not None:
        return msgspec.structs.replace(info, text=cut_middle(info.text, request.max_text))
    return info


class Service:
    """All sessions of one server. Implements ``ServiceApi``.

    Args:
        settings: the server's settings.
        metrics: counters to use. None makes new ones.
        launchers: start kernels. None takes those of this machine. ``kernelsvc.testing`` has fake ones.
        spans: whether the spans of cells are exported.

    Attributes:
        environment, files, offers, programs, commands, ports, leases, usage, access, records,
            workspaces: the parts of ``ServiceApi``.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        metrics: Metrics | None = None,
        launchers: KernelLaunchers | None = None,
        spans: bool = False,
    ) -> None:
        self.settings = settings
        self.versions = versions()
        self.metrics = metrics or Metrics()
        self._launchers = launchers or Launchers(host_settings(settings), start_host=settings.start_host)
        self._store = store = SessionDirectories(settings.data_path())
        own = settings.signing_key
        self.signing_key = key = (
            SigningKey.load(own.absolute()) if own else SigningKey.load_or_create(store.data / "keys")
        )
        head_log = head_syslog if settings.head_log == "syslog" else None
        self._present_name = functools.partial(present_name, records=settings.tokens)
        self._projections = projections = Projections(
            store, self.metrics, key, head_log, present_name=self._present_name
        )
        self._index = projections.index
        self._loads = loads = BackgroundLoads(settings.start_seconds)
        factory = SessionFactory(
            settings, store, self._launchers, projections, self.versions, self._observe, spans=spans
        )
        if spans:
            self.metrics.registry.register(ExportMetrics(store.data / FILE))
        self._closed = ClosedSessions(store, factory, loads)
        self._registry = registry = SessionRegistry(settings, self._closed, loads)
        self.offers = offers = Offers(registry, settings)
        factory.use_offers(offers)
        self.holds = Holds(registry)
        self._warm_pool = WarmPool(settings, registry, factory, self._launchers)
        self._adoption = Adoption(registry, self._closed, factory, projections, self._launchers, loads)
        self.workspaces = workspaces = Workspaces(settings, registry, store)
        factory.recheck_binds_with(workspaces.renew_binds)
        self.usage = ResourceMonitor(registry, settings.watch_seconds, workspaces.quota)
        self._launchers.on_cgroup_event(self.usage.on_cgroup_event)
        self._launchers.on_read_pauses(self.usage.on_read_pauses)
        self.metrics.watch(self._launchers.read_statistics)
        self.metrics.watch(registry.statistics)
        self.metrics.watch(self._read_storage)
        self.environment = SessionEnvironment(registry)
        self._viewing = asyncio.Semaphore(VIEWS)
        self.files = SessionFiles(registry, store)
        self.programs = Programs(registry, self.environment, self._launchers)
        self.commands = Commands(registry, self.programs)
        self.leases = Leases(registry, settings.limits)
        self._principals = Principals(settings.tokens, TokenFile(store.data / "keys"), settings.oidc)
        self.access = SessionTokens(projections.secret("access"), self._principals.holders, registry)
        self.ports = Ports(settings, registry, self.environment, self._launchers, self.access)
        self._egress = egress = EgressConnector(settings, registry, self._launchers)
        self.network = NetworkUpdates(settings, registry, store, egress)
        self._creator = SessionCreator(
            settings, registry, factory, self._warm_pool, self.leases, workspaces, self.metrics, egress
        )
        self._branches = BranchCreator(store, registry, self._creator, projections)
        self._disposal = Disposal(settings, store, registry, projections, self._closed, self._present_name)
        self.records = self._disposal.records
        self._environments = EnvironmentStore(store.data)
        self._clients: WeakKeyDictionary[object, set[str]] = WeakKeyDictionary()
        self._tasks = OwnedTasks()
        self._stopping = False

    def _read_storage(self) -> dict[str, float]:
        """Return as metrics the free bytes for the data directory, and the time of the last backup, 0 without one."""
        found = {"free_disk_bytes": float(shutil.disk_usage(self._store.data).free)}
        try:
            return found | {"last_backup_timestamp_seconds": (self._store.data / BACKUP_MARK).stat().st_mtime}
        except OSError:
            return found | {"last_backup_timestamp_seconds": 0.0}

    # -- start and stop ------------------------------------------------------------------

    async def start(self) -> None:
        """Start the kernel host and adopt every session that an earlier server left.

        Raises:
            KernelsvcError: the kernel host can't be started.
        """
        await self._launchers.start()
        self._store.sweep()
        self.workspaces.start()
        update_principal_names(self._store, self._index, self._present_name)
        await self._adoption.run(self._store.scan())
        self._tasks.start(self.usage.run())
        self._tasks.start(follow_environments(self.settings, self._environments, self._launchers.set_templates))
        self._tasks.start(follow_clock(self.settings))
        self._tasks.start(self._principals.run())
        self._tasks.start(self._principals.follow_issuer())
        self._warm_pool.start(self.settings.default_template)
        for work in self._disposal.tasks():
            self._tasks.start(work)

    def _refuse_sessions(self) -> None:
        self._stopping = True
        self._creator.stop()

    async def drain(self, seconds: float) -> None:
        """Accept no more sessions, and wait until no cell runs. Open sessions still accept cells. Safe to cancel.

        Args:
            seconds: the longest wait.
        """
        self._refuse_sessions()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while busy := next((one for one in self._registry.open_sessions() if one.unfinished), None):
                    await self._wait_for_cells(busy)

    async def _wait_for_cells(self, session: Session) -> None:
        while (cell := session.unfinished) is not None:
            await session.wait(cell)

    async def stop(self, *, end_sessions: bool) -> None:
        """Stop. Sessions end, or wait for the next server with their kernels alive. Nothing is accepted any more."""
        self._refuse_sessions()
        await self.programs.end_all()
        await self.commands.end_all()
        self.ports.end_all()
        if end_sessions:
            await self._loads.all(STOP_SECONDS)
            ending = [session.close("server stopped") for session in self._registry.open_sessions()]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await asyncio.gather(*ending, return_exceptions=True)
            await self._disposal.settle()
        self._tasks.cancel()
        await self._tasks.wait()
        self._loads.close()
        await self._warm_pool.close()
        for session in self._registry.open_sessions():
            session.detach()
        self._principals.write_uses()
        await self._projections.close()
        await self._egress.close()
        await self._launchers.stop(end_kernels=end_sessions)

    async def hibernate_all(self, seconds: float) -> None:
        """Accept no more sessions, and hibernate those that are open. One that can't be saved keeps its kernel.

        Args:
            seconds: for the cells that run or wait, before their sessions are left as they are.
        """
        self._refuse_sessions()
        await self._loads.all(STOP_SECONDS)
        at_once = asyncio.Semaphore(HIBERNATING)

        async def save(session: Session) -> None:
            try:
                async with asyncio.timeout(seconds):
                    await self._wait_for_cells(session)
                async with at_once:
                    await session.hibernate()
            except (KernelsvcError, TimeoutError) as error:
                why = "a cell runs" if isinstance(error, TimeoutError) else error
                log.warning("session %s is not saved and keeps its kernel: %s", session.id, why)

        await asyncio.gather(*map(save, self._registry.open_sessions()))

    def ready(self) -> bool:
        """Whether a session that is created now would not wait for its template."""
        return self._launchers.ready() and not self._stopping

    # -- the server ----------------------------------------------------------------------

    def authenticate(self, token: str | None, user: str | None = None) -> Principal:
        """Return the principal of a token, or of a user for whom it acts.

        Raises:
            Unauthenticated: no principal has this token.
            BadRequest, Forbidden: see ``tokens.on_behalf_of``.
        """
        return self._principals.authenticate(token, user)

    def void_tokens(self, hashes: frozenset[str]) -> frozenset[str]:
        """Return those of these tokens' hashes that are not valid any more."""
        return self._principals.void(hashes)

    def moves(self) -> Moves:
        """Return the moves of this server's sessions to and from other nodes of a cluster."""
        module = importlib.import_module("kernelsvc.service.loading.moves")
        moves: Moves = module.Moves(self.settings, self._store, self._registry, self._adoption)
        return moves

    def node_state(self) -> NodeState:
        """Return what fronts of a cluster read of this server."""
        module = importlib.import_module("kernelsvc.service.node_state")
        state: NodeState = module.NodeState(
            self.settings,
            self._registry,
            self._principals.callers,
            self.access,
            self.templates,
            self.ready,
            lambda: self._stopping,
        )
        return state

    def info(self) -> dict[str, Any]:
        """Return the server's versions, limits and sandbox."""
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
        """Return the templates of sessions."""
        made = self._environments.read_all()
        return [
            {**one, "packages": made[one["name"]].packages, "wanted": made[one["name"]].shown}
            if one["name"] in made
            else one
            for one in self._launchers.templates()
        ]

    def environment_owner(self, name: str) -> str | None:
        """Return the principal for whom an environment was made, "" for the operator. None if there is none."""
        return self._environments.owner(name)

    async def ensure_loaded(self, named: str) -> None:
        """Load the sessions that a request names. Wait ``start_seconds`` at most. Safe to cancel."""
        await self._registry.ensure_loaded(named)

    # -- sessions ----------------------------------------------------------------------

    async def create(self, who: Principal, request: SessionRequest) -> SessionInfo:
        """Create a session that is ready for its first cell. Cancelling it leaves nothing behind.

        Raises:
            NotFound: there is no such template.
            LimitTooHigh, QuotaExceeded, AtCapacity, SandboxUnavailable, Timeout: nothing was created.
        """
        self._registry.require_scope(who, "run")
        session = await self._creator.create(who, request)
        await self._registry.ensure_loaded(session)
        return self._registry.describe(self._registry.find(who, session))

    def get(self, who: Principal, session: str) -> SessionInfo:
        """Return a session, open or closed."""
        return self._registry.describe(self._registry.find(who, session))

    def list(
        self,
        who: Principal,
        *,
        state: str | None = None,
        label: str | None = None,
        limit: int = 100,
        page: str | None = None,
        principal: str | None = None,
    ) -> Page:
        """Return sessions, the newest first, and the name of the next page.

        Args:
            who: the caller.
            state: only sessions in this state.
            label: only sessions with this label, ``NAME`` or ``NAME=VALUE``.
            limit: maximum number of sessions.
            page: the name of the page, from the page before.
            principal: whose sessions. None means the caller's, ``*`` means those of every principal.

        Raises:
            Forbidden: the caller's token has no scope for these sessions.
        """
        rows, following = self._index.page(
            self._owner(who, principal), state=state, label=label, limit=limit, page=page
        )
        found = []
        for row in rows:
            with contextlib.suppress(NotFound):
                found.append(self._summary(row) or self._registry.describe(self._registry.find(who, row.id)))
        return found, following

    def _owner(self, who: Principal, principal: str | None) -> str | None:
        """Return whose sessions a caller asks for. None means those of every principal."""
        self._registry.require_scope(who, "read" if principal in (None, who.name) else "audit")
        return None if principal == "*" else principal or who.name

    async def search(self, who: Principal, *, text: str, limit: int = 50, principal: str | None = None) -> Matches:
        """Return cells whose code has all of these words as prefixes, best match first. ``principal`` as in ``list``.

        Raises:
            Forbidden: the caller's token has no scope for these sessions.
        """
        owner = self._owner(who, principal)
        self._index.flush()
        return await asyncio.to_thread(self._index.search, owner, text, limit=limit)

    def _summary(self, row: SessionRow) -> SessionInfo | None:
        """Return how a list shows a session whose journal is large and not read. Return None for any other session."""
        unread = self._registry.is_loading(row.id) or row.state == "closed"
        if self._registry.in_memory(row.id) or not unread:
            return None
        return brief(row, self._store.directory(row.id))

    async def close(self, who: Principal, session: str, *, reason: str = "closed") -> SessionInfo:
        """End a session. Its journal stays. Closing a closed session changes nothing."""
        found = self._registry.find(who, session, "run")
        if found.state is not SessionState.CLOSED:
            await found.close(reason, who.name)
        return self._registry.describe(found)

    async def purge(self, who: Principal, session: str, *, force: bool = False) -> Deletion:
        """Delete a session for good. See ``SessionDeleter.delete``."""
        return await self._disposal.delete(who, session, force=force)

    async def interrupt(self, who: Principal, session: str) -> SessionInfo:
        """Interrupt the running cell."""
        found = self._registry.find(who, session, "run")
        found.interrupt(by=who.name)
        return self._registry.describe(found)

    async def restart(self, who: Principal, session: str) -> SessionInfo:
        """Replace the kernel by one with empty variables, and wait for it. Safe to cancel: it starts anyway."""
        found = self._registry.find(who, session, "run")
        found.restart()
        async with asyncio.timeout(self.settings.start_seconds):
            await found.settled()
        return self._registry.describe(found)

    # -- cells ----------------------------------------------------------------------------

    def record_answer(self, who: Principal, session: str, answer: ev.ModelAnswered) -> None:
        """Record the end of a model's answer in the log of its container. One that has ended gets no more entries."""
        self._registry.find(who, session, "run").try_record(answer)

    def _check_code(self, requests: Sequence[CellRequest]) -> None:
        for request in requests:
            if len(request.code) > self.settings.max_code_bytes:
                raise TooLarge(
                    f"The code has {len(request.code)} characters and may have {self.settings.max_code_bytes}. "
                    "Upload data as a file instead.",
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
        """Run cells in order in one request. Either all are accepted or none is."""
        found = self._registry.find(who, session, "run")
        if len(cells) > 1:
            cells = [msgspec.structs.replace(c, on_error=on_error) for c in cells]
        ids = self._submit(found, who, cells, client)
        if wait == "finished":
            for cell in ids:
                await found.wait(cell)
        return [_answer(found, cell, request) for cell, request in zip(ids, cells, strict=True)]

    def execute_then(
        self, who: Principal, session: str, request: CellRequest, on_finished: OnFinished, *, client: object
    ) -> None:
        """Run one cell without a task. ``on_finished`` must not raise. It gets a function that reads the cell."""
        found = self._registry.find(who, session, "run")
        (cell,) = self._submit(found, who, [request], client)
        found.when_finished(cell, lambda: on_finished(lambda: _answer(found, cell, request)))

    def _submit(self, found: Session, who: Principal, cells: Sequence[CellRequest], client: object) -> Sequence[str]:
        if not cells:
            raise BadRequest("A batch needs at least one cell.")
        self._check_code(cells)
        self._registry.check_cells(who, found, cells)
        if (meta := REQUEST_META.get()) is not None:
            cells = [c if c.meta is not None else msgspec.structs.replace(c, meta=meta) for c in cells]
        if any(cell.within is not None or cell.reuse_calls is not None for cell in cells):
            self.offers.submitting(found, cells)
        ids = found.submit(cells, principal=who.name, client=client)
        if client is not None and self.offers.in_use:
            self.offers.submitted(client, found.id, ids)
        if client is not None and any(cell.on_disconnect == "interrupt" for cell in cells):
            self._clients.setdefault(client, set()).add(found.id)
        return ids

    def client_gone(self, client: object) -> None:
        """Interrupt the cells with ``on_disconnect="interrupt"`` that a lost connection had submitted."""
        self.offers.client_gone(client)
        for session in self._clients.pop(client, ()):
            if (found := self._registry.get(session)) is not None:
                found.client_disconnected(client)

    async def call(self, who: Principal, call: Call) -> dict[str, Any]:
        """Run code or a function in a session that is created for it and closed after it."""
        return await run_once(self, who, call)

    async def input(self, who: Principal, session: str, cell: str, text: str) -> None:
        """Answer a cell's ``input()``."""
        self._registry.find(who, session, "run").give_input(cell, text, who.name)

    def cell(self, who: Principal, session: str, cell: str) -> CellInfo:
        """Return a cell."""
        return self._registry.find(who, session).cell(cell)

    def cells(self, who: Principal, session: str, offset: int = 0, limit: int = 1000) -> tuple[Cells, int]:
        """Return a page of cells, in the order in which they were accepted, and how many there are.

        A page ends early if its cells are large. It has one at least.
        """
        found = self._registry.find(who, session)
        return found.cells(offset, limit), len(found.cell_ids())

    async def outline(self, who: Principal, session: str, offset: int = 0, limit: int = 1000) -> Outline:
        """Return one line about each cell of a page, and how many cells there are. Safe to cancel."""
        found = self._registry.find(who, session)
        total = len(found.cell_ids())
        lines = []
        for start in range(offset, min(offset + limit, total), OUTLINE_STEP):
            lines += found.outline(start, min(OUTLINE_STEP, offset + limit - start))
            await asyncio.sleep(0)
        return lines, total

    async def output(
        self, who: Principal, session: str, cell: str, *, name: str = "stdout", offset: int = 0, limit: int = 65536
    ) -> dict[str, Any]:
        """Return a page of a cell's output from the journal, which also has the text that the cell omits."""
        return await self._registry.find(who, session).output(cell, name, offset, limit)

    async def view(self, who: Principal, session: str, cell: str | None, request: ViewRequest) -> CellView:
        """Return a cell as a language model reads it. ``cell`` is an id or a number. None is the last one."""
        async with self._viewing:
            return await self._registry.find(who, session).view_cell(cell, request)

    # -- the journal --------------------------------------------------------------------------

    def attach(self, who: Principal, session: str, *, after: int = 0) -> Subscription:
        """Return a reader of the journal's entries after ``after``.

        Raises:
            CursorUnknown: the journal has no such entry.
        """
        return self._registry.find(who, session).reader(after)

    def events(self, who: Principal, session: str, *, after: int = 0, limit: int = 1000) -> Lines:
        """Return a page of the journal."""
        found = self._registry.find(who, session)
        found.reader(after).close()
        return [*found.lines(after + 1, after + limit)]

    # -- requests to the kernel -------------------------------------------------------------------

    async def complete(self, who: Principal, session: str, code: str, cursor_pos: int | None) -> dict[str, Any]:
        """Return Jupyter's ``complete_reply``."""
        found = self._registry.find(who, session, "run")
        content = {"code": code, "cursor_pos": len(code) if cursor_pos is None else cursor_pos}
        return await found.request("complete_request", content)

    async def inspect(
        self, who: Principal, session: str, code: str, cursor_pos: int | None, detail_level: int
    ) -> dict[str, Any]:
        """Return Jupyter's ``inspect_reply``."""
        found = self._registry.find(who, session, "run")
        position = len(code) if cursor_pos is None else cursor_pos
        content = {"code": code, "cursor_pos": position, "detail_level": detail_level}
        return await found.request("inspect_request", content)

    async def request_kernel(
        self, who: Principal, session: str, msg_type: str, content: dict[str, Any], *, timeout: float = 10.0
    ) -> dict[str, Any]:
        """Send one of ``REQUESTS`` to the kernel and return the content of the reply, unchanged."""
        found = self._registry.find(who, session, "run")
        if msg_type not in REQUESTS:
            raise BadRequest(f"{msg_type[:64]!r} can't be sent to a kernel. There are {', '.join(sorted(REQUESTS))}.")
        return await found.request(msg_type, content, timeout=timeout)

    async def send_comm(self, who: Principal, session: str, message: KernelRequest) -> None:
        """Send a comm message to the kernel and wait until it was handled. Its output goes into the journal."""
        found = self._registry.find(who, session, "run")
        if message.msg_type not in COMMS:
            raise BadRequest(f"{message.msg_type[:64]!r} is no comm message. There are {', '.join(sorted(COMMS))}.")
        self._registry.check_waiting(who, found, sum(map(len, message.buffers)))
        await found.send_comm(message)

    async def variables(self, who: Principal, session: str) -> Variables:
        """Return the session's variables. No code of the session runs for it."""
        found = self._registry.find(who, session, "run")
        if found.info is not None and found.info.kind != "forked":
            raise NotSupported("Only forked kernels list their variables. Run a cell that prints them.")
        reply = await found.request("kernelsvc_variables_request", {})
        try:
            return msgspec.convert(reply.get("variables", []), Variables)
        except msgspec.ValidationError:
            return []

    async def value(self, who: Principal, session: str, wanted: ValueRequest, *, whole: bool = False) -> ValueData:
        """Return the data of a variable, between two cells. Safe to cancel: the kernel may still convert them.

        Args:
            who: the caller.
            session: the session's id.
            wanted: the variable, the format and the rows.
            whole: refuse a part of the data.

        Raises:
            NotFound: there is no such variable or column.
            NotSupported: the value has no such format.
            TooLarge: the rows do not fit. The message says how many do.
        """
        found = self._registry.find(who, session, "run")
        if found.info is not None and found.info.kind != "forked":
            raise NotSupported("Only forked kernels give the data of variables. Run a cell that prints them.")
        asked = {**msgspec.to_builtins(wanted), "whole": whole}
        return value_data(await found.request("kernelsvc_value_request", asked, timeout=VALUE_SECONDS), wanted.format)

    # -- notebook and journal -------------------------------------------------------------------------

    async def notebook(self, who: Principal, session: str, format: NotebookFormat = "ipynb") -> bytes:
        """Return the session as a notebook, also while a cell runs."""
        found = self._registry.find(who, session)
        directory, journal = self._store.directory(found.id), cast("Journal", found.log)
        return await self._projections.export(directory, journal, format, who.name)

    async def notebook_file(self, who: Principal, session: str) -> JournalStream | None:
        """Return the file of a notebook that is too large for ``notebook``, or None. The caller closes it."""
        return await self._projections.notebook_file(self._store.directory(self._registry.find(who, session).id))

    def journal(self, who: Principal, session: str) -> JournalStream:
        """Return the journal's whole lines as they are now. The caller closes the stream.

        Raises:
            NotFound: there is no such session, or retention has removed the journal.
        """
        return JournalStream(self._store.directory(self._registry.find_record(who, session).id).journal)

    # -- after an entry in the journal ---------------------------------------------------

    def _observe(self, session: Session, events: Sequence[Event]) -> None:
        self._projections.feed(session.id, events, session.principal)
        self._index.set_state(session.id, session.state)
        if _OBSERVED.isdisjoint(map(type, events)):
            return
        for event in events:
            if isinstance(event, ev.ToolReturned):
                self.offers.ended(event.call)
            elif isinstance(event, ev.Leased):
                self.programs.pause(session.id, paused=event.paused)
        last = events[-1]
        if isinstance(last, ev.SessionClosed):
            self._registry.close(session)
            session.spec.forget_secrets()
            self._projections.forget_secrets(session.id)
            self.programs.end(session.id)
            self.commands.end(session.id)
            self.ports.end(session.id)
            self.leases.ended(session.id)
        elif isinstance(last, ev.JournalSigned | ev.NotAsWritten):
            self._projections.finish(session.id)

    # -- checkpoints, undo, branches --------------------------------------------------------

    async def checkpoint(self, who: Principal, session: str, name: str | None = None) -> Checkpoint:
        """Save the state that the session has after everything sent so far, as a forked process that waits."""
        found = self._registry.find_open(who, session)
        return await found.make_checkpoint(name, who.name)

    def checkpoints(self, who: Principal, session: str) -> Checkpoints:
        """Return the checkpoints."""
        return self._registry.find(who, session).list_checkpoints()

    async def drop_checkpoint(self, who: Principal, session: str, checkpoint: str) -> None:
        """End a checkpoint."""
        await self._registry.find_open(who, session).drop_checkpoint(checkpoint, who.name)

    async def rollback(self, who: Principal, session: str, to: str | None = None, replay: bool = True) -> SessionInfo:
        """Set the variables back to a checkpoint. The journal keeps everything."""
        found = self._registry.find_open(who, session)
        await found.rollback(to, replay=replay, by=who.name)
        return self._registry.describe(found)

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
    ) -> Sessions:
        """Create sessions from this one's present state or a checkpoint. They are independent from then on.

        Args:
            who: the caller.
            session: the parent's id.
            at: a checkpoint's id or name. None takes the present state.
            count: the number of branches.
            labels: labels of each branch, added to the parent's.
            limits: limits of each branch that are lower than the parent's.
            force: create them although something in the session can't be copied, for example a thread.
            isolate: give each branch a sandbox of its own, and a copy of the variables that pickle can copy. The
                others are named in the branch's ``parent.warnings``.
            tools: of the parent's functions of clients, those that the branches may call.

        Raises:
            BadRequest: both ``at`` and ``isolate`` are given.
            CannotFork: the session has something that can't be copied. Nothing was created.
            NotSupported: the session's kernel is not a forked one.
            LimitTooHigh: a limit is above the parent's.
            TooLarge: the directory holds more than a branch may have.
            QuotaExceeded, AtCapacity: the branches do not fit.
        """
        found = self._registry.find_open(who, session)
        made = await self._branches.branch(
            who, found, at=at, count=count, labels=labels, limits=limits, force=force, isolate=isolate, tools=tools
        )
        return [self._registry.describe(one) for one in made]

    async def hibernate(self, who: Principal, session: str) -> SessionInfo:
        """Save the variables to disk and end the kernel. The next cell resumes the session."""
        found = self._registry.find_open(who, session)
        await found.hibernate()
        return self._registry.describe(found)
