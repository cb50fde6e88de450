"""Directory watches of E2B's clients: the events that each has collected, and which watches there are.

The service watches a session's directory. ``exec_watch`` watches the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from kernelsvc.errors import AtCapacity, NotFound, QuotaExceeded
from kernelsvc.model.files import FileChange, FileEvent
from kernelsvc.model.objects import Principal
from kernelsvc.server.e2b import paths

if TYPE_CHECKING:
    from kernelsvc.service.api import FilesApi, FileWatch

#: Most pending events of one watcher, and about how many bytes they may have.
MAX_EVENTS, MAX_EVENT_BYTES = 4096, 2 << 20
#: Most watchers of one sandbox, of one principal and of this server. By default, Linux allows a user 128 inotify
#: instances.
MAX_PER_SANDBOX, MAX_PER_PRINCIPAL, MAX_WATCHERS = 16, 32, 100
#: Seconds without a poll after which a watcher gives way to another one of the same principal.
IDLE_SECONDS = 60.0
#: Seconds without a poll after which a watcher is closed.
FORGET_SECONDS = 600.0

#: E2B's names of the changes.
_TYPES: dict[FileChange, str] = {
    "create": "EVENT_TYPE_CREATE",
    "write": "EVENT_TYPE_WRITE",
    "remove": "EVENT_TYPE_REMOVE",
    "rename": "EVENT_TYPE_RENAME",
    "chmod": "EVENT_TYPE_CHMOD",
}
#: All types of events.
KINDS = frozenset(_TYPES.values())


class PendingEvents:
    """Events that a watcher has collected and the client has not read. Beyond a limit the oldest are dropped."""

    def __init__(self) -> None:
        self._events: deque[tuple[dict[str, Any], int]] = deque()
        self._bytes = 0
        self.news = asyncio.Event()
        self.asked = time.monotonic()

    def close(self) -> None:
        """Stop watching."""
        raise NotImplementedError

    def happened(self, event: dict[str, Any]) -> None:
        """Add an event."""
        size = len(msgspec.json.encode(event))
        self._events.append((event, size))
        self._bytes += size
        while len(self._events) > MAX_EVENTS or self._bytes > MAX_EVENT_BYTES:
            self._bytes -= self._events.popleft()[1]
        self.news.set()

    def take(self) -> list[dict[str, Any]]:
        """Return the events since the last call."""
        self.asked = time.monotonic()
        found = [event for event, _ in self._events]
        self._events.clear()
        self._bytes = 0
        self.news.clear()
        return found

    async def next(self, seconds: float) -> list[dict[str, Any]]:
        """Return the events since the last call. Waits ``seconds`` for one, then returns none. Safe to cancel."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.news.wait()
        return self.take()


class HomeWatcher(PendingEvents):
    """Watcher of a directory below the home directory.

    Args:
        top: the directory, relative to the home directory.
    """

    def __init__(self, top: bytes) -> None:
        super().__init__()
        self._top, self._prefix = top, top + b"/" if top else b""
        self._watch: FileWatch | None = None

    async def start(
        self, files: FilesApi, who: Principal, sandbox: str, *, recursive: bool, include_entry: bool
    ) -> None:
        """Begin to watch.

        Args:
            files: watches.
            who: the sandbox's owner.
            sandbox: its id.
            recursive: whether to watch directories below it.
            include_entry: whether an event describes its file.

        Raises:
            NotFound, AtCapacity: it can't be watched.
        """
        self._watch = await files.watch(
            who, sandbox, self._top, self._changed, recursive=recursive, statuses=include_entry
        )

    def close(self) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._watch.close()
        self.news.set()

    def _changed(self, event: FileEvent) -> None:
        name = event.path.removeprefix(self._prefix).decode("utf-8", "replace")
        said: dict[str, Any] = {"name": name, "type": _TYPES[event.change]}
        if event.status is not None:
            said["entry"] = paths.entry(event.status)
        self.happened(said)


class WatcherRegistry:
    """Watchers whose events clients poll, by sandbox and id."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], PendingEvents] = {}
        self._owners: dict[tuple[str, str], str] = {}

    def keep(self, principal: str, sandbox: str, watcher: PendingEvents) -> str:
        """Store a watcher and return its id. The principal's oldest idle one gives way if it has too many.

        Raises:
            QuotaExceeded: The sandbox or the principal has too many.
            AtCapacity: The server has too many.
        """
        self._forget_old()
        own = [key for key in self._kept if self._owners[key] == principal]
        if len(own) >= MAX_PER_PRINCIPAL:
            oldest = min(own, key=lambda key: self._kept[key].asked)
            if time.monotonic() - self._kept[oldest].asked < IDLE_SECONDS:
                raise QuotaExceeded(f"Your sandboxes have {MAX_PER_PRINCIPAL} watchers. Remove one of them.")
            self._close(oldest)
        if sum(1 for of, _ in self._kept if of == sandbox) >= MAX_PER_SANDBOX:
            raise QuotaExceeded(f"This sandbox has {MAX_PER_SANDBOX} watchers. Remove one of them.")
        if len(self._kept) >= MAX_WATCHERS:
            raise AtCapacity("This server has reached its limit of watchers. Try again later.")
        name = secrets.token_hex(8)
        self._kept[sandbox, name] = watcher
        self._owners[sandbox, name] = principal
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
        self.find(sandbox, name)
        self._close((sandbox, name))

    def drop(self, sandbox: str, name: str | None = None) -> None:
        """Close and remove a watcher if it exists. Without a name, all of the sandbox."""
        for key in [key for key in self._kept if key[0] == sandbox and name in (None, key[1])]:
            self._close(key)

    def _forget_old(self) -> None:
        oldest = time.monotonic() - FORGET_SECONDS
        for key, watcher in [*self._kept.items()]:
            if watcher.asked < oldest:
                self._close(key)

    def _close(self, key: tuple[str, str]) -> None:
        del self._owners[key]
        self._kept.pop(key).close()

    async def stop(self) -> None:
        """Close all watchers."""
        for watcher in self._kept.values():
            watcher.close()
        self._kept.clear()
        self._owners.clear()
