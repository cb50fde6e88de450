"""What the sandbox's own programs say of files outside its home: read as what nobody vouches for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.errors import BadRequest, Conflict, NotFound
from kernelsvc.server.e2b import exec_files


def test_what_find_says() -> None:
    said = b"f\t644\t-rw-r--r--\t5\t1700000000.5000000000\t\t/tmp/a\tb\n\xff.txt\0"
    said += b"l\t777\tlrwxrwxrwx\t4\t0.0\t/etc\t/tmp/l\0"
    first, second = exec_files._entries(said)
    assert first == {
        "name": "a\tb\n\ufffd.txt",
        "type": "FILE_TYPE_FILE",
        "path": "/tmp/a\tb\n\ufffd.txt",
        "size": "5",
        "mode": 0o644,
        "permissions": "-rw-r--r--",
        "owner": "user",
        "group": "user",
        "modifiedTime": "2023-11-14T22:13:20.500000Z",
    }
    assert (second["type"], second["symlinkTarget"], second["isSymlink"]) == ("FILE_TYPE_SYMLINK", "/etc", True)


@given(data=st.binary(max_size=200))
def test_whatever_it_says_is_read_or_left_out(data: bytes) -> None:
    for entry in exec_files._entries(data + b"\t" * 6 + b"\0"):
        assert entry["type"].startswith("FILE_TYPE_")
        assert entry["size"].isdecimal()


def test_short_lines_without_number_are_refused() -> None:
    line = b"\t" * 6 + b"\0"
    assert len(exec_files._entries(line * exec_files.MAX_ENTRIES)) == exec_files.MAX_ENTRIES
    with pytest.raises(Conflict, match="too many files"):
        exec_files._entries(line * (exec_files.MAX_ENTRIES + 1))


@pytest.mark.parametrize(
    ("status", "kind"), [(44 << 8, NotFound), (1 << 8, BadRequest), (9, BadRequest), (None, BadRequest)]
)
def test_how_it_ends_is_told(status: int | None, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        exec_files._check_status(status, {"stdout": b"", "stderr": b"Read-only file system"})


def test_what_is_there_already_is_no_failure() -> None:
    assert exec_files._check_status(45 << 8, {"stdout": b"", "stderr": b""}) is None
    assert exec_files._check_status(0, {"stdout": b"x", "stderr": b""}) == b"x"


def test_spare_names_differ_and_are_hidden() -> None:
    names = {exec_files.temporary_name() for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith(b".") for name in names)


def test_the_home_is_where_a_program_begins() -> None:
    assert exec_files.path_in_sandbox("/home/user/a/b") == "./a/b"
    assert exec_files.path_in_sandbox("/tmp/a") == "/tmp/a"
    assert exec_files.path_in_sandbox("/home/username/a") == "/home/username/a"
