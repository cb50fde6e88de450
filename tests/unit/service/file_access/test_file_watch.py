"""Watched directories: real inotify, on a real directory that does what it can to mislead."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from waiting import wait_until

from kernelsvc.errors import KernelsvcError, NotFound
from kernelsvc.linux import turns
from kernelsvc.linux.rooted_dir import RootedDirectory
from kernelsvc.linux.turns import Turns
from kernelsvc.model.files import FileChange, FileEvent
from kernelsvc.service.file_access import file_watch
from kernelsvc.service.file_access.file_watch import DirectoryWatcher


class Watched:
    """A watcher and the events that it has reported."""

    def __init__(self, root: Path, top: bytes, taken: Turns, *, recursive: bool, statuses: bool) -> None:
        self.events: list[FileEvent] = []
        parts = tuple(top.split(b"/")) if top else ()
        directory = RootedDirectory(root)
        self.watcher = DirectoryWatcher(
            directory, parts, self.events.append, taken, recursive=recursive, statuses=statuses
        )

    async def seen(self, path: bytes, change: FileChange) -> FileEvent:
        def found() -> list[FileEvent]:
            return [event for event in self.events if (event.path, event.change) == (path, change)]

        await wait_until(lambda: bool(found()), what=f"{change} of {path!r}")
        return found()[0]


Watch = Callable[..., Watched]


@pytest.fixture
async def watch(tmp_path: Path) -> AsyncIterator[Watch]:
    made: list[Watched] = []
    taken = Turns()

    def make(root: Path = tmp_path, top: bytes = b"", *, recursive: bool = False, statuses: bool = False) -> Watched:
        made.append(Watched(root, top, taken, recursive=recursive, statuses=statuses))
        return made[-1]

    yield make
    for one in made:
        one.watcher.close()


async def test_what_happens_is_told(tmp_path: Path, watch: Watch) -> None:
    watched = watch(statuses=True)
    (tmp_path / "f").write_text("x")
    status = (await watched.seen(b"f", "write")).status
    assert status is not None
    assert status.kind == "file"
    (tmp_path / "f").chmod(0o600)
    await watched.seen(b"f", "chmod")
    (tmp_path / "f").rename(tmp_path / "g")
    await watched.seen(b"f", "rename")
    (tmp_path / "g").unlink()
    await watched.seen(b"g", "remove")


async def test_below_it_too_also_what_is_made_later(tmp_path: Path, watch: Watch) -> None:
    (tmp_path / "top/a").mkdir(parents=True)
    watched = watch(top=b"top", recursive=True)
    (tmp_path / "top/a/f").touch()
    await watched.seen(b"top/a/f", "create")
    (tmp_path / "top/b").mkdir()
    await watched.seen(b"top/b", "create")
    (tmp_path / "top/b/f").touch()
    await watched.seen(b"top/b/f", "create")


async def test_an_upload_is_a_write(tmp_path: Path, watch: Watch) -> None:
    watched = watch()
    with RootedDirectory(tmp_path) as directory:
        upload = directory.upload((b"up",))
        upload.write(b"data")
        upload.commit()
    await watched.seen(b"up", "write")


async def test_a_link_leads_nowhere(tmp_path: Path, watch: Watch) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    (root / "link").symlink_to(outside)
    with pytest.raises(KernelsvcError):
        watch(root, b"link")
    with pytest.raises(NotFound):
        watch(root, b"missing")
    watched = watch(root, recursive=True)
    (outside / "secret").touch()
    (root / "mine").touch()
    await watched.seen(b"mine", "create")
    assert [event for event in watched.events if b"secret" in event.path] == []


async def test_a_watcher_is_bounded(tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_watch, "MAX_DIRECTORIES", 3)
    for number in range(10):
        (tmp_path / str(number)).mkdir()
    assert len(watch(recursive=True).watcher._watched) == 3


async def test_watchers_take_turns(tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)
    order: list[str] = []
    for name in "ab":
        (tmp_path / name).mkdir()
        watch(top=name.encode()).watcher._on_event = lambda event: order.append(event.path.decode()[:1])
    for name in "ab":
        for number in range(20):
            (tmp_path / name / str(number)).symlink_to("nowhere")  # one event
    await wait_until(lambda: len(order) == 40, what="all events")
    assert order == ["a", "b"] * 20


async def test_other_work_comes_between_turns(tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(file_watch, "BEGIN_SECONDS", 0.0)
    for number in range(10):
        (tmp_path / str(number)).mkdir()
    watched = watch(recursive=True)
    assert len(watched.watcher._watched) == 2
    await wait_until(lambda: len(watched.watcher._watched) == 11, what="the directories that were there")
    for number in range(10):
        (tmp_path / str(number) / "f").symlink_to("nowhere")
    await watched.seen(b"9/f", "create")


async def test_a_closed_watcher_leaves_no_descriptor(tmp_path: Path, watch: Watch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    watched = watch(recursive=True)
    watched.watcher.close()
    watched.watcher.close()
    with pytest.raises(NotFound):
        watch(top=b"missing")
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_linux_writes() -> None:
    data = file_watch._EVENT.pack(1, 2, 3, 16) + b"name".ljust(16, b"\0") + file_watch._EVENT.pack(4, 5, 6, 0)
    assert file_watch.parse(data) == [(1, 2, 3, b"name"), (4, 5, 6, b"")]
