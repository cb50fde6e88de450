"""Files of a sandbox as E2B's clients know them: ``filesystem.Filesystem/*``.

All of it is the session's directory, opened so that nothing leads out of it
(``transports.beneath``). What a client changes is an event of the session, as it
is through the native door.
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

#: Entries of one listing.
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
    """Base: the sandbox's directory."""

    route = "/filesystem.Filesystem"
    port = e2b.FILES_PORT
    watchers: WatcherRegistry

    def directory(self) -> RootedDirectory:
        """The session's directory; the caller closes it."""
        return RootedDirectory(self.context.service.files_dir(self.who, self.sandbox))

    async def within(self, work: Callable[[RootedDirectory], T]) -> T:
        """Do something in the directory, in a thread: it may take long."""

        def act() -> T:
            with self.directory() as directory:
                return work(directory)

        return await self.while_connected(asyncio.to_thread(act))

    def elsewhere(self) -> ExecFiles:
        """What lies outside the home directory."""
        return ExecFiles(self.context.service, self.who, self.sandbox)

    def changed(self, op: str, parts: tuple[bytes, ...], **more: Any) -> None:
        """Put a change on record."""
        name = b"/".join(parts).decode("utf-8", "replace")
        self.context.service.files_changed(self.who, self.sandbox, [{"op": op, "path": name, **more}])


class StatHandler(FilesystemHandler):
    """``Stat``."""

    async def post(self) -> None:
        """What a name is."""
        path = self.message(PathRequest).path
        if paths.is_outside_home(path):
            self.answer({"entry": await self.while_connected(self.elsewhere().stat(paths.absolute(path)))})
            return
        parts = paths.parts_of(path)
        self.answer({"entry": await self.within(lambda d: paths.entry(d, parts))})


class ListDirHandler(FilesystemHandler):
    """``ListDir``."""

    async def post(self) -> None:
        """What lies in a directory, as deep as is asked for."""
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
            continue  # it went away, or became a link, since it was seen
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
    """``MakeDir``."""

    async def post(self) -> None:
        """Make a directory, and those on its way."""
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
        info, _ = directory.look(parts)
    except NotFound:
        directory.make(parts)
        return paths.entry(directory, parts)
    if kind_of(info.st_mode) == "directory":
        raise AlreadyExists("The directory exists already.")
    raise BadRequest("The name is taken by something that is no directory; choose another.")


class MoveHandler(FilesystemHandler):
    """``Move``."""

    async def post(self) -> None:
        """Give a file or a directory another name."""
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
    """``Remove``."""

    async def post(self) -> None:
        """Remove a file, or a directory with all that is in it."""
        path = self.message(PathRequest).path
        if paths.is_outside_home(path):
            await self.while_connected(self.elsewhere().remove(paths.absolute(path)))
            self.answer({})
            return
        parts = paths.parts_of(path)
        if not parts:
            raise BadRequest("The home directory itself can't be removed; kill the sandbox instead.")
        await self.within(lambda directory: directory.delete(parts, recursive=True))
        self.changed("delete", parts)
        self.answer({})


# --- watching ------------------------------------------------------------------------------


class WatchingHandler(FilesystemHandler):
    """Base of what makes watchers."""

    async def keep(self, wanted: WatchRequest) -> str:
        """Make a watcher and keep it; returns its id.

        Raises:
            NotFound: there is no such directory.
            QuotaExceeded, AtCapacity: there are too many.
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
    """``CreateWatcher``."""

    async def post(self) -> None:
        """Begin to watch; its events are asked for."""
        self.answer({"watcherId": await self.while_connected(self.keep(self.message(WatchRequest)))})


class GetWatcherEventsHandler(FilesystemHandler):
    """``GetWatcherEvents``."""

    async def post(self) -> None:
        """What happened since the last time."""
        found = self.watchers.find(self.sandbox, self.message(WatcherName).watcher_id)
        self.answer({"events": found.take()})


class RemoveWatcherHandler(FilesystemHandler):
    """``RemoveWatcher``."""

    async def post(self) -> None:
        """Watch no more."""
        self.watchers.remove(self.sandbox, self.message(WatcherName).watcher_id)
        self.answer({})


class WatchDirHandler(WatchingHandler):
    """``WatchDir``."""

    async def post(self) -> None:
        """Watch for as long as the client listens."""
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
