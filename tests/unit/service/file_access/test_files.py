"""The port for files over a real directory: whose it is, what is recorded, and where no path leads."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import wait_until

from kernelsvc.errors import BadRequest, Conflict, KernelsvcError, NotFound, SessionClosed
from kernelsvc.linux.rooted_dir import RootedDirectory
from kernelsvc.model.objects import Principal
from kernelsvc.service.file_access.files import SHORT_READ, SessionFiles

ME = Principal(name="p")


class OneSession:
    """A registry with the session ``s``, and the store that has its directory."""

    def __init__(self, root: Path) -> None:
        self.root, self.closed, self.changes = root, False, []

    def measured_disk(self, session: str) -> int | None:
        return None

    def get(self, session: str) -> Any:
        return self.find(Principal(name="me"), session)

    def find(self, who: Principal, session: str, scope: str = "read") -> Any:
        if session != "s":
            raise NotFound
        limits = SimpleNamespace(disk_bytes=None)
        return SimpleNamespace(id=session, limits=limits, record=lambda event: self.changes.extend(event.files))

    def find_open(self, who: Principal, session: str) -> Any:
        if self.closed:
            raise SessionClosed
        return self.find(who, session)

    def directory(self, session: str) -> Any:
        return SimpleNamespace(working=lambda: self.root)


@pytest.fixture
def session(tmp_path: Path) -> OneSession:
    (tmp_path / "home").mkdir()
    return OneSession(tmp_path / "home")


@pytest.fixture
def files(session: OneSession) -> SessionFiles:
    one: Any = session
    return SessionFiles(one, one)


async def test_a_file_goes_in_and_comes_out(files: SessionFiles, session: OneSession) -> None:
    writer = await files.write(ME, "s", b"a/f")
    assert writer.replaces is None
    await writer.write(b"he")
    await writer.write(b"llo")
    assert (await files.list(ME, "s", b"a"))[0] == []
    stored = await writer.commit()
    writer.close()
    reader = await files.open(ME, "s", b"a/f")
    (session.root / "a/f").rename(session.root / "a/g")
    assert (reader.status.size, await reader.read(1, 3), await reader.read(9, 3)) == (5, b"ell", b"")
    reader.close()
    reader.close()
    assert reader.status.etag == stored.etag
    assert [(change["op"], change["path"], change["size"]) for change in session.changes] == [("put", "a/f", 5)]


async def test_a_large_piece_is_read_whole(files: SessionFiles, session: OneSession) -> None:
    (session.root / "f").write_bytes(b"x" * (2 * SHORT_READ))
    reader = await files.open(ME, "s", b"f")
    assert len(await reader.read(0, 4 * SHORT_READ)) == 2 * SHORT_READ
    reader.close()


async def test_each_change_is_recorded_with_both_names(files: SessionFiles, session: OneSession) -> None:
    await files.make_directory(ME, "s", b"d")
    await files.put(ME, "s", b"d/\xff", b"x")
    await files.move(ME, "s", b"d/\xff", b"e/f")
    await files.remove(ME, "s", b"e", recursive=True)
    await files.put(ME, "s", b"unrecorded", b"x", record=False)
    await files.remove(ME, "s", b"unrecorded", record=False)
    assert [(change["op"], change["path"], change.get("source")) for change in session.changes] == [
        ("mkdir", "d", None),
        ("put", "d/\ufffd", None),
        ("move", "e/f", "d/\ufffd"),
        ("delete", "e", None),
    ]
    assert os.listdir(session.root) == ["d"]


async def test_a_listing_describes_links_and_attributes(files: SessionFiles, session: OneSession) -> None:
    (session.root / "d").mkdir()
    (session.root / "d/link").symlink_to("/etc/passwd")
    try:
        os.setxattr(session.root / "d", "user.note", b"n")
    except OSError:
        pytest.skip("this filesystem has no extended attributes")
    found, more = await files.list(ME, "s", b"", depth=2, attributes=True)
    assert not more
    assert [(each.path, each.kind, each.target, each.attributes) for each in found] == [
        (b"d", "directory", None, {"user.note": b"n"}),
        (b"d/link", "link", b"/etc/passwd", {}),
    ]
    assert (await files.stat(ME, "s", b"")).kind == "directory"


CALLS = {
    "stat": lambda files, path: files.stat(ME, "s", path),
    "list": lambda files, path: files.list(ME, "s", path),
    "open": lambda files, path: files.open(ME, "s", path),
    "watch": lambda files, path: files.watch(ME, "s", path, print),
    "write": lambda files, path: files.write(ME, "s", path),
    "put": lambda files, path: files.put(ME, "s", path, b"x"),
    "make_directory": lambda files, path: files.make_directory(ME, "s", path),
    "move": lambda files, path: files.move(ME, "s", b"own", path),
    "remove": lambda files, path: files.remove(ME, "s", path),
}
CHANGES = ("write", "put", "make_directory", "move", "remove")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("path", [b"/etc/passwd", b"../outside/f", b"a/../f", b"a\0b", b"x" * 300, b"link/f"])
async def test_no_path_leads_out(call: str, path: bytes, files: SessionFiles, session: OneSession) -> None:
    outside = session.root.parent / "outside"
    outside.mkdir()
    (outside / "f").write_text("the secret")
    (session.root / "link").symlink_to(outside)
    (session.root / "own").touch()
    with pytest.raises((BadRequest, NotFound, Conflict)):
        await CALLS[call](files, path)
    assert (os.listdir(outside), session.changes) == (["f"], [])


@pytest.mark.parametrize("call", CHANGES)
async def test_a_closed_session_keeps_its_files(call: str, files: SessionFiles, session: OneSession) -> None:
    (session.root / "own").touch()
    session.closed = True
    with pytest.raises(SessionClosed):
        await CALLS[call](files, b"own")
    assert os.listdir(session.root) == ["own"]


async def test_a_writer_that_is_closed_early_leaves_nothing(files: SessionFiles, session: OneSession) -> None:
    writer = await files.write(ME, "s", b"f")
    await writer.write(b"x")
    writer.close()
    assert (os.listdir(session.root), session.changes) == ([], [])


async def test_a_removal_that_is_cancelled_is_recorded(
    files: SessionFiles, session: OneSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    (session.root / "f").touch()
    going_on, removal = threading.Event(), RootedDirectory.delete

    def slow(self: RootedDirectory, parts: Any, *, recursive: bool) -> None:
        going_on.wait(10)
        removal(self, parts, recursive=recursive)

    monkeypatch.setattr(RootedDirectory, "delete", slow)
    work = asyncio.ensure_future(files.remove(ME, "s", b"f"))
    await asyncio.sleep(0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    going_on.set()
    await wait_until(lambda: bool(session.changes), what="the change in the journal")
    assert not os.listdir(session.root)


async def test_anothers_session_is_not_found(files: SessionFiles) -> None:
    with pytest.raises(KernelsvcError):
        await files.list(ME, "other", b"")
