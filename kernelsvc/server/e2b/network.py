"""``network`` and ``allow_internet_access`` of E2B's clients, as the network of a session. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from kernelsvc.errors import BadRequest, NotSupported
from kernelsvc.model.limits import Network
from kernelsvc.model.network.rules import NetworkRules

#: ``ALL_TRAFFIC`` in E2B's clients.
_ALL = "0.0.0.0/0"


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
    rules: Any = None
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
    for name in ("mask_request_host", "rules", "egress_proxy"):
        if getattr(options, name):
            raise NotSupported(f"network has no {name} here. Leave it out.")
    if allow_internet_access is False:
        return "none"
    allowed, denied = options.allow_out or [], options.deny_out or []
    if not allowed and not denied:
        return None
    only = _ALL in denied
    allow = ["*" if one == _ALL else one for one in allowed] + ([] if only else ["*"])
    if not allow:
        return "none"
    deny = [one for one in denied if one != _ALL and one not in allowed]
    try:
        return NetworkRules(allow=tuple(dict.fromkeys(allow)), deny=tuple(deny))
    except ValueError as error:
        raise BadRequest(f"The sandbox's network is not valid: {error}.") from None
