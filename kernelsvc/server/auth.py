"""Who calls, from where, and what they may: decisions on header values.

A token is looked for in ``Authorization: Bearer`` and, for WebSockets alone
(a browser can't set their headers), in ``?token=``. It is never logged: the
transports log paths without their query.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from kernelsvc.errors import Forbidden
from kernelsvc.model.objects import Principal, Scope


def bearer(authorization: str | None) -> str | None:
    """The token in an ``Authorization`` header, None when there is none that we understand."""
    scheme, _, token = (authorization or "").strip().partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def origin_allowed(origin: str | None, host: str | None, allowed: Sequence[str]) -> bool:
    """Whether a request with this ``Origin`` may be served.

    No origin means that no browser's page is behind it. A page of our own has
    our own host; any other must be configured. The scheme of our own is not
    compared, since a proxy may speak TLS in front of us.
    """
    if origin is None or "*" in allowed:
        return True
    wanted = origin.rstrip("/").lower()
    if wanted in {entry.rstrip("/").lower() for entry in allowed}:
        return True
    return bool(host) and urlsplit(wanted).netloc == str(host).lower()


def require_scope(who: Principal, scope: Scope) -> None:
    """Let this principal pass.

    Raises:
        Forbidden: its token lacks the scope; the message names it.
    """
    if scope not in who.scopes:
        raise Forbidden(f"This needs a token with the scope {scope!r}; this one has {sorted(who.scopes)}.", scope=scope)
