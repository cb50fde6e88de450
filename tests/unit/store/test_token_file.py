"""Tokens of a data directory that change while the server runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kernelsvc.errors import BadRequest, Conflict, NotFound
from kernelsvc.model.tokens import TokenRecord, authenticate, hash_token
from kernelsvc.store.token_file import NAME, TokenFile


def of(name: str) -> Callable[[str], TokenRecord]:
    return lambda digest: TokenRecord(name=name, sha256=digest)


def test_a_token_is_kept_as_a_hash_alone(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    assert (file.read(), file.stamp()) == ([], None)
    token, kept = file.create(of("alice"))
    text = (tmp_path / NAME).read_text()
    assert token not in text
    assert hash_token(token) in text
    assert token.startswith(kept.id + "_")
    assert file.read() == [kept]
    assert authenticate([kept.record], token).name == "alice"
    e2b, _ = file.create(of("bob"), form="e2b")
    assert (len(e2b), e2b[:4]) == (44, "e2b_")
    assert int(e2b[4:], 16) >= 0


def test_a_rotated_token_expires_and_the_new_one_has_its_rights(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    _, old = file.create(of("alice"), lifetime=timedelta(days=30))
    _, new = file.rotate("alice", keep=timedelta(hours=1))
    before, after = file.read()
    now = datetime.now(UTC)
    assert (before.id, after) == (old.id, new)
    assert not before.expired(now)
    assert before.expired(now + timedelta(hours=2))
    assert (after.record.name, after.record.scopes) == ("alice", old.record.scopes)
    assert after.expires_at is not None
    assert after.expires_at - after.created_at == timedelta(days=30)
    with pytest.raises(Conflict, match=old.id):
        file.rotate("alice", keep=timedelta(0))


def test_a_token_is_rotated_once(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    _, old = file.create(of("alice"))
    _, new = file.rotate(old.id, keep=timedelta(hours=24))
    # A second rotation would inherit the 24 hours as its lifetime, for example if two people rotate at once.
    with pytest.raises(Conflict, match=new.id):
        file.rotate(old.id, keep=timedelta(hours=24))
    file.revoke(new.id)
    _, again = file.rotate(old.id, keep=timedelta(0))
    assert [each.id for each in file.read()] == [old.id, again.id]
    # The expired one does not count.
    assert file.rotate("alice", keep=timedelta(0))[1].record.name == "alice"


def test_a_name_revokes_all_of_its_tokens_and_an_id_one(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    _, first = file.create(of("alice"))
    _, second = file.create(of("alice"))
    _, other = file.create(of("bob"))
    assert file.revoke(other.id) == [other]
    assert file.revoke("alice") == [first, second]
    assert file.read() == []
    with pytest.raises(NotFound, match="token list"):
        file.revoke("alice")


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        ("{", 0o600, "damaged"),
        ('{"version": 1, "tokens": [{"id": "x"}]}', 0o600, "damaged"),
        ('{"version": 2, "tokens": []}', 0o600, "version 2"),
        ('{"version": 1, "tokens": []}', 0o644, "mode 644"),
        ('{"version": 1, "tokens": []}', 0o620, "mode 620"),
    ],
)
def test_a_wrong_file_is_refused_and_stays(tmp_path: Path, content: str, mode: int, said: str) -> None:
    path = tmp_path / NAME
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(BadRequest, match=said):
        TokenFile(tmp_path).read()
    with pytest.raises(BadRequest, match=said):
        TokenFile(tmp_path).create(of("alice"))
    assert path.read_text() == content


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
def test_another_users_directory_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(BadRequest, match="uid 12345"):
        TokenFile(tmp_path).create(of("alice"))
    assert not (tmp_path / NAME).exists()


CREATE_SOME = """
import sys, pathlib
from kernelsvc.model.tokens import TokenRecord
from kernelsvc.store.token_file import TokenFile
for _ in range(10):
    TokenFile(pathlib.Path(sys.argv[1])).create(lambda digest: TokenRecord(name="alice", sha256=digest))
"""


def test_processes_that_change_it_at_once_lose_nothing(tmp_path: Path) -> None:
    running = [subprocess.Popen([sys.executable, "-c", CREATE_SOME, str(tmp_path)]) for _ in range(2)]
    assert [each.wait(60) for each in running] == [0, 0]
    assert len({each.id for each in TokenFile(tmp_path).read()}) == 20


def test_times_of_the_last_use_are_a_hint(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    at = datetime(2026, 1, 2, tzinfo=UTC)
    file.write_last_uses({"ksv_1": at})
    assert file.last_uses() == {"ksv_1": at}
    (tmp_path / "token_use.json").write_text("{")
    assert file.last_uses() == {}
