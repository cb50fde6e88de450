"""Files of sessions' working directories. The content is hostile: all access is through ``linux.rooted_dir``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from kernelsvc.errors import KernelsvcError
from kernelsvc.linux.rooted_dir import RootedDirectory, Upload, parse_path
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.linux.turns import Turns
from kernelsvc.model import events as ev
from kernelsvc.model.files import FileStatus, StoredFile, etag_of, status_of
from kernelsvc.model.objects import Principal
from kernelsvc.service.api import Files, OnFileEvent
from kernelsvc.service.file_access.file_watch import DirectoryWatcher, read_status
from kernelsvc.service.file_access.upload_room import UploadRoom, UploadRooms
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.store.sessions import SessionDirectories

#: Most bytes that are read in the event loop and not in a thread.
SHORT_READ = 1024 * 1024

T = TypeVar("T")
Parts = tuple[bytes, ...]


def parts_of(path: bytes) -> Parts:
    """Return the components of a path, none for the directory itself.

    Raises:
        BadRequest: the path is absolute, too long or too deep, or has an empty part, "." or "..".
    """
    return parse_path(path) if path else ()


def _commit(upload: Upload) -> StoredFile:
    sha256, info = upload.commit()
    return StoredFile(size=upload.size, sha256=sha256, etag=etag_of(info))


def _put_change(path: bytes, stored: StoredFile) -> dict[str, Any]:
    return {"op": "put", "path": shown(path), "size": stored.size, "sha256": stored.sha256}


class OpenFile:
    """A file that is open for reading. Implements ``FileReader``.

    Args:
        fd: its descriptor, which ``close`` closes.
        status: its description.
    """

    def __init__(self, fd: int, status: FileStatus) -> None:
        self._fd, self.status = fd, status

    async def read(self, offset: int, limit: int) -> bytes:
        """Return some of the bytes from ``offset``, none at the end. Safe to cancel."""
        if limit <= SHORT_READ:
            return os.pread(self._fd, limit, offset)
        return await asyncio.to_thread(os.pread, self._fd, limit, offset)

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class OpenUpload:
    """A file that is being written. Implements ``FileWriter``.

    Args:
        path: of the file.
        upload: the temporary file.
        record: journals the change.
        room: of the directory.
        leave: called once at the end.
    """

    def __init__(
        self,
        path: bytes,
        upload: Upload,
        record: Callable[[dict[str, Any]], None],
        room: UploadRoom,
        leave: Callable[[], None],
    ) -> None:
        self._path, self._upload, self._record = path, upload, record
        self._room, self._leave = room, leave
        self._committed = self._closed = False
        present = upload.current()
        self.replaces = None if present is None else status_of(path, present)

    async def write(self, data: bytes) -> None:
        """Append data. After an error only ``close`` is possible.

        Raises:
            TooLarge: the directory has no room for it.
            KernelsvcError: the disk is full or failed.
        """
        await self._room.take(len(data))
        try:
            self._upload.write(data)
        except BaseException:
            self._room.give_back(len(data))
            raise

    async def commit(self) -> StoredFile:
        """Give the file its name and record the change.

        Raises:
            KernelsvcError: the name is that of a directory, or the session has ended.
        """
        stored = _commit(self._upload)
        self._committed = True
        self._record(_put_change(self._path, stored))
        return stored

    def close(self) -> None:
        """Remove the temporary file if ``commit`` did not succeed. Idempotent."""
        self._upload.abort()
        if self._closed:
            return
        self._closed = True
        if not self._committed:
            self._room.give_back(self._upload.size)
        self._leave()


class SessionFiles:
    """The files of all sessions. Implements ``FilesApi``.

    Args:
        registry: all sessions.
        store: the directories of all sessions.
    """

    def __init__(self, registry: SessionRegistry, store: SessionDirectories) -> None:
        self._registry, self._store = registry, store
        self._changes = OwnedTasks()
        self._watch_turns = Turns()
        self._rooms = UploadRooms(lambda name: registry.get(name) is not None)

    def _directory(self, who: Principal, session: str, *, change: bool = False) -> RootedDirectory:
        """Open a session's directory. The caller closes it."""
        found = self._registry.find_open(who, session) if change else self._registry.find(who, session)
        return RootedDirectory(self._store.directory(found.id).working())

    async def _enter(self, who: Principal, session: str) -> tuple[str, UploadRoom]:
        """Return the name of a directory, and its room for one more upload."""
        found = self._registry.find_open(who, session)
        directory = str(self._store.directory(found.id).working())
        measured = self._registry.measured_disk(found.id)
        return found.id, await self._rooms.enter(found.id, found.limits.disk_bytes, directory, measured)

    def _record(self, who: Principal, session: str, change: dict[str, Any]) -> None:
        self._registry.find(who, session, "run").record(ev.FilesChanged(files=[change], by=who.name))

    async def stat(self, who: Principal, session: str, path: bytes, *, attributes: bool = False) -> FileStatus:
        """Describe an entry, with its extended attributes if ``attributes``. Safe to cancel.

        Raises:
            KernelsvcError: it does not exist.
        """
        with self._directory(who, session) as directory:
            return read_status(directory, parts_of(path), attributes=attributes)

    async def list(
        self,
        who: Principal,
        session: str,
        path: bytes,
        *,
        depth: int | None = 1,
        limit: int = 1000,
        attributes: bool = False,
    ) -> tuple[Files, bool]:
        """Return at most ``limit`` entries of a directory, sorted by path, and whether there are more. Safe to cancel.

        Args:
            who: the caller.
            session: its id.
            path: the directory.
            depth: number of levels. None for all.
            limit: most entries.
            attributes: whether to read extended attributes.

        Raises:
            KernelsvcError: it is no directory.
        """
        parts = parts_of(path)

        def collect(directory: RootedDirectory) -> tuple[Files, bool]:
            entries, more = directory.list(parts, depth=depth, limit=limit)
            described = (_described(directory, name, info, attributes=attributes) for name, info in entries)
            return [status for status in described if status is not None], more

        return await self._in_thread(self._directory(who, session), collect)

    async def open(self, who: Principal, session: str, path: bytes) -> OpenFile:
        """Open a regular file for reading. The caller closes it.

        Raises:
            KernelsvcError: it does not exist, is no regular file, or has a second link, which may lie outside.
        """
        with self._directory(who, session) as directory:
            fd, info = directory.open_file(parts_of(path))
        return OpenFile(fd, status_of(path, info))

    async def write(
        self,
        who: Principal,
        session: str,
        path: bytes,
        *,
        attributes: Mapping[str, bytes] | None = None,
        record: bool = True,
    ) -> OpenUpload:
        """Begin to write a file, with missing parents. The caller closes it.

        Args:
            who: the caller.
            session: its id.
            path: of the file.
            attributes: extended attributes (xattr(7)) that the file gets.
            record: whether ``commit`` records an event.

        Raises:
            SessionClosed: the session has ended.
            NotSupported, TooLarge: the disk does not take the attributes, or the directory has no room.
            KernelsvcError: a part of the path is a link or a file, or the disk is full.
        """
        parts = parse_path(path)
        self._directory(who, session, change=True).close()  # a caller without rights has nothing measured
        name, room = await self._enter(who, session)
        try:
            with self._directory(who, session, change=True) as directory:
                upload = directory.upload(parts)
            try:
                upload.describe(attributes or {})
            except BaseException:
                upload.abort()
                raise
        except BaseException:
            self._rooms.leave(name, room)
            raise
        return OpenUpload(
            path,
            upload,
            lambda change: self._record(who, session, change) if record else None,
            room,
            lambda: self._rooms.leave(name, room),
        )

    async def put(self, who: Principal, session: str, path: bytes, data: bytes, *, record: bool = True) -> StoredFile:
        """Write a file, whole or not at all. Safe to cancel: it happens anyway, with its event.

        Raises:
            KernelsvcError: as ``write``.
        """
        parts = parse_path(path)

        def store(directory: RootedDirectory) -> StoredFile:
            upload = directory.upload(parts)
            try:
                upload.write(data)
                return _commit(upload)
            finally:
                upload.abort()

        describe = partial(_put_change, path) if record else None
        self._directory(who, session, change=True).close()
        name, room = await self._enter(who, session)
        try:
            await room.take(len(data))
            try:
                return await self._change(who, session, store, describe)
            except KernelsvcError:
                room.give_back(len(data))
                raise
        finally:
            self._rooms.leave(name, room)

    async def make_directory(self, who: Principal, session: str, path: bytes) -> None:
        """Make a directory and missing parents. An existing directory is no error. Safe to cancel.

        Raises:
            SessionClosed: the session has ended.
            KernelsvcError: a part of the path is a link or a file, or the disk is full.
        """
        parts = parse_path(path)
        change = {"op": "mkdir", "path": shown(path)}
        await self._change(who, session, lambda directory: directory.make(parts), lambda _: change)

    async def move(self, who: Principal, session: str, source: bytes, target: bytes) -> None:
        """Rename an entry. It makes missing parents, and an entry with the new name is replaced. Safe to cancel.

        Raises:
            SessionClosed: the session has ended.
            KernelsvcError: it does not exist, or the new name is that of a directory that is not empty.
        """
        old, new = parse_path(source), parse_path(target)
        change = {"op": "move", "path": shown(target), "source": shown(source)}
        await self._change(who, session, lambda directory: directory.move(old, new), lambda _: change)

    async def remove(
        self, who: Principal, session: str, path: bytes, *, recursive: bool = False, record: bool = True
    ) -> None:
        """Remove a file, a link (not its target) or a directory. Safe to cancel: it happens anyway, with its event.

        Args:
            who: the caller.
            session: its id.
            path: of the entry.
            recursive: whether a directory may have content.
            record: whether an event is recorded.

        Raises:
            SessionClosed: the session has ended.
            KernelsvcError: it does not exist, or is a directory that is not empty.
        """
        parts = parse_path(path)
        change = {"op": "delete", "path": shown(path)}

        def delete(directory: RootedDirectory) -> None:
            directory.delete(parts, recursive=recursive)

        await self._change(who, session, delete, (lambda _: change) if record else None)

    async def watch(
        self,
        who: Principal,
        session: str,
        path: bytes,
        on_event: OnFileEvent,
        *,
        recursive: bool = False,
        statuses: bool = False,
    ) -> DirectoryWatcher:
        """Watch a directory for changes, by anyone, until ``close``.

        Args:
            who: the caller.
            session: its id.
            path: the directory.
            on_event: called in the event loop with each change. It must not raise.
            recursive: whether to watch the directories below it.
            statuses: whether an event describes its entry.

        Raises:
            NotFound: there is no such directory.
            AtCapacity: Linux has no more watches for this server.
        """
        directory = self._directory(who, session)
        return DirectoryWatcher(
            directory, parts_of(path), on_event, self._watch_turns, recursive=recursive, statuses=statuses
        )

    async def _change(
        self,
        who: Principal,
        session: str,
        work: Callable[[RootedDirectory], T],
        describe: Callable[[T], dict[str, Any]] | None,
    ) -> T:
        """Call ``work`` in a thread and record the change that it made. Cancelling stops only the wait."""
        directory = self._directory(who, session, change=True)

        async def act() -> T:
            result = await self._in_thread(directory, work)
            if describe is not None:
                self._record(who, session, describe(result))
            return result

        return await asyncio.shield(self._changes.start(act()))

    async def _in_thread(self, directory: RootedDirectory, work: Callable[[RootedDirectory], T]) -> T:
        """Call ``work`` in a thread, since it may take long, and close the directory after it."""

        def act() -> T:
            with directory:
                return work(directory)

        return await asyncio.to_thread(act)


def _described(directory: RootedDirectory, path: bytes, info: os.stat_result, *, attributes: bool) -> FileStatus | None:
    status = status_of(path, info)
    if status.kind != "link" and not attributes:
        return status
    try:
        return read_status(directory, parts_of(path), attributes=attributes)
    except KernelsvcError:  # it was removed since it was listed, or a directory on the way was replaced by a link
        return None


def shown(path: bytes) -> str:
    """Decode a path for JSON. Bytes that are not UTF-8 become U+FFFD."""
    return path.decode("utf-8", "replace")
