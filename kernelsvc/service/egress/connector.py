"""Network rules of sessions: their listeners go to the egress proxy, its reports into journals."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kernelsvc.egress.client import EgressClient
from kernelsvc.egress.protocol import MAX_RULES_BYTES, Report
from kernelsvc.errors import BadRequest
from kernelsvc.kernels.launchers import KernelLaunchers
from kernelsvc.model import events as ev
from kernelsvc.model.limits import Limits
from kernelsvc.model.network.policy import check_secrets
from kernelsvc.model.network.repeats import Repeats
from kernelsvc.model.network.rules import NetworkRules
from kernelsvc.service.egress.proxy_settings import proxy_settings
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.session import Session
from kernelsvc.settings import Settings

log = logging.getLogger(__name__)


@dataclass
class _Container:
    """A container with network rules.

    Attributes:
        trusts: whether programs in it trust the proxy's certificate, because its first rules read requests.
        kernels: the kernels in it.
        repeats: its refusals in the current cell.
        unused: those of them that no session has used yet.
        sessions: the sessions that were found in it, each with its kernel then.
        version: the registry's version then.
    """

    trusts: bool
    kernels: set[str] = field(default_factory=set)
    unused: set[str] = field(default_factory=set)
    repeats: Repeats = field(default_factory=Repeats)
    sessions: list[tuple[Session, str]] = field(default_factory=list)
    version: int = -1

    def find(self, registry: SessionRegistry) -> list[Session]:
        """Return its sessions, the oldest first.

        Each connection is a report, and a server may have thousands of sessions. So they are looked through only after
        a session began, ended or changed its kernel, and while a session is about to use a kernel.
        """
        changed = self.version != registry.version or any(one.spec.kernel != kernel for one, kernel in self.sessions)
        if self.unused or changed:
            found = [one for one in registry.open_sessions() if one.spec.kernel in self.kernels]
            self.sessions, self.version = [(one, one.spec.kernel) for one in found], registry.version
            self.unused.difference_update(one.spec.kernel for one in found)
        return [one for one, _ in self.sessions]


class EgressConnector:
    """The server's side of network rules. It does nothing for sessions without rules.

    Args:
        settings: the server's settings.
        registry: all sessions.
        launchers: report the listeners of kernels with rules.
    """

    def __init__(self, settings: Settings, registry: SessionRegistry, launchers: KernelLaunchers) -> None:
        self._registry = registry
        self._containers: dict[str, _Container] = {}
        self._secrets = settings.secrets
        self._client = EgressClient(proxy_settings(settings), start=settings.start_host, on_report=self._on_report)
        launchers.on_listeners(self._on_listeners)

    async def require(self, limits: Limits) -> None:
        """Wait for the proxy, if a session with these limits needs it. Safe to cancel.

        Raises:
            BadRequest: the rules are too long, or one has a secret that does not exist or may not be sent to its host.
            Internal: the proxy can't be started or does not answer.
        """
        if isinstance(limits.network, NetworkRules):
            size = len(msgspec.json.encode(limits.network))
            if size > MAX_RULES_BYTES:
                raise BadRequest(
                    f"The network rules take {size} bytes and may take {MAX_RULES_BYTES}. Write fewer or shorter ones, "
                    "with wildcards.",
                    limit="network",
                    wanted=size,
                    allowed=MAX_RULES_BYTES,
                )
            try:
                check_secrets(limits.network, self._secrets)
            except ValueError as error:
                raise BadRequest(f"The limit network is not valid: {error}.", limit="network") from None
            await self._client.ensure()

    async def close(self) -> None:
        """Disconnect, because the server stops. New connections of sessions wait for the next server's proxy."""
        await self._client.close()

    def family_of(self, session: Session) -> tuple[list[Session], set[int] | None, bool]:
        """Return the sessions that share a session's network, its ports with listeners, and its trust.

        The ports are None without a kernel. The trust is whether its programs trust the proxy's certificate.
        """
        for name, container in self._containers.items():
            if session.spec.kernel in container.kernels:
                return container.find(self._registry), self._client.ports(name), container.trusts
        return [session], None, False

    def update(self, session: Session, rules: NetworkRules) -> None:
        """Let the proxy use other rules for a session and those that share its network."""
        for name, container in self._containers.items():
            if session.spec.kernel in container.kernels:
                self._client.update(name, msgspec.to_builtins(rules))

    def _on_listeners(self, about: dict[str, Any], fds: list[int]) -> None:
        name, kernel = str(about["container"]), str(about["kernel"])
        if name not in self._containers:
            self._containers[name] = _Container(msgspec.convert(about["rules"], NetworkRules).reads_requests())
        container = self._containers[name]
        container.kernels.add(kernel)
        container.unused.add(kernel)
        # The rules may have been replaced since the request that started the kernel.
        present = (one.limits.network for one in self._registry.open_sessions() if one.spec.kernel == kernel)
        rules = next((msgspec.to_builtins(one) for one in present if isinstance(one, NetworkRules)), None)
        self._client.open(name, rules or about.get("present") or about["rules"], fds)

    def _on_report(self, report: Report) -> None:
        container = self._containers.get(report.container)
        if container is None:
            return
        if report.kind == "ended":
            del self._containers[report.container]
            return
        session = self._session_of(container)
        if session is None:
            return
        cell = session.running
        event: ev.Event
        try:
            if report.kind == "denied":
                event = msgspec.convert(report.fields, ev.EgressDenied)
                key = f"{event.via} {event.host} {event.port} {event.why}"
                count = container.repeats.count(cell or "", key)
                if not count:
                    return
                event = msgspec.structs.replace(event, count=count)
            else:
                event = msgspec.convert(report.fields, ev.Egress)
        except msgspec.ValidationError as error:
            log.error("a report of the egress proxy is not valid: %s", error)
            return
        if cell is not None:
            event = msgspec.structs.replace(event, cell=cell)
        session.try_record(event)

    def _session_of(self, container: _Container) -> Session | None:
        """Return the session that used the network: one whose cell runs, or else the oldest in the container.

        Branches share the network namespace, and so the listeners.
        """
        found = container.find(self._registry)
        return next((one for one in found if one.running is not None), found[0] if found else None)
