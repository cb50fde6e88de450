"""Paths as E2B's clients write them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kernelsvc.errors import BadRequest
from kernelsvc.model.files import status_of
from kernelsvc.server.e2b import paths


@pytest.mark.parametrize(
    ("path", "relative"),
    [
        ("/home/user/a/b.txt", b"a/b.txt"),
        ("a/b.txt", b"a/b.txt"),
        ("./a//b.txt", b"a/b.txt"),
        ("~/a", b"a"),
        ("/home/user", b""),
        ("/home/user/", b""),
        ("", b""),
        ("é", "é".encode()),
        ("\udcff", b"\xff"),
    ],
)
def test_what_lies_at_home(path: str, relative: bytes) -> None:
    assert paths.below_home(path) == relative


@pytest.mark.parametrize("path", ["/", "/etc/passwd", "/home/username/x", "/tmp/x", "../x", "a/../../x", "a\0b"])
def test_what_does_not(path: str) -> None:
    with pytest.raises(BadRequest):
        paths.below_home(path)


def test_a_long_path_is_refused_before_it_is_split() -> None:
    # 60 MiB took 40 s and 900 MB.
    began = time.process_time()
    for path in ("a/" * (8 << 20), "/tmp/" + "a/" * (8 << 20)):
        with pytest.raises(BadRequest, match="too long"):
            paths.absolute(path)
    assert time.process_time() - began < 0.5


def test_files_are_described(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("text")
    os.chmod(tmp_path / "f", 0o640)
    os.utime(tmp_path / "f", (1e9, 1e9))
    said = paths.entry(status_of(b"d/f", (tmp_path / "f").stat()))
    assert said == {
        "name": "f",
        "type": "FILE_TYPE_FILE",
        "path": "/home/user/d/f",
        "size": "4",
        "mode": 0o640,
        "permissions": "-rw-r-----",
        "owner": "user",
        "group": "user",
        "modifiedTime": "2001-09-09T01:46:40.000000Z",
    }
    (tmp_path / "l").symlink_to("/etc")
    linked = paths.entry(status_of(b"l", (tmp_path / "l").lstat(), b"/etc"))
    assert (linked["type"], linked["symlinkTarget"], linked["isSymlink"]) == ("FILE_TYPE_SYMLINK", "/etc", True)
    assert paths.entry(status_of(b"", tmp_path.stat()))["path"] == "/home/user"


@pytest.mark.parametrize("seconds", [-(2**62) // 10**9, 2**62 // 10**9])
def test_a_time_that_no_calendar_has(seconds: int, tmp_path: Path) -> None:
    os.utime(tmp_path, ns=(0, 0))
    info = os.stat_result((*tmp_path.stat()[:8], seconds, 0, 0, seconds, 0, 0, seconds * 10**9, 0))
    assert paths.entry(status_of(b"", info))["modifiedTime"].endswith("Z")
