"""``network`` and ``allow_internet_access`` of E2B's clients, as the network of a session. Pure."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from kernelsvc.errors import BadRequest, NotSupported
from kernelsvc.model.limits import Network
from kernelsvc.model.network.rules import NetworkRule, NetworkRules

#: ``ALL_TRAFFIC`` in E2B's clients.
_ALL = "0.0.0.0/0"


#: A name or an address of a host, and a port (RFC 9110, section 7.2).
_HOST = re.compile(r"[A-Za-z0-9.-]{1,200}(:(\$\{PORT\}|[0-9]{1,5}))?")
#: A secret in a header, as ``Secret.fill`` of E2B's clients writes it. Other placeholders can't be had.
_SECRET, _PLACEHOLDER = re.compile(r"\$\{e2b\.secrets\.([A-Za-z0-9_-]+)\}"), "${e2b."


class Transform(msgspec.Struct):
    """Headers that requests get."""

    headers: dict[str, str] = {}


class HostRule(msgspec.Struct):
    """A rule for the requests to one host."""

    transform: Transform = msgspec.field(default_factory=Transform)


class NetworkOptions(msgspec.Struct, kw_only=True, rename="camel"):
    """``network`` of a request for a sandbox. Allowed destinations go before denied ones.

    Attributes:
        allow_out: Names, wildcards, addresses and networks that are allowed.
        deny_out: Destinations that are denied. ``0.0.0.0/0`` denies all others.
        allow_public_traffic: Whether requests to the sandbox's own servers need no secret.
        mask_request_host: Another ``Host`` for requests to the sandbox.
        rules: Headers that are added to the sandbox's requests, by host.
        egress_proxy: A proxy of the client.
    """

    allow_out: list[str] | None = None
    deny_out: list[str] | None = None
    allow_public_traffic: bool | None = None
    mask_request_host: str | None = None
    rules: dict[str, list[HostRule]] | None = None
    egress_proxy: Any = None


def is_public(asked: Any, otherwise: bool) -> bool:
    """Return whether the sandbox's own servers are public. The request is one that ``network_of`` accepts.

    Args:
        asked: ``network`` of the request.
        otherwise: What holds if the request does not say.
    """
    wanted = msgspec.convert(asked or {}, NetworkOptions).allow_public_traffic
    return otherwise if wanted is None else wanted


def is_host(text: str) -> bool:
    """Return whether this is a host that ``mask_request_host`` may name."""
    return _HOST.fullmatch(text) is not None


def masked_host(asked: Any) -> str | None:
    """Return the ``Host`` of requests to the sandbox's servers, with ``${PORT}`` for the port, or None for the usual.

    Args:
        asked: ``network`` of a request that ``network_of`` accepts.
    """
    return msgspec.convert(asked or {}, NetworkOptions).mask_request_host or None


def everything_of(server: Network) -> tuple[str, ...]:
    """Return the destinations that a sandbox has besides those that it denies: any name, and any address if it may.

    Args:
        server: The most that the server allows.
    """
    every = NetworkRules(allow=(_ALL,))
    addresses = server == "host" or (isinstance(server, NetworkRules) and server.uncovered(every) is None)
    return ("*", _ALL) if addresses else ("*",)


def network_of(asked: Any, allow_internet_access: bool | None, everything: tuple[str, ...] = ("*",)) -> Network | None:
    """Return the network that a request asks for, or None for the server's.

    Args:
        asked: ``network`` of the request.
        allow_internet_access: The same of the request.
        everything: From ``everything_of``.

    Raises:
        BadRequest: A destination is not valid.
        NotSupported: It asks for a feature that this server lacks.
    """
    try:
        options = msgspec.convert(asked or {}, NetworkOptions)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The sandbox's network is not valid: {error}.") from None
    if options.egress_proxy:
        raise NotSupported("network has no egress_proxy here. Leave it out.")
    if options.mask_request_host and not is_host(options.mask_request_host):
        raise BadRequest("The sandbox's network is not valid: write mask_request_host as a host, NAME or NAME:${PORT}.")
    if allow_internet_access is False:
        return "none"
    allowed, denied = options.allow_out or [], options.deny_out or []
    headers = {host: headers for host, rules in (options.rules or {}).items() if (headers := _headers(rules))}
    if not allowed and not denied and not headers:
        return None
    only = _ALL in denied
    allow = [one for one in allowed if one != _ALL]
    if not only or _ALL in allowed:
        allow += everything
    if not allow:
        return "none"
    deny = [one for one in denied if one != _ALL and one not in allowed]
    # The first rule that fits decides. One with headers allows nothing that the others do not, and is for HTTPS only.
    first = [
        NetworkRule(host=host, inject=inject)
        for host, inject in headers.items()
        if any(one in ("*", host) or (one.startswith("*.") and host.endswith(one[1:])) for one in allow)
    ]
    try:
        rest = dict.fromkeys(one for one in allow if one not in headers)
        return NetworkRules(allow=(*first, *rest), deny=tuple(deny))
    except ValueError as error:
        raise BadRequest(f"The sandbox's network is not valid: {error}.") from None


def _headers(rules: list[HostRule]) -> dict[str, str]:
    """Return the headers of all rules of a host, with secrets as in the settings' rules: ``${NAME}``.

    Raises:
        NotSupported: One has another placeholder.
    """
    found = {}
    for rule in rules:
        for name, text in rule.transform.headers.items():
            found[name] = _SECRET.sub(r"${\1}", text)
            if _PLACEHOLDER in found[name]:
                raise NotSupported("Headers may have ${e2b.secrets.NAME} here, and no other placeholder.")
    return found
