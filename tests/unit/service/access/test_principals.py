"""Callers: the tokens of the settings and those of the token file."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from kernelsvc.errors import Unauthenticated
from kernelsvc.model.tokens import TokenRecord, hash_token, record_for
from kernelsvc.service.access.principals import Principals
from kernelsvc.store.token_file import NAME, TokenFile


def alice(digest: str) -> TokenRecord:
    return TokenRecord(name="alice", sha256=digest)


def test_a_token_is_valid_from_its_creation_to_its_end(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    principals = Principals([record_for("configured-token")], file)
    token, kept = file.create(alice)
    assert principals.authenticate(token).name == "alice"
    assert [who.name for who in principals.callers()] == ["local", "alice"]
    principals.write_uses()
    assert list(file.last_uses()) == [kept.id]
    new, _ = file.rotate("alice", keep=timedelta(0))
    with pytest.raises(Unauthenticated):
        principals.authenticate(token)
    both = frozenset(map(hash_token, (token, new)))
    assert principals.void(both) == {hash_token(token)}
    assert principals.authenticate(new).name == "alice"
    file.revoke("alice")
    assert [who.name for who in principals.callers()] == ["local"]
    assert principals.void(both | {hash_token("configured-token")}) == both
    assert principals.authenticate("configured-token").name == "local"


def test_a_damaged_file_changes_nothing_until_it_is_repaired(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    token, _ = file.create(alice)
    principals = Principals([], file)
    content = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(b"{")
    assert principals.authenticate(token).name == "alice"
    (tmp_path / NAME).write_bytes(content)
    file.revoke("alice")
    with pytest.raises(Unauthenticated):
        principals.authenticate(token)
