"""Volumes of E2B's API: ids, paths and permissions."""

from __future__ import annotations

import pytest

from kernelsvc.errors import BadRequest, NotFound, NotSupported
from kernelsvc.model.files import FileStatus
from kernelsvc.server.e2b import volumes


@pytest.mark.parametrize(("owner", "name"), [("local", "w"), ("team/ann", "a.b_c-d"), ("Ä ö:?", "x"), ("\ud800", "x")])
@pytest.mark.parametrize("node", ["", "a1b2c3"])
def test_an_id_holds_the_address(node: str, owner: str, name: str) -> None:
    made = volumes.volume_id(node, owner, name)
    assert volumes.address_of(made) == f"{owner}/{name}"
    assert made.replace("-", "").replace("_", "").isalnum()  # it stands in a path as it is


@pytest.mark.parametrize(
    "wrong", ["", "vol", "vol-local-", "vol-local-!", "vol-local-YQ=", "vol-zz-YS93", "vol-local-YS8", "s_1"]
)
def test_another_text_is_no_id(wrong: str) -> None:
    with pytest.raises(NotFound):
        volumes.address_of(wrong)


@pytest.mark.parametrize(
    ("path", "plain"),
    [("/", b""), ("a", b"a"), ("/a//b/", b"a/b"), ("/../../etc", b"etc"), (" /a/./b", b"a/b"), ("/\udcff", b"\xff")],
)
def test_no_path_leaves_the_volume(path: str, plain: bytes) -> None:
    assert volumes.plain_path(path) == plain


def test_permissions() -> None:
    assert volumes.mode_of(volumes.Permissions(uid=1000, gid=1000, mode=0o640)) == 0o640
    assert volumes.mode_of(volumes.PathQuery(path="/")) is None
    with pytest.raises(NotSupported, match="one user"):
        volumes.mode_of(volumes.Permissions(uid=0))
    for wrong in (0o4755, -1):
        with pytest.raises(BadRequest):
            volumes.mode_of(volumes.Permissions(mode=wrong))


def test_an_entry_has_the_fields_of_e2bs_clients() -> None:
    status = FileStatus(path=b"d/\xff", kind="link", mode=0o120777, size=1, mtime_ns=10**18, target=b"t")
    shown = volumes.entry_model(status)
    assert (shown["name"], shown["path"], shown["type"], shown["target"]) == ("\ufffd", "/d/\ufffd", "symlink", "t")
    assert shown["mode"] == 0o777
    assert shown["mtime"] == "2001-09-09T01:46:40.000000Z"
    assert volumes.entry_model(FileStatus(path=b"", kind="directory", mode=0, size=0, mtime_ns=0))["name"] == "/"
