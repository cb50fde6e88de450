"""Authentication by tokens. Tokens are random, so a plain SHA-256 of one is safe to store."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection, Iterable
from typing import Annotated

import msgspec

from kernelsvc.errors import BadRequest, Forbidden, Unauthenticated
from kernelsvc.model.objects import DEFAULT_SCOPES, Principal, Scope

#: The principal of a token that has no name: of ``--token``, ``KERNELSVC_TOKEN``, and of a generated token.
LOCAL = "local"
_NAMED_AFTER_HASH = re.compile(r"token-[0-9a-f]{12}\Z")
#: Longest token, in characters. A longer one is refused before it is hashed.
MAX_TOKEN_LENGTH = 1024

#: Shortest token of a server that other machines can reach, and of one on loopback, in characters.
MIN_LENGTH, MIN_LOOPBACK_LENGTH = 16, 8
#: Fewest different characters of a token.
MIN_DIFFERENT = 4

_IMPLIED: dict[Scope, frozenset[Scope]] = {
    "read": frozenset({"read"}),
    "run": frozenset({"read", "run"}),
    "approve": frozenset({"read", "approve"}),
    "provide": frozenset({"read", "run", "provide"}),
    "delegate": frozenset({"read", "run", "approve", "delegate"}),
    "audit": frozenset({"read", "audit"}),
    "operate": frozenset({"read", "run", "approve", "audit", "operate"}),
    "admin": frozenset({"read", "run", "approve", "delegate", "audit", "operate", "admin"}),
}


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A principal and the hash of its token.

    Attributes:
        name: The principal's name. Sessions belong to it, so keep it when the token changes.
        sha256: Hex digest of the token.
        scopes: Operations that it allows. ``run`` and ``approve`` include ``read``. ``approve``
            decides about calls that wait for a person. ``provide`` is the bridge's: it carries out calls of
            the tools of ``[tools.mcp.NAME]`` in sessions of others. ``delegate`` lets a backend act for its users.
            ``audit`` reads the sessions of every principal,
            ``operate`` also uses and ends them, and ``admin`` includes all.
        max_sessions: Open sessions at the same time. None takes the server's setting.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
    scopes: frozenset[Scope] = DEFAULT_SCOPES
    max_sessions: Annotated[int, msgspec.Meta(ge=0)] | None = None

    def delegates(self) -> bool:
        """Return whether the token's holder may act for users of its own."""
        return any("delegate" in _IMPLIED[scope] for scope in self.scopes)

    def principal(self) -> Principal:
        """Return the principal, with all scopes that its scopes include."""
        granted: set[str] = set()
        for scope in self.scopes:
            granted |= _IMPLIED[scope]
        return Principal(
            name=self.name, scopes=frozenset(granted), max_sessions=self.max_sessions, token_sha256=self.sha256
        )


def weakness(token: str, *, public: bool) -> str | None:
    """Return why a token can be guessed, or None.

    Args:
        token: The token in clear.
        public: Whether other machines can reach the server.
    """
    least = MIN_LENGTH if public else MIN_LOOPBACK_LENGTH
    if len(token) < least:
        where = "that other machines can reach" if public else "on loopback"
        return f"has {len(token)} characters. On a server {where} a token needs at least {least}"
    if len(set(token)) < MIN_DIFFERENT:
        return f"has fewer than {MIN_DIFFERENT} different characters"
    return None


def hash_token(token: str) -> str:
    """Return the SHA-256 of a token in hex, which is stored instead of the token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def record_for(token: str, name: str = LOCAL) -> TokenRecord:
    """Return a record with all scopes for a token: that of the person who starts the server."""
    return TokenRecord(name=name, sha256=hash_token(token), scopes=frozenset({"admin"}))


def present_name(principal: str, records: Iterable[TokenRecord]) -> str:
    """Return the name under which a principal of the record has its sessions now.

    Until release 0.1 the principal of ``--token`` was named after the token's hash, so that a changed token lost its
    sessions. Those sessions belong to ``local``.

    Args:
        principal: the name on record.
        records: the tokens of the settings. A name that one of them has is kept.
    """
    if _NAMED_AFTER_HASH.match(principal) and all(record.name != principal for record in records):
        return LOCAL
    return principal


#: Scopes that a user for whom a backend acts does not have: they reach beyond one owner's sessions.
_NOT_OF_USERS = frozenset({"provide", "delegate", "audit", "operate", "admin"})
#: The name that a backend gives for one of its users. A header can carry it.
_USER = re.compile(r"[!-~]{1,128}")


def on_behalf_of(backend: Principal, user: str, records: Collection[TokenRecord]) -> Principal:
    """Return the principal of a backend's user, ``BACKEND/USER``: it owns the sessions that are created for it.

    Args:
        backend: The principal of the token.
        user: The backend's name for the user: 1 to 128 characters of ASCII without spaces.
        records: All tokens. A principal with a token of its own can't be a user.

    Raises:
        Forbidden: The token lacks the scope ``delegate``, or the principal has a token of its own, or is a user of
            another backend.
        BadRequest: The name is not valid.
    """
    if "delegate" not in backend.scopes:
        raise Forbidden("To act for a user needs a token with the scope 'delegate'.", scope="delegate")
    if not _USER.fullmatch(user):
        raise BadRequest("The user's name must have 1 to 128 characters of ASCII, without spaces. Use its id.")
    name = f"{backend.name}/{user}"
    if any(record.name == name for record in records):
        raise Forbidden(f"The principal {name!r} has a token of its own. Use that.")
    # A name may hold "/": the user b/c of a backend a, and the user c of a backend a/b.
    nested = (record for record in records if record.name.startswith(f"{backend.name}/") and record.delegates())
    if any(name.startswith(f"{record.name}/") for record in nested):
        raise Forbidden(f"The principal {name!r} is a user of another backend. Use that backend's token.")
    return msgspec.structs.replace(backend, name=name, scopes=backend.scopes - _NOT_OF_USERS, backend=backend.name)


def authenticate(records: Iterable[TokenRecord], token: str | None) -> Principal:
    """Return the principal of a token.

    Compares all records, each in constant time, so that the duration does not show which one matched.

    Raises:
        Unauthenticated: The token is missing or unknown.
    """
    if not token or len(token) > MAX_TOKEN_LENGTH:
        raise Unauthenticated
    digest = hash_token(token)
    found: TokenRecord | None = None
    for record in records:
        # No break: the time must not depend on the position of the match.
        if hmac.compare_digest(record.sha256, digest):
            found = record
    if found is None:
        raise Unauthenticated("This token is unknown. Compare it with the one that 'kernelsvc serve' printed.")
    return found.principal()
