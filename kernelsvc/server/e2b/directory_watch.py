"""Directory watches of E2B's clients: inotify(7) on a session's directory.

A cell may put links into the directory at any time. Each watched directory is
therefore opened below the session's (``linux.rooted_dir``) and watched through its
descriptor, so that no link leads a watch outside. A watcher has a limited number of
directories and of pending events. Beyond a limit they are dropped.
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

#: Most directories of one watcher, and most of its pending events.
MAX_DIRECTORIES, MAX_EVENTS = 512, 4096
#: Most watchers of one sandbox and of this server. By default, Linux allows a user 128 inotify instances.
MAX_PER_SANDBOX, MAX_WATCHERS = 16, 100
#: Seconds without a poll after which a watcher is closed.
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
    """An event: its kind, the file, and whether the file is a directory."""

    kind: str
    parts: Parts
    directory: bool


def parse(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """Parse inotify(7) events into watch, mask, cookie and name."""
    found, at = [], 0
    while at + _EVENT.size <= len(data):
        watch, mask, cookie, size = _EVENT.unpack_from(data, at)
        at += _EVENT.size
        found.append((watch, mask, cookie, data[at : at + size].rstrip(b"\0")))
        at += size
    return found


#: All kinds of events.
KINDS = frozenset(_KINDS.values())


class PendingEvents:
    """Events that a watcher has collected and the client has not read. Beyond a limit the oldest are dropped."""

    def __init__(self) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=MAX_EVENTS)
        self.news = asyncio.Event()
        self.asked = time.monotonic()

    def close(self) -> None:
        """Stop watching."""
        raise NotImplementedError

    def happened(self, event: dict[str, Any]) -> None:
        """Add an event."""
        self._events.append(event)
        self.news.set()

    def take(self) -> list[dict[str, Any]]:
        """Return the events since the last call."""
        self.asked = time.monotonic()
        found = [*self._events]
        self._events.clear()
        self.news.clear()
        return found

    async def next(self, seconds: float) -> list[dict[str, Any]]:
        """Return the events since the last call. Waits ``seconds`` for one, then returns none. Safe to cancel."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.news.wait()
        return self.take()


class DirectoryWatcher(PendingEvents):
    """Watcher of one directory, optionally with the directories below it.

    Args:
        directory: The session's directory. The watcher closes it.
        top: The directory to watch.
        recursive: Whether to watch directories below it.
        include_entry: Whether an event describes its file.
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
            raise AtCapacity("This server has reached its limit of watched directories. Remove another watcher.")
        try:
            self._add(top)
        except BaseException:
            self.close()
            raise
        self._loop.add_reader(self._fd, self._read)

    def close(self) -> None:
        """Stop watching."""
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
        # proc(5): the link refers to the open file, even if its name was replaced by a symbolic link meanwhile.
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
        uploads = set()  # an upload is written under a temporary name and renamed
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
    """Watchers whose events clients poll, by sandbox and id."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], PendingEvents] = {}

    def keep(self, sandbox: str, make: Callable[[], PendingEvents]) -> str:
        """Make a watcher, store it and return its id.

        Raises:
            QuotaExceeded: The sandbox has too many.
            AtCapacity: The server has too many.
        """
        self._forget_old()
        if sum(1 for of, _ in self._kept if of == sandbox) >= MAX_PER_SANDBOX:
            raise QuotaExceeded(f"This sandbox has {MAX_PER_SANDBOX} watchers. Remove one of them.")
        if len(self._kept) >= MAX_WATCHERS:
            raise AtCapacity("This server has reached its limit of watchers. Try again later.")
        name = secrets.token_hex(8)
        self._kept[sandbox, name] = make()
        asyncio.get_running_loop().call_later(FORGET_SECONDS + 1, self._forget_old)
        return name

    def find(self, sandbox: str, name: str) -> PendingEvents:
        """Return a watcher.

        Raises:
            NotFound: The sandbox has no watcher of this id.
        """
        if found := self._kept.get((sandbox, name)):
            return found
        raise NotFound(f"watcher {name[:64]!r} was not found. It was removed, or not polled for too long.")

    def remove(self, sandbox: str, name: str) -> None:
        """Close and remove a watcher.

        Raises:
            NotFound: The sandbox has no watcher of this id.
        """
        self.find(sandbox, name).close()
        del self._kept[sandbox, name]

    def drop(self, sandbox: str, name: str | None = None) -> None:
        """Close and remove a watcher if it exists. Without a name, all of the sandbox."""
        for key in [key for key in self._kept if key[0] == sandbox and name in (None, key[1])]:
            self._kept.pop(key).close()

    def _forget_old(self) -> None:
        oldest = time.monotonic() - FORGET_SECONDS
        for key, watcher in [*self._kept.items()]:
            if watcher.asked < oldest:
                watcher.close()
                del self._kept[key]

    async def stop(self) -> None:
        """Close all watchers."""
        for watcher in self._kept.values():
            watcher.close()
        self._kept.clear()
