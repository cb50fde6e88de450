"""E2B's control plane: create, find, extend, pause, fork and end sandboxes.

A fork is a branch. A snapshot is a branch that takes no cells. A pause is a lease that
saves the variables to disk. A snapshot therefore outlives its sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any
from urllib.parse import unquote

from kernelsvc.errors import (
    AtCapacity,
    BadRequest,
    CannotFork,
    Conflict,
    Forbidden,
    KernelsvcError,
    LimitTooHigh,
    NotFound,
    NotSupported,
    QuotaExceeded,
)
from kernelsvc.model.objects import CellRequest, SessionInfo, SessionState
from kernelsvc.protocol import e2b
from kernelsvc.server.e2b import models
from kernelsvc.server.e2b.directory_watch import WatcherRegistry
from kernelsvc.server.e2b.handler import E2bHandler, SandboxHandler
from kernelsvc.server.e2b.network import everything_of, is_public, network_of
from kernelsvc.server.e2b.template_builds import TemplateBuilds

#: Most sandboxes that one listing searches, and most on one page.
MAX_LISTED, MAX_PAGE = 10_000, 100
#: Most forks of one request, as in E2B.
MAX_FORKS = 20
_OPEN = [state for state in SessionState if state is not SessionState.CLOSED]
_PAGE = 1000


class ControlPlaneHandler(E2bHandler):
    """Base of the handlers of the caller's sandboxes. The routes set ``builds``."""

    builds: TemplateBuilds

    def open_sessions(self) -> list[SessionInfo]:
        """Return the caller's open sessions, in no order."""
        found: dict[str, SessionInfo] = {}
        for state in _OPEN:
            page: str | None = None
            while len(found) < MAX_LISTED:
                some, page = self.context.service.list(self.who, state=state, limit=_PAGE, page=page)
                found |= {each.id: each for each in some if each.state is not SessionState.CLOSED}
                if page is None:
                    break
        return [*found.values()]

    def find(self, sandbox: str) -> SessionInfo:
        """Return an open sandbox of the caller.

        Raises:
            NotFound: The caller has no sandbox of that name.
        """
        with contextlib.suppress(NotFound):
            found = self.context.service.get(self.who, e2b.session_id(unquote(sandbox)))
            if found.state is not SessionState.CLOSED and models.is_sandbox(found):
                return found
        raise NotFound(f"sandbox {sandbox!r} was not found. It may have ended. Create another.")

    def find_snapshot(self, name: str) -> SessionInfo | None:
        """Return a snapshot by its id, or the newest one by its name."""
        with contextlib.suppress(NotFound):
            found = self.context.service.get(self.who, e2b.session_id(name))
            return found if found.state is not SessionState.CLOSED and models.is_snapshot(found) else None
        plain = name.partition(":")[0]
        named = [
            each for each in self.open_sessions() if models.is_snapshot(each) and models.snapshot_name(each) == plain
        ]
        return max(named, key=lambda each: each.created_at, default=None)

    def seconds(self, value: object, otherwise: float | None = None) -> float:
        """Check a time that a client asks for.

        Raises:
            BadRequest: It is not a number of seconds.
            LimitTooHigh: It is longer than the server allows.
        """
        if value is None and otherwise is not None:
            value = otherwise
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
            raise BadRequest("timeout must be a number of seconds, 0 or more.")
        most = self.context.settings.limits.lifetime_seconds
        if most is not None and value > most:
            raise LimitTooHigh(f"A timeout of {value:.0f} s is above this server's {most:.0f}. Ask for less.")
        return float(value)

    def query_fields(self) -> dict[str, str]:
        """Return the query. Of a repeated field, the last value counts."""
        return {name: self.decode_argument(values[-1], name) for name, values in self.request.query_arguments.items()}

    def lease(self, session: SessionInfo, seconds: float, **more: Any) -> SessionInfo:
        """Set the time until a sandbox ends."""
        return self.context.service.leases.grant(self.who, session.id, seconds, **more)

    def shown(self, session: SessionInfo) -> dict[str, Any]:
        """Return a sandbox with its secrets.

        Raises:
            Forbidden: The caller's token lacks the scope ``run``.
        """
        return models.access_model(session, *models.secrets_of(self.context.service.access, self.who, session.id))

    async def branch(self, session: SessionInfo, count: int, labels: dict[str, str]) -> list[SessionInfo]:
        """Branch a session. A hibernated one is resumed first.

        Raises:
            CannotFork, QuotaExceeded, AtCapacity, NotSupported: There is no new session.
        """
        service = self.context.service
        if session.kernel is None:
            await service.execute(self.who, session.id, CellRequest(code="", silent=True))
        made = await service.branch(self.who, session.id, count=count, labels=labels)
        return [*made]


