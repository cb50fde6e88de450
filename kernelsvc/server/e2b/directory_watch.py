"""Directories that E2B's clients watch: inotify(7) on a session's directory, which nobody trusts.

Every watched directory is opened beneath the session's (``transports.beneath``)
and watched through its descriptor, so no link leads a watch out of there. A
watcher has a bounded number of directories and of events that wait; what is over
the bound is left out, never waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import secrets
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from kernelsvc.errors import AtCapacity, KernelsvcError, NotFound, QuotaExceeded
from kernelsvc.linux.rooted_dir import MAX_DEPTH, TEMPORARY, RootedDirectory, explained
from kernelsvc.server.e2b import paths

#: Directories of one watcher, and events of one that wait to be taken.
MAX_DIRECTORIES, MAX_EVENTS = 512, 4096
#: Watchers of one sandbox, and of this server: Linux gives a user 128 of them by default.
MAX_PER_SANDBOX, MAX_WATCHERS = 16, 100
#: Seconds after which a watcher that nobody asks for its events is forgotten.
FORGET_SECONDS = 600.0
_READ = 256 * 1024

# linux/inotify.h
_MODIFY, _ATTRIB, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x4, 0x40, 0x80, 0x100, 0x200
_ONLYDIR, _ISDIR, _OVERFLOW = 0x0100_0000, 0x4000_0000, 0x4000
_MASK = _MODIFY | _ATTRIB | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _ONLYDIR
_EVENT = struct.Struct("iIII")
_KINDS = {
    _CREATE: "EVENT_TYPE_CREATE",
    _MOVED_TO: "EVENT_TYPE_CREATE",
    _MODIFY: "EVENT_TYPE_WRITE",
    _DELETE: "EVENT_TYPE_REMOVE",
    _MOVED_FROM: "EVENT_TYPE_RENAME",
    _ATTRIB: "EVENT_TYPE_CHMOD",
}

_libc = ctypes.CDLL(None, use_errno=True)

Parts = tuple[bytes, ...]


class FileEvent(msgspec.Struct, frozen=True):
    """An event: its kind, the file, and whether that is a directory."""

    kind: str
    parts: Parts
    directory: bool


def parse(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """What Linux wrote to an inotify descriptor: watch, mask, cookie and name of each event."""
    found, at = [], 0
    while at + _EVENT.size <= len(data):
        watch, mask, cookie, size = _EVENT.unpack_from(data, at)
        at += _EVENT.size
        found.append((watch, mask, cookie, data[at : at + size].rstrip(b"\0")))
        at += size
    return found


#: The kinds that there are.
KINDS = frozenset(_KINDS.values())


class PendingEvents:
    """What a watcher has seen and nobody has asked for yet; the oldest go first when there is too much."""

    def __init__(self) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=MAX_EVENTS)
        self.news = asyncio.Event()
        self.asked = time.monotonic()

    def close(self) -> None:
        """Watch no more."""
        raise NotImplementedError

    def happened(self, event: dict[str, Any]) -> None:
        """Keep an event."""
        self._events.append(event)
        self.news.set()

    def take(self) -> list[dict[str, Any]]:
        """The events since the last time."""
        self.asked = time.monotonic()
        found = [*self._events]
        self._events.clear()
        self.news.clear()
        return found

    async def next(self, seconds: float) -> list[dict[str, Any]]:
        """The events since the last time; waits for one, none if there is none in that time. Safe to cancel."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.news.wait()
        return self.take()


