"""Tokens of an OpenID Connect issuer: its keys, and the tokens that they signed.

The keys are read at the start, once an hour, and when a token names another key, at most once in ten seconds. The
issuer is asked for nothing else: a token is checked here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tornado.httpclient import AsyncHTTPClient

from kernelsvc.errors import Unauthenticated
from kernelsvc.model.identity.oidc import ALGORITHMS, LEEWAY_SECONDS, OidcSettings, principal_of
from kernelsvc.model.objects import Principal
from kernelsvc.model.tokens import hash_token

if TYPE_CHECKING:
    import jwt

log = logging.getLogger(__name__)

#: Seconds between two readings of the keys: while all is well, and at least.
REFRESH_SECONDS, LEAST_SECONDS = 3600.0, 10.0
#: Seconds for one answer of the issuer, and its most bytes.
ANSWER_SECONDS, MAX_BYTES = 10.0, 1 << 20
#: Most keys of an issuer, and most tokens whose check is remembered.
MAX_KEYS, MAX_TOKENS = 100, 10_000


class OidcTokens:
    """Authenticates the tokens of one issuer.

    Args:
        settings: The issuer and the rights of its users.
    """

    def __init__(self, settings: OidcSettings) -> None:
        self._settings = settings
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._wanted = asyncio.Event()
        # By hash: the caller, the Unix time at which the token ends, and the key that signed it. The one used longest
        # ago is first.
        self._checked: OrderedDict[str, tuple[Principal, float, jwt.PyJWK]] = OrderedDict()

    def authenticate(self, token: str) -> Principal:
        """Return the caller of a token.

        Raises:
            Unauthenticated: The token is not valid, or the issuer's keys have not been read.
        """
        digest = hash_token(token)
        if (known := self._checked.get(digest)) is not None and known[1] > time.time():
            self._checked.move_to_end(digest)
            return known[0]
        claims, key = self._claims(token)
        who = principal_of(claims, self._settings, token)
        try:
            ends = float(claims["exp"]) + LEEWAY_SECONDS
        except OverflowError:
            # An integer of more than 308 digits. PyJWT accepts any integer.
            raise Unauthenticated("The token's claim 'exp' is no time. Get a new one from the issuer.") from None
        self._checked[digest] = who, ends, key
        while len(self._checked) > MAX_TOKENS:
            self._checked.popitem(last=False)
        log.info("A token of %s is accepted for %.0f s: %s signed it.", who.name, ends - time.time(), claims["iss"])
        return who

    def _claims(self, token: str) -> tuple[dict[str, Any], jwt.PyJWK]:
        import jwt

        try:
            key_id = jwt.get_unverified_header(token).get("kid")
            key = self._keys.get(key_id)
            if key_id is None and len(self._keys) == 1:
                (key,) = self._keys.values()
            if key is None:
                self._wanted.set()
                raise Unauthenticated(
                    "The token's key is not among those of the issuer. If it is new there, send the request again in "
                    f"{LEAST_SECONDS:.0f} s."
                )
            claims = jwt.decode(
                token,
                key,
                algorithms=[*ALGORITHMS],
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated(f"The token is not valid: {error}. Get a new one from the issuer.") from None
        return claims, key

    def callers(self) -> Sequence[Principal]:
        """Return the callers of the tokens that were checked and are valid now."""
        now = time.time()
        return [who for who, ends, _ in self._checked.values() if ends > now]

    def valid(self) -> frozenset[str]:
        """Return the hashes of the tokens that were checked and are valid now. Forget the others."""
        now = time.time()
        for digest in [digest for digest, (_, ends, _) in self._checked.items() if ends <= now]:
            del self._checked[digest]
        return frozenset(self._checked)

    async def follow_keys(self) -> None:
        """Keep the issuer's keys up to date. Ends when it is cancelled."""
        while True:
            self._wanted.clear()
            try:
                self._take(await self._read_keys())
            except Exception as error:
                # The keys that were read last stay: an issuer that is down must not lock every user out.
                log.error(
                    "The keys of the issuer %s can't be read (%s). Users with keys that are not known are refused. "
                    "The server tries again.", self._settings.issuer, error,
                )  # fmt: skip
                self._wanted.set()
            await asyncio.sleep(LEAST_SECONDS)
            try:
                async with asyncio.timeout(REFRESH_SECONDS - LEAST_SECONDS):
                    await self._wanted.wait()
            except TimeoutError:
                continue

    def _take(self, keys: dict[str | None, jwt.PyJWK]) -> None:
        """Use these keys from now on. Forget the tokens that another key signed: it may have become known."""
        # A key that stayed keeps its object, so that the tokens that it signed stay known.
        same = {
            name: old for name, old in self._keys.items() if name in keys and _material(old) == _material(keys[name])
        }
        self._keys = keys | same
        kept = {id(key) for key in self._keys.values()}
        for digest in [digest for digest, (_, _, key) in self._checked.items() if id(key) not in kept]:
            del self._checked[digest]
        log.info("The issuer %s has %d keys.", self._settings.issuer, len(self._keys))

    async def _read_keys(self) -> dict[str | None, jwt.PyJWK]:
        """Return the keys for signatures by their names.

        Raises:
            ValueError: An answer is not that of the issuer.
            OSError, HTTPError: There is no answer.
        """
        import jwt

        issuer = self._settings.issuer
        # OpenID Connect Discovery 1.0, sections 4.1 and 4.3: the issuer must be the one that was asked.
        found = await _fetch(issuer.removesuffix("/") + "/.well-known/openid-configuration")
        if found.get("issuer") != issuer:
            raise ValueError(f"it calls itself {str(found.get('issuer'))[:200]!r}")
        place = str(found.get("jwks_uri", ""))
        if urlsplit(place).scheme != "https" and urlsplit(place).netloc != urlsplit(issuer).netloc:
            raise ValueError(f"its keys are at {place[:200]!r}, which is not https")
        shown = (await _fetch(place)).get("keys")
        if not isinstance(shown, list):
            raise ValueError("its keys are no list")
        keys: dict[str | None, jwt.PyJWK] = {}
        for each in shown[:MAX_KEYS]:
            # RFC 7517, section 4.2: keys without a use are for both. Keys of unknown kinds are ignored (section 5).
            if not isinstance(each, dict) or each.get("use", "sig") != "sig" or each.get("kty") == "oct":
                continue
            try:
                # Section 9.3: a private key has a member "d". It is public now, so anyone could sign with it.
                if "d" in each:
                    raise ValueError("it is a private key")
                if not isinstance(name := each.get("kid"), str | None):
                    raise ValueError("its name is no text")
                keys[name] = jwt.PyJWK.from_dict(each)
            except Exception as error:
                log.info("A key of the issuer %s can't be used: %s", issuer, str(error)[:200])
        if not keys:
            raise ValueError("it has no keys for signatures")
        return keys


def _material(key: jwt.PyJWK) -> tuple[str, bytes]:
    """Return the algorithm and the public key, to compare two keys."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.algorithm_name, key.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


async def _fetch(address: str) -> dict[str, Any]:
    """Return a JSON object. Safe to cancel.

    Raises:
        ValueError: The answer is not a JSON object.
        OSError, HTTPError: There is no answer, or it has more than ``MAX_BYTES``.
    """
    client = AsyncHTTPClient(force_instance=True, max_body_size=MAX_BYTES)
    try:
        answer = await client.fetch(
            address,
            request_timeout=ANSWER_SECONDS,
            connect_timeout=ANSWER_SECONDS,
            follow_redirects=False,
            decompress_response=False,  # a packed answer can be much larger than MAX_BYTES
        )
        found = json.loads(answer.body)
    finally:
        client.close()
    if not isinstance(found, dict):
        raise ValueError(f"{address} does not answer with a JSON object")
    return found
