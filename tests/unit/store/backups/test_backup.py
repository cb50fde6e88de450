"""Files of sessions that can't be read, or not be restored, stop no backup."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from nested_directories import nest

from kernelsvc.linux.remove_tree import remove_tree
from kernelsvc.model import events as ev
from kernelsvc.store.backups import backup as module
from kernelsvc.store.backups.backup import BackupReport, write_backup
from kernelsvc.store.backups.restore import restore_backup
from kernelsvc.store.heads import HeadFile
from kernelsvc.store.keys import SigningKey
from kernelsvc.store.sessions import SessionDirectories

NOBODY = 65534


class Data:
    """A data directory with one session, and its backup."""

    def __init__(self, root: Path) -> None:
        self.root, self.data = root, root / "data"
        self.key = SigningKey.load_or_create(self.data / "keys")
        store = SessionDirectories(self.data)
        heads = HeadFile(self.data / "heads", self.key.secret("heads"))
        store.use_heads(heads)
        found, journal = store.create("s", {})
        journal.append([ev.SessionStarted()])
        journal.close()
        heads.close()
        self.files = found.working()
        (self.files / "kept").write_text("kept")

    def back_up(self) -> BackupReport:
        return write_backup(self.data, self.root / "backup.tar.gz", self.key)

    def restored(self) -> Path:
        """Restore the backup, and return the directory of the session's files."""
        restore_backup(self.root / "backup.tar.gz", self.root / "new")
        files = self.root / "new" / "sessions" / "s" / "home" / "user"
        assert (files / "kept").read_text() == "kept"
        return files


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Iterator[Data]:
    """As an ordinary user, because root can read each file."""
    # Not below tmp_path, which only root may enter.
    root, user = Path(tempfile.mkdtemp(prefix="k", dir="/tmp")), os.geteuid()
    os.chown(root, NOBODY if user == 0 else user, -1)
    monkeypatch.setattr(tempfile, "tempdir", str(root))
    os.seteuid(NOBODY if user == 0 else user)
    try:
        yield Data(root)
    finally:
        os.seteuid(user)
        remove_tree(root)


def sparse(files: Path) -> None:
    for number in range(3):
        with (files / f"sparse{number}").open("wb") as file:
            file.truncate(3 << 29)


def unreadable(files: Path) -> None:
    (files / "file").touch(0)
    (files / "directory").mkdir()
    (files / "directory" / "below").touch()
    (files / "directory").chmod(0)
    (files / "listed").mkdir()
    (files / "listed" / "below").touch()
    (files / "listed").chmod(0o400)


@pytest.mark.parametrize(
    ("make", "skipped"),
    [
        (lambda files: nest(files, 250, "d"), 1),
        (lambda files: nest(files, 30, "x" * 250), 1),
        (unreadable, 3),
        (sparse, 3),
        (lambda files: files.parent.chmod(0o700), 0),
    ],
    ids=["deep", "long", "unreadable", "sparse", "nothing"],
)
def test_files_that_no_backup_can_hold_are_left_out_and_counted(data: Data, make, skipped: int) -> None:
    make(data.files)
    report = data.back_up()
    assert report.skipped == skipped
    assert report.first_skipped.startswith("sessions/s/home/user/" if skipped else "")
    assert report.bytes < 1_000_000
    data.restored()


def test_further_names_of_a_file_count_as_bytes_without_space(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_HOLES", 3 << 16)
    (data.files / "large").write_bytes(os.urandom(1 << 16))
    for number in range(9):
        os.link(data.files / "large", data.files / f"second{number}")
    report = data.back_up()
    assert (report.skipped, report.bytes < 5 << 16) == (6, True)
    assert len(list(data.restored().glob("*"))) == 5


@pytest.mark.parametrize("seconds", [-(2**62), -1, 0, 2**33, 2**63 - 1])
def test_a_time_that_other_file_systems_lack_stops_no_restore(tmp_path: Path, seconds: int) -> None:
    info = module._info("x", os.stat_result((0o600, 1, 1, 1, 0, 0, 0, 0, seconds, 0)))
    os.utime(tmp_path, (info.mtime, info.mtime))
    assert 0 <= info.mtime < 2**33


def put_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def put_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
        made.bind(path.name)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        *((Path.touch, after) for after in (Path.mkdir, put_link, put_socket, os.mkfifo)),
        *((Path.mkdir, after) for after in (Path.touch, put_link, put_socket, os.mkfifo)),
    ],
)
def test_a_file_that_changes_its_kind_meanwhile_is_left_out(data: Data, monkeypatch, before, after) -> None:
    victim, real = data.files / "victim", os.stat
    before(victim)

    def swapping(path, **more):
        found = real(path, **more)
        if path == "victim":
            victim.rmdir() if victim.is_dir() else victim.unlink()
            after(victim)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "stat", swapping)
        assert data.back_up().skipped == 1
    assert not (data.restored() / "victim").exists()


def test_links_where_the_server_follows_them_are_left_out_and_those_of_environments_are_not(data: Data) -> None:
    venv = data.data / "environments" / "a" / "venv-1" / "bin"
    tokens = data.data / "workers" / "2" / "keys" / "tokens.json"
    for directory in (venv, tokens.parent):
        directory.mkdir(parents=True)
    (venv / "python").symlink_to("/usr/bin/python3")
    tokens.symlink_to("../../../keys/tokens.json")
    (data.data / "workers" / "2" / "environments").symlink_to("../../environments")
    (data.data / "archive").symlink_to("/var/tmp")
    report = data.back_up()
    assert (report.skipped, report.first_skipped) == (1, "archive")
    data.restored()
    new = data.root / "new"
    assert os.readlink(new / "environments" / "a" / "venv-1" / "bin" / "python") == "/usr/bin/python3"
    assert os.readlink(new / "workers" / "2" / "keys" / "tokens.json") == "../../../keys/tokens.json"
    assert os.readlink(new / "workers" / "2" / "environments") == "../../environments"
    assert not (new / "archive").is_symlink()


def test_an_error_of_the_servers_own_files_ends_the_backup(data: Data) -> None:
    (data.data / "sessions" / "s" / "session.json").chmod(0)
    with pytest.raises(PermissionError):
        data.back_up()