class SandboxesHandler(ControlPlaneHandler):
    """Handler of ``/v2/sandboxes`` and ``/sandboxes``."""

    async def get(self) -> None:
        """List a page of the caller's sandboxes. The older path lists only running ones."""
        asked = self.query_fields()
        if not self.request.path.startswith("/v2/"):
            asked.setdefault("state", "running")
        async with self.context.turn_of(self.who):
            found = [each for each in self.open_sessions() if models.is_sandbox(each) and models.matches(each, asked)]
            shown, following = models.page(found, asked, MAX_PAGE if "v2" in self.request.path else MAX_LISTED)
            if following is not None:
                self.set_header("x-next-token", following)
            self.answer([models.model(each) for each in shown])

    async def post(self) -> None:
        """Create a sandbox from a template or a snapshot."""
        self.auth_scope("run")
        wanted = models.decode(self.json_body())
        seconds = self.seconds(wanted.timeout)
        public = self._is_public(wanted)
        session = await self.while_connected(self._create(wanted))
        if public:
            self.context.service.ports.share(self.who, session.id, 0, public=True)
        session = self.lease(session, seconds, then="pause" if wanted.autoPause else "close")
        self.answer(self.shown(session), 201)

    def _is_public(self, wanted: models.NewSandbox) -> bool:
        """Return whether the sandbox's own servers are public.

        Raises:
            Forbidden: The server allows no public ports. Nothing was created.
        """
        ports = self.context.settings.ports
        public = is_public(wanted.network, ports == "open")
        if public and ports in ("off", "private"):
            raise Forbidden(
                f"This server allows no public ports (setting ports = {ports!r}). Leave allow_public_traffic out."
            )
        return public

    async def _create(self, wanted: models.NewSandbox) -> SessionInfo:
        service = self.context.service
        name = wanted.templateID.partition(":")[0]
        built = None if name in models.DEFAULT_TEMPLATES else await self.builds.read(self.who, name)
        try:
            if built is not None:
                wanted.envVars = built.env | (wanted.envVars or {})
            template = built.environment if built else models.template_of(name, self.builds.server_templates())
        except NotFound:
            snapshot = self.find_snapshot(wanted.templateID)
            if snapshot is None:
                raise
            if wanted.volumeMounts:
                raise NotSupported(
                    "A sandbox from a snapshot has the volume of the snapshot. Leave volumeMounts out."
                ) from None
            return await self._create_from_snapshot(snapshot, wanted)
        for mount in wanted.volumeMounts or ():
            if not any(
                each.owner == self.who.name and each.name == mount.name for each in service.workspaces.list(self.who)
            ):
                raise NotFound(f"Volume {mount.name!r} was not found. Make it first: Volume.create({mount.name!r}).")
        key = self.request.headers.get("Idempotency-Key")
        everything = everything_of(self.context.settings.limits.network)
        session = await service.create(self.who, models.request_of(wanted, template, key, everything))
        if built is not None:
            try:
                await self.builds.furnish(self.who, session.id, name, built)
            except BaseException:  # Also a client that disconnects: no client would know the session.
                await asyncio.shield(service.close(self.who, session.id, reason="template failed"))
                raise
        return session

    async def _create_from_snapshot(self, snapshot: SessionInfo, wanted: models.NewSandbox) -> SessionInfo:
        (made,) = await self.branch(snapshot, 1, models.labels(wanted) | models.no_snapshot())
        if wanted.envVars:
            await self.context.service.environment.change(self.who, made.id, wanted.envVars)
        return made


class SandboxDetailHandler(ControlPlaneHandler):
    """Handler of ``/sandboxes/{id}``."""

    async def get(self, sandbox: str) -> None:
        """Return a sandbox. A token without the scope ``run`` gets no secret."""
        found = self.find(sandbox)
        envd = None
        if "run" in self.who.scopes:
            envd, _ = models.secrets_of(self.context.service.access, self.who, found.id)
        self.answer(models.detail_model(found, envd))

    async def delete(self, sandbox: str) -> None:
        """Close the session. Its log stays."""
        found = self.find(sandbox)
        await self.context.service.close(self.who, found.id, reason="killed")
        self.answer(None)


