"""Workspaces on disk.

::

    <data>/workspaces/<digest of the owner>/<name>/workspace.json    owner, sharing, quota (written atomically)
                                                   files/            hostile content
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import msgspec

from kernelsvc.linux.atomic_file import replace_bytes
from kernelsvc.linux.remove_tree import remove_tree
from kernelsvc.model.storage.workspaces import WorkspaceRecord

_RECORD, _REMOVED = "workspace.json", ".removed-"


class WorkspaceStore:
    """All workspaces of a data directory.

    Args:
        data: the data directory.
    """

    def __init__(self, data: Path) -> None:
        self._root = data / "workspaces"

    def _place(self, owner: str, name: str) -> Path:
        # A principal's name may hold any characters, and more bytes than a file's name.
        return self._root / hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()[:32] / name

    def files(self, record: WorkspaceRecord) -> Path:
        """Return the directory of its files."""
        return self._place(record.owner, record.name) / "files"

    def find(self, owner: str, name: str) -> WorkspaceRecord | None:
        """Return a workspace's record, or None if there is no such workspace."""
        return _read(self._place(owner, name))

    def list(self) -> Iterator[WorkspaceRecord]:
        """Yield all records, in no order. Skips those that can't be read."""
        for directory in self._root.glob("*/[!.]*"):
            if (record := _read(directory)) is not None:
                yield record

    def write(self, record: WorkspaceRecord) -> None:
        """Make a workspace, or replace its record.

        Raises:
            OSError: the disk failed.
        """
        place = self._place(record.owner, record.name)
        (place / "files").mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_bytes(place / _RECORD, msgspec.json.encode(record))

    def remove(self, record: WorkspaceRecord) -> None:
        """Remove a workspace with its files. It is gone for others before its files are removed. Call it in a thread.

        Raises:
            OSError: the disk failed.
        """
        place = self._place(record.owner, record.name)
        moved = place.with_name(f"{_REMOVED}{secrets.token_hex(8)}")
        os.rename(place, moved)
        remove_tree(moved)

    def sweep(self) -> None:
        """Finish interrupted removals."""
        for moved in self._root.glob(f"*/{_REMOVED}*"):
            with contextlib.suppress(OSError):
                remove_tree(moved)


def _read(directory: Path) -> WorkspaceRecord | None:
    try:
        return msgspec.json.decode((directory / _RECORD).read_bytes(), type=WorkspaceRecord)
    except (OSError, msgspec.DecodeError):
        return None
