"""E2B's control plane: sandboxes made, found, given time, paused, forked, ended.

A fork is a branch; a snapshot is a branch that waits; a pause is a lease that
puts the variables to disk. A snapshot therefore outlives the sandbox it was
taken of.
"""

from __future__ import annotations

import contextlib
from typing import Any
from urllib.parse import unquote

from kernelsvc.errors import (
    AtCapacity,
    BadRequest,
    CannotFork,
    Conflict,
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

#: Sandboxes that one listing looks through, and shows on one page.
MAX_LISTED, MAX_PAGE = 10_000, 100
#: Forks at once: E2B's own bound.
MAX_FORKS = 20
_OPEN = [state for state in SessionState if state is not SessionState.CLOSED]
_PAGE = 1000


class ControlPlaneHandler(E2bHandler):
    """Base: the caller's sandboxes."""

    def open_sessions(self) -> list[SessionInfo]:
        """The caller's open sessions, in no order."""
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
        """An open sandbox of the caller's.

        Raises:
            NotFound: there is none of that name.
        """
        with contextlib.suppress(NotFound):
            found = self.context.service.get(self.who, unquote(sandbox))
            if found.state is not SessionState.CLOSED and models.is_sandbox(found):
                return found
        raise NotFound(f"sandbox {sandbox!r} was not found; it may have ended. Create another.")

    def find_snapshot(self, name: str) -> SessionInfo | None:
        """A snapshot by its id or, the newest, by its name."""
        with contextlib.suppress(NotFound):
            found = self.context.service.get(self.who, name)
            return found if found.state is not SessionState.CLOSED and models.is_snapshot(found) else None
        plain = name.partition(":")[0]
        named = [
            each for each in self.open_sessions() if models.is_snapshot(each) and models.snapshot_name(each) == plain
        ]
        return max(named, key=lambda each: each.created_at, default=None)

    def seconds(self, value: object, otherwise: float | None = None) -> float:
        """A time that a client asks for.

        Raises:
            BadRequest: it is none, or longer than the server allows.
        """
        if value is None and otherwise is not None:
            value = otherwise
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
            raise BadRequest("timeout must be a number of seconds, 0 or more.")
        most = self.context.settings.limits.lifetime_seconds
        if most is not None and value > most:
            raise LimitTooHigh(f"A timeout of {value:.0f} s is above this server's {most:.0f}; ask for at most that.")
        return float(value)

    def query_fields(self) -> dict[str, str]:
        """The query; the last value of what is there more than once."""
        return {name: self.decode_argument(values[-1], name) for name, values in self.request.query_arguments.items()}

    def lease(self, session: SessionInfo, seconds: float, **more: Any) -> SessionInfo:
        """Give a sandbox time."""
        return self.context.service.leases.grant(self.who, session.id, seconds, **more)

    def shown(self, session: SessionInfo) -> dict[str, Any]:
        """Return a sandbox with its secrets.

        Raises:
            Forbidden: the caller's token lacks the scope ``run``.
        """
        return models.access_model(session, *models.secrets_of(self.context.service.access, self.who, session.id))

    async def branch(self, session: SessionInfo, count: int, labels: dict[str, str]) -> list[SessionInfo]:
        """Branches of a session; one that sleeps is woken first.

        Raises:
            CannotFork, QuotaExceeded, AtCapacity, NotSupported: none was made.
        """
        service = self.context.service
        if session.kernel is None:
            await service.execute(self.who, session.id, CellRequest(code="", silent=True))
        made = await service.branch(self.who, session.id, count=count, labels=labels)
        return [*made]


class SandboxesHandler(ControlPlaneHandler):
    """``/v2/sandboxes`` and ``/sandboxes``."""

    async def get(self) -> None:
        """A page of the caller's sandboxes; the older path shows only those that run."""
        asked = self.query_fields()
        if not self.request.path.startswith("/v2/"):
            asked.setdefault("state", "running")
        found = [each for each in self.open_sessions() if models.is_sandbox(each) and models.matches(each, asked)]
        shown, following = models.page(found, asked, MAX_PAGE if "v2" in self.request.path else MAX_LISTED)
        if following is not None:
            self.set_header("x-next-token", following)
        self.answer([models.model(each) for each in shown])

    async def post(self) -> None:
        """A new sandbox, from a template or a snapshot."""
        self.auth_scope("run")
        wanted = models.decode(self.json_body())
        seconds = self.seconds(wanted.timeout)
        session = await self.while_connected(self._create(wanted))
        session = self.lease(session, seconds, then="pause" if wanted.autoPause else "close")
        self.answer(self.shown(session), 201)

    async def _create(self, wanted: models.NewSandbox) -> SessionInfo:
        service = self.context.service
        templates = [str(each["name"]) for each in service.templates()]
        try:
            template = models.template_of(wanted.templateID, templates)
        except NotFound:
            snapshot = self.find_snapshot(wanted.templateID)
            if snapshot is None:
                raise
            return await self._create_from_snapshot(snapshot, wanted)
        key = self.request.headers.get("Idempotency-Key")
        return await service.create(self.who, models.request_of(wanted, template, key))

    async def _create_from_snapshot(self, snapshot: SessionInfo, wanted: models.NewSandbox) -> SessionInfo:
        (made,) = await self.branch(snapshot, 1, models.labels(wanted) | models.no_snapshot())
        if wanted.envVars:
            await self.context.service.environment.change(self.who, made.id, wanted.envVars)
        return made


class SandboxDetailHandler(ControlPlaneHandler):
    """``/sandboxes/{id}``."""

    async def get(self, sandbox: str) -> None:
        """Return a sandbox as it is now. A token without the scope ``run`` gets no secret."""
        found = self.find(sandbox)
        envd = None
        if "run" in self.who.scopes:
            envd, _ = models.secrets_of(self.context.service.access, self.who, found.id)
        self.answer(models.detail_model(found, envd))

    async def delete(self, sandbox: str) -> None:
        """End it; its record stays."""
        found = self.find(sandbox)
        await self.context.service.close(self.who, found.id, reason="killed")
        self.answer(None)


class TimeoutHandler(ControlPlaneHandler):
    """``/sandboxes/{id}/timeout`` and ``/refreshes``."""

    async def post(self, sandbox: str, action: str) -> None:
        """Set when it ends, or put that off."""
        self.auth_scope("run")
        asked = self.json_body()
        found = self.find(sandbox)
        if found.paused:
            raise Conflict("The sandbox is paused; connect to it, which gives it time.")
        if action == "timeout":
            self.lease(found, self.seconds(asked.get("timeout")))
        else:
            self.lease(found, self.seconds(asked.get("duration"), models.DEFAULT_SECONDS), at_least=True)
        self.answer(None)


class PauseHandler(ControlPlaneHandler):
    """``/sandboxes/{id}/pause``."""

    watchers: WatcherRegistry

    async def post(self, sandbox: str) -> None:
        """Pause it: 409 if it is paused already."""
        self.auth_scope("run")
        found = self.find(sandbox)
        if found.paused:
            raise Conflict(f"sandbox {sandbox!r} is paused already.")
        self.watchers.drop(found.id)  # one that is a program of the sandbox's would keep it awake
        self.context.service.leases.pause(self.who, found.id)
        self.answer(None)


class ResumeHandler(ControlPlaneHandler):
    """``/sandboxes/{id}/connect`` (of both versions) and ``/resume``."""

    async def post(self, sandbox: str, action: str) -> None:
        """Take it out of a pause if it is in one, and give it time; a running one's never gets shorter."""
        self.auth_scope("run")
        asked = self.json_body()
        found = self.find(sandbox)
        seconds = self.seconds(asked.get("timeout"), models.DEFAULT_SECONDS)
        if action == "resume" and not found.paused:
            raise Conflict(f"sandbox {sandbox!r} is running already.")
        again = self.lease(found, seconds, at_least=True)
        self.answer(self.shown(again), 201 if found.paused else 200)


class ForkHandler(ControlPlaneHandler):
    """``/sandboxes/{id}/fork``."""

    async def post(self, sandbox: str) -> None:
        """New sandboxes from this one's live state; each is a branch."""
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
    """``/sandboxes/{id}/snapshots``."""

    async def post(self, sandbox: str) -> None:
        """Keep its state: a branch that waits and takes no cells."""
        name = self.json_body().get("name") or ""
        if not isinstance(name, str) or len(name) > models.MAX_NAME:
            raise BadRequest(f"name must be a text of at most {models.MAX_NAME} characters.")
        found = self.find(sandbox)
        labels = models.snapshot_labels(name, found.id)
        (made,) = await self.while_connected(self.branch(found, 1, labels))
        self.context.service.leases.keep(self.who, made.id)
        self.answer(models.snapshot_model(made), 201)


class SnapshotListHandler(ControlPlaneHandler):
    """``/snapshots``."""

    async def get(self) -> None:
        """A page of the caller's snapshots."""
        asked = self.query_fields()
        found = [
            each for each in self.open_sessions() if models.is_snapshot(each) and models.matches_snapshot(each, asked)
        ]
        shown, following = models.page(found, asked, MAX_PAGE)
        if following is not None:
            self.set_header("x-next-token", following)
        self.answer([models.snapshot_model(each) for each in shown])


class SnapshotHandler(ControlPlaneHandler):
    """``/templates/{id}``: snapshots are deleted there."""

    async def delete(self, template: str) -> None:
        """Delete a snapshot; what was made from it goes on."""
        found = self.find_snapshot(unquote(template))
        if found is None:
            raise NotFound(f"There is no snapshot {template!r}; templates are the server's own.")
        await self.context.service.close(self.who, found.id, reason="snapshot deleted")
        self.answer(None)


class SandboxMetricsHandler(ControlPlaneHandler):
    """``/sandboxes/{id}/metrics``: what it used, from its beginning until now."""

    async def get(self, sandbox: str) -> None:
        """At most ``MAX_SAMPLES`` of them, the oldest first; those between ``start`` and ``end`` if that is asked."""
        found = self.find(sandbox)
        asked = self.query_fields()
        start, end = models.moment(asked, "start", 0), models.moment(asked, "end", 1 << 40)
        shown = models.metric_models(found, self.context.service.usage.samples(self.who, found.id))
        self.answer([each for each in shown if start <= each["timestampUnix"] <= end])


class SandboxesMetricsHandler(ControlPlaneHandler):
    """``/sandboxes/metrics``."""

    async def get(self) -> None:
        """What several use now; those that are not there are left out."""
        found = {}
        for name in self.query_fields().get("sandbox_ids", "").split(","):
            with contextlib.suppress(NotFound):
                session = self.find(name)
                samples = self.context.service.usage.samples(self.who, session.id)
                found[name] = models.metric_models(session, samples)[-1]
        self.answer({"sandboxes": found})


class NetworkHandler(ControlPlaneHandler):
    """What E2B has and this server has not: said plainly, behind the same lock."""

    async def put(self, sandbox: str) -> None:
        """Rules for the network."""
        self.find(sandbox)
        raise NotSupported("The network of a sandbox is the server's setting and can't be changed while it runs.")


class SandboxHealthHandler(SandboxHandler):
    """``GET /health``."""

    purposes = (e2b.ENVD, e2b.TRAFFIC)
    asked_port: int | None = None

    def require_running(self, port: int | None) -> SessionInfo:
        """Any of the two ports is as well as the other."""
        self.asked_port = port
        return super().require_running(None if port == e2b.INTERPRETER_PORT else port)

    async def get(self) -> None:
        """204 from files and commands, 200 from the interpreter."""
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
