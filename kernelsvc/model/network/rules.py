"""``limits.network`` as rules: the destinations of a session, and whether a server's rules cover them."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec

from kernelsvc.model.network.hosts import (
    DEFAULT_PORTS,
    HTTP_PORT,
    Host,
    IpNetwork,
    check_port,
    is_public_network,
    parse_host,
)
from kernelsvc.model.network.requests import RequestConditions, parse_conditions
from kernelsvc.model.network.secrets import check_injected, references

#: Most rules of one session, and most ports that its rules name together. Each port has a listener in the session.
MAX_RULES, MAX_PORTS = 256, 16
#: Most bytes of one session's rules as JSON. Each list of sessions has them.
MAX_BYTES = 96 * 1024

PositiveInt = Annotated[int, msgspec.Meta(gt=0)]


class NetworkRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One entry of an allow-list, in its long form.

    Attributes:
        host: An exact name, ``*.name``, or a network.
        ports: The ports. If empty, 80 and 443, or with secrets 443.
        methods: Methods of HTTP that are allowed. All if empty.
        paths: Paths of HTTP that are allowed, exact or with a final ``*``. All if empty.
        secrets: Names of secrets whose placeholders in headers are replaced, see ``model.network.secrets``.
        inject: Headers that each request gets, by name, with ``${NAME}`` for the value of a secret.
    """

    host: str
    ports: tuple[int, ...] = ()
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    inject: dict[str, str] = {}


class ParsedRule(msgspec.Struct, frozen=True, kw_only=True):
    """A checked rule.

    Attributes:
        text: The rule as it was written, for messages and events.
        host: Its host.
        ports: Its ports, at least one.
        conditions: Its methods and paths.
        placeholders: Secrets that may take the place of placeholders.
        inject: Headers that each request gets.
    """

    text: str
    host: Host
    ports: tuple[int, ...]
    conditions: RequestConditions = RequestConditions()
    placeholders: tuple[str, ...] = ()
    inject: Mapping[str, str] = {}

    @property
    def secrets(self) -> list[str]:
        """The names of all its secrets."""
        named = [name for text in self.inject.values() for name in references(text)]
        return list(dict.fromkeys((*self.placeholders, *named)))

    def covers(self, other: ParsedRule) -> bool:
        """Whether this rule allows everything that ``other`` allows."""
        same = self.host.covers(other.host) and set(other.ports) <= set(self.ports)
        # Rules that set no headers of their own get those of this rule.
        kept = not self.inject or not other.inject or other.inject == self.inject
        return same and kept and self.conditions.cover(other.conditions) and set(other.secrets) <= set(self.secrets)

    def reads_requests(self) -> bool:
        """Whether the proxy must read each request to apply this rule."""
        return bool(self.conditions != RequestConditions() or self.placeholders or self.inject)


class NetworkRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The destinations that a session may reach. Anything else is refused.

    Attributes:
        allow: Rules. The first that fits decides.
        deny: Hosts that are refused although a rule allows them.
        private: Networks that are not public and may be reached by rules. Only the server's own limits add some.
        connections: Open connections at a time. More wait.
        bytes: Bytes sent and received in all. None means no limit.
    """

    allow: tuple[str | NetworkRule, ...]
    deny: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    connections: PositiveInt = 64
    bytes: PositiveInt | None = None

    def __post_init__(self) -> None:
        """Check the rules.

        Raises:
            ValueError: One is not valid. The message names it and says how to write one.
        """
        if len(self.allow) > MAX_RULES or len(self.deny) > MAX_RULES:
            raise ValueError(f"network has more than {MAX_RULES} rules. Write fewer, with wildcards")
        if (size := len(msgspec.json.encode(self))) > MAX_BYTES:
            raise ValueError(
                f"network has {size} bytes, and {MAX_BYTES} is the limit. Write fewer rules, with wildcards"
            )
        private = [_parse_private(text) for text in self.private]
        for rule in self.parsed():
            _check_reachable(rule, private)
        ports = self.ports()
        if len(ports) > MAX_PORTS:
            raise ValueError(f"the rules name {len(ports)} ports and may name {MAX_PORTS}")
        self.denied()

    def parsed(self) -> list[ParsedRule]:
        """Return the rules of ``allow``.

        Raises:
            ValueError: One is not valid.
        """
        return [_parse_rule(rule) for rule in self.allow]

    def denied(self) -> list[tuple[Host, int | None]]:
        """Return the hosts of ``deny``, each with its port or None for all ports.

        Raises:
            ValueError: One is not valid.
        """
        return [parse_host(text) for text in self.deny]

    def ports(self) -> list[int]:
        """Return all ports that the rules name, sorted."""
        return sorted({port for rule in self.parsed() for port in rule.ports})

    def reads_requests(self) -> bool:
        """Whether a rule needs requests to be read, so that the proxy must decrypt TLS."""
        return any(rule.reads_requests() for rule in self.parsed())

    def private_networks(self) -> list[IpNetwork]:
        """Return the networks of ``private``."""
        return [ipaddress.ip_network(text) for text in self.private]

    def uncovered(self, wanted: NetworkRules) -> str | None:
        """Return the first rule of ``wanted`` that is wider than all rules here, or None if there is none."""
        own = self.parsed()
        for rule in wanted.parsed():
            if not any(one.covers(rule) for one in own):
                return rule.text
        networks = [Host(text, ipaddress.ip_network(text)) for text in self.private]
        for text in wanted.private:
            if not any(one.covers(Host(text, ipaddress.ip_network(text))) for one in networks):
                return text
        return None

    def restricted_to(self, wanted: NetworkRules) -> NetworkRules:
        """Return the rules of ``wanted`` with this object's denied hosts, and at most its quotas. See ``uncovered``.

        A rule that sets no headers gets those of the rule here that covers it.
        """
        own = self.parsed()
        allow = []
        for rule, parsed in zip(wanted.allow, wanted.parsed(), strict=True):
            covering = next((one for one in own if one.covers(parsed)), None)
            if covering is not None and covering.inject and not parsed.inject:
                long = NetworkRule(host=rule) if isinstance(rule, str) else rule
                rule = msgspec.structs.replace(long, inject=dict(covering.inject))
            allow.append(rule)
        return NetworkRules(
            allow=tuple(allow),
            deny=tuple(dict.fromkeys((*self.deny, *wanted.deny))),
            private=wanted.private or self.private,
            connections=min(self.connections, wanted.connections),
            bytes=min((one for one in (self.bytes, wanted.bytes) if one is not None), default=None),
        )

    def summary(self, most: int = 8) -> str:
        """Return the allowed hosts in one line, for people and models.

        Args:
            most: Rules to name. Others are counted.
        """
        names = [rule.text for rule in self.parsed()]
        more = f" and {len(names) - most} more" if len(names) > most else ""
        return (", ".join(names[:most]) or "nothing") + more


def _parse_rule(rule: str | NetworkRule) -> ParsedRule:
    if isinstance(rule, str):
        host, port = parse_host(rule)
        return ParsedRule(text=rule, host=host, ports=DEFAULT_PORTS if port is None else (port,))
    host, port = parse_host(rule.host)
    if port is not None and rule.ports:
        raise ValueError(f"rule {rule.host!r} has ports twice: in 'host' and in 'ports'. Leave one out")
    secret = bool(rule.secrets or rule.inject)
    ports = rule.ports or ((443,) if secret else DEFAULT_PORTS) if port is None else (port,)
    for one in ports:
        check_port(one, rule.host)
    conditions = parse_conditions(rule.methods, rule.paths, rule.host)
    check_injected(rule.inject, rule.host)
    parsed = ParsedRule(
        text=rule.host if not rule.ports else f"{host.text}:{','.join(map(str, rule.ports))}",
        host=host,
        ports=tuple(ports),
        conditions=conditions,
        placeholders=rule.secrets,
        inject=rule.inject,
    )
    if not parsed.reads_requests():
        return parsed
    _check_read(parsed)
    details = [str(conditions), *(f"secret {name}" for name in parsed.secrets)]
    shown = "; ".join(filter(None, details)) or "headers"
    return msgspec.structs.replace(parsed, text=f"{parsed.text} ({shown})")


def _check_read(rule: ParsedRule) -> None:
    """Check a rule whose requests are read.

    Raises:
        ValueError: its host is not a name, or it has secrets and is not for one name over TLS.
    """
    if rule.host.network is not None:
        raise ValueError(f"rule {rule.text!r}: methods, paths and secrets need a name, not a network")
    if not (rule.placeholders or rule.inject):
        return
    if "*" in rule.host.text:
        raise ValueError(f"rule {rule.text!r}: secrets and headers are for one exact name. Write a rule for each name")
    if HTTP_PORT in rule.ports:
        raise ValueError(f"rule {rule.text!r}: secrets are sent over TLS only, not to port 80. Leave the port out")


def _parse_private(text: str) -> Host:
    host, port = parse_host(text)
    if host.network is None or port is not None:
        raise ValueError(f"private: {text!r} is not a network. Write one such as 10.1.0.0/16")
    return host


def _check_reachable(rule: ParsedRule, private: Sequence[Host]) -> None:
    network = rule.host.network
    if network is not None and network.prefixlen == 0:
        return  # any public address: ``NetworkPolicy.check_address`` decides for each
    if network is not None and not is_public_network(network) and not any(one.covers(rule.host) for one in private):
        raise ValueError(
            f"rule {rule.text!r}: this network is not public. List it in 'private', which the server must allow"
        )
