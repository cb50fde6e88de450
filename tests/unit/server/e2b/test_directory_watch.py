"""Watched directories: real inotify, on a real directory that does what it can to mislead."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from kernelsvc.errors import KernelsvcError, NotFound, QuotaExceeded
from kernelsvc.linux.rooted_dir import RootedDirectory
from kernelsvc.server.e2b import directory_watch
from kernelsvc.server.e2b.directory_watch import DirectoryWatcher, WatcherRegistry


@pytest.fixture
async def made() -> Any:
    found: list[DirectoryWatcher] = []
    yield found
    for watcher in found:
        watcher.close()


def watch(
    made: list[DirectoryWatcher], root: Path, *parts: bytes, recursive: bool = False, entry: bool = False
) -> DirectoryWatcher:
    made.append(DirectoryWatcher(RootedDirectory(root), parts, recursive=recursive, include_entry=entry))
    return made[-1]


async def seen(watcher: DirectoryWatcher, name: str, kind: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = []

    def came() -> bool:
        found.extend(watcher.take())
        return any((event["name"], event["type"]) == (name, f"EVENT_TYPE_{kind}") for event in found)

    await wait_until(came, what=f"{kind} of {name}")
    return next(event for event in found if event["name"] == name)


async def test_what_happens_is_told(tmp_path: Path, made: list[DirectoryWatcher]) -> None:
    watcher = watch(made, tmp_path, entry=True)
    (tmp_path / "f").write_text("x")
    assert (await seen(watcher, "f", "WRITE"))["entry"]["path"] == "/home/user/f"
    (tmp_path / "f").chmod(0o600)
    await seen(watcher, "f", "CHMOD")
    (tmp_path / "f").rename(tmp_path / "g")
    await seen(watcher, "f", "RENAME")
    (tmp_path / "g").unlink()
    await seen(watcher, "g", "REMOVE")


async def test_below_it_too_also_what_is_made_later(tmp_path: Path, made: list[DirectoryWatcher]) -> None:
    (tmp_path / "top/a").mkdir(parents=True)
    watcher = watch(made, tmp_path, b"top", recursive=True)
    (tmp_path / "top/a/f").touch()
    await seen(watcher, "a/f", "CREATE")
    (tmp_path / "top/b").mkdir()
    await seen(watcher, "b", "CREATE")
    (tmp_path / "top/b/f").touch()
    await seen(watcher, "b/f", "CREATE")


async def test_an_upload_is_a_write(tmp_path: Path, made: list[DirectoryWatcher]) -> None:
    watcher = watch(made, tmp_path)
    with RootedDirectory(tmp_path) as directory:
        upload = directory.upload((b"up",))
        upload.write(b"data")
        upload.commit()
    await seen(watcher, "up", "WRITE")


async def test_a_link_leads_nowhere(tmp_path: Path, made: list[DirectoryWatcher]) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    (root / "link").symlink_to(outside)
    with pytest.raises(KernelsvcError):
        watch(made, root, b"link")
    with pytest.raises(NotFound):
        watch(made, root, b"missing")
    watcher = watch(made, root, recursive=True)
    (outside / "secret").touch()
    (root / "mine").touch()
    await seen(watcher, "mine", "CREATE")
    assert [event for event in watcher.take() if "secret" in event["name"]] == []


async def test_a_watcher_is_bounded(
    tmp_path: Path, made: list[DirectoryWatcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_watch, "MAX_DIRECTORIES", 3)
    for number in range(10):
        (tmp_path / str(number)).mkdir()
    watcher = watch(made, tmp_path, recursive=True)
    assert len(watcher._watched) == 3
    for number in range(directory_watch.MAX_EVENTS + 10):
        watcher._events.append({"name": str(number)})
    assert len(watcher.take()) == directory_watch.MAX_EVENTS


async def test_watchers_are_counted_found_and_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = WatcherRegistry()

    def make() -> DirectoryWatcher:
        return DirectoryWatcher(RootedDirectory(tmp_path), (), recursive=False, include_entry=False)

    before = len(os.listdir("/proc/self/fd"))
    names = [kept.keep("one", make) for _ in range(directory_watch.MAX_PER_SANDBOX)]
    with pytest.raises(QuotaExceeded):
        kept.keep("one", make)
    with pytest.raises(NotFound):
        kept.find("two", names[0])
    kept.remove("one", names[0])
    with pytest.raises(NotFound):
        kept.remove("one", names[0])
    monkeypatch.setattr(directory_watch, "FORGET_SECONDS", -1.0)
    kept.keep("one", make)
    with pytest.raises(NotFound):
        kept.find("one", names[1])
    await kept.stop()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_linux_writes() -> None:
    data = directory_watch._EVENT.pack(1, 2, 3, 16) + b"name".ljust(16, b"\0") + directory_watch._EVENT.pack(4, 5, 6, 0)
    assert directory_watch.parse(data) == [(1, 2, 3, b"name"), (4, 5, 6, b"")]
