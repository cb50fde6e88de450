"""The archive of records, in memory and in a directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kernelsvc.errors import BadRequest
from kernelsvc.store.record_archive import JOURNAL, MAX_RECORD, NOTEBOOK, RECORD, ArchivedRecord, RecordArchive

SESSION = "s_0123456789abcdef"
OF_ALICE = ArchivedRecord(session=SESSION, principal="alice", key="KEY", at="2026-01-01T00:00:00Z")


@pytest.fixture(params=["memory", "file"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> RecordArchive:
    (tmp_path / "archive").mkdir()
    return RecordArchive(f"memory:/{tmp_path}" if request.param == "memory" else f"file://{tmp_path}/archive")


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal"
    path.write_bytes(b"0123456789")
    return path


def test_a_record_is_read_as_it_was_put(archive: RecordArchive, journal: Path) -> None:
    assert archive.find(SESSION) is None
    archive.put(OF_ALICE, journal, b"first")
    archive.put(OF_ALICE, journal, journal)  # again, after a crash
    assert archive.find(SESSION) == OF_ALICE
    assert archive.size(SESSION, JOURNAL) == 10
    assert archive.read(SESSION, JOURNAL, 2, 5) == b"234"
    assert archive.read(SESSION, NOTEBOOK, 8, 100) == b"89"


def test_a_removed_record_is_gone(archive: RecordArchive, journal: Path) -> None:
    archive.put(OF_ALICE, journal, b"notebook")
    archive.remove(SESSION)
    archive.remove(SESSION)
    assert archive.find(SESSION) is None
    with pytest.raises(FileNotFoundError):
        archive.size(SESSION, NOTEBOOK)


@pytest.mark.parametrize("session", ["..", "../other", "s_0123", "s-0123456789abcdef", "", "/etc", f"{SESSION}/.."])
def test_only_ids_of_sessions_become_paths(archive: RecordArchive, journal: Path, session: str) -> None:
    assert archive.find(session) is None
    with pytest.raises(FileNotFoundError):
        archive.put(ArchivedRecord(session=session, principal="alice", key="", at=""), journal, b"")
    with pytest.raises(FileNotFoundError):
        archive.size(session, JOURNAL)
    with pytest.raises(FileNotFoundError):
        archive.remove(session)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"session": "s_0123456789abcdef"}', b'{"session":"s_1","principal":"alice","key":"","at":""}',
     b" " * MAX_RECORD + b'{"session":"s_0123456789abcdef","principal":"alice","key":"","at":""}'],
)  # fmt: skip
def test_a_description_that_is_torn_or_of_another_session_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SESSION).mkdir()
    (tmp_path / SESSION / RECORD).write_bytes(content)
    assert RecordArchive(f"file://{tmp_path}").find(SESSION) is None


def test_a_directory_is_private_and_no_link_in_it_is_followed(tmp_path: Path, journal: Path) -> None:
    archive = RecordArchive(f"file://{tmp_path}")
    archive.put(OF_ALICE, journal, b"notebook")
    folder = tmp_path / SESSION
    assert folder.stat().st_mode & 0o777 == 0o700
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (folder / NOTEBOOK).unlink()
    (folder / NOTEBOOK).symlink_to(secret)
    with pytest.raises(FileNotFoundError):
        archive.size(SESSION, NOTEBOOK)
    with pytest.raises(FileNotFoundError):
        archive.read(SESSION, NOTEBOOK, 0, 6)
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    assert archive.find(SESSION) is None


def test_an_archive_that_fails_raises_os_errors(tmp_path: Path, journal: Path) -> None:
    archive = RecordArchive(f"file://{tmp_path}/not mounted")
    for call in (
        lambda: archive.put(OF_ALICE, journal, b""),
        lambda: archive.find(SESSION),
        lambda: archive.remove(SESSION),
    ):
        with pytest.raises(OSError, match="does not exist"):
            call()
    archive = RecordArchive(f"file://{tmp_path}")
    archive._files = None  # a back end with errors of its own
    with pytest.raises(OSError, match="AttributeError"):
        archive.find(SESSION)


@pytest.mark.parametrize(
    ("url", "message"),
    [("/srv/archive", "is not a URL"), ("nothing://x", "nothing"), ("sftp://me:word@host/x", "has a password")],
)
def test_a_wrong_url_is_refused_with_the_reason(url: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message) as raised:
        RecordArchive(url)
    assert "word@" not in raised.value.message


def test_without_fsspec_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(BadRequest, match=r"pip install 'kernelsvc\[archive\]'"):
        RecordArchive("file:///srv/archive")


def test_a_server_without_an_archive_does_not_import_fsspec() -> None:
    code = "import sys, kernelsvc.cli.serve, kernelsvc.cli.cluster.front; sys.exit('fsspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
