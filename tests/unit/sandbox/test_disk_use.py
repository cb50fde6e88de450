"""Files that a session keeps, and ways to keep them out of sight."""

from __future__ import annotations

import mmap
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from attack.unprivileged import as_ordinary_user
from nested_directories import nest

from kernelsvc.sandbox.disk_use import MAX_DEPTH, DiskUse, measure_deleted, measure_directory

SIZE = 200_000


@pytest.fixture
def open_tmp() -> Iterator[Path]:
    """A directory in which every user may work. Only root may walk to pytest's own."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as path:
        Path(path).chmod(0o777)
        yield Path(path)


def test_a_directory_is_counted_by_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"x" * 50_000)
    os.link(tmp_path / "d" / "f", tmp_path / "again")
    with (tmp_path / "sparse").open("wb") as f:
        f.truncate(1 << 40)
    (tmp_path / "out").symlink_to("/usr")
    found = measure_directory(str(tmp_path))
    assert 50_000 < found.bytes < 200_000
    assert (found.files, found.unseen) == (5, "")
    assert measure_directory(str(tmp_path / "absent")) == DiskUse()
    assert measure_directory(str(tmp_path / "out")) == DiskUse()


def test_a_count_ends_above_the_limit(tmp_path: Path) -> None:
    for i in range(50):
        (tmp_path / str(i)).touch()
    found = measure_directory(str(tmp_path), entries=10)
    assert found.files == 11
    assert found.unseen


def test_a_path_longer_than_path_max_is_counted(tmp_path: Path) -> None:
    nest(tmp_path, 20, "d" * 250, bytes(SIZE))
    assert measure_directory(str(tmp_path)).bytes >= SIZE


def test_directories_nested_too_deep_are_reported(tmp_path: Path) -> None:
    nest(tmp_path, MAX_DEPTH + 1, "d")
    assert "deep" in measure_directory(str(tmp_path)).unseen


_CLOSED = """
import os, sys
from kernelsvc.sandbox.disk_use import measure_directory
for mode in (0, 0o200, 0o100, 0o400):
    os.makedirs("home/closed")
    open("home/closed/f", "wb").write(bytes(200_000))
    os.chmod("home/closed", mode)
    found = measure_directory(os.path.abspath("home"))
    assert found.bytes >= 200_000 and not found.unseen, (mode, found)
    assert os.stat("home/closed").st_mode & 0o777 == mode
    os.chmod("home/closed", 0o700)
    os.unlink("home/closed/f")
    os.rmdir("home/closed")
    os.rmdir("home")
os.makedirs("top")
open("top/f", "wb").write(bytes(200_000))
os.chmod("top", 0)
assert measure_directory(os.path.abspath("top")).bytes >= 200_000
"""


def test_a_directory_without_permissions_is_counted_by_its_owner(open_tmp: Path) -> None:
    command = [sys.executable, "-c", _CLOSED]
    if os.geteuid() == 0:
        command = as_ordinary_user(command)
    paths = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=open_tmp, env=paths, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


_ENDED = """
import os, subprocess, sys, threading, time
from kernelsvc.linux import procfs
from kernelsvc.sandbox.disk_use import measure_deleted

def started(code):
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (stat := procfs.stat(process.pid)) or stat.state != "Z":
        time.sleep(0.01)
    return process

def unseen(process):
    return measure_deleted([os.getpid(), process.pid], workdir=os.getcwd()).unseen

zombie = started("")
assert unseen(zombie) == "", unseen(zombie)
# The first thread has ended (_exit(2)), and another one can write.
alive = started("import ctypes, threading, time\\n"
                "threading.Thread(target=time.sleep, args=(60,)).start()\\n"
                "ctypes.CDLL(None).syscall(60, 0)")
assert "hides" in unseen(alive), unseen(alive)
alive.kill()
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of the system call is that of x86-64")
def test_a_process_that_has_ended_hides_nothing_and_one_whose_first_thread_has_ended_does(open_tmp: Path) -> None:
    command = [sys.executable, "-c", _ENDED]
    if os.geteuid() == 0:
        command = as_ordinary_user(command)
    paths = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=open_tmp, env=paths, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _leads_to(fd: str, path: Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == str(path)
    except OSError:
        return False


@pytest.mark.parametrize(("kept", "name"), [("open", "f"), ("mapped", "f"), ("mapped", "f\r (deleted)\ng")])
def test_a_deleted_file_counts_as_long_as_it_is_kept(tmp_path: Path, kept: str, name: str) -> None:
    here = {"workdir": str(tmp_path), "home": str(tmp_path)}
    before = measure_deleted([os.getpid()], **here)  # pytest keeps some
    f = (tmp_path / name).open("w+b")
    f.write(bytes(SIZE))
    f.flush()
    mapped = mmap.mmap(f.fileno(), 0)
    if kept == "mapped":
        f.close()
        # mmap keeps a descriptor of its own.
        own = next(fd for fd in os.listdir("/proc/self/fd") if _leads_to(fd, tmp_path / name))
        with open(os.devnull) as null:
            os.dup2(null.fileno(), int(own))
    else:
        mapped.close()
    (tmp_path / name).unlink()
    found = measure_deleted([os.getpid(), os.getpid()], **here)
    assert found.bytes >= before.bytes + SIZE
    assert (found.files, found.unseen) == (before.files + 1, "")
    f.close()
    mapped.close()
    assert measure_deleted([os.getpid()], **here) == before


def test_files_in_memory_are_not_on_disk(tmp_path: Path) -> None:
    before = measure_deleted([os.getpid()], workdir=str(tmp_path))
    fd = os.memfd_create("m")
    os.write(fd, bytes(SIZE))
    assert measure_deleted([os.getpid()], workdir=str(tmp_path)) == before
    os.close(fd)


def test_a_process_that_hides_its_files_is_reported(open_tmp: Path) -> None:
    code = (
        "import os, shutil, subprocess, sys\n"
        "from kernelsvc.sandbox.disk_use import measure_deleted\n"
        "shutil.copy(shutil.which('sleep'), 'hidden'); os.chmod('hidden', 0o111)\n"
        "with subprocess.Popen([os.path.abspath('hidden'), '60']) as p:\n"
        "    found = measure_deleted([os.getpid(), p.pid], workdir=os.getcwd()); p.kill()\n"
        "assert found.unseen == 'a process hides its open files', found\n"
        "assert not measure_deleted([1, os.getpid()], workdir=os.getcwd()).unseen\n"
    )
    command = [sys.executable, "-c", code]
    if os.geteuid() == 0:
        command = as_ordinary_user(command)
    paths = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=open_tmp, env=paths, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
