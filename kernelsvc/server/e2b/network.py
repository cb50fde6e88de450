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
    mask_request_host: Any = None
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


def network_of(asked: Any, allow_internet_access: bool | None) -> Network | None:
    """Return the network that a request asks for, or None for the server's.

    Args:
        asked: ``network`` of the request.
        allow_internet_access: The same of the request.

    Raises:
        BadRequest: A destination is not valid.
        NotSupported: It asks for a feature that this server lacks.
    """
    try:
        options = msgspec.convert(asked or {}, NetworkOptions)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The sandbox's network is not valid: {error}.") from None
    for name in ("mask_request_host", "egress_proxy"):
        if getattr(options, name):
            raise NotSupported(f"network has no {name} here. Leave it out.")
    if allow_internet_access is False:
        return "none"
    allowed, denied = options.allow_out or [], options.deny_out or []
    headers = {host: headers for host, rules in (options.rules or {}).items() if (headers := _headers(rules))}
    if not allowed and not denied and not headers:
        return None
    only = _ALL in denied
    allow = ["*" if one == _ALL else one for one in allowed] + ([] if only else ["*"])
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
