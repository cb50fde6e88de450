"""Authentication and authorisation of requests: decisions on header values.

A token is read from ``Authorization: Bearer`` and, for WebSockets alone
(a browser can't set their headers), from ``?token=``. It is never logged: the
server logs paths without their query.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from kernelsvc.errors import Forbidden
from kernelsvc.model.objects import Principal, Scope


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


def require_scope(who: Principal, scope: Scope) -> None:
    """Check that a principal has a scope.

    Raises:
        Forbidden: Its token lacks the scope. The message names it.
    """
    if scope not in who.scopes:
        raise Forbidden(f"This needs a token with the scope {scope!r}. This one has {sorted(who.scopes)}.", scope=scope)
