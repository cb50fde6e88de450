import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from kernelsvc.errors import Internal
from kernelsvc.model.audit import head_statement
from kernelsvc.model.hash_chain import Head
from kernelsvc.store.keys import NAME, SigningKey, is_good


def test_a_key_is_made_once_and_private(tmp_path):
    key = SigningKey.load_or_create(tmp_path / "keys")
    assert SigningKey.load_or_create(tmp_path / "keys").public == key.public
    assert os.listdir(tmp_path / "keys") == [NAME]
    assert stat.S_IMODE((tmp_path / "keys" / NAME).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


def test_servers_that_start_at_once_get_the_same_key(tmp_path):
    from kernelsvc.store import keys

    (tmp_path / NAME).parent.mkdir(exist_ok=True)
    keys._create(tmp_path / NAME)
    first = SigningKey.load_or_create(tmp_path).public
    keys._create(tmp_path / NAME)
    assert SigningKey.load_or_create(tmp_path).public == first


def test_at_once_in_threads(tmp_path):
    directory = tmp_path / "keys"
    directory.mkdir()
    with ThreadPoolExecutor(1) as pool:
        made = list(pool.map(lambda _: SigningKey.load_or_create(directory).public, range(4)))
    assert len(set(made)) == 1


@pytest.mark.parametrize(
    "content", [b"", b"rubbish", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_file_that_is_no_key(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    (tmp_path / NAME).chmod(0o600)
    with pytest.raises(Internal, match="no Ed25519 key"):
        SigningKey.load_or_create(tmp_path)


def test_a_key_that_others_can_read_is_refused(tmp_path):
    SigningKey.load_or_create(tmp_path)
    (tmp_path / NAME).chmod(0o640)
    with pytest.raises(Internal, match="chmod 600"):
        SigningKey.load_or_create(tmp_path)


def test_signatures(tmp_path):
    key, other = SigningKey.load_or_create(tmp_path / "a"), SigningKey.load_or_create(tmp_path / "b")
    event = key.sign_head("s", Head(3, "d"))
    statement = head_statement("s", Head(3, "d"))
    assert is_good(statement, event.key, event.signature)
    assert not is_good(head_statement("s", Head(4, "d")), event.key, event.signature)
    assert not is_good(statement, other.public, event.signature)
    for odd in ("", "é", "AAAA", "!" * 44):
        assert not is_good(statement, odd, event.signature)
        assert not is_good(statement, event.key, odd)
