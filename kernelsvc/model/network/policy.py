"""The decisions of the network's rules: which name may be looked up, and which connection may be made."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

from kernelsvc.model.network.hosts import Host, IpAddress, is_public
from kernelsvc.model.network.requests import NEVER, is_plain_path
from kernelsvc.model.network.rules import NetworkRules, ParsedRule
from kernelsvc.model.network.secrets import SecretSource

#: Most characters of a method or a path in a refusal.
_MAX_SHOWN = 200


class Refused(Exception):
    """The rules refuse a look-up or a connection. The text is for the journal and for the session's code."""


class NetworkPolicy:
    """The rules of one session, ready for decisions.

    Args:
        rules: The session's rules.
    """

    def __init__(self, rules: NetworkRules) -> None:
        self.use(rules)

    def use(self, rules: NetworkRules) -> None:
        """Decide by these rules from now on."""
        self._allow = rules.parsed()
        self._deny = rules.denied()
        self._private = rules.private_networks()

    def may_look_up(self, name: str) -> bool:
        """Whether a name may be looked up: a rule fits, and it is not denied for all ports.

        Args:
            name: From ``hosts.clean_name``.
        """
        if any(port is None and host.matches(name) for host, port in self._deny):
            return False
        return any(rule.host.matches(name) for rule in self._allow)

    def rules_for(self, destination: str | IpAddress, port: int) -> tuple[ParsedRule, ...]:
        """Return the rules that may allow a connection, in order, without those that can't decide.

        If the first needs no request to be read, it is the only one. ``rule_for_request`` chooses among several.

        Args:
            destination: The name that the session looked up, or an address that it wrote itself.
            port: The port.

        Raises:
            Refused: No rule allows it, or it is denied.
        """
        for host, denied_port in self._deny:
            if denied_port in (None, port) and _fits(host, destination):
                raise Refused("denied")
        found: list[ParsedRule] = []
        for rule in self._allow:
            if port in rule.ports and _fits(rule.host, destination):
                found.append(rule)
                if not rule.reads_requests():
                    break
        if not found:
            raise Refused("no rule" if isinstance(destination, str) else "no rule for this address")
        return tuple(found)

    def check_address(self, text: str) -> None:
        """Check the address that will be connected to, after the look-up.

        Raises:
            Refused: It is not public, and not in a network that the server lists as ``private``.
        """
        # A denied network holds for names, too. A scope (fe80::1%eth0) belongs to addresses that are never public.
        address = ipaddress.ip_address(text.partition("%")[0])
        if any(port is None and host.contains(address) for host, port in self._deny):
            raise Refused(f"{address} is denied")
        if any(address.version == network.version and address in network for network in self._private):
            return
        if not is_public(address):
            raise Refused(f"{address} is not a public address")


def rule_for_request(rules: Sequence[ParsedRule], method: str, path: str) -> ParsedRule:
    """Return the first of a connection's rules that allows a request.

    Args:
        rules: From ``NetworkPolicy.rules_for``.
        method: The request's method.
        path: Its path, without the query.

    Raises:
        Refused: None does.
    """
    if method in NEVER:
        raise Refused(f"{method} is never passed on")
    for rule in rules:
        if rule.conditions.allow(method, path):
            return rule
    if not is_plain_path(path):
        raise Refused(f"the path {path[:_MAX_SHOWN]} can be read in two ways")
    raise Refused(f"no rule for {method[:_MAX_SHOWN]} {path[:_MAX_SHOWN]}")


def check_secrets(rules: NetworkRules, sources: Mapping[str, SecretSource]) -> None:
    """Check that each secret of the rules exists and may be sent to the rule's host.

    Raises:
        ValueError: One does not or may not.
    """
    for rule in rules.parsed():
        for name in rule.secrets:
            source = sources.get(name)
            if source is None:
                known = ", ".join(sorted(sources)) or "no secrets"
                raise ValueError(f"rule {rule.text!r}: there is no secret {name[:64]!r}. This server has {known}")
            if rule.host.text not in source.hosts:
                hosts = ", ".join(source.hosts)
                raise ValueError(f"rule {rule.text!r}: secret {name!r} may be sent to {hosts} only")


def _fits(host: Host, destination: str | IpAddress) -> bool:
    return host.matches(destination) if isinstance(destination, str) else host.contains(destination)
