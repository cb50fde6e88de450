"""The journal on disks that fill up, fail, lose what was not synced, and under processes that are killed."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from kernelsvc.errors import CursorUnknown
from kernelsvc.model import events as ev
from kernelsvc.model import hash_chain
from kernelsvc.store.journal import Journal

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a filesystem")


def chunk(n=1, size=1000):
    return [ev.Stream(cell="c", text="x" * size) for _ in range(n)]


def sound(path):
    found = hash_chain.check(path.read_bytes().splitlines())
    assert found.fault is None
    return found.head


def run(*argv):
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


@contextmanager
def mounted(target, *argv):
    target.mkdir(exist_ok=True)
    try:
        run("mount", *argv, str(target))
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f"this machine can't mount: {getattr(error, 'stderr', error)}")
    try:
        yield target
    finally:
        run("umount", "-l", str(target))


# --- no room -----------------------------------------------------------------------


def fill_until_refused(journal):
    for _ in range(10_000):
        before = (journal.head, journal.size)
        events = chunk(3)
        try:
            journal.append(events)
        except OSError as error:
            assert (journal.head, journal.size) == before
            assert all((e.seq, e.session, e.at, e.prev) == (0, "", "", "") for e in events)
            return error
    raise AssertionError("the disk never filled")


@needs_root
def test_a_full_disk_takes_nothing_by_halves_and_goes_on_when_there_is_room(tmp_path):
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=256k", "tmpfs") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(b"b" * 100_000)
        path = disk / "journal.jsonl"
        journal = Journal.create(path, "s")
        for _ in range(5):
            assert fill_until_refused(journal).errno == errno.ENOSPC
            assert path.stat().st_size == journal.size
        assert sound(path) == journal.head
        ballast.unlink()
        journal.append(chunk(3))
        journal.sync()
        assert sound(path) == journal.head
        journal.close()


def test_a_file_size_limit_takes_nothing_by_halves(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal.create(path, "s")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        assert fill_until_refused(journal).errno == errno.EFBIG
        assert path.stat().st_size == journal.size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.append(chunk())
    assert sound(path) == journal.head
    journal.close()


@needs_root
def test_a_disk_that_became_read_only(tmp_path):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as disk:
        path = disk / "journal.jsonl"
        journal = Journal.create(path, "s")
        journal.append(chunk(2))
        journal.close()
        run("mount", "-o", "remount,ro", str(disk))
        with pytest.raises(OSError, match="Read-only"):
            Journal.open(path)
        with pytest.raises(OSError, match="Read-only"):
            Journal.create(disk / "other.jsonl", "s")
        assert Journal.open(path, read_only=True).last_seq == 2


# --- a disk that fails at fsync -------------------------------------------------------


@contextmanager
def ext4_on(image, target):
    device = run("losetup", "--find", "--show", str(image))
    try:
        with mounted(target, "-t", "ext4", "-o", "errors=continue,nodelalloc", device):
            yield target
    finally:
        subprocess.run(["losetup", "-d", device], check=False, capture_output=True, timeout=30)


def make_image(path, megabytes=64):
    if not shutil.which("losetup") or not shutil.which("mkfs.ext4"):
        pytest.skip("needs losetup and mkfs.ext4")
    with path.open("wb") as file:
        file.truncate(megabytes << 20)
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", str(path))
    return path


@needs_root
def test_a_failed_fsync_damages_the_journal_until_it_was_verified(tmp_path):
    """A loop device whose backing file has no room: writes succeed, write-back fails."""
    with mounted(tmp_path / "under", "-t", "tmpfs", "-o", "size=40m", "tmpfs") as under:
        image = make_image(under / "image")
        with ext4_on(image, tmp_path / "disk") as disk:
            path = disk / "journal.jsonl"
            journal = Journal.create(path, "s")
            journal.append(chunk(10))
            journal.sync()
            synced = journal.head
            ballast = under / "ballast"
            with ballast.open("wb") as file, pytest.raises(OSError, match="No space"):  # noqa: PT012
                while True:
                    file.write(b"b" * 65536)
                    file.flush()
            reader = journal.reader(journal.last_seq)
            with pytest.raises(OSError) as failed:  # noqa: PT011, PT012
                for _ in range(200):
                    journal.append(chunk(20, 5000))
                    journal.sync()
            assert failed.value.errno in (errno.EIO, errno.ENOSPC)
            assert journal.damaged
            assert reader.next_nowait() is not None
            with pytest.raises(OSError, match=r"recover\(\)"):
                journal.append(chunk())
            with pytest.raises(OSError, match=r"recover\(\)"):
                journal.sync()
            with pytest.raises(OSError):  # noqa: PT011
                journal.recover()
            assert journal.damaged
            ballast.unlink()
            report = journal.recover()
            assert (journal.damaged, report.lost) == (None, 0)
            assert journal.last_seq > synced.seq
            journal.append(chunk())
            journal.sync()
            assert sound(path) == journal.head
            journal.close()


def test_entries_that_a_failed_disk_lost_are_told(tmp_path, monkeypatch):
    """What Btrfs does after a failed fsync: the file is as it was at the last good one."""
    path = tmp_path / "journal.jsonl"
    journal = Journal.create(path, "s")
    journal.append(chunk(5))
    journal.sync()
    good = path.read_bytes()
    journal.append(chunk(3))
    reader = journal.reader(journal.last_seq)

    def fails(fd):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fails)
        with pytest.raises(OSError, match="Input/output"):
            journal.sync()
    waiting = journal.reader(5)
    assert waiting.next_nowait() == []
    path.write_bytes(good + b"\0" * (journal.size - len(good)))
    report = journal.recover()
    assert (report.lost, report.last_seq, journal.last_seq) == (3, 5, 5)
    assert "3 entries after 5 were lost" in report.message
    with pytest.raises(CursorUnknown):
        reader.next_nowait()
    journal.append(chunk())
    assert sound(path) == journal.head
    journal.close()


# --- the machine and the server die --------------------------------------------------


@needs_root
def test_a_power_cut_loses_nothing_that_was_synced(tmp_path):
    """The disk's image is copied while the filesystem is mounted: what had not reached it is gone."""
    image = make_image(tmp_path / "image")
    heads = []
    with ext4_on(image, tmp_path / "disk") as disk:
        (disk / "sess").mkdir()
        path = disk / "sess" / "journal.jsonl"
        journal = Journal.create(path, "sess")
        for n in range(4):
            journal.append(chunk(7))
            journal.sync()
            heads.append(journal.head)
            journal.append(chunk(3))
            shutil.copyfile(image, tmp_path / f"cut-{n}")
        journal.close()
    for n, head in enumerate(heads):
        with ext4_on(tmp_path / f"cut-{n}", tmp_path / "after") as disk:
            path = disk / "sess" / "journal.jsonl"
            opened = Journal.open(path)
            assert opened.last_seq >= head.seq
            assert hash_chain.check(opened.lines(), anchors=[head]).fault is None
            opened.append(chunk())
            opened.close()
            sound(path)


