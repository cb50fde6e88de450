"""How a session begins: a new one, one from the warm pool, and a branch, all by one path.

The path is: admit, reserve, prepare the directory and the journal, start the
kernel, add the session to the registry. If any step fails, all is undone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from kernelsvc.errors import AtCapacity, BadRequest, KernelsvcError, Timeout, TooLarge
from kernelsvc.host.client import MAX_ENV_BYTES
from kernelsvc.model.hash_chain import timestamp
from kernelsvc.model.limits import Limits
from kernelsvc.model.objects import Principal, SessionRequest
from kernelsvc.model.storage.mounts import Bind, choose_binds
from kernelsvc.model.tool_calls.offers import narrowed
from kernelsvc.service.egress.connector import EgressConnector
from kernelsvc.service.environment import require_texts
from kernelsvc.service.file_access.workspaces import Workspaces
from kernelsvc.service.leases import Leases
from kernelsvc.service.registry import SessionRegistry, request_digest
from kernelsvc.service.session_factory import PreparedSession, SessionFactory
from kernelsvc.service.warm_pool import WarmPool, WarmSession
from kernelsvc.session import Session, SessionSpec, new_kernel_id, new_session_id
from kernelsvc.settings import Settings
from kernelsvc.store.sessions import SessionDirectory
from kernelsvc.telemetry.metrics import Metrics


class SessionCreator:
    """Create sessions.

    Args:
        settings: the server's settings: default template and limits, and the time that a start may take.
        registry: all sessions.
        factory: makes session objects and directories.
        warm_pool: kernels that are started already.
        leases: give a sidecar the lease of its session.
        workspaces: the folders that outlive sessions.
        metrics: count the seconds of each creation.
        egress: has the proxy for sessions with network rules.
    """

    def __init__(
        self,
        settings: Settings,
        registry: SessionRegistry,
        factory: SessionFactory,
        warm_pool: WarmPool,
        leases: Leases,
        workspaces: Workspaces,
        metrics: Metrics,
        egress: EgressConnector,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._keys = registry.keys
        self._factory = factory
        self._warm_pool = warm_pool
        self._leases = leases
        self._workspaces = workspaces
        self._metrics = metrics
        self._egress = egress
        self._stopping = False

    def stop(self) -> None:
        """Refuse new sessions from now on, because the server stops."""
        self._stopping = True

    async def create(self, who: Principal, request: SessionRequest) -> str:
        """Create a session, or find the one that the same idempotency key created. Return its id.

        Cancelling it leaves nothing behind, unless the request has an idempotency key: then creation continues.

        Raises:
            Conflict: the idempotency key belongs to a request with other parameters.
            NotFound: there is no such template.
            BadRequest, Forbidden: there is no such mount, or it is for others.
            TooLarge: the environment does not fit into a request to the host.
            LimitTooHigh, QuotaExceeded, AtCapacity, SandboxUnavailable, Timeout: nothing was created.
        """
        if request.idempotency_key is None:
            return await self._create(who, request)
        digest = request_digest(request)
        known = self._keys.get(who.name, request.idempotency_key, digest)
        if known is None:
            known = asyncio.ensure_future(self._create(who, request))
            self._keys.put_future(who, request.idempotency_key, known, digest)
        return known if isinstance(known, str) else await asyncio.shield(known)

    def admit(self, who: Principal, limits: Limits, count: int = 1) -> None:
        """Check that more sessions fit. Members of the warm pool end if that makes the room.

        Raises:
            QuotaExceeded, AtCapacity: they do not fit, or the server stops.
        """
        if self._stopping:
            raise AtCapacity("The server is stopping. Try again when it is back.")
        try:
            self._registry.admit(who, limits, count, warm=len(self._warm_pool))
        except AtCapacity:
            if not self._warm_pool.evict_all():
                raise
            self._registry.admit(who, limits, count)

    async def _create(self, who: Principal, request: SessionRequest) -> str:
        main = self._registry.find_open(who, request.sidecar_of) if request.sidecar_of else None
        template = request.template or (main.spec.template if main else self._settings.default_template)
        self._factory.require_template(template)
        ceiling = main.limits if main else self._settings.limits
        limits = ceiling.lowered(request.limits, any_secret="admin" in who.scopes)
        tools = narrowed(main.spec.tools if main else (), request.tools)
        require_texts(request.env.values())
        await self._egress.require(limits)
        env = {**(main.spec.env if main else {}), **request.env}
        # Before anything refers to it: a session that can't start leaves garbage, which is collected much later.
        if (size := len(msgspec.json.encode(env))) > MAX_ENV_BYTES:
            raise TooLarge(f"The environment takes {size} bytes and may take {MAX_ENV_BYTES}. Put data into a file.")
        binds, workspace = self._binds(who, request, main)
        # A member's sandbox has no mounts, and none can be added to it.
        member = self._warm_pool.take(template, limits) if main is None and not binds else None
        try:
            self.admit(who, limits)
        except KernelsvcError:
            if member is not None:
                self._warm_pool.put_back(member)
            raise
        spec = SessionSpec(
            id=new_session_id(self._settings.node),
            principal=who.name,
            template=template,
            workdir="",
            kernel=new_kernel_id(),
            created_at=timestamp(self._factory.now()),
            limits=limits,
            name=request.name,
            labels=request.labels,
            env=env,
            idempotency_key=request.idempotency_key,
            request_digest=request_digest(request) if request.idempotency_key else "",
            beside=request.sidecar_of,
            checkpoint=request.checkpoint,
            tools=tools,
            family=main.spec.family if main else "",
            binds=binds,
            workspace=workspace,
        )
        if member is not None:
            spec.id, spec.kernel = member.spec.id, member.spec.kernel
        with self._registry.reserved([spec]):
            started = time.perf_counter()
            if member is not None:
                prepared = member.become(spec)
            else:
                prepared = self._factory.prepare(spec, sidecar_of=Path(main.spec.workdir) if main else None)
            return (await self._begin(prepared, started, member=member)).id

    def _binds(self, who: Principal, request: SessionRequest, main: Session | None) -> tuple[list[Bind], str]:
        """Return the directories of the machine that a new session gets, and the address of its workspace or ""."""
        if main is not None:
            if request.mounts or request.workspace:
                raise BadRequest("A sidecar has the mounts and the workspace of its session. Leave them out.")
            return main.spec.binds, main.spec.workspace
        binds = choose_binds(self._settings.mounts, request.mounts, who.name)
        if request.workspace is None:
            return binds, ""
        address, bind = self._workspaces.bind(who, request.workspace, request.workspace_path or "")
        return [*binds, bind], address

    async def begin_branch(self, spec: SessionSpec, parent: Path, place: Path, forked: asyncio.Future[Any]) -> Session:
        """Begin a branch on a kernel that was forked for it. The caller has reserved it.

        Args:
            spec: the branch's specification.
            parent: the parent's working directory.
            place: the directory in which the branch's own is created.
            forked: done when the kernel exists.
        """
        started = time.perf_counter()
        prepared = self._factory.prepare(spec, parent=parent, place=place)
        return await self._begin(prepared, started, forked=forked)

    async def begin_isolated(self, spec: SessionSpec, fill: Callable[[SessionDirectory], None]) -> Session:
        """Begin a session on a fresh kernel that loads saved variables. The caller has reserved it.

        Args:
            spec: the session's specification.
            fill: called in a thread, puts the variables and files into the session's directory.
        """
        started = time.perf_counter()
        return await self._begin(self._factory.prepare(spec), started, fill=fill)

    async def _begin(
        self,
        prepared: PreparedSession,
        started: float,
        *,
        forked: asyncio.Future[Any] | None = None,
        member: WarmSession | None = None,
        fill: Callable[[SessionDirectory], None] | None = None,
    ) -> Session:
        spec = prepared.spec
        session = self._factory.open(prepared)
        try:
            if forked is not None:
                await asyncio.shield(forked)
            if fill is not None:
                await asyncio.to_thread(fill, prepared.directory)
            prepared.directory.write_about(msgspec.to_builtins(spec))
            async with asyncio.timeout(self._settings.start_seconds):
                await session.start(copy=forked is not None, load=fill is not None)
            if fill is not None:  # the warnings of the load
                prepared.directory.write_about(msgspec.to_builtins(spec))
            # Before anyone can find it: a client whose cells wait must not run them in a copy.
            if origin := self._registry.get(spec.beside or str((spec.parent or {}).get("session"))):
                session.hold_as(origin)
        except BaseException as error:
            session.detach()
            if member is not None:
                await asyncio.shield(self._warm_pool.end_kernel(member))
            self._factory.discard(spec.id)
            if isinstance(error, TimeoutError):
                raise Timeout("The session did not start in time. Try again.") from None
            if isinstance(error, OSError):
                raise AtCapacity("No session can be recorded. Free disk space and try again.") from error
            raise
        self._registry.add(session)
        self._leases.began(session)
        self._metrics.create_seconds.observe(time.perf_counter() - started)
        return session
