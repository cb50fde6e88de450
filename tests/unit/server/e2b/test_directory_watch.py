"""Watches of E2B's clients: their events in E2B's format, and how many there may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kernelsvc.errors import NotFound, QuotaExceeded
from kernelsvc.model.files import FileEvent, status_of
from kernelsvc.model.objects import Principal
from kernelsvc.server.e2b import directory_watch
from kernelsvc.server.e2b.directory_watch import HomeWatcher, WatcherRegistry


class OneWatch:
    """The part of ``FilesApi`` that watches."""

    closed = False

    async def watch(self, who: Principal, session: str, path: bytes, on_event: Any, **how: bool) -> OneWatch:
        self.asked, self.on_event = (session, path, how), on_event
        return self

    def close(self) -> None:
        self.closed = True


async def test_events_have_the_names_that_the_client_knows(tmp_path: Path) -> None:
    files: Any = OneWatch()
    watcher = HomeWatcher(b"d")
    await watcher.start(files, Principal(name="p"), "s", recursive=True, include_entry=True)
    assert files.asked == ("s", b"d", {"recursive": True, "statuses": True})
    files.on_event(FileEvent(change="rename", path=b"d/a/\xff"))
    files.on_event(FileEvent(change="create", path=b"d/b", status=status_of(b"d/b", tmp_path.stat())))
    gone, made = await watcher.next(0)
    assert gone == {"name": "a/\ufffd", "type": "EVENT_TYPE_RENAME"}
    assert (made["name"], made["type"], made["entry"]["path"]) == ("b", "EVENT_TYPE_CREATE", "/home/user/d/b")
    watcher.close()
    assert files.closed


async def test_the_oldest_events_are_dropped() -> None:
    watcher = HomeWatcher(b"")
    for number in range(directory_watch.MAX_EVENTS + 10):
        watcher.happened({"name": str(number)})
    assert len(watcher.take()) == directory_watch.MAX_EVENTS


async def test_long_events_are_bounded_by_their_bytes() -> None:
    watcher = HomeWatcher(b"")
    for number in range(1000):
        watcher.happened({"name": str(number), "entry": {"symlinkTarget": "x" * 60_000}})
    held = watcher.take()
    assert 0 < len(held) * 60_000 <= directory_watch.MAX_EVENT_BYTES
    assert held[-1]["name"] == "999"
    watcher.happened({"name": "x" * directory_watch.MAX_EVENT_BYTES})
    assert watcher.take() == []


async def test_watchers_are_counted_found_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = WatcherRegistry()

    made = [HomeWatcher(b"") for _ in range(directory_watch.MAX_PER_SANDBOX)]
    names = [kept.keep("me", "one", each) for each in made]
    with pytest.raises(QuotaExceeded):
        kept.keep("me", "one", HomeWatcher(b""))
    with pytest.raises(NotFound):
        kept.find("two", names[0])
    kept.remove("one", names[0])
    with pytest.raises(NotFound):
        kept.remove("one", names[0])
    monkeypatch.setattr(directory_watch, "FORGET_SECONDS", -1.0)
    kept.keep("me", "one", HomeWatcher(b""))
    with pytest.raises(NotFound):
        kept.find("one", names[1])
    await kept.stop()


async def test_one_principal_does_not_take_all_watchers(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = WatcherRegistry()
    most = directory_watch.MAX_PER_PRINCIPAL
    names = [kept.keep("me", f"s{n}", HomeWatcher(b"")) for n in range(most)]
    with pytest.raises(QuotaExceeded, match="Your sandboxes"):
        kept.keep("me", "another", HomeWatcher(b""))
    for n in range(most):  # others find room
        kept.keep("other", f"o{n}", HomeWatcher(b""))
    monkeypatch.setattr(directory_watch, "IDLE_SECONDS", 0.0)
    kept.find("s0", names[0]).take()
    kept.keep("me", "another", HomeWatcher(b""))
    assert kept.find("s0", names[0])
    with pytest.raises(NotFound):  # it was quiet for longest
        kept.find("s1", names[1])
    assert kept.find("o0", next(name for of, name in kept._kept if of == "o0"))
    await kept.stop()
