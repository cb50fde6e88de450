"""A user of the host for each live session, when the kernel host runs as root.

Then no two sessions share a user id, and Linux itself keeps their files and
processes apart and counts their tasks. The range lies above the ids of people
and services and below those that container managers hand out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from kernelsvc.errors import AtCapacity

#: 65536 to 99999 is claimed neither by systemd nor by the usual /etc/subuid.
UIDS = range(70_000, 80_000)


class Identities:
    """Hands out user ids; each to one session at a time.

    Args:
        among: the range to take from.
        taken: ids that are in use already, of sessions that outlived another host.
    """

    def __init__(self, among: range = UIDS, *, taken: Iterable[int] = ()) -> None:
        self._among = among
        self._taken = set(taken)
        self._next = 0

    def acquire(self) -> int:
        """A free id; the one that was freed longest ago.

        Raises:
            AtCapacity: all are in use.
        """
        for step in range(len(self._among)):
            at = (self._next + step) % len(self._among)
            uid = self._among[at]
            if uid not in self._taken:
                self._next = at + 1
                self._taken.add(uid)
                return uid
        raise AtCapacity(f"All {len(self._among)} user ids for sessions are in use; close a session first.")

    def claim(self, uid: int) -> None:
        """Note that a session found again holds this id."""
        self._taken.add(uid)

    def release(self, uid: int) -> None:
        """The session is gone with all its processes."""
        self._taken.discard(uid)


def users_of_processes() -> set[int]:
    """The user ids under which anything runs now."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found.add(os.stat(f"/proc/{name}").st_uid)
            except OSError:
                continue
    return found


def give(directory: str, uid: int) -> None:
    """Make ``directory`` and all in it the session's, without following a link.

    Its files were written by hostile code: only the tree itself is walked, by
    descriptor, and a link is changed, not what it points to. Nothing may run in
    it meanwhile.

    Raises:
        OSError: Linux refused.
    """
    for _, directories, files, fd in os.fwalk(directory, follow_symlinks=False):
        for name in (*directories, *files):
            if os.stat(name, dir_fd=fd, follow_symlinks=False).st_uid != uid:
                os.chown(name, uid, uid, dir_fd=fd, follow_symlinks=False)
    os.chown(directory, uid, uid, follow_symlinks=False)
