"""A program that watches a directory inside a session's sandbox and writes events to standard output.

An interpreter in the sandbox gets it as text, since kernelsvc need not be installed there. So it uses the standard
library only and imports no other module of kernelsvc. Arguments: the directory, ``1`` to watch subdirectories, ``1`` to
describe files. The first line of output is ``{"ready": true}``, each further line is an event. Exit status if it can't
start: 44 if the path does not exist, 45 if it is not a directory, 46 if Linux has no watches left (inotify(7),
``max_user_watches``).
"""

from __future__ import annotations

import ctypes
import json
import os
import stat
import struct
import sys

MISSING, NO_DIRECTORY, NO_WATCHES = 44, 45, 46
MAX_DIRECTORIES = 512
#: Masks of linux/inotify.h, and E2B's names of events.
_KINDS = {
    0x100: "EVENT_TYPE_CREATE",
    0x80: "EVENT_TYPE_CREATE",
    0x2: "EVENT_TYPE_WRITE",
    0x200: "EVENT_TYPE_REMOVE",
    0x40: "EVENT_TYPE_RENAME",
    0x4: "EVENT_TYPE_CHMOD",
}
_ONLYDIR, _DONT_FOLLOW, _ISDIR = 0x0100_0000, 0x0200_0000, 0x4000_0000
_MASK = sum(_KINDS) | _ONLYDIR | _DONT_FOLLOW
_EVENT = struct.Struct("iIII")


def shown(path: str) -> str:
    """Return a path as text. Bytes that are not UTF-8 become U+FFFD."""
    return os.fsencode(path).decode("utf-8", "replace")


def described(path: str) -> dict[str, object] | None:
    """Return mode, size, modification time and link target of a file, or None if it no longer exists."""
    try:
        info = os.lstat(path)
        target = os.readlink(path) if stat.S_ISLNK(info.st_mode) else None
    except OSError:
        return None
    return {
        "mode": info.st_mode,
        "size": info.st_size,
        "modified": info.st_mtime_ns,
        "target": target and shown(target),
    }


class Watch:
    """The watched directories, by inotify's watch descriptors."""

    def __init__(self, top: str, recursive: bool) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.top, self.recursive = top, recursive
        self.fd = self.libc.inotify_init1(os.O_CLOEXEC)
        self.known: dict[int, str] = {}

    def add(self, path: str) -> bool:
        """Watch a directory, and its subdirectories if the watch is recursive. Return False if Linux refused."""
        if len(self.known) >= MAX_DIRECTORIES:
            return False
        number = self.libc.inotify_add_watch(self.fd, os.fsencode(path), _MASK)
        if number < 0:
            return False
        self.known[number] = path
        if self.recursive:
            try:
                below = [entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
            except OSError:
                below = []
            for each in below:
                self.add(each)
        return True

    def events(self) -> list[tuple[str, str, bool]]:
        """Wait for events and return them: kind, path, and whether the path is a directory."""
        data, found, at = os.read(self.fd, 65536), [], 0
        while at + _EVENT.size <= len(data):
            number, mask, _, size = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            name = os.fsdecode(data[at : at + size].rstrip(b"\0"))
            at += size
            if number in self.known and name:
                path = os.path.join(self.known[number], name)
                found += [(kind, path, bool(mask & _ISDIR)) for bit, kind in _KINDS.items() if mask & bit]
        return found


def main(top: str, recursive: bool, describe: bool) -> int:
    """Watch without end. Return an exit status if it can't start."""
    if not os.path.lexists(top):
        return MISSING
    if not os.path.isdir(top):
        return NO_DIRECTORY
    watch = Watch(top, recursive)
    if watch.fd < 0 or not watch.add(top):
        return NO_WATCHES
    lines: list[dict[str, object]] = [{"ready": True}]
    while True:
        for each in lines:
            sys.stdout.write(json.dumps(each) + "\n")
        sys.stdout.flush()
        lines = []
        for kind, path, directory in watch.events():
            if recursive and directory and kind == "EVENT_TYPE_CREATE":
                watch.add(path)
            event: dict[str, object] = {"type": kind, "name": shown(os.path.relpath(path, top))}
            if describe:
                event["entry"] = described(path)
            lines.append(event)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2] == "1", sys.argv[3] == "1"))
