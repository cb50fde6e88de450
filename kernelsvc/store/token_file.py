"""Tokens that are made, revoked and rotated while the server runs: ``keys/tokens.json`` of the data directory.

``kernelsvc token`` changes the file, and the server reads it again when it has changed. It holds hashes of tokens. Only
its owner may read and write it: a token that another user adds to it would be accepted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec

from kernelsvc.errors import BadRequest, Conflict, NotFound
from kernelsvc.linux import atomic_file
from kernelsvc.model.tokens import TokenRecord, hash_token

#: Name of the file in the directory ``keys``, and of the one with the time of each token's last use.
NAME, USE_NAME = "tokens.json", "token_use.json"
_VERSION = 1
#: Form of a token: a prefix that scanners for leaked secrets can find, the token's id, and the random part.
_PREFIX, _ID_BYTES, _SECRET_BYTES = "ksv", 4, 32


class KeptToken(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One token in the file.

    Attributes:
        id: Beginning of the token, which names it in lists and logs.
        record: The principal, the hash and what it may do.
        created_at: Time of its creation.
        expires_at: Time after which it is refused. None means never.
        rotated_to: Id of the token that has taken its place.
    """

    id: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]{1,32}$(?!\n)")]
    record: TokenRecord
    created_at: datetime
    expires_at: datetime | None = None
    rotated_to: str | None = None

    def expired(self, now: datetime) -> bool:
        """Return whether it is refused at this time."""
        return self.expires_at is not None and self.expires_at <= now


class _Content(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    version: int = _VERSION
    tokens: list[KeptToken] = []


class TokenFile:
    """The kept tokens of one data directory.

    Args:
        directory: The data directory's ``keys``.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / NAME
        self._use_path = directory / USE_NAME

    def stamp(self) -> tuple[int, ...] | None:
        """Return a value that differs when the file has been replaced, or None if there is no file."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def read(self) -> list[KeptToken]:
        """Return all tokens, also expired ones. Without a file there are none.

        Raises:
            BadRequest: The file is damaged, belongs to someone else, or other users may read or write it.
        """
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
                    raise BadRequest(
                        f"{self._path} must belong to the server's user and have the mode 600. It belongs to uid "
                        f"{found.st_uid} and has the mode {stat.S_IMODE(found.st_mode):o}. Correct it, and then look "
                        "at 'kernelsvc token list'."
                    )
                content = msgspec.json.decode(file.read(), type=_Content)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise BadRequest(f"Can't read {self._path}: {error.strerror}.") from None
        except msgspec.MsgspecError as error:
            raise BadRequest(f"{self._path} is damaged ({error}). Restore it from a backup.") from None
        if content.version != _VERSION:
            raise BadRequest(f"{self._path} has version {content.version}. This release reads version {_VERSION}.")
        return content.tokens

    def create(
        self,
        record: Callable[[str], TokenRecord],
        *,
        lifetime: timedelta | None = None,
        form: str = _PREFIX,
    ) -> tuple[str, KeptToken]:
        """Add a new token.

        Args:
            record: Returns the record for the token's hash.
            lifetime: After which it expires.
            form: ``ksv``, or ``e2b`` for a token in the form that E2B's clients insist on.

        Returns:
            The token in clear, which is kept nowhere, and its entry.

        Raises:
            BadRequest: The file can't be read or written.
        """
        with self._changed() as tokens:
            token, kept = _new(record, lifetime, form)
            tokens.append(kept)
        return token, kept

    def revoke(self, named: str) -> list[KeptToken]:
        """Remove the token with this id, or every token of the principal with this name.

        Returns:
            The removed ones.

        Raises:
            NotFound: There is none.
            BadRequest: The file can't be read or written.
        """
        with self._changed() as tokens:
            found = _named(tokens, named)
            tokens[:] = [each for each in tokens if each not in found]
        return found

    def rotate(self, named: str, *, keep: timedelta) -> tuple[str, KeptToken]:
        """Add a token for the same principal with the same rights, and let the old one expire.

        Args:
            named: The old token's id, or the name of a principal that has only one.
            keep: For which the old one is still accepted.

        Returns:
            The new token in clear, which is kept nowhere, and its entry.

        Raises:
            NotFound: There is no such token.
            Conflict: The principal has several tokens, or this one has been rotated already.
            BadRequest: The file can't be read or written.
        """
        with self._changed() as tokens:
            found = _named(tokens, named)
            found = [each for each in found if not each.expired(_now())] or found
            if len(found) > 1:
                ids = ", ".join(each.id for each in found)
                raise Conflict(f"{named!r} has several tokens: {ids}. Name one of them.")
            [old] = found
            if any(each.id == old.rotated_to for each in tokens):
                # Its lifetime is the rest that it was left, which the next token would inherit.
                raise Conflict(f"{old.id} was rotated to {old.rotated_to} before. Rotate that one, or revoke it first.")
            now = _now()
            ends = now + keep if old.expires_at is None else min(old.expires_at, now + keep)
            lifetime = None if old.expires_at is None else old.expires_at - old.created_at
            token, kept = _new(
                lambda digest: msgspec.structs.replace(old.record, sha256=digest), lifetime, old.id.partition("_")[0]
            )
            tokens[tokens.index(old)] = msgspec.structs.replace(old, expires_at=ends, rotated_to=kept.id)
            tokens.append(kept)
        return token, kept

    @contextlib.contextmanager
    def _changed(self) -> Iterator[list[KeptToken]]:
        """Give the list to change, and write it at the end. Other processes wait."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (owner := self._path.parent.stat().st_uid) != os.geteuid():
                raise BadRequest(f"{self._path.parent} belongs to uid {owner}. Run this as that user.")
            # A file of its own: the one with the tokens is replaced, and a lock belongs to an inode (flock(2)).
            with self._path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                tokens = self.read()
                yield tokens
                data = msgspec.json.format(msgspec.json.encode(_Content(tokens=tokens)))
                atomic_file.replace_bytes(self._path, data, durable=True)
        except OSError as error:
            raise BadRequest(f"Can't write {self._path}: {error.strerror}. Run this as the server's user.") from None

    # -- the time of the last use --------------------------------------------------------

    def last_uses(self) -> dict[str, datetime]:
        """Return the time of each token's last use by its id. The server writes it once a minute."""
        try:
            return msgspec.json.decode(self._use_path.read_bytes(), type=dict[str, datetime])
        except (OSError, msgspec.MsgspecError):
            # It is no more than a hint for people, so a missing or damaged file is like an empty one.
            return {}

    def write_last_uses(self, uses: dict[str, datetime]) -> None:
        """Write the times of the last use.

        Raises:
            OSError: The old times are kept.
        """
        atomic_file.replace_bytes(self._use_path, msgspec.json.encode(uses))


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _new(record: Callable[[str], TokenRecord], lifetime: timedelta | None, form: str) -> tuple[str, KeptToken]:
    if form == "e2b":
        token = f"e2b_{secrets.token_hex(20)}"
        name = token[: len("e2b_") + 2 * _ID_BYTES]
    else:
        name = f"{_PREFIX}_{secrets.token_hex(_ID_BYTES)}"
        token = f"{name}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    now = _now()
    ends = None if lifetime is None else now + lifetime
    return token, KeptToken(id=name, record=record(hash_token(token)), created_at=now, expires_at=ends)


def _named(tokens: list[KeptToken], named: str) -> list[KeptToken]:
    found = [each for each in tokens if each.id == named] or [each for each in tokens if each.record.name == named]
    if not found:
        raise NotFound(f"There is no token or principal {named!r}. 'kernelsvc token list' shows all.")
    return found
