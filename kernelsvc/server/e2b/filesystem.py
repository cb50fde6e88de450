"""Files of a sandbox in E2B's format: ``filesystem.Filesystem/*``.

Files of the home directory go through the service's port for files (``FilesApi``), all others through programs in
the sandbox (``exec_files``).
"""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec

from kernelsvc.errors import BadRequest, KernelsvcError, NotFound
from kernelsvc.protocol import e2b
from kernelsvc.server.e2b import paths
from kernelsvc.server.e2b.connect_rpc import AlreadyExists, RpcHandler
from kernelsvc.server.e2b.directory_watch import HomeWatcher, PendingEvents, WatcherRegistry
from kernelsvc.server.e2b.exec_files import ExecFiles
from kernelsvc.server.e2b.exec_watch import watch_elsewhere
from kernelsvc.server.e2b.links import HomeLinks

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

    async def entry(self, path: bytes) -> dict[str, Any]:
        """Describe a file in the home directory.

        Raises:
            KernelsvcError: It does not exist.
        """
        files = self.context.service.files
        return await self.links().entry(await files.stat(self.who, self.sandbox, path, attributes=True))

    def links(self) -> HomeLinks:
        """Return the links in the home directory."""
        return HomeLinks(self.context.service.files, self.who, self.sandbox)

    def elsewhere(self) -> ExecFiles:
        """Return the files outside the home directory."""
        return ExecFiles(self.context.service, self.who, self.sandbox)


class StatHandler(FilesystemHandler):
    """Handler of ``Stat``."""

    async def post(self) -> None:
        """Describe a file."""
        path = await self.links().resolve(self.message(PathRequest).path, last=False)
        if paths.is_outside_home(path):
            self.answer({"entry": await self.while_connected(self.elsewhere().stat(path))})
            return
        self.answer({"entry": await self.entry(paths.below_home(path))})


class ListDirHandler(FilesystemHandler):
    """Handler of ``ListDir``."""

    async def post(self) -> None:
        """List a directory to the requested depth."""
        wanted = self.message(PathRequest)
        if wanted.depth < 0:
            raise BadRequest("depth must be 1 or more.")
        path = await self.links().resolve(wanted.path)
        if paths.is_outside_home(path):
            outside = self.elsewhere().list(path, max(1, wanted.depth))
            self.answer({"entries": await self.while_connected(outside)})
            return
        async with self.context.turn_of(self.who, "files"):
            listing = self.context.service.files.list(
                self.who,
                self.sandbox,
                paths.below_home(path),
                depth=max(1, wanted.depth),
                limit=MAX_ENTRIES,
                attributes=True,
            )
            found, _ = await self.while_connected(listing)
            entries = await self.while_connected(self.links().entries(found))
            self.answer({"entries": sorted(entries, key=lambda entry: str(entry["path"]))})


class MakeDirHandler(FilesystemHandler):
    """Handler of ``MakeDir``."""

    async def post(self) -> None:
        """Make a directory and its parents."""
        path = await self.links().resolve(self.message(PathRequest).path)
        if paths.is_outside_home(path):
            await self._make_elsewhere(path)
            return
        home_path = paths.below_home(path)
        await self._require_free(home_path)
        await self.context.service.files.make_directory(self.who, self.sandbox, home_path)
        self.answer({"entry": await self.entry(home_path)})

    async def _require_free(self, path: bytes) -> None:
        try:
            present = await self.context.service.files.stat(self.who, self.sandbox, path)
        except NotFound:
            return
        if present.kind == "directory":
            raise AlreadyExists("The directory exists already.")
        raise BadRequest("A file has this name. Choose another.")

    async def _make_elsewhere(self, path: str) -> None:
        if not await self.while_connected(self.elsewhere().make(path)):
            raise AlreadyExists("The directory exists already.")
        self.answer({"entry": await self.while_connected(self.elsewhere().stat(path))})


class MoveHandler(FilesystemHandler):
    """Handler of ``Move``."""

    async def post(self) -> None:
        """Rename a file or a directory."""
        wanted = self.message(MoveRequest)
        old = await self.links().resolve(wanted.source, last=False)
        new = await self.links().resolve(wanted.destination, last=False)
        if paths.is_outside_home(old) or paths.is_outside_home(new):
            await self._move_elsewhere(old, new)
            return
        source, target = paths.below_home(old), paths.below_home(new)
        if not source or not target:
            raise BadRequest("The home directory itself can't be moved or replaced.")
        await self.context.service.files.move(self.who, self.sandbox, source, target)
        self.answer({"entry": await self.entry(target)})

    async def _move_elsewhere(self, source: str, target: str) -> None:
        if paths.HOME in (source, target):
            raise BadRequest("The home directory itself can't be moved or replaced.")
        await self.while_connected(self.elsewhere().move(source, target))
        self.answer({"entry": await self.while_connected(self.elsewhere().stat(target))})


class RemoveHandler(FilesystemHandler):
    """Handler of ``Remove``."""

    async def post(self) -> None:
        """Remove a file, or a directory with its content. Do nothing if it does not exist, as E2B does."""
        path = await self.links().resolve(self.message(PathRequest).path, last=False)
        if paths.is_outside_home(path):
            await self.while_connected(self.elsewhere().remove(path))
            self.answer({})
            return
        home_path = paths.below_home(path)
        if not home_path:
            raise BadRequest("The home directory itself can't be removed. Kill the sandbox instead.")
        removal = self.context.service.files.remove(self.who, self.sandbox, home_path, recursive=True)
        with contextlib.suppress(NotFound):
            await self.while_connected(removal)
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
        watcher = await self._watch_path(wanted)
        try:
            return self.watchers.keep(self.who.name, self.sandbox, watcher)
        except KernelsvcError:
            watcher.close()
            raise

    async def _watch_path(self, wanted: WatchRequest) -> PendingEvents:
        service, how = self.context.service, {"recursive": wanted.recursive, "include_entry": wanted.include_entry}
        path = await self.links().resolve(wanted.path)
        if paths.is_outside_home(path):
            return await watch_elsewhere(service, self.who, self.sandbox, path, **how)
        watcher = HomeWatcher(paths.below_home(path))
        await watcher.start(service.files, self.who, self.sandbox, **how)
        return watcher


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
