"""A file is replaced whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelsvc.linux.atomic_file import replace, replace_bytes, sync_directory, sync_filesystem


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_made_and_replaced(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "notebook.ipynb"
    for content in (b"one", b"two" * 100_000):
        replace_bytes(path, content, durable=durable)
        assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def fail(fd: int) -> None:
        os.write(fd, b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        replace(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_crash_left_is_no_obstacle_and_a_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / ".x.tmp").symlink_to(victim)
    replace_bytes(tmp_path / "x", b"new")
    assert (victim.read_bytes(), (tmp_path / "x").read_bytes()) == (b"precious", b"new")


def test_a_reader_of_the_old_file_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "x"
    replace_bytes(path, b"old")
    with path.open("rb") as reader:
        replace_bytes(path, b"new")
        assert reader.read() == b"old"


@pytest.mark.parametrize("sync", [sync_directory, sync_filesystem])
def test_a_directory_that_is_gone_is_an_error(tmp_path: Path, sync: Callable[[Path], None]) -> None:
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "gone")
