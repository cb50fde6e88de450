"""A user of the host for each live session, if the kernel host runs as root.

With it no two sessions share a user id, and Linux itself separates their files and processes and counts their tasks.
Only sessions that share a directory have the same user: they belong to one principal. The range lies above
the ids of people and services and below those that container managers use. Several kernel hosts of one machine divide
it: each takes blocks of ids, which it locks by files in ``/run``.
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath

from kernelsvc.errors import AtCapacity
from kernelsvc.linux.nofollow import walk

_LOCKS = "/run/kernelsvc-uids"
#: Ids in a block. A host takes one block after another as it needs them.
BLOCK = 250
#: 65536 to 99999 is claimed neither by systemd nor by the usual /etc/subuid.
UIDS = range(70_000, 80_000)


class BlockLocks:
    """Locks of this machine's blocks of user ids. Linux releases them at the end of the process (flock(2)).

    Args:
        directory: is created if it is missing. All hosts of a machine use the same.
        among: the range that is divided.
    """

    def __init__(self, directory: str = _LOCKS, among: range = UIDS) -> None:
        self._directory = directory
        self._blocks = [among[at : at + BLOCK] for at in range(0, len(among), BLOCK)]
        self._held: dict[range, int] = {}

    def next_block(self) -> range | None:
        """Lock a block that no host holds. Return None if there is none."""
        return next((block for block in self._blocks if block not in self._held and self._lock(block)), None)

    def lock(self, uid: int) -> range | None:
        """Lock the block of an id. Return it, or None if another host or this one holds it already."""
        block = next((block for block in self._blocks if uid in block), None)
        return block if block is not None and block not in self._held and self._lock(block) else None

    def _lock(self, block: range) -> bool:
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            fd = os.open(os.path.join(self._directory, str(block.start)), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            # A read-only /run: this host can't know of others, as in a container of its own.
            self._held[block] = -1
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return False
        self._held[block] = fd
        return True

    def close(self) -> None:
        """Release all blocks."""
        for fd in self._held.values():
            if fd >= 0:
                os.close(fd)
        self._held.clear()


class UidPool:
    """User ids: one for each directory and everything beneath it, for all sessions that share the directory.

    Args:
        among: the range to choose from.
        taken: ids that are in use already, by sessions of another host.
        locks: chooses blocks of the range that no other host uses. None to use the whole range.
    """

    def __init__(self, among: range = UIDS, *, taken: Iterable[int] = (), locks: BlockLocks | None = None) -> None:
        self._locks = locks
        self._among: list[int] = [] if locks is not None else [*among]
        self._taken = set(taken)
        self._holders: Counter[int] = Counter()
        self._owners: dict[str, int] = {}
        self._next = 0

    def acquire(self, *directories: str, preferred: int | None = None) -> int:
        """Return the id that a session in one of these directories, or in one above, has already.

        Otherwise return a free one.

        Args:
            directories: absolute, without links: the session's own, its group's, and its workspace.
            preferred: the id to take if it is free: that of the files of a workspace.

        Raises:
            AtCapacity: all are in use.
        """
        above = (str(each) for path in directories for each in (PurePath(path), *PurePath(path).parents))
        uid = next((self._owners[each] for each in above if each in self._owners), None)
        if uid is None:
            uid = preferred if preferred is not None and self._is_free(preferred) else self._free()
        self.claim(uid, *directories)
        return uid

    def _is_free(self, uid: int) -> bool:
        if self._locks is not None and uid not in self._among and (block := self._locks.lock(uid)) is not None:
            self._use(block)
        return uid in self._among and uid not in self._taken

    def _free(self) -> int:
        """Return the id that has been free for the longest time."""
        while True:
            for step in range(len(self._among)):
                at = (self._next + step) % len(self._among)
                if self._among[at] not in self._taken:
                    self._next = at + 1
                    return self._among[at]
            if self._locks is None or (block := self._locks.next_block()) is None:
                raise AtCapacity("All user ids for sessions are in use. Close a session first.")
            self._use(block)

    def _use(self, block: range) -> None:
        # A host that has ended may have left sessions that use ids of this block.
        self._taken |= users_of_processes() & set(block)
        self._next = len(self._among)
        self._among += block

    def claim(self, uid: int, *directories: str) -> None:
        """Note that a session, which may have been started by an earlier host, holds this id for its directories."""
        self._is_free(uid)  # locks its block
        self._taken.add(uid)
        self._holders[uid] += 1
        for directory in directories:
            self._owners[directory] = uid

    def release(self, uid: int) -> None:
        """Release the id of a session whose processes have all ended."""
        self._holders[uid] -= 1
        if self._holders[uid] > 0:
            return
        del self._holders[uid]
        self._taken.discard(uid)
        self._owners = {directory: owner for directory, owner in self._owners.items() if owner != uid}


def users_of_processes() -> set[int]:
    """Return the user ids of all running processes."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found.add(os.stat(f"/proc/{name}").st_uid)
            except OSError:
                continue
    return found


def give(directory: str, uid: int) -> None:
    """Change the owner of ``directory`` and of everything in it, without following a link.

    Hostile code wrote its files. Only the tree itself is walked, by descriptor, and the owner of a link is
    changed instead of its target's. No process may run in it meanwhile.

    Raises:
        OSError: Linux refused.
    """
    for fd, names in walk(directory):
        for name in names:
            if os.stat(name, dir_fd=fd, follow_symlinks=False).st_uid != uid:
                os.chown(name, uid, uid, dir_fd=fd, follow_symlinks=False)
    os.chown(directory, uid, uid, follow_symlinks=False)
