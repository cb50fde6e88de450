"""Inodes of its own for each session: the directories over which read-only overlays are mounted.

Files that all sessions see are otherwise the same inodes. A session could then watch by inotify(7) which programs
others open, and hold a flock(2) lock that others need. Files of an overlay (overlayfs) have inodes of the overlay, with
watches and locks of their own. Their pages in memory stay those of the file below, so nothing is held twice.

An overlay does not show filesystems that are mounted below its directory, so a path that holds one is bound as it is.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from kernelsvc.guest.confine.neutral_paths import TOP
from kernelsvc.sandbox.rootfs_paths import is_beneath

#: Each overlay costs a start 0.1 ms and the machine a superblock.
MAX_OVERLAYS = 8
#: Characters that separate options and directories in the options of an overlay.
_PLAIN = re.compile(r"[^,:\\\"\n]+")
_ESCAPE = re.compile(r"\\([0-7]{3})")


def mount_points(mountinfo: str) -> list[str]:
    r"""Return the mount points of ``/proc/self/mountinfo`` (proc_pid_mountinfo(5)).

    >>> mount_points("22 1 0:20 / /a\\040b rw - proc proc rw")
    ['/a b']
    """
    fields = (line.split(" ") for line in mountinfo.splitlines())
    return [_ESCAPE.sub(lambda code: chr(int(code[1], 8)), field[4]) for field in fields if len(field) > 4]


def overlay_dirs(
    paths: Iterable[str], mounts: Sequence[str], *, locked: bool, files: Collection[str] = ()
) -> dict[str, str]:
    """Choose the directory of which an overlay is mounted, for each path.

    Paths that no overlay can show are omitted.

    Args:
        paths: real paths (realpath(3)) of directories and files.
        mounts: mount points of the namespace in which the overlay is mounted.
        locked: whether the session gets a user namespace. Linux then refuses an overlay of a directory that holds
            mounts (mount_namespaces(7), locked mounts), since it would show files that they cover.
        files: those of the paths that are no directories. An overlay shows directories only, so a file beside a mount,
            such as those beside a container's ``/etc/hosts``, has none.

    >>> overlay_dirs(["/usr/bin", "/etc/fonts", "/proc"], ["/", "/proc", "/etc/hosts"], locked=False)
    {'/usr/bin': '/', '/etc/fonts': '/', '/proc': '/proc'}
    >>> overlay_dirs(["/usr/bin", "/etc/fonts", "/proc"], ["/", "/proc", "/etc/hosts"], locked=True)
    {'/usr/bin': '/usr', '/etc/fonts': '/etc/fonts', '/proc': '/proc'}
    """
    found = {}
    for path in paths:
        if _holds_mount(path, mounts) or not _PLAIN.fullmatch(path):
            continue
        mount = mount_of(path, mounts)
        directory = _outermost_without_mounts(path, mount, mounts) if locked else mount
        if directory not in files:
            found[path] = directory
    # Those that show the most paths, if there are too many.
    frequent = [directory for directory, _ in Counter(found.values()).most_common(MAX_OVERLAYS)]
    return {path: directory for path, directory in found.items() if directory in frequent}


def with_neutral_paths(mounts: Sequence[str], entries: Iterable[str]) -> list[str]:
    """Return the mount points in the namespace of a fork server with neutral paths, from which sessions take theirs.

    Args:
        mounts: mount points of the machine.
        entries: names in the machine's ``/opt``, each of which is a mount there (``guest.confine.neutral_paths``).

    >>> with_neutral_paths(["/"], ["kernelsvc"])
    ['/', '/opt', '/opt/kernelsvc']
    """
    return [*mounts, TOP, *(f"{TOP}/{entry}" for entry in entries)]


def mount_of(path: str, mounts: Sequence[str]) -> str:
    """Return the mount point of the filesystem that holds a real path."""
    return max((mount for mount in mounts if is_beneath(path, mount)), key=len, default="/")


def _outermost_without_mounts(path: str, mount: str, mounts: Sequence[str]) -> str:
    inner = path.removeprefix(mount).strip("/").split("/")
    candidates = [os.path.join(mount, *inner[:depth]) for depth in range(len(inner))]
    return next((one for one in candidates if not _holds_mount(one, mounts)), path)


def _holds_mount(path: str, mounts: Sequence[str]) -> bool:
    return any(mount != path and is_beneath(mount, path) for mount in mounts)
