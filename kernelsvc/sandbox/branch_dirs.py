"""Paths of the directories of a session's branches, chosen so that Landlock can keep the parent out of them.

landlock(7): a thread can only restrict itself further, and its children inherit the restrictions. A branch is a fork of
its parent. So the parent must still have every right that the branch needs when it forks, and gives up the rights to
the branch's directory right after the fork. Directories of later branches must then lie outside of the directories
that the parent has given up::

    user            the session's own
    user.d/A, B     branches that were forked together. The parent gives them up
    user.d/next/C   a later branch. The parent gives up ``user.d/next`` without
    user.d/next/next
"""

from __future__ import annotations

from pathlib import Path

from kernelsvc.linux.nofollow import is_directory, make_directory

#: Name of the directory for later branches, within a session's directory for branches.
NEXT = "next"
#: Maximum depth. landlock(7) allows 16 layers of stacked rulesets, and branches of branches need some of them, too.
MAX_DEPTH = 9


def branches_root(files: Path) -> Path:
    """Return the directory below which all branches of a session have their directories.

    Args:
        files: the session's own directory, resolved, or its path inside the sandbox.
    """
    return files.with_name(f"{files.name}.d")


def branch_count(files: Path) -> int:
    """Return how many times a session was branched, up to ``MAX_DEPTH``."""
    directory, depth = branches_root(files), 0
    while depth < MAX_DEPTH and is_directory(directory / NEXT):
        directory, depth = directory / NEXT, depth + 1
    return depth


def later_branches_dir(files: Path, depth: int) -> Path:
    """Return the directory of the branches that are forked after ``depth`` earlier times."""
    return branches_root(files).joinpath(*[NEXT] * depth)


def make_branches_dir(files: Path) -> Path:
    """Make and return the directory for the next branches, and make the one for those after them.

    Raises:
        OSError: another file has the name, or the disk failed.
    """
    _make_missing(branches_root(files))
    depth = branch_count(files)
    if depth < MAX_DEPTH:
        _make_missing(later_branches_dir(files, depth + 1))
    return later_branches_dir(files, depth)


def _make_missing(path: Path) -> None:
    if not is_directory(path):
        make_directory(path, 0o755)