class TimeoutHandler(ControlPlaneHandler):
    """Handler of ``/sandboxes/{id}/timeout`` and ``/refreshes``."""

    async def post(self, sandbox: str, action: str) -> None:
        """Set the sandbox's end, or postpone it."""
        self.auth_scope("run")
        asked = self.json_body()
        found = self.find(sandbox)
        if found.paused:
            raise Conflict("The sandbox is paused. Connect to it first.")
        if action == "timeout":
            self.lease(found, self.seconds(asked.get("timeout")))
        else:
            self.lease(found, self.seconds(asked.get("duration"), models.DEFAULT_SECONDS), at_least=True)
        self.answer(None)


class PauseHandler(ControlPlaneHandler):
    """Handler of ``/sandboxes/{id}/pause``."""

    watchers: WatcherRegistry

    async def post(self, sandbox: str) -> None:
        """Pause the sandbox. 409 if it is paused already."""
        self.auth_scope("run")
        found = self.find(sandbox)
        if found.paused:
            raise Conflict(f"sandbox {sandbox!r} is paused already.")
        self.watchers.drop(found.id)  # a watcher that is a program would keep the sandbox running
        await self.context.service.leases.pause(self.who, found.id)
        self.answer(None)


class ResumeHandler(ControlPlaneHandler):
    """Handler of ``/sandboxes/{id}/connect`` (of both versions) and ``/resume``."""

    async def post(self, sandbox: str, action: str) -> None:
        """Resume a paused sandbox and extend its time. The time of a running one never gets shorter."""
        self.auth_scope("run")
        asked = self.json_body()
        found = self.find(sandbox)
        seconds = self.seconds(asked.get("timeout"), models.DEFAULT_SECONDS)
        if action == "resume" and not found.paused:
            raise Conflict(f"sandbox {sandbox!r} is running already.")
        again = self.lease(found, seconds, at_least=True)
        self.answer(self.shown(again), 201 if found.paused else 200)


class ForkHandler(ControlPlaneHandler):
    """Handler of ``/sandboxes/{id}/fork``."""

    async def post(self, sandbox: str) -> None:
        """Branch the sandbox's live state into new sandboxes."""
        asked = self.json_body()
        found = self.find(sandbox)
        count = asked.get("count", 1)
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_FORKS:
            raise BadRequest(f"count must be a whole number from 1 to {MAX_FORKS}.")
        seconds = self.seconds(asked.get("timeout"), models.DEFAULT_SECONDS)
        try:
            made = await self.while_connected(self.branch(found, count, {}))
        except (CannotFork, NotSupported, QuotaExceeded, AtCapacity) as error:
            self.answer([{"error": _error(error)}] * count, 201)
            return
        self.answer([{"sandbox": self.shown(self.lease(each, seconds))} for each in made], 201)


def _error(error: KernelsvcError) -> dict[str, Any]:
    reasons = error.details.get("reasons")
    more = f" ({'; '.join(map(str, reasons))})" if isinstance(reasons, list) and reasons else ""
    return {"code": error.http_status, "message": error.message + more}


class SnapshotsHandler(ControlPlaneHandler):
    """Handler of ``/sandboxes/{id}/snapshots``."""

    async def post(self, sandbox: str) -> None:
        """Save the sandbox's state: a branch that takes no cells."""
        name = self.json_body().get("name") or ""
        if not isinstance(name, str) or len(name) > models.MAX_NAME:
            raise BadRequest(f"name must be a text of at most {models.MAX_NAME} characters.")
        found = self.find(sandbox)
        labels = models.snapshot_labels(name, found.id)
        (made,) = await self.while_connected(self.branch(found, 1, labels))
        self.context.service.leases.keep(self.who, made.id)
        self.answer(models.snapshot_model(made), 201)


class SnapshotListHandler(ControlPlaneHandler):
    """Handler of ``/snapshots``."""

    async def get(self) -> None:
        """List a page of the caller's snapshots."""
        asked = self.query_fields()
        async with self.context.turn_of(self.who):
            every = self.open_sessions()
            found = [each for each in every if models.is_snapshot(each) and models.matches_snapshot(each, asked)]
            shown, following = models.page(found, asked, MAX_PAGE)
            if following is not None:
                self.set_header("x-next-token", following)
            self.answer([models.snapshot_model(each) for each in shown])


