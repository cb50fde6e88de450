"""Secrets derived from a token, each for one session and one purpose.

A secret is an HMAC with the server's key over the purpose, the session's id, and
the identity (hash) and scopes of the token that it was requested with. No secret
is stored, and the same token gets the same secret after a restart. A secret never
allows more than its token: its holder has that token's scopes without ``admin``.
When the token is removed from the configuration, or its scopes are changed, the
server can't derive the secret any more, and the secret is void.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from kernelsvc.errors import Forbidden, NotFound, Unauthenticated
from kernelsvc.model.objects import Principal
from kernelsvc.model.tokens import MAX_TOKEN_LENGTH
from kernelsvc.service.api import Signed

#: Scopes that no secret grants, even if its token has them.
_WITHHELD = frozenset({"admin", "operate", "audit", "approve", "delegate"})
#: The scope that a caller needs to get a secret. A secret opens routes that run code.
_NEEDED = "run"


class SessionOwners(Protocol):
    """The part of ``SessionRegistry`` that is used here."""

    def owner(self, session: str) -> str | None:
        """Return the name of a session's principal, or None if there is no such session."""

    def open_ids(self) -> list[str]:
        """Return the ids of the open sessions."""


class SessionTokens:
    """Make and check the secrets of one server. Implements ``TokenApi``.

    Args:
        key: the HMAC key, which never leaves the server.
        callers: returns the principals of all valid tokens.
        owners: knows the owner of each session, and the ids of the open ones.
    """

    def __init__(
        self,
        key: bytes,
        callers: Callable[[], Sequence[Principal]],
        owners: SessionOwners,
    ) -> None:
        self._key, self._owners = key, owners
        self._all_callers = callers

    @property
    def _callers(self) -> list[Principal]:
        return [each for each in self._all_callers() if _NEEDED in each.scopes]

    def secret(self, who: Principal, session: str, purpose: str) -> str:
        """Return this caller's secret of a session for a purpose (``[a-z]+``): 64 hexadecimal digits.

        Raises:
            Forbidden: the caller's token lacks the scope ``run``.
        """
        if _NEEDED not in who.scopes:
            raise Forbidden(f"A session's secret needs a token with the scope {_NEEDED!r}. Use one.", scope=_NEEDED)
        return self._derive(who, session, purpose)

    def _derive(self, who: Principal, session: str, purpose: str) -> str:
        # No field holds a colon, so two different inputs never give the same text.
        scopes = ",".join(sorted(who.scopes - _WITHHELD))
        bound = f"{purpose}:{session}:{who.token_sha256}:{scopes}"
        return hmac.digest(self._key, bound.encode("utf-8", "surrogatepass"), "sha256").hex()

    def holder(self, session: str, purposes: Iterable[str], *given: str, owner: str | None = None) -> Principal:
        """Return the caller of a secret, with its token's scopes without ``admin``.

        Without a good secret the answer is the same whether the session exists or not: that is looked up last.

        Args:
            session: the session's id.
            purposes: the purposes that count.
            given: secrets that the request holds. One good one is enough.
            owner: the principal that owns it, if it is no session.

        Raises:
            Unauthenticated: none is a secret of that session that a configured token of its owner gets.
            NotFound: one is good, but the session does not exist any more.
        """
        shown = [each.encode("utf-8", "surrogatepass")[:MAX_TOKEN_LENGTH] for each in given]
        wanted = [*purposes]

        def fits(who: Principal) -> bool:
            secrets = [self._derive(who, session, purpose).encode() for purpose in wanted]
            # Every pair is compared, so that the time taken does not depend on which one fits.
            return any([hmac.compare_digest(one, other) for one in secrets for other in shown])  # noqa: C419

        return self._owning(session, [who for who in self._callers if fits(who)], owner)

    def signer(self, session: str, purpose: str, signed: Signed) -> Principal:
        """Return the caller whose secret of a session signed a request.

        Args:
            session: the session's id.
            purpose: of the secret.
            signed: the request's signature.

        Raises:
            Unauthenticated: no secret fits that a configured token of the session's owner gets.
            NotFound: one fits, but the session does not exist any more.
        """
        secrets = ((who, self._derive(who, session, purpose)) for who in self._callers)
        return self._owning(session, [who for who, secret in secrets if signed.is_signed_with(secret)])

    def search(self, purpose: str, signed: Signed) -> tuple[Principal, str]:
        """Find the open session whose secret signed a request that names no session.

        The secrets of every open session are tried, also after one has fitted.

        Args:
            purpose: of the secret.
            signed: the request's signature.

        Raises:
            Unauthenticated: none fits.
        """
        found = []
        for session in self._owners.open_ids():
            owner = self._owners.owner(session)
            for who in self._callers:
                if owner is not None and who.owns(owner) and signed.is_signed_with(self._derive(who, session, purpose)):
                    found.append((who, session))
        if not found:
            raise Unauthenticated("The signature fits no open session. Ask the session's owner for a new address.")
        who, session = found[0]
        return self._owning(session, [who]), session

    def _owning(self, session: str, fitting: Sequence[Principal], owner: str | None = None) -> Principal:
        """Of the callers whose secret fits, the one that owns the session."""
        if not fitting:
            raise Unauthenticated(
                "This secret is not one of that session, or its token is not known here any more. "
                "Connect to the session with a token to get another."
            )
        owner = owner or self._owners.owner(session)
        if owner is None:
            raise NotFound(f"There is no session {session!r} any more. Create another.")
        for who in fitting:
            if who.owns(owner):
                backend = who.name if owner != who.name else ""
                return msgspec.structs.replace(who, name=owner, scopes=who.scopes - _WITHHELD, backend=backend)
        raise Unauthenticated("This secret's token does not own that session. Connect to one of your own sessions.")
