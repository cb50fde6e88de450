"""Files of a sandbox in E2B's format: ``filesystem.Filesystem/*``.

All files are in the session's directory, opened so that no path leads out of it
(``linux.rooted_dir``). A client's change is an event of the session, as with the
native API.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from kernelsvc.errors import BadRequest, KernelsvcError, NotFound
from kernelsvc.linux.rooted_dir import RootedDirectory, kind_of
from kernelsvc.protocol import e2b
from kernelsvc.server.e2b import paths
from kernelsvc.server.e2b.connect_rpc import AlreadyExists, RpcHandler
from kernelsvc.server.e2b.directory_watch import DirectoryWatcher, WatcherRegistry
from kernelsvc.server.e2b.exec_files import ExecFiles
from kernelsvc.server.e2b.exec_watch import watch_elsewhere

T = TypeVar("T")

#: Most entries of one listing.
MAX_ENTRIES = 10_000


class PathRequest(msgspec.Struct, kw_only=True):
    """``Stat``, ``MakeDir``, ``Remove``, ``ListDir``."""

    path: str = ""
    depth: int = 1


class MoveRequest(msgspec.Struct, kw_only=True):
    """``Move``."""

    source: str
    destination: str


class WatchRequest(msgspec.Struct, kw_only=True, rename="camel"):
    """``WatchDir``, ``CreateWatcher``."""

    path: str = ""
    recursive: bool = False
    include_entry: bool = False


class WatcherName(msgspec.Struct, kw_only=True, rename="camel"):
    """``GetWatcherEvents``, ``RemoveWatcher``."""

    watcher_id: str = ""


class FilesystemHandler(RpcHandler):
    """Base of the handlers of a sandbox's directory."""

    route = "/filesystem.Filesystem"
    port = e2b.FILES_PORT
    watchers: WatcherRegistry

    def directory(self) -> RootedDirectory:
        """Open the session's directory. The caller closes it."""
        return RootedDirectory(self.context.service.files_dir(self.who, self.sandbox))

    async def within(self, work: Callable[[RootedDirectory], T]) -> T:
        """Call ``work`` with the directory, in a thread, since it may take long."""

        def act() -> T:
            with self.directory() as directory:
                return work(directory)

        return await self.while_connected(asyncio.to_thread(act))

    def elsewhere(self) -> ExecFiles:
        """Return the files outside the home directory."""
        return ExecFiles(self.context.service, self.who, self.sandbox)

    def changed(self, op: str, parts: tuple[bytes, ...], **more: Any) -> None:
        """Log a change."""
        name = b"/".join(parts).decode("utf-8", "replace")
        self.context.service.files_changed(self.who, self.sandbox, [{"op": op, "path": name, **more}])


class StatHandler(FilesystemHandler):
    """Handler of ``Stat``."""

    async def post(self) -> None:
        """Describe a file."""
        path = self.message(PathRequest).path
        if paths.is_outside_home(path):
            self.answer({"entry": await self.while_connected(self.elsewhere().stat(paths.absolute(path)))})
            return
        parts = paths.parts_of(path)
        self.answer({"entry": await self.within(lambda d: paths.entry(d, parts))})


class ListDirHandler(FilesystemHandler):
    """Handler of ``ListDir``."""

    async def post(self) -> None:
        """List a directory to the requested depth."""
        wanted = self.message(PathRequest)
        if wanted.depth < 0:
            raise BadRequest("depth must be 1 or more.")
        if paths.is_outside_home(wanted.path):
            listing = self.elsewhere().list(paths.absolute(wanted.path), max(1, wanted.depth))
            self.answer({"entries": await self.while_connected(listing)})
            return
        parts = paths.parts_of(wanted.path)
        deepest = len(parts) + max(1, wanted.depth)

        self.answer({"entries": await self.within(lambda directory: _tree(directory, parts, deepest))})


