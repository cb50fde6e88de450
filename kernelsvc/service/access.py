"""Secrets that stand for one session: whoever shows one may use that session, and nothing else.

A secret is derived from the server's key, the session's id and a purpose, so
none is kept anywhere, and it is the same after a restart. It is worth something
only as long as the session's owner has a token here.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Sequence

from kernelsvc.errors import NotFound, Unauthenticated
from kernelsvc.model.objects import Principal
from kernelsvc.model.tokens import MAX_TOKEN_LENGTH, TokenRecord

#: What a secret never grants, whatever its owner's token does.
_WITHHELD = frozenset({"admin"})


class Access:
    """Makes and checks the secrets of one server.

    Args:
        key: what they are derived from; nobody outside this server knows it.
        tokens: who may use this server at all.
        owner: the principal's name of a session, None if there is no such session.
        live: the ids of the sessions that are open now.
    """

    def __init__(
        self,
        key: bytes,
        tokens: Sequence[TokenRecord],
        owner: Callable[[str], str | None],
        live: Callable[[], Iterable[str]],
    ) -> None:
        self._key, self._tokens, self._owner, self._live = key, tokens, owner, live

    def secret(self, session: str, purpose: str) -> str:
        """The secret of a session for a purpose (``[a-z]+``): 64 hexadecimal digits."""
        return hmac.digest(self._key, f"{purpose}:{session}".encode(), "sha256").hex()

    def holder(self, session: str, purposes: Iterable[str], *given: str) -> Principal:
        """Whose rights the holder of a secret has.

        Nothing is said of a session to who has no secret of it: whether there is
        one is looked up last.

        Args:
            session: the session's id.
            purposes: the secrets that count.
            given: what the caller shows; one good one is enough.

        Raises:
            Unauthenticated: no secret of that session, or its owner is not known here any more.
            NotFound: a good one, but the session is not there any more.
        """
        wanted = [self.secret(session, purpose).encode() for purpose in purposes]
        shown = [each.encode("utf-8", "surrogatepass")[:MAX_TOKEN_LENGTH] for each in given]
        # Every pair is compared, so that the time taken says nothing of which one fitted.
        if not any([hmac.compare_digest(one, other) for one in wanted for other in shown]):  # noqa: C419
            raise Unauthenticated("This secret does not belong to that session; create or connect gives the right one.")
        return self._principal(session)

    def search(self, purpose: str, fits: Callable[[str], bool]) -> tuple[Principal, str]:
        """The open session whose secret fits: for a request that was signed with it and names no session.

        Every open session's secret is tried, whether or not one has fitted.

        Args:
            purpose: of the secret.
            fits: whether this is the secret; it must compare in constant time.

        Raises:
            Unauthenticated: none fits.
        """
        found = [session for session in self._live() if fits(self.secret(session, purpose))]
        if not found:
            raise Unauthenticated("The signature fits no open session; ask the session's owner for a new address.")
        return self._principal(found[0]), found[0]

    def _principal(self, session: str) -> Principal:
        owner = self._owner(session)
        if owner is None:
            raise NotFound(f"There is no session {session!r} any more; create another.")
        principals = [record.principal() for record in self._tokens if record.name == owner]
        if not principals:
            raise Unauthenticated("The session's owner has no token here any more; ask who runs this server.")
        scopes = frozenset().union(*(principal.scopes for principal in principals)) - _WITHHELD
        return Principal(name=owner, scopes=scopes, max_sessions=principals[0].max_sessions)
