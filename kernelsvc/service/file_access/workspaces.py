"""Workspaces of principals: made, shared, shown to sessions, removed, and their files."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from kernelsvc.errors import AtCapacity, Conflict, LimitTooHigh, NotFound, QuotaExceeded
from kernelsvc.linux.rooted_dir import RootedDirectory
from kernelsvc.model.hash_chain import timestamp
from kernelsvc.model.objects import Principal
from kernelsvc.model.storage.mounts import WORKSPACE_DIR, Bind, allowed_mounts, choose_binds, names_of
from kernelsvc.model.storage.workspaces import WorkspaceInfo, WorkspaceRecord, check_shares, may_use, parse_address
from kernelsvc.sandbox.disk_use import measure_directory
from kernelsvc.service.file_access.files import SessionFiles, parts_of
from kernelsvc.service.file_access.upload_room import UploadRoom
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.session import SessionSpec
from kernelsvc.settings import Settings
from kernelsvc.store.sessions import SessionDirectories
from kernelsvc.store.workspaces import WorkspaceStore

#: Entries that are counted for the size of a workspace.
MAX_ENTRIES = 1_000_000


class WorkspaceFiles(SessionFiles):
    """The files of workspaces, by address. No session's log has the changes."""

    def __init__(self, workspaces: Workspaces, registry: SessionRegistry, store: SessionDirectories) -> None:
        super().__init__(registry, store)
        self._workspaces = workspaces

    def _directory(self, who: Principal, session: str, *, change: bool = False) -> RootedDirectory:
        self._registry.require_scope(who, "run" if change else "read")
        return RootedDirectory(self._workspaces.directory(who, session))

    async def _enter(self, who: Principal, session: str) -> tuple[str, UploadRoom]:
        directory = str(self._workspaces.directory(who, session))
        # Several addresses may name it, and its directory is one.
        return directory, await self._rooms.enter(directory, self._workspaces.limit(who, session), directory, None)

    def _record(self, who: Principal, session: str, change: dict[str, Any]) -> None:
        pass


