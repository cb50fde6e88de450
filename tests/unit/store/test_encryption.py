"""Keys that can't be used are refused in words, and change nothing. tests/acceptance/test_encryption.py has a disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from kernelsvc.errors import BadRequest
from kernelsvc.model.storage.encryption import EncryptionSettings
from kernelsvc.store import encryption

KEY = "5a" * 64


def key_file(path: Path, text: str = KEY, mode: int = 0o600) -> EncryptionSettings:
    path.write_text(text)
    path.chmod(mode)
    return EncryptionSettings(key_file=path)


def printing(code: str) -> EncryptionSettings:
    return EncryptionSettings(key_command=[sys.executable, "-c", code])


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    return directory


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (lambda tmp: key_file(tmp / "key", mode=0o604), "mode 600"),
        (lambda tmp: key_file(tmp / "key", "secret"), "hexadecimal digits"),
        (lambda tmp: EncryptionSettings(key_file=tmp / "missing"), r"can't read the key: No such file.*/missing\)"),
        (lambda tmp: printing("import sys; sys.exit(7)"), "exit code 7"),
        (lambda tmp: printing("print('secret')"), "hexadecimal digits"),
        (lambda tmp: EncryptionSettings(key_command=["yes"]), "yes prints more than 4096 bytes"),
        (lambda tmp: printing("import time; time.sleep(60)"), "did not end"),
        (
            lambda tmp: EncryptionSettings(key_command=[str(tmp / "missing")]),
            r"can't read the key: No such file.*/missing\)",
        ),
    ],
)
def test_a_key_that_can_not_be_read_is_refused(
    empty: Path, tmp_path: Path, settings: object, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encryption, "COMMAND_SECONDS", 0.5 if why == "did not end" else 30.0)
    assert callable(settings)
    with pytest.raises(BadRequest, match=why) as raised:
        encryption.unlock(empty, settings(tmp_path))
    assert "secret" not in str(raised.value)
    assert os.listdir(empty) == []


def test_a_directory_with_files_in_clear_is_not_encrypted(empty: Path, tmp_path: Path) -> None:
    (empty / "sessions").mkdir()
    with pytest.raises(BadRequest, match=r"has files in clear, such as 'sessions'.*restore"):
        encryption.unlock(empty, key_file(tmp_path / "key"))


def test_a_file_system_without_encryption_is_named(tmp_path: Path) -> None:
    # A memory file system never has encryption.
    shm = Path("/dev/shm", f"kernelsvc-test-{os.getpid()}")
    shm.mkdir()
    try:
        with pytest.raises(BadRequest, match=r"can't encrypt directories.*tune2fs -O encrypt.*LUKS"):
            encryption.unlock(shm, printing(f"print({KEY!r})"))
        assert not encryption.unlock(shm, EncryptionSettings())
        with pytest.raises(BadRequest, match="is not encrypted"):
            encryption.lock(shm)
    finally:
        shm.rmdir()


def test_without_a_key_nothing_is_encrypted(empty: Path) -> None:
    assert not encryption.unlock(empty, EncryptionSettings())