WRITER = """
import sys
from pathlib import Path
from kernelsvc.model import events as ev
from kernelsvc.store.journal import Journal
journal = Journal.create(Path(sys.argv[1]), "s")
while True:
    journal.append([ev.Stream(text="x" * 3000), ev.Stream(text="y" * 50)])
    journal.sync()
    print(journal.last_seq, flush=True)
"""


def test_a_killed_server_loses_nothing_that_it_had_told(tmp_path):
    for n in range(3):
        path = tmp_path / f"journal-{n}.jsonl"
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout
        told = 0
        for line in writer.stdout:
            told = int(line)
            if told >= 20 * (n + 1):
                writer.send_signal(signal.SIGKILL)
                break
        told = max([told, *(int(line) for line in writer.stdout if line.endswith("\n"))])
        writer.stdout.close()
        writer.wait(10)
        opened = Journal.open(path, "s")
        assert opened.last_seq >= told
        opened.close()
        sound(path)


def test_the_lock_goes_with_the_process(tmp_path):
    path = Path(tmp_path / "journal.jsonl")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout
    assert writer.stdout.readline()
    with pytest.raises(Exception, match="Another process"):
        Journal.open(path, "s")
    writer.kill()
    writer.wait(10)
    writer.stdout.close()
    Journal.open(path, "s").close()
