"""Where the directories of a session's branches lie, so that Landlock can keep their parent out of them.

A process may give up a right, and neither it nor a fork of it ever gets that back.
A branch is a fork; so what it may write to, its parent may write to at the moment of
the fork, and gives up right after. The directories of branches that are still to
come must then be elsewhere than those that are given up::

    user            the session's own
    user.d/A, B     its branches, made at once; given up after that
    user.d/next/C   a later one; then ``user.d/next`` is given up but for
    user.d/next/next
"""

from __future__ import annotations

from pathlib import Path

from kernelsvc.linux.nofollow import is_plain, make_plain

#: Within a session's directory for branches, the one for later branches.
NEXT = "next"
#: How deep that goes. Linux lays at most 16 Landlock layers on a process, and branches of branches need some too.
MOST_TIMES = 9


def branches_root(files: Path) -> Path:
    """Below which all branches of a session have their directories.

    Args:
        files: the session's own directory, as its link resolves, or as it is seen inside.
    """
    return files.with_name(f"{files.name}.d")


def times(files: Path) -> int:
    """How often a session was branched, as far as that is counted."""
    place, depth = branches_root(files), 0
    while depth < MOST_TIMES and is_plain(place / NEXT):
        place, depth = place / NEXT, depth + 1
    return depth


def later(files: Path, depth: int) -> Path:
    """Where the branches of the time after the first ``depth`` belong."""
    return branches_root(files).joinpath(*[NEXT] * depth)


def make_place(files: Path) -> Path:
    """Where the next branches' directories are to be made; and room for those after them.

    Raises:
        OSError: something else lies there, or the disk refuses.
    """
    _make_room(branches_root(files))
    depth = times(files)
    if depth < MOST_TIMES:
        _make_room(later(files, depth + 1))
    return later(files, depth)


def _make_room(path: Path) -> None:
    if not is_plain(path):
        make_plain(path, 0o755)
