"""The callers of one server: tokens of its settings, and those of ``kernelsvc token``, which change while it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from kernelsvc.errors import BadRequest
from kernelsvc.model.identity.oidc import PREFIX, OidcSettings, is_jwt
from kernelsvc.model.objects import Principal
from kernelsvc.model.tokens import TokenRecord, authenticate, on_behalf_of
from kernelsvc.service.access.oidc import OidcTokens
from kernelsvc.store.token_file import KeptToken, TokenFile

log = logging.getLogger(__name__)

#: Seconds between two writes of the times of last use.
WRITE_SECONDS = 60.0


class Principals:
    """Authenticates callers.

    Args:
        configured: The tokens of the settings.
        file: The kept tokens. It is read again when it has changed.
        oidc: An issuer whose users are callers, too.

    Raises:
        BadRequest: The file is damaged, or other users may read or write it.
    """

    def __init__(self, configured: Sequence[TokenRecord], file: TokenFile, oidc: OidcSettings | None = None) -> None:
        self._configured = tuple(configured)
        self._file = file
        self._oidc = OidcTokens(oidc) if oidc is not None and oidc.issuer else None
        self._stamp = file.stamp()
        self._kept = file.read()
        self._valid: dict[str, KeptToken] = {}
        self._records: tuple[TokenRecord, ...] = self._configured
        self._callers: tuple[Principal, ...] = ()
        self._uses = file.last_uses()
        self._used = False
        self._apply()

    def authenticate(self, token: str | None, user: str | None = None) -> Principal:
        """Return the principal of a token, or of a user for whom it acts.

        Raises:
            Unauthenticated: The token is missing, unknown, revoked or expired.
            BadRequest, Forbidden: See ``tokens.on_behalf_of``.
        """
        self.refresh()
        if self._oidc is not None and token is not None and is_jwt(token):
            who = self._oidc.authenticate(token)
        else:
            who = authenticate(self._records, token)
        if (kept := self._valid.get(who.token_sha256)) is not None:
            self._uses[kept.id] = datetime.now(UTC).replace(microsecond=0)
            self._used = True
        if user is None:
            return who
        return on_behalf_of(who, user, self._records)

    def callers(self) -> Sequence[Principal]:
        """Return the principals of all tokens of this server that are valid now."""
        self.refresh()
        return self._callers

    def holders(self) -> Sequence[Principal]:
        """Return the principals of all tokens that are valid now, also of those of an issuer."""
        return self.callers() if self._oidc is None else (*self.callers(), *self._oidc.callers())

    def void(self, hashes: frozenset[str]) -> frozenset[str]:
        """Return those of these tokens' hashes that are not valid any more."""
        self.refresh()
        void = hashes - {record.sha256 for record in self._records}
        return void if self._oidc is None else void - self._oidc.valid()

    def refresh(self) -> None:
        """Read the file again if it has changed, and drop tokens that have expired meanwhile. Their ends are dates."""
        stamp = self._file.stamp()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._kept = self._file.read()
            except BadRequest as error:
                # The tokens that were read last stay valid: a damaged file must not lock every client out.
                log.error("The tokens of 'kernelsvc token' stay as they were: %s", error)
            self._apply()
        elif self._kept:
            now = datetime.now(UTC)
            # Valid and expired, or neither: the clock may have been set back, too.
            if any(each.expired(now) == (each.record.sha256 in self._valid) for each in self._kept):
                self._apply()

    def _apply(self) -> None:
        now = datetime.now(UTC)
        before = self._valid
        self._valid = {each.record.sha256: each for each in self._kept if not each.expired(now)}
        self._records = (*self._configured, *(each.record for each in self._valid.values()))
        if self._oidc is not None:
            taken = {each.name for each in self._records if f"{each.name}/".startswith(PREFIX)}
            self._records = tuple(each for each in self._records if each.name not in taken)
            for name in sorted(taken):
                log.error("Tokens named %r are refused: the issuer's users have such names. Choose another.", name)
        self._callers = tuple(record.principal() for record in self._records)
        for digest in before.keys() - {record.sha256 for record in self._records}:
            kept = before[digest]
            log.info("The token %s of %s is not valid any more.", kept.id, kept.record.name)

    async def follow_issuer(self) -> None:
        """Keep the keys of the issuer up to date, if there is one. Ends when it is cancelled."""
        if self._oidc is not None:
            await self._oidc.follow_keys()

    async def run(self) -> None:
        """Write the times of last use once a minute. Ends when it is cancelled."""
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            self.write_uses()

    def write_uses(self) -> None:
        """Write the times of last use, if a kept token was used since the last time."""
        if not self._used:
            return
        self._used = False
        known = {each.id for each in self._kept}
        try:
            self._file.write_last_uses({name: at for name, at in self._uses.items() if name in known})
        except OSError as error:
            log.warning("Can't write when tokens were used last: %s", error.strerror)
