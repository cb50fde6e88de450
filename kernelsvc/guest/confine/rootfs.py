"""The filesystem view of a session, built by its init before user code runs.

A small tmpfs becomes the root. It gets bind mounts of the system's programs and the Python environment (read-only), the
session's directory (writable, under ``/home``) and a few device nodes, a ``/tmp`` and ``/dev/shm`` of limited size, a
``/proc`` of the session's pid namespace, and an ``/etc`` of a few files. Then ``pivot_root`` detaches the old root. A
file that is not bound has no path, so this is an allow-list of files.

Order: binds while the old root is reachable, masks after the mounts that they cover, and the root becomes read-only
last.

A Python environment may be below ``/tmp``, which the session may write. The directories above such a bind then belong
to the session's user in a user namespace. One of a group of sessions could rename them and put an environment of its
own there, which the others would import. So these directories are in a small tmpfs of their own, which becomes
read-only. It is a mount point, and rename(2) and rmdir(2) refuse those with ``EBUSY``.

The read-only binds come from overlays, so that a session has inodes of its own (``kernelsvc.sandbox.own_inodes``).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import Any

from kernelsvc.guest.confine import linux as lx

_SYSTEM = lx.ATTR_RDONLY | lx.ATTR_NOSUID | lx.ATTR_NODEV
_OWN = lx.ATTR_NOSUID | lx.ATTR_NODEV
# Read-only: a device can still be written to, but the times and the mode of the host's file can't be changed.
_DEVICE = lx.ATTR_NOSUID | lx.ATTR_NOEXEC | lx.ATTR_RDONLY
#: Writable mounts that may hold binds.
_SCRATCH = ("/tmp", "/dev/shm")
#: The second lower directory of overlays. It stays empty.
_EMPTY = "var/empty"
_SEALED = lx.MS_REMOUNT | lx.MS_BIND | lx.MS_RDONLY | lx.MS_NOSUID


def build_view(view: dict[str, Any]) -> None:
    """Build the view of a plan and enter it. The working directory is then ``/``.

    Args:
        view: ``plan["view"]`` (see ``kernelsvc.sandbox.plan``).

    Raises:
        OSError: A step failed. The text names the call and the path.
    """
    root = view["root"]
    # MS_SLAVE: mounts made here do not propagate to the host. Later mounts of the host no longer arrive once the old
    # root is detached (mount_namespaces(7)).
    lx.mount(None, "/", None, lx.MS_REC | lx.MS_SLAVE)
    lx.mount("tmpfs", root, "tmpfs", lx.MS_NOSUID | lx.MS_NODEV, "size=2m,nr_inodes=1024,mode=755")
    for link, target in view["links"].items():
        os.makedirs(os.path.dirname(root + link), exist_ok=True)
        os.symlink(target, root + link)
    # Whole filesystems come first: a Python environment may be below /tmp.
    _mount_devices(root, view)
    _mount_scratch(root, "/tmp", view["tmp_bytes"], lx.MS_NOSUID | lx.MS_NODEV)
    sealed = directories_to_seal([target for _, target in view["readonly"]])
    for path in sealed:
        os.makedirs(root + path, exist_ok=True)
        lx.mount("tmpfs", root + path, "tmpfs", lx.MS_NOSUID | lx.MS_NODEV, "size=64k,nr_inodes=128,mode=755")
    overlays = mount_overlays(root, [directory for directory, _ in view["overlays"].values()])
    inodes = {source: f"{overlays[directory]}/{path}" for source, (directory, path) in view["overlays"].items()}
    for source, target in view["readonly"]:
        _bind(root, inodes.get(source, source), target, _SYSTEM)
    # The binds keep the overlays. By their own paths, a session could reach everything in these directories.
    for path in overlays.values():
        lx.detach(path)
        os.rmdir(path)
    for path in view["hidden"]:
        if os.path.isdir(root + path):
            lx.mount("tmpfs", root + path, "tmpfs", lx.MS_RDONLY | _OWN, "size=4k,nr_inodes=2,mode=755")
        elif os.path.exists(root + path):
            lx.bind("/dev/null", root + path, _DEVICE)
    if view["proc"]:
        _mount_proc(root, view["proc_masks"])
    for path, text in view["files"].items():
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        _create(root + path, text)
    _bind_own(root, view)
    lx.pivot_into(root)
    lx.mount(None, "/", None, _SEALED | lx.MS_NODEV)
    lx.mount(None, "/dev", None, _SEALED | lx.MS_NOEXEC)
    for path in sealed:
        lx.mount(None, path, None, _SEALED | lx.MS_NODEV)


def directories_to_seal(targets: list[str]) -> list[str]:
    """Return the top directories in writable mounts that lead to a read-only bind and are not one themselves.

    >>> directories_to_seal(["/usr", "/tmp/a/env", "/tmp/a/lib", "/tmp/env"])
    ['/tmp/a']
    """
    tops = set()
    for target in targets:
        for scratch in _SCRATCH:
            below = target.removeprefix(f"{scratch}/")
            if below != target and "/" in below:
                tops.add(f"{scratch}/{below.partition('/')[0]}")
    return sorted(tops - set(targets))


def mount_overlays(root: str, directories: Iterable[str]) -> dict[str, str]:
    """Mount a read-only overlay of each directory below ``root``. The working directory is then ``root``.

    Args:
        root: a directory of a mount namespace of the caller's.
        directories: each with files only of its own filesystem, if this is in a user namespace.

    Returns:
        The path of the overlay by directory.

    Raises:
        OSError: Linux refuses an overlay of this filesystem.
    """
    os.chdir(root)
    os.makedirs(_EMPTY)
    mounted: dict[str, str] = {}
    for number, directory in enumerate(dict.fromkeys(directories)):
        mounted[directory] = f"{root}/.overlay{number}"
        os.mkdir(mounted[directory])
        # An overlay without a directory for changes needs two lower ones (overlayfs.rst, "Multiple lower layers").
        # Relative, because /proc/self/mountinfo shows it.
        options = f"lowerdir={directory}:{_EMPTY},redirect_dir=nofollow,metacopy=off,index=off,xino=off"
        lx.mount("overlay", mounted[directory], "overlay", lx.MS_RDONLY | lx.MS_NOSUID | lx.MS_NODEV, options)
    return mounted


def _create(path: str, text: str = "") -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _bind(root: str, source: str, target: str, attributes: int, idmap: int | None = None) -> None:
    inside = root + target
    if os.path.isdir(source):
        os.makedirs(inside, exist_ok=True)
    elif not os.path.exists(inside):
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        _create(inside)
    lx.bind(source, inside, attributes, idmap=idmap)


def _bind_own(root: str, view: dict[str, Any]) -> None:
    idmap = os.open(view["idmap"], os.O_RDONLY | os.O_CLOEXEC) if view["idmap"] else None
    try:
        for source, target in view["writable"]:
            # The first is the session's directory. Other shared directories belong to its user already.
            own = [source, target] == view["writable"][0]
            _bind(root, source, target, _OWN, idmap if own else None)
            if own and view.get("identity"):
                _check_identity(root + target, view["identity"])
        for source, target, writable, mapped in view["binds"]:
            _bind(root, source, target, _OWN if writable else _SYSTEM, idmap if mapped else None)
    finally:
        if idmap is not None:
            os.close(idmap)


def _check_identity(path: str, identity: list[int]) -> None:
    """Check that the bound directory is the expected one: a related session may have replaced it since."""
    found = os.stat(path)
    if [found.st_dev, found.st_ino] != list(identity):
        raise OSError(errno.ESTALE, f"{path}: another directory lies in its place")


def _mount_scratch(root: str, path: str, size: int, flags: int) -> None:
    os.makedirs(root + path, exist_ok=True)
    inodes = max(1024, size // 8192)
    lx.mount("tmpfs", root + path, "tmpfs", flags, f"size={size},nr_inodes={inodes},mode=1777")


def _mount_devices(root: str, view: dict[str, Any]) -> None:
    os.makedirs(root + "/dev", exist_ok=True)
    lx.mount("tmpfs", root + "/dev", "tmpfs", lx.MS_NOSUID | lx.MS_NOEXEC, "size=64k,nr_inodes=64,mode=755")
    for name in view["devices"]:
        _create(f"{root}/dev/{name}")
        lx.bind(f"/dev/{name}", f"{root}/dev/{name}", _DEVICE)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(f"/proc/self/{target}", f"{root}/dev/{name}")
    os.mkdir(root + "/dev/pts")
    # IPython's "!command" opens a pseudo-terminal. All sessions share the system's limit (pts(4)).
    options = "newinstance,ptmxmode=0666,mode=620,max=256"
    lx.mount("devpts", root + "/dev/pts", "devpts", lx.MS_NOSUID | lx.MS_NOEXEC, options)
    os.symlink("pts/ptmx", root + "/dev/ptmx")
    _mount_scratch(root, "/dev/shm", view["shm_bytes"], lx.MS_NOSUID | lx.MS_NODEV | lx.MS_NOEXEC)


def _mount_proc(root: str, masks: list[str]) -> None:
    """Mount this pid namespace's /proc and cover files that show the host.

    A mask whose file does not exist in this Linux is skipped: there is nothing to cover.
    """
    os.mkdir(root + "/proc")
    lx.mount("proc", root + "/proc", "proc", lx.MS_NOSUID | lx.MS_NODEV | lx.MS_NOEXEC)
    for name in masks:
        path = f"{root}/proc/{name}"
        if os.path.isdir(path):
            lx.mount("tmpfs", path, "tmpfs", lx.MS_RDONLY | lx.MS_NOSUID | lx.MS_NODEV, "size=4k,nr_inodes=2")
        elif os.path.exists(path):
            lx.bind("/dev/null", path, lx.ATTR_NOSUID | lx.ATTR_NOEXEC | lx.ATTR_RDONLY)
