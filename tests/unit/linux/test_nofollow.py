"""Directories that are reached through directories alone, and tracebacks that tell nothing of the server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from nested_directories import nest

from kernelsvc.linux import nofollow
from kernelsvc.linux.remove_tree import remove_tree


def test_a_directory_is_opened(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    fd = nofollow.open_directory(tmp_path / "a" / "b", os.O_RDONLY)
    assert os.listdir(fd) == []
    os.close(fd)
    assert nofollow.is_directory(tmp_path / "a")
    assert nofollow.is_directory("/")
    assert nofollow.stat_directory(tmp_path / "a").st_ino == (tmp_path / "a").stat().st_ino


def test_no_link_is_followed_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "real" / "in").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "file").touch()
    for path in ("link", "link/in", "real/file", "real/none"):
        assert not nofollow.is_directory(tmp_path / path)
        with pytest.raises(OSError, match=r"Errno"):
            nofollow.open_directory(tmp_path / path)


def test_nothing_is_made_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OSError, match=r"Errno"):
        nofollow.make_directory(tmp_path / "link" / "made", 0o700)
    nofollow.make_directory(tmp_path / "real" / "made", 0o700)
    with pytest.raises(FileExistsError):
        nofollow.make_directory(tmp_path / "real" / "made", 0o700)
    assert [entry.name for entry in (tmp_path / "real").iterdir()] == ["made"]


def test_a_tree_of_any_depth_is_walked_with_few_descriptors(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    (top / "c").mkdir()
    (top / "c" / "file").touch()
    (top / "link").symlink_to("/etc")
    nest(top / "c", 3000, "x" * 200)
    before = len(os.listdir("/proc/self/fd"))
    try:
        found = []
        for fd, names in nofollow.walk(str(top)):
            assert os.fstat(fd).st_ino
            assert len(os.listdir("/proc/self/fd")) <= before + 2
            found.append(sorted(names))
        assert len(found) == 3004
        assert found[0] == ["a", "c", "link"]
        assert ["b"] in found
        assert ["file", "x" * 200] in found
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        remove_tree(top)


def test_a_walk_ends_if_a_directory_was_moved(tmp_path: Path) -> None:
    (tmp_path / "top" / "a" / "b").mkdir(parents=True)
    (tmp_path / "top" / "other").mkdir()

    def walk() -> None:
        for _, names in nofollow.walk(str(tmp_path / "top")):
            if names == ["b"]:
                (tmp_path / "top" / "a").rename(tmp_path / "elsewhere")

    with pytest.raises(OSError, match="moved"):
        walk()
