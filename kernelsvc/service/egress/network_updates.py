"""Other rules for the network of a session that runs."""

from __future__ import annotations

import msgspec

from kernelsvc.errors import BadRequest, Conflict
from kernelsvc.model import events as ev
from kernelsvc.model.limits import Network, lowered_network
from kernelsvc.model.network.rules import NetworkRules
from kernelsvc.model.objects import Principal, SessionInfo
from kernelsvc.service.egress.connector import EgressConnector
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.session import Session
from kernelsvc.settings import Settings
from kernelsvc.store.sessions import SessionDirectories


class NetworkUpdates:
    """Replace the rules of sessions. Implements ``NetworkApi``.

    Args:
        settings: the server's settings, whose rules are the most.
        registry: all sessions.
        store: all session directories.
        egress: has the proxy.
    """

    def __init__(
        self, settings: Settings, registry: SessionRegistry, store: SessionDirectories, egress: EgressConnector
    ) -> None:
        self._ceiling = settings.limits
        self._registry = registry
        self._store = store
        self._egress = egress

    async def update(self, who: Principal, session: str, *, network: Network | None = None) -> SessionInfo:
        """Replace the rules of a session and of the sessions that share its network. Safe to cancel.

        Args:
            who: the owner.
            session: the session's id.
            network: the new rules. "none" allows nothing, and None gives the server's rules.

        Raises:
            LimitTooHigh: a rule is more than the server allows.
            BadRequest: a rule is not possible in this session.
            Conflict: the session has no rules, so it has no listeners.
            SessionClosed: the session has ended.
        """
        found = self._registry.find_open(who, session)
        rules = self._wanted(who, found, network)
        await self._egress.require(msgspec.structs.replace(found.limits, network=rules))
        # The start of a proxy may take seconds. Meanwhile the session may have ended, or another request changed it.
        found = self._registry.find_open(who, session)
        rules = self._wanted(who, found, network)
        family, ports, trusts = self._egress.family_of(found)
        _require_possible(rules, ports, trusts=trusts)
        for one in family:
            one.spec.use_network(rules)
            self._store.directory(one.id).write_about(msgspec.to_builtins(one.spec))
            one.try_record(ev.NetworkChanged(network=rules))
        self._egress.update(found, rules)
        return self._registry.describe(found)

    def _wanted(self, who: Principal, session: Session, network: Network | None) -> NetworkRules:
        if not isinstance(session.limits.network, NetworkRules):
            raise Conflict(
                f"This session began with network = {session.limits.network}, so its network can't be changed. "
                "Create a session with rules in limits.network, and replace those."
            )
        if network == "none":
            return msgspec.structs.replace(session.limits.network, allow=())
        allowed = self._ceiling.network
        if network is not None:
            allowed = lowered_network(allowed, network, any_secret="admin" in who.scopes)
        if not isinstance(allowed, NetworkRules):
            raise BadRequest('Only rules can replace rules. Write network as {"allow": [...]}.', limit="network")
        return allowed


def _require_possible(rules: NetworkRules, ports: set[int] | None, *, trusts: bool) -> None:
    """Check that a running session can have these rules.

    Raises:
        BadRequest: it has no listener for a port, or does not trust the proxy's certificate.
    """
    if ports is None:
        return  # it starts with the new rules
    missing = sorted(set(rules.ports()) - ports)
    if missing:
        shown, have = ", ".join(map(str, missing)), ", ".join(map(str, sorted(ports)))
        raise BadRequest(
            f"The running session has no listener for port {shown}. Name only the ports of its first rules "
            f"({have or 'none'}), or create a session with the new rules.",
            limit="network",
        )
    if rules.reads_requests() and not trusts:
        raise BadRequest(
            "Rules with methods, paths or secrets need a certificate in the session, which it has only if it began "
            "with such rules. Create a session with these rules.",
            limit="network",
        )
