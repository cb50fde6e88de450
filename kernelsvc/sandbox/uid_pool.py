"""A user of the host for each live session, if the kernel host runs as root.

With it no two sessions share a user id, and Linux itself separates their files and processes and counts their tasks.
Only sessions that share a directory have the same user: they belong to one principal. The range lies above
the ids of people and services and below those that container managers use.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath

from kernelsvc.errors import AtCapacity

#: 65536 to 99999 is claimed neither by systemd nor by the usual /etc/subuid.
UIDS = range(70_000, 80_000)


class UidPool:
    """User ids: one for each directory and everything beneath it, for all sessions that share the directory.

    Args:
        among: the range to choose from.
        taken: ids that are in use already, by sessions of another host.
    """

    def __init__(self, among: range = UIDS, *, taken: Iterable[int] = ()) -> None:
        self._among = among
        self._taken = set(taken)
        self._holders: Counter[int] = Counter()
        self._owners: dict[str, int] = {}
        self._next = 0

    def acquire(self, *directories: str) -> int:
        """Return the id that a session in one of these directories, or in one above, has already.

        Otherwise return a free one.

        Args:
            directories: absolute, without links: the session's own, and its group's.

        Raises:
            AtCapacity: all are in use.
        """
        above = (str(each) for path in directories for each in (PurePath(path), *PurePath(path).parents))
        uid = next((self._owners[each] for each in above if each in self._owners), None)
        if uid is None:
            uid = self._free()
        self.claim(uid, *directories)
        return uid

    def _free(self) -> int:
        """Return the id that has been free for the longest time."""
        for step in range(len(self._among)):
            at = (self._next + step) % len(self._among)
            uid = self._among[at]
            if uid not in self._taken:
                self._next = at + 1
                return uid
        raise AtCapacity(f"All {len(self._among)} user ids for sessions are in use. Close a session first.")

    def claim(self, uid: int, *directories: str) -> None:
        """Note that a session, which may have been started by an earlier host, holds this id for its directories."""
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
    for _, directories, files, fd in os.fwalk(directory, follow_symlinks=False):
        for name in (*directories, *files):
            if os.stat(name, dir_fd=fd, follow_symlinks=False).st_uid != uid:
                os.chown(name, uid, uid, dir_fd=fd, follow_symlinks=False)
    os.chown(directory, uid, uid, follow_symlinks=False)