def _tree(directory: RootedDirectory, top: tuple[bytes, ...], deepest: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    pending = [top]
    while pending and len(found) < MAX_ENTRIES:
        one = pending.pop(0)
        try:
            entries, _ = directory.list(one, recursive=False, limit=MAX_ENTRIES - len(found))
        except (NotFound, BadRequest):
            if one == top:
                raise
            continue  # it was removed, or replaced by a link, since it was listed
        for entry in entries:
            parts = tuple(entry.path.split(b"/"))
            try:
                found.append(paths.entry(directory, parts))
            except NotFound:
                continue
            if entry.kind == "directory" and len(parts) < deepest:
                pending.append(parts)
    return sorted(found, key=lambda entry: str(entry["path"]))


class MakeDirHandler(FilesystemHandler):
    """Handler of ``MakeDir``."""

    async def post(self) -> None:
        """Make a directory and its parents."""
        path = self.message(PathRequest).path
        if paths.is_outside_home(path):
            await self._make_elsewhere(paths.absolute(path))
            return
        parts = paths.parts_of(path)
        entry = await self.within(lambda directory: _make(directory, parts))
        self.changed("mkdir", parts)
        self.answer({"entry": entry})

    async def _make_elsewhere(self, path: str) -> None:
        if not await self.while_connected(self.elsewhere().make(path)):
            raise AlreadyExists("The directory exists already.")
        self.answer({"entry": await self.while_connected(self.elsewhere().stat(path))})


def _make(directory: RootedDirectory, parts: tuple[bytes, ...]) -> dict[str, Any]:
    try:
        info, _ = directory.stat_entry(parts)
    except NotFound:
        directory.make(parts)
        return paths.entry(directory, parts)
    if kind_of(info.st_mode) == "directory":
        raise AlreadyExists("The directory exists already.")
    raise BadRequest("A file has this name. Choose another.")


class MoveHandler(FilesystemHandler):
    """Handler of ``Move``."""

    async def post(self) -> None:
        """Rename a file or a directory."""
        wanted = self.message(MoveRequest)
        if paths.is_outside_home(wanted.source) or paths.is_outside_home(wanted.destination):
            await self._move_elsewhere(paths.absolute(wanted.source), paths.absolute(wanted.destination))
            return
        source, target = paths.parts_of(wanted.source), paths.parts_of(wanted.destination)
        if not source or not target:
            raise BadRequest("The home directory itself can't be moved or replaced.")

        def act(directory: RootedDirectory) -> dict[str, Any]:
            directory.move(source, target)
            return paths.entry(directory, target)

        entry = await self.within(act)
        self.changed("move", target, source=b"/".join(source).decode("utf-8", "replace"))
        self.answer({"entry": entry})

    async def _move_elsewhere(self, source: str, target: str) -> None:
        if paths.HOME in (source, target):
            raise BadRequest("The home directory itself can't be moved or replaced.")
        await self.while_connected(self.elsewhere().move(source, target))
        self.answer({"entry": await self.while_connected(self.elsewhere().stat(target))})


class RemoveHandler(FilesystemHandler):
    """Handler of ``Remove``."""

    async def post(self) -> None:
        """Remove a file, or a directory with its content."""
        path = self.message(PathRequest).path
        if paths.is_outside_home(path):
            await self.while_connected(self.elsewhere().remove(paths.absolute(path)))
            self.answer({})
            return
        parts = paths.parts_of(path)
        if not parts:
            raise BadRequest("The home directory itself can't be removed. Kill the sandbox instead.")
        await self.within(lambda directory: directory.delete(parts, recursive=True))
        self.changed("delete", parts)
        self.answer({})


# --- watching ------------------------------------------------------------------------------


class WatchingHandler(FilesystemHandler):
    """Base of the handlers that make watchers."""

    async def keep(self, wanted: WatchRequest) -> str:
        """Make a watcher, store it and return its id.

        Raises:
            NotFound: There is no such directory.
            QuotaExceeded, AtCapacity: There are too many watchers.
        """
        how = {"recursive": wanted.recursive, "include_entry": wanted.include_entry}
        if not paths.is_outside_home(wanted.path):
            parts = paths.parts_of(wanted.path)
            return self.watchers.keep(self.sandbox, lambda: DirectoryWatcher(self.directory(), parts, **how))
        place = paths.absolute(wanted.path)
        made = await watch_elsewhere(self.context.service, self.who, self.sandbox, place, **how)
        try:
            return self.watchers.keep(self.sandbox, lambda: made)
        except KernelsvcError:
            made.close()
            raise


class CreateWatcherHandler(WatchingHandler):
    """Handler of ``CreateWatcher``."""

    async def post(self) -> None:
        """Begin to watch. The client polls for events."""
        self.answer({"watcherId": await self.while_connected(self.keep(self.message(WatchRequest)))})


class GetWatcherEventsHandler(FilesystemHandler):
    """Handler of ``GetWatcherEvents``."""

    async def post(self) -> None:
        """Return the events since the last call."""
        found = self.watchers.find(self.sandbox, self.message(WatcherName).watcher_id)
        self.answer({"events": found.take()})


class RemoveWatcherHandler(FilesystemHandler):
    """Handler of ``RemoveWatcher``."""

    async def post(self) -> None:
        """Stop watching."""
        self.watchers.remove(self.sandbox, self.message(WatcherName).watcher_id)
        self.answer({})


class WatchDirHandler(WatchingHandler):
    """Handler of ``WatchDir``."""

    async def post(self) -> None:
        """Stream events for as long as the client reads them."""
        await self.stream(self._watch())

    async def _watch(self) -> None:
        name = await self.keep(self.message(WatchRequest))
        watcher = self.watchers.find(self.sandbox, name)
        try:
            await self.send_message({"start": {}})
            while True:
                events = await watcher.next(self.pause())
                self.require_running(None)
                for event in events:
                    await self.send_message({"filesystem": event})
                if not events:
                    await self.send_message({"keepalive": {}})
        finally:
            self.watchers.drop(self.sandbox, name)


_CALLS = {
    "Stat": StatHandler,
    "ListDir": ListDirHandler,
    "MakeDir": MakeDirHandler,
    "Move": MoveHandler,
    "Remove": RemoveHandler,
    "CreateWatcher": CreateWatcherHandler,
    "GetWatcherEvents": GetWatcherEventsHandler,
    "RemoveWatcher": RemoveWatcherHandler,
    "WatchDir": WatchDirHandler,
}
ROUTES: list[tuple[str, Any]] = [(rf"/filesystem\.Filesystem/{name}", handler) for name, handler in _CALLS.items()]
