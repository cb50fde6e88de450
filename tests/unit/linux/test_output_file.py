"""A file at a path that a user gave is written whole, and nothing but a regular file is ever replaced."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from kernelsvc.errors import BadRequest
from kernelsvc.linux.output_file import output_file


def write(path: Path, data: bytes = b"new") -> None:
    with output_file(path) as file:
        file.write(data)


def make(kind: str, path: Path) -> None:
    """Make a file of a kind that is no regular file."""
    match kind:
        case "directory":
            path.mkdir()
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(os.path.relpath(path))
        case "block device":
            os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(1, 250))
        case "link to a file":
            path.with_name("target").write_bytes(b"old")
            path.symlink_to("target")
        case "link to nothing":
            path.symlink_to("target")


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes (mknod(2))")
KINDS = ["directory", "socket", "link to a file", "link to nothing", pytest.param("block device", marks=needs_root)]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused_and_stays(tmp_path: Path, monkeypatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)  # the address of a socket has at most 107 bytes
    path = tmp_path / "x"
    make(kind, path)
    before = path.lstat()
    with pytest.raises(BadRequest, match="Name a file"):
        write(path)
    assert path.lstat() == before
    assert not (tmp_path / "target").exists() or (tmp_path / "target").read_bytes() == b"old"
    assert {each.name for each in tmp_path.iterdir()} <= {"x", "target"}


def test_what_became_a_pipe_meanwhile_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(BadRequest, match="pipe"), output_file(path):
        os.mkfifo(path)
    assert [(each.name, each.is_fifo()) for each in tmp_path.iterdir()] == [("x", True)]


@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_gets_the_content_and_stays(tmp_path: Path, linked: bool) -> None:
    pipe = path = tmp_path / "pipe"
    os.mkfifo(pipe)
    if linked:  # like /dev/stdout
        path = tmp_path / "link"
        path.symlink_to("pipe")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write(path, b"x" * 200_000)
    reader.join(10)
    assert got == [b"x" * 200_000]
    assert pipe.is_fifo()
    assert path.is_symlink() == linked


@needs_root
def test_a_device_gets_the_content_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "null"
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))  # null(4)
    write(path)
    assert [each.is_char_device() for each in tmp_path.iterdir()] == [True]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ConnectionResetError(104, "reset")])
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: OSError) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(BadRequest if error.errno == 28 else ConnectionResetError), output_file(path):
        raise error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_made_and_replaced_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for data in (b"one", b"two"):
        with output_file(path, mode=0o600) as file:
            file.write(data)
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (data, 0o600)
    with pytest.raises(BadRequest, match="No such file"):
        write(tmp_path / "none" / "x")