class DirectoryWatcher(PendingEvents):
    """Watches one directory, with or without what is below it.

    Args:
        directory: the session's; the watcher's from now on.
        top: what is watched in there.
        recursive: whether also what is below it.
        include_entry: whether an event describes its file.
    """

    def __init__(self, directory: RootedDirectory, top: Parts, *, recursive: bool, include_entry: bool) -> None:
        super().__init__()
        self._directory, self._top = directory, top
        self._recursive, self._include_entry = recursive, include_entry
        self._watched: dict[int, Parts] = {}
        self._loop = asyncio.get_running_loop()
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            directory.close()
            raise AtCapacity("This server watches as many directories as it may; stop watching another one.")
        try:
            self._add(top)
        except BaseException:
            self.close()
            raise
        self._loop.add_reader(self._fd, self._read)

    def close(self) -> None:
        """Watch no more."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._directory.close()
        self.news.set()

    # -- what is watched ------------------------------------------------------------------------

    def _add(self, parts: Parts) -> None:
        pending = [parts]
        while pending and len(self._watched) < MAX_DIRECTORIES:
            one = pending.pop()
            try:
                fd = self._directory.open_directory(one)
            except KernelsvcError:
                if one == self._top:
                    raise
                continue
            try:
                if not self._add_descriptor(fd, one):
                    return
            finally:
                os.close(fd)
            if self._recursive and len(one) < MAX_DEPTH:
                pending += self._below(one)

    def _add_descriptor(self, fd: int, parts: Parts) -> bool:
        # The link leads to what the descriptor has open, wherever its name leads by now.
        watch = _libc.inotify_add_watch(self._fd, f"/proc/self/fd/{fd}".encode(), _MASK)
        if watch >= 0:
            self._watched[watch] = parts
        elif parts == self._top:
            with explained():
                raise OSError(ctypes.get_errno(), "inotify_add_watch")
        return bool(watch >= 0)

    def _below(self, parts: Parts) -> list[Parts]:
        try:
            entries, _ = self._directory.list(parts, recursive=False, limit=MAX_DIRECTORIES)
        except KernelsvcError:
            return []
        return [tuple(entry.path.split(b"/")) for entry in entries if entry.kind == "directory"]

    # -- what happens ---------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _READ)
        except OSError:
            return
        uploads = set()  # an upload is a file of another name that is moved into place
        for watch, mask, cookie, name in parse(data):
            parts = self._watched.get(watch)
            if name.startswith(TEMPORARY):
                uploads.add(cookie)
            elif not mask & _OVERFLOW and parts is not None and name:
                bits = mask | _MODIFY if mask & _MOVED_TO and cookie in uploads else mask
                for kind in (kind for bit, kind in _KINDS.items() if bits & bit):
                    self._happened(FileEvent(kind, (*parts, name), bool(mask & _ISDIR)))

    def _happened(self, event: FileEvent) -> None:
        if self._recursive and event.directory and event.kind == "EVENT_TYPE_CREATE":
            self._add(event.parts)
        name = b"/".join(event.parts[len(self._top) :]).decode("utf-8", "replace")
        said: dict[str, Any] = {"name": name, "type": event.kind}
        if self._include_entry:
            with contextlib.suppress(KernelsvcError):
                said["entry"] = paths.entry(self._directory, event.parts)
        self.happened(said)


class WatcherRegistry:
    """Those that are asked for their events from time to time, by sandbox and id."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], PendingEvents] = {}

    def keep(self, sandbox: str, make: Callable[[], PendingEvents]) -> str:
        """Make a watcher and keep it; returns its id.

        Raises:
            QuotaExceeded: the sandbox has too many.
            AtCapacity: this server has.
        """
        self._forget_old()
        if sum(1 for of, _ in self._kept if of == sandbox) >= MAX_PER_SANDBOX:
            raise QuotaExceeded(f"This sandbox has {MAX_PER_SANDBOX} watchers; remove one of them.")
        if len(self._kept) >= MAX_WATCHERS:
            raise AtCapacity("This server watches as many directories as it may; try again later.")
        name = secrets.token_hex(8)
        self._kept[sandbox, name] = make()
        asyncio.get_running_loop().call_later(FORGET_SECONDS + 1, self._forget_old)
        return name

    def find(self, sandbox: str, name: str) -> PendingEvents:
        """A watcher.

        Raises:
            NotFound: the sandbox has none of that id.
        """
        if found := self._kept.get((sandbox, name)):
            return found
        raise NotFound(f"watcher {name[:64]!r} was not found; it was removed, or not asked for too long.")

    def remove(self, sandbox: str, name: str) -> None:
        """Forget a watcher.

        Raises:
            NotFound: the sandbox has none of that id.
        """
        self.find(sandbox, name).close()
        del self._kept[sandbox, name]

    def drop(self, sandbox: str, name: str | None = None) -> None:
        """Forget a watcher, if it is there; without a name, all of the sandbox's."""
        for key in [key for key in self._kept if key[0] == sandbox and name in (None, key[1])]:
            self._kept.pop(key).close()

    def _forget_old(self) -> None:
        oldest = time.monotonic() - FORGET_SECONDS
        for key, watcher in [*self._kept.items()]:
            if watcher.asked < oldest:
                watcher.close()
                del self._kept[key]

    async def stop(self) -> None:
        """Forget them all."""
        for watcher in self._kept.values():
            watcher.close()
        self._kept.clear()
