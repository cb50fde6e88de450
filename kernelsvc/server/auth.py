"""Authentication and authorisation of requests: decisions on header values.

A token is read from ``Authorization: Bearer``. A browser can't set that header of a WebSocket, so
WebSockets also take the token from a subprotocol, which no proxy logs, and like the routes of the
Jupyter API from ``?token=``, as Jupyter's clients send it. It is never logged: the server logs paths
without their query.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from kernelsvc.errors import Forbidden
from kernelsvc.model.objects import Principal, Scope

#: The subprotocol of ``/v1/ws``, and the prefix of one that carries a token in base64url.
SUBPROTOCOL, BEARER_SUBPROTOCOL = "kernelsvc.v1", "kernelsvc.bearer."


def subprotocol_bearer(protocols: str | None) -> str | None:
    """Return the token in a ``Sec-WebSocket-Protocol`` header. None if the header has none that can be read."""
    for each in (protocols or "").split(","):
        name = each.strip()
        if name.startswith(BEARER_SUBPROTOCOL):
            text = name.removeprefix(BEARER_SUBPROTOCOL)
            try:
                # A subprotocol is a token of RFC 9110, which may hold no "=" (RFC 6455, section 4.1).
                return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode() or None
            except (binascii.Error, UnicodeError):
                return None
    return None


def bearer(authorization: str | None) -> str | None:
    """Return the token in an ``Authorization`` header. None if the header has no bearer token."""
    scheme, _, token = (authorization or "").strip().partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def origin_allowed(origin: str | None, host: str | None, allowed: Sequence[str]) -> bool:
    """Return whether a request with this ``Origin`` may be served.

    A request without an origin does not come from a page in a browser. A page of this
    server has this server's host. Any other origin must be configured. The scheme is not
    compared, since a proxy may terminate TLS in front of this server.
    """
    if origin is None or "*" in allowed:
        return True
    wanted = origin.rstrip("/").lower()
    if wanted in {entry.rstrip("/").lower() for entry in allowed}:
        return True
    return bool(host) and urlsplit(wanted).netloc == str(host).lower()


def host_allowed(host: str | None, names: Sequence[str]) -> bool:
    """Return whether a request with this ``Host`` comes from a client that meant a server on loopback.

    The owner of a name decides its address. A page of ``evil.example`` may therefore reach a server on loopback after
    the name was given the address 127.0.0.1 (DNS rebinding), and the browser sends the page's name as ``Host``. An
    address instead of a name can't be rebound.

    Args:
        host: The header's value.
        names: Allowed names besides ``localhost``. ``*.example.org`` allows all names below it, ``*`` any.
    """
    try:
        name = (urlsplit(f"//{host or ''}").hostname or "").rstrip(".")
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        pass
    else:
        return True
    allowed = ["localhost", "*.localhost", *(each.lower().rstrip(".") for each in names)]
    return any(each in ("*", name) or (each.startswith("*.") and name.endswith(each[1:])) for each in allowed)


def require_scope(who: Principal, scope: Scope) -> None:
    """Check that a principal has a scope.

    Raises:
        Forbidden: Its token lacks the scope. The message names it.
    """
    if scope not in who.scopes:
        raise Forbidden(f"This needs a token with the scope {scope!r}. This one has {sorted(who.scopes)}.", scope=scope)
