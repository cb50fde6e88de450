"""Names, new files and citations. Containers themselves are tested over HTTP in tests/unit/server/openai."""

from __future__ import annotations

import pytest

from kernelsvc.answers.containers import cite, file_name, new_files
from kernelsvc.errors import BadRequest
from kernelsvc.model.answers.values import Citation, MessageItem
from kernelsvc.model.files import FileStatus


def files(**etags: str) -> dict[bytes, FileStatus]:
    named = {name.encode(): etag for name, etag in etags.items()}
    return {
        path: FileStatus(path=path, kind="file", mode=0, size=1, mtime_ns=1, etag=etag) for path, etag in named.items()
    }


def test_new_and_changed_files_are_found() -> None:
    assert new_files(files(a="1", b="1"), files(a="1", b="2", c="1")) == ["b", "c"]


def test_a_name_that_is_no_text_is_not_named() -> None:
    status = FileStatus(path=b"\xff", kind="file", mode=0, size=1, mtime_ns=1, etag="1")
    found = new_files({}, {b"\xff": status, **files(a="1")})
    assert found == ["a"]
    "".join(found).encode()


def test_links_get_their_position_and_the_other_new_files_none() -> None:
    text = "See [plot](sandbox:/mnt/data/plot) and [x](sandbox:/mnt/data/../etc) and sandbox:plot."
    found = cite(MessageItem(id="m", text=text), ["plot", "other", "gone"], files(plot="1", other="1"))
    assert found[0] == Citation(path="plot", start=11, end=33)
    assert text[found[0].start : found[0].end] == "sandbox:/mnt/data/plot"
    assert Citation(path="other") in found
    assert {each.path for each in found} == {"plot", "other"}


@pytest.mark.parametrize(("name", "path"), [("a.csv", b"a.csv"), ("../../etc/x", b"x"), ("C:\\d\\é", "é".encode())])
def test_a_name_is_its_last_part(name: str, path: bytes) -> None:
    assert file_name(name) == path


@pytest.mark.parametrize("name", ["", "..", "a/", "x" * 256, "a\0b"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(BadRequest):
        file_name(name)
