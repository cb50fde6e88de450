"""Descriptions of files: each kind, any time, and a tag that follows the content."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kernelsvc.model.files import etag_of, status_of


def test_each_kind_has_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "other")
    for path in tmp_path.iterdir():
        assert status_of(b"x", path.lstat()).kind == path.name


@pytest.mark.parametrize("nanoseconds", [0, 10**18, 2**62, -(2**62)])
def test_any_time_of_change_can_be_shown(tmp_path: Path, nanoseconds: int) -> None:
    info = os.stat_result((*tmp_path.stat()[:8], 0, 0, 0, 0, 0, 0, nanoseconds, 0))
    assert status_of(b"x", info).modified.endswith("Z")


def test_the_etag_differs_after_a_change(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("one")
    before = path.stat()
    assert etag_of(before) == etag_of(path.stat())
    path.write_text("three")
    assert etag_of(before) != etag_of(path.stat())
