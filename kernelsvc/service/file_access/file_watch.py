"""Watches of sessions' directories: inotify(7).

A cell may put links into the directory at any time. Each watched directory is
therefore opened below the session's (``linux.rooted_dir``) and watched through its
descriptor, so that no link leads a watch outside. A watcher has a limited number of directories.

A cell can cause events without end, and directories are read on the event loop, too. So watchers take turns
(``linux.turns``). What Linux can't queue meanwhile (16,384 events) is lost.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections import deque

from kernelsvc.errors import AtCapacity, KernelsvcError
from kernelsvc.linux.rooted_dir import MAX_DEPTH, TEMPORARY, RootedDirectory, explained
from kernelsvc.linux.turns import Turns
from kernelsvc.model.files import FileChange, FileEvent, FileStatus, kind_of, status_of
from kernelsvc.service.api import OnFileEvent

#: Most directories of one watcher.
MAX_DIRECTORIES = 512
#: Seconds for the directories that are there when a watch begins. The others follow in turns.
BEGIN_SECONDS = 0.05
#: Bytes of one read, about a hundred events.
_READ = 4096
#: The second event of a rename usually follows the first one (inotify(7)). A few may come between them.
UPLOADS_KEPT = 64

# linux/inotify.h
_MODIFY, _ATTRIB, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x4, 0x40, 0x80, 0x100, 0x200
_ONLYDIR, _ISDIR, _OVERFLOW = 0x0100_0000, 0x4000_0000, 0x4000
_MASK = _MODIFY | _ATTRIB | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _ONLYDIR
_EVENT = struct.Struct("iIII")
_CHANGES: dict[int, FileChange] = {
    _CREATE: "create",
    _MOVED_TO: "create",
    _ATTRIB: "chmod",
    _MODIFY: "write",
    _DELETE: "remove",
    _MOVED_FROM: "rename",
}

_libc = ctypes.CDLL(None, use_errno=True)

Parts = tuple[bytes, ...]


def parse(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """Parse inotify(7) events into watch, mask, cookie and name."""
    found, at = [], 0
    while at + _EVENT.size <= len(data):
        watch, mask, cookie, size = _EVENT.unpack_from(data, at)
        at += _EVENT.size
        found.append((watch, mask, cookie, data[at : at + size].rstrip(b"\0")))
        at += size
    return found


def read_status(directory: RootedDirectory, parts: Parts, *, attributes: bool) -> FileStatus:
    """Describe an entry.

    Raises:
        KernelsvcError: it does not exist.
    """
    info, target = directory.stat_entry(parts)
    return status_of(b"/".join(parts), info, target, directory.attributes(parts) if attributes else None)


class DirectoryWatcher:
    """Watcher of one directory, optionally with the directories below it. Implements ``FileWatch``.

    Args:
        directory: the session's directory. The watcher closes it.
        top: the directory to watch.
        on_event: called in the event loop with each change. It must not raise.
        turns: those of all watchers of the server.
        recursive: whether to watch directories below it.
        statuses: whether an event describes its entry.

    Raises:
        AtCapacity: the limit of inotify instances or watches is reached.
        KernelsvcError: there is no such directory.
    """

    def __init__(
        self,
        directory: RootedDirectory,
        top: Parts,
        on_event: OnFileEvent,
        turns: Turns,
        *,
        recursive: bool,
        statuses: bool,
    ) -> None:
        self._directory, self._top, self._on_event = directory, top, on_event
        self._turns, self._recursive, self._statuses = turns, recursive, statuses
        self._watched: dict[int, Parts] = {}
        self._unseen: deque[Parts] = deque()  # directories that are to be watched
        self._events: deque[tuple[int, int, int, bytes]] = deque()
        # Cookies of the last renames of files that were written under a temporary name.
        self._uploads: deque[int] = deque(maxlen=UPLOADS_KEPT)
        self._loop = asyncio.get_running_loop()
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            directory.close()
            raise AtCapacity("This server has reached its limit of watched directories. Remove another watcher.")
        try:
            self._add(top)
            self._add_unseen(self._loop.time() + BEGIN_SECONDS)
        except BaseException:
            self.close()
            raise
        self._wait()

    def _wait(self) -> None:
        """Wait for a turn if there is something to do, or for Linux to report something."""
        if self._unseen or self._events:
            self._turns.wait(self._work)
        else:
            self._loop.add_reader(self._fd, self._on_readable)

    def _on_readable(self) -> None:
        self._loop.remove_reader(self._fd)
        self._turns.wait(self._work)

    def _work(self, until: float) -> None:
        """Report events until a time on the event loop's clock."""
        if self._fd < 0:
            return  # it was closed while it waited
        self._add_unseen(until)
        if not (self._unseen or self._events):
            self._read()
        while self._events and not self._unseen and self._fd >= 0:
            self._take(*self._events.popleft())
            self._add_unseen(until)
            if self._loop.time() >= until:
                break
        if self._fd >= 0:
            self._wait()

    def close(self) -> None:
        """Stop watching. Idempotent."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._directory.close()

    # -- what is watched ------------------------------------------------------------------------

    def _add_unseen(self, until: float) -> None:
        """Watch directories that are not watched yet, one or more, until a time on the event loop's clock."""
        while self._unseen:
            if len(self._watched) >= MAX_DIRECTORIES:
                self._unseen.clear()
                return
            self._add(self._unseen.pop())
            if self._loop.time() >= until:
                return

    def _add(self, parts: Parts) -> None:
        try:
            fd = self._directory.open_directory(parts)
        except KernelsvcError:
            if not self._watched:  # it is the top
                raise
            return
        try:
            if not self._add_descriptor(fd, parts):
                self._unseen.clear()
                return
        finally:
            os.close(fd)
        if self._recursive and len(parts) < MAX_DEPTH:
            self._unseen += self._below(parts)[: MAX_DIRECTORIES - len(self._unseen)]

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
            entries, _ = self._directory.list(parts, depth=1, limit=MAX_DIRECTORIES)
        except KernelsvcError:
            return []
        return [tuple(path.split(b"/")) for path, info in entries if kind_of(info.st_mode) == "directory"]

    # -- what happens ---------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            self._events += parse(os.read(self._fd, _READ))
        except OSError:
            return

    def _take(self, watch: int, mask: int, cookie: int, name: bytes) -> None:
        parts = self._watched.get(watch)
        if name.startswith(TEMPORARY):
            self._uploads.append(cookie)
        elif not mask & _OVERFLOW and parts is not None and name:
            # An upload gets its owner and its content under a temporary name. E2B's writes happen in place.
            bits = mask | _ATTRIB | _MODIFY if mask & _MOVED_TO and cookie in self._uploads else mask
            for change in (change for bit, change in _CHANGES.items() if bits & bit):
                self._happened(change, (*parts, name), is_directory=bool(mask & _ISDIR))

    def _happened(self, change: FileChange, parts: Parts, *, is_directory: bool) -> None:
        if self._recursive and is_directory and change == "create":
            self._unseen.append(parts)
        status = self._status(parts) if self._statuses else None
        self._on_event(FileEvent(change=change, path=b"/".join(parts), status=status))

    def _status(self, parts: Parts) -> FileStatus | None:
        try:
            return read_status(self._directory, parts, attributes=True)
        except KernelsvcError:  # it was removed meanwhile
            return None