class Workspaces:
    """All workspaces. Implements ``WorkspacesApi``.

    Args:
        settings: the server's settings: quota and number.
        registry: all sessions, of which some have a workspace.
        store: the data directory and its clock.

    Attributes:
        files: the files of workspaces.
    """

    def __init__(self, settings: Settings, registry: SessionRegistry, store: SessionDirectories) -> None:
        self._settings = settings
        self._registry = registry
        self._store = WorkspaceStore(store.data)
        self._clock = store.clock
        self.files = WorkspaceFiles(self, registry, store)

    def start(self) -> None:
        """Finish interrupted removals."""
        self._store.sweep()

    def _find(self, who: Principal, workspace: str, *, own: bool = False) -> WorkspaceRecord:
        owner, name = parse_address(workspace, who.name)
        record = self._store.find(owner, name)
        # One that the caller may not use does not exist for it.
        if record is None or not may_use(record, who.name):
            raise NotFound(
                f"There is no workspace {workspace!r}. 'kernelsvc workspace list' shows those that you may use."
            )
        if own and record.owner != who.name:
            raise NotFound(f"The workspace {workspace!r} is not yours. Its owner, {record.owner!r}, can change it.")
        return record

    def directory(self, who: Principal, workspace: str) -> Path:
        """Return the path of a workspace's files.

        Raises:
            NotFound: there is none that the caller may use.
        """
        return self._store.files(self._find(who, workspace))

    def bind(self, who: Principal, workspace: str, link: str = "") -> tuple[str, Bind]:
        """Return address and bind of a session's workspace. Makes an own one that does not exist.

        Args:
            who: the caller.
            workspace: its name or address.
            link: a further path inside. Empty for none.

        Raises:
            NotFound: another principal's does not exist, or is not shared with the caller.
            QuotaExceeded: the caller has too many.
        """
        owner, name = parse_address(workspace, who.name)
        if owner == who.name and self._store.find(owner, name) is None:
            self._make(who, name, [], None)
        record = self._find(who, workspace)
        return record.address, self._bind(record, link)

    def _make(self, who: Principal, name: str, shared_with: list[str], max_bytes: int | None) -> WorkspaceRecord:
        most = self._settings.max_workspaces_per_principal
        if sum(record.owner == who.name for record in self._store.list()) >= most:
            raise QuotaExceeded(f"You have {most} workspaces, the maximum. Remove one first.")
        record = WorkspaceRecord(
            owner=who.name,
            name=name,
            created_at=timestamp(self._clock()),
            shared_with=shared_with,
            max_bytes=max_bytes,
        )
        self._write(record)
        return record

    def _write(self, record: WorkspaceRecord) -> None:
        try:
            self._store.write(record)
        except OSError as error:
            raise AtCapacity(f"The workspace can't be written ({error.strerror}). Free disk space.") from error

    def limit(self, who: Principal, workspace: str) -> int | None:
        """Return the quota of a workspace in bytes, or None if it has none.

        Raises:
            NotFound: there is none that the caller may use.
        """
        return self._lower(self._find(who, workspace).max_bytes)

    def quota(self, address: str) -> int | None:
        """Return the quota of a workspace in bytes, or None if it has none. A removed one has the server's."""
        owner, _, name = address.rpartition("/")
        record = self._store.find(owner, name)
        own = record.max_bytes if record is not None else None
        return self._lower(own)

    def _lower(self, own: int | None) -> int | None:
        most = self._settings.workspace_bytes
        return most if own is None or (most is not None and own > most) else own

    def _describe(self, record: WorkspaceRecord) -> WorkspaceInfo:
        return WorkspaceInfo(
            workspace=record.address,
            owner=record.owner,
            name=record.name,
            created_at=record.created_at,
            shared_with=record.shared_with,
            max_bytes=self._lower(record.max_bytes),
            sessions=self._sessions(record),
        )

    def _sessions(self, record: WorkspaceRecord) -> int:
        return sum(session.spec.workspace == record.address for session in self._registry.open_sessions())

    def list(self, who: Principal) -> Sequence[WorkspaceInfo]:
        """Return the workspaces that the caller may use, by owner and name."""
        found = [self._describe(record) for record in self._store.list() if may_use(record, who.name)]
        return sorted(found, key=lambda info: (info.owner, info.name))

    async def get(self, who: Principal, workspace: str) -> WorkspaceInfo:
        """Return a workspace with its size. Safe to cancel.

        Raises:
            NotFound: there is none that the caller may use.
        """
        record = self._find(who, workspace)
        use = await asyncio.to_thread(measure_directory, str(self._store.files(record)), entries=MAX_ENTRIES)
        return msgspec.structs.replace(self._describe(record), used_bytes=use.bytes)

    def set(
        self, who: Principal, workspace: str, *, shared_with: Sequence[str] | None = None, max_bytes: int | None = None
    ) -> WorkspaceInfo:
        """Make a workspace, or change the given properties of one's own.

        Raises:
            NotFound: it is another principal's.
            QuotaExceeded: the caller has too many.
            LimitTooHigh: the quota is above the server's.
            BadRequest: it would be shared with too many patterns.
        """
        check_shares(shared_with or ())
        owner, name = parse_address(workspace, who.name)
        most = self._settings.workspace_bytes
        if max_bytes is not None and most is not None and max_bytes > most:
            raise LimitTooHigh(
                f"max_bytes = {max_bytes} is above this server's {most} (workspace_bytes). Ask for at most that.",
                limit="workspace_bytes",
                wanted=max_bytes,
                allowed=most,
            )
        if owner == who.name and self._store.find(owner, name) is None:
            return self._describe(self._make(who, name, [*(shared_with or ())], max_bytes))
        record = self._find(who, workspace, own=True)
        record = msgspec.structs.replace(
            record,
            shared_with=record.shared_with if shared_with is None else [*shared_with],
            max_bytes=record.max_bytes if max_bytes is None else max_bytes,
        )
        self._write(record)
        return self._describe(record)

    def renew_binds(self, spec: SessionSpec) -> None:
        """Leave a session the directories of the machine that its principal may use now, where the settings have them.

        Its file names paths, which may be another machine's, or those of an earlier settings file. A kernel that runs
        keeps what it sees until it ends.
        """
        mounts, (owner, _, name) = self._settings.mounts, spec.workspace.rpartition("/")
        allowed = allowed_mounts(mounts, spec.principal)
        binds = choose_binds(mounts, [each for each in names_of(spec.binds) if each in allowed], spec.principal)
        record = self._store.find(owner, name) if spec.workspace else None
        if record is not None and may_use(record, spec.principal):
            links = [bind.link for bind in spec.binds if bind.target == WORKSPACE_DIR]
            spec.use_binds([*binds, *(self._bind(record, link) for link in links)], spec.workspace)
        else:
            spec.use_binds(binds, "")

    def _bind(self, record: WorkspaceRecord, link: str) -> Bind:
        return Bind(source=str(self._store.files(record)), target=WORKSPACE_DIR, writable=True, link=link)

    async def set_mode(self, who: Principal, workspace: str, path: bytes, mode: int) -> None:
        """Set the permissions of a file or directory of a workspace. Safe to cancel.

        Raises:
            NotFound: there is no such workspace, or no such file.
            KernelsvcError: it is a link.
        """
        self._registry.require_scope(who, "run")
        with RootedDirectory(self.directory(who, workspace)) as directory:
            directory.set_mode(parts_of(path), mode)

    async def remove(self, who: Principal, workspace: str) -> None:
        """Remove one's own workspace with its files. Safe to cancel: it happens anyway.

        Raises:
            NotFound: there is none, or it is another principal's.
            Conflict: open sessions have it. Nothing was removed.
        """
        record = self._find(who, workspace, own=True)
        if count := self._sessions(record):
            raise Conflict(f"{count} open sessions have the workspace {record.address!r}. Close them first.")
        await asyncio.shield(asyncio.to_thread(self._store.remove, record))
