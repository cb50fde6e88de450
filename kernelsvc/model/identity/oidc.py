"""OpenID Connect: the settings of an issuer, and the principal of a token's claims. Pure.

Sources: OpenID Connect Core 1.0, section 3.1.3.7 (checks of a token), and RFC 9068 (access tokens as JWTs).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from kernelsvc.errors import Unauthenticated
from kernelsvc.model.objects import DEFAULT_SCOPES, Principal, Scope
from kernelsvc.model.tokens import TokenRecord, hash_token

#: Longest token, in characters. Tokens with many groups have some kilobytes.
MAX_LENGTH = 16 * 1024
#: Clocks of the issuer and of this machine may differ by so many seconds.
LEEWAY_SECONDS = 30
#: Signatures that are accepted: with a private key only. With HMAC, whoever reads the public key could sign.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")

#: The first part of a principal's name, so that no user can take the name of a token of this server.
PREFIX = "oidc/"
# Three parts in base64url, of which the first is a JSON object (RFC 7519, section 3.1).
_JWT = re.compile(r"eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_USER = re.compile(r"[!-~]{1,120}")
_URL = re.compile(r"(https://[^\s/?#@]+|http://(127\.0\.0\.1|localhost|\[::1\])(:[0-9]+)?)(/[^\s?#@]*)?")


class OidcSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An issuer of tokens and the rights of its users. Without an issuer no such token is accepted."""

    issuer: str = ""
    audience: str = ""
    principal_claim: str = "sub"
    scopes: list[Scope] = msgspec.field(default_factory=lambda: sorted(DEFAULT_SCOPES))
    scopes_claim: str = ""
    grants: dict[str, list[Scope]] = {}
    max_sessions: Annotated[int, Meta(ge=0)] | None = None


HELP: dict[str, tuple[str, str | None]] = {
    "issuer": (
        "Address of an OpenID Connect issuer, as its tokens have it in 'iss'. Its users are callers: a token that it "
        "signed is accepted like one of this server. Over https, or on loopback.",
        None,
    ),
    "audience": ("Name of this server at the issuer, which a token must have in 'aud'.", None),
    "principal_claim": (
        "Claim with the name of a user, who is the principal oidc/NAME. Choose a claim that users can't change and "
        "that is different for each user.",
        None,
    ),
    "scopes": ("Scopes of every user.", None),
    "scopes_claim": ("Claim with the groups of a user, such as groups or realm_access.roles.", None),
    "grants": ("More scopes for the members of a group, by the group's name.", None),
    "max_sessions": ("Open sessions of one user at the same time. Default: the server's setting.", None),
}


def check(settings: OidcSettings) -> None:
    """Check that the settings go together.

    Raises:
        ValueError: The address can't be trusted, or there is no audience, so that tokens for another service would
            count.
    """
    if settings.issuer and not _URL.fullmatch(settings.issuer):
        raise ValueError(
            "it must be an https address without a query, such as https://id.example.com/realms/staff. "
            "http is possible on loopback only"
        )
    if settings.issuer and not settings.audience:
        raise ValueError("it needs oidc.audience, the name of this server at the issuer")
    if "delegate" in {*settings.scopes, *(scope for scopes in settings.grants.values() for scope in scopes)}:
        raise ValueError("its users can't have the scope 'delegate'. Give it to a token of this server")


def is_jwt(token: str | None) -> bool:
    """Return whether a token has the form of a JWT. Tokens of this server never have it."""
    return token is not None and len(token) <= MAX_LENGTH and _JWT.fullmatch(token) is not None


def principal_of(claims: Mapping[str, Any], settings: OidcSettings, token: str) -> Principal:
    """Return the caller that a checked token names.

    Args:
        claims: The token's, whose signature, time, issuer and audience were checked.
        settings: The issuer's.
        token: The token in clear.

    Raises:
        Unauthenticated: The claim with the name is missing, or can't be a principal's name.
    """
    name = _claim(claims, settings.principal_claim)
    if not isinstance(name, str) or not _USER.fullmatch(name):
        raise Unauthenticated(
            f"The token's claim {settings.principal_claim!r} must be a name of 1 to 120 characters of ASCII without "
            "spaces. Have the operator choose another claim (oidc.principal_claim)."
        )
    groups = _claim(claims, settings.scopes_claim) if settings.scopes_claim else ()
    groups = groups.split() if isinstance(groups, str) else groups if isinstance(groups, list | tuple) else ()
    scopes = set(settings.scopes)
    for group in groups:
        scopes |= set(settings.grants.get(group, ())) if isinstance(group, str) else set()
    record = TokenRecord(
        name=PREFIX + name, sha256=hash_token(token), scopes=frozenset(scopes), max_sessions=settings.max_sessions
    )
    who = record.principal()
    # A name may hold "/", so that oidc/a/b is a user of the issuer as well as the user b of a backend oidc/a.
    return msgspec.structs.replace(who, scopes=who.scopes - {"delegate"})


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    """Return a claim, whose name may hold dots, or else a field of an object in one, by a path with dots."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