class SnapshotHandler(ControlPlaneHandler):
    """Handler of ``/templates/{id}``, where E2B's clients delete snapshots and templates."""

    async def delete(self, template: str) -> None:
        """Delete a snapshot or a built template. Sandboxes that were created from it stay."""
        self.auth_scope("run")
        found = self.find_snapshot(unquote(template))
        if found is None and await self.builds.remove(self.who, unquote(template)):
            self.answer(None)
            return
        if found is None:
            raise NotFound(f"There is no snapshot {template!r}. Templates belong to the server and can't be deleted.")
        await self.context.service.close(self.who, found.id, reason="snapshot deleted")
        self.answer(None)


class SandboxMetricsHandler(ControlPlaneHandler):
    """Handler of ``/sandboxes/{id}/metrics``: its usage over its life."""

    async def get(self, sandbox: str) -> None:
        """List the samples, the oldest first, between ``start`` and ``end`` if the query has them."""
        found = self.find(sandbox)
        asked = self.query_fields()
        start, end = models.moment(asked, "start", 0), models.moment(asked, "end", 1 << 40)
        shown = models.metric_models(found, self.context.service.usage.samples(self.who, found.id))
        self.answer([each for each in shown if start <= each["timestampUnix"] <= end])


class SandboxesMetricsHandler(ControlPlaneHandler):
    """Handler of ``/sandboxes/metrics``."""

    async def get(self) -> None:
        """Return the current usage of several sandboxes. Unknown ones are omitted."""
        found = {}
        async with self.context.turn_of(self.who):
            for name in dict.fromkeys(self.query_fields().get("sandbox_ids", "").split(",")):
                with contextlib.suppress(NotFound):
                    session = self.find(name)
                    samples = self.context.service.usage.samples(self.who, session.id)
                    # The processor's share is that since the sample before.
                    found[name] = models.metric_models(session, samples[-2:])[-1]
            self.answer({"sandboxes": found})


class NetworkHandler(ControlPlaneHandler):
    """Handler of ``/sandboxes/{id}/network``."""

    async def put(self, sandbox: str) -> None:
        """Replace the rules of a sandbox's network. What the request leaves out is the server's."""
        self.auth_scope("run")
        found = self.find(sandbox)
        asked = self.json_body()
        everything = everything_of(self.context.settings.limits.network)
        network = network_of(asked, asked.get("allow_internet_access"), everything)
        await self.context.service.network.update(self.who, found.id, network=network)
        self.answer(None)


class SandboxHealthHandler(SandboxHandler):
    """Handler of ``/health``, whose response depends on the port. Both responses say that the sandbox runs."""

    purposes = (e2b.ENVD, e2b.TRAFFIC)
    asked_port: int | None = None

    def require_running(self, port: int | None) -> SessionInfo:
        """Accept either port."""
        self.asked_port = port
        return super().require_running(None if port == e2b.INTERPRETER_PORT else port)

    async def get(self) -> None:
        """Respond 204 on the port of files and commands, 200 on the interpreter's."""
        if self.asked_port == e2b.INTERPRETER_PORT:
            self.write("OK")
        else:
            self.answer(None)


_ID = r"(?P<sandbox>[^/]+)"
ROUTES: list[tuple[str, Any]] = [
    (r"/(?:v2/)?sandboxes", SandboxesHandler),
    (r"/sandboxes/metrics", SandboxesMetricsHandler),
    (rf"/sandboxes/{_ID}", SandboxDetailHandler),
    (rf"/sandboxes/{_ID}/(?P<action>timeout|refreshes)", TimeoutHandler),
    (rf"/sandboxes/{_ID}/pause", PauseHandler),
    (rf"/(?:v2/)?sandboxes/{_ID}/(?P<action>connect|resume)", ResumeHandler),
    (rf"/sandboxes/{_ID}/fork", ForkHandler),
    (rf"/sandboxes/{_ID}/snapshots", SnapshotsHandler),
    (rf"/sandboxes/{_ID}/metrics", SandboxMetricsHandler),
    (rf"/sandboxes/{_ID}/network", NetworkHandler),
    (r"/snapshots", SnapshotListHandler),
    (r"/templates/(?P<template>[^/]+)", SnapshotHandler),
    (r"/health", SandboxHealthHandler),
]
