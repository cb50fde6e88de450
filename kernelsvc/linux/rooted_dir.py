"""A directory that an attacker writes to, opened so that no path leads out of it.

Theory of operation. Names are never joined to a path and checked first. Linux resolves each name itself, in one call,
beneath a descriptor of the directory, with links, magic links and other filesystems forbidden (openat2(2):
``RESOLVE_BENEATH | NO_SYMLINKS | NO_MAGICLINKS | NO_XDEV``). The opened file is then checked by its descriptor: it
must be a regular file with one link. So there is no moment between a check and a use.

Where openat2 is missing (Linux before 5.6, or a filter that refuses it), each component is opened on its own with
``O_NOFOLLOW``, relative to the one before, and must lie on the same device. That is as safe, with one call for each
component.

A write goes to a new name in the target's directory, and rename(2) puts it in place, both relative to that directory's
descriptor. It replaces a link and never follows one. If the directory belongs to a session's own user, so does the new
file.

All calls are synchronous and short except ``list`` and ``delete`` of a large tree: call those in a thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import secrets
import stat
import struct
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

from kernelsvc.errors import AtCapacity, BadRequest, Conflict, KernelsvcError, NotFound, NotSupported, TooLarge
from kernelsvc.linux.nofollow import open_directory

#: linux/openat2.h
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 1, 2, 4, 8
_RESOLVE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
#: The same number on every architecture (asm-generic/unistd.h).
_SYS_OPENAT2 = 437
#: openat2(2) fails with EAGAIN when a rename races with it. An attacker can race without end.
_TRIES = 64

MAX_PATH_BYTES, MAX_NAME_BYTES, MAX_DEPTH = 4096, 255, 64
#: Levels of a tree that ``delete`` removes in one pass, and most passes. Code can make a tree of any depth.
MAX_REMOVED_DEPTH, MAX_PASSES = 128, 1000
TEMPORARY = b".kernelsvc-upload-"

_libc = ctypes.CDLL(None, use_errno=True)


def parse_path(raw: bytes) -> tuple[bytes, ...]:
    """Return the components of a relative path from a URL, percent-decoded.

    Raises:
        BadRequest: it is absolute, empty, too long or too deep, or has a part ``..``.
    """
    # Looked at before the split: a body may hold a path of 60 MiB.
    parts = tuple(raw[: MAX_PATH_BYTES + 1].split(b"/"))
    if raw.startswith(b"/"):
        raise BadRequest("The path is absolute. Give one relative to this directory.")
    if any(part in (b"..", b".") for part in parts):
        raise BadRequest("The path has a '.' or '..'. Give a plain path below this directory.")
    if b"" in parts or b"\0" in raw:
        raise BadRequest("The path has an empty part or a NUL byte. Give a plain path such as 'data/a.csv'.")
    if len(raw) > MAX_PATH_BYTES or len(parts) > MAX_DEPTH or any(len(part) > MAX_NAME_BYTES for part in parts):
        raise BadRequest(
            f"The path is too long. At most {MAX_PATH_BYTES} bytes, {MAX_DEPTH} levels, {MAX_NAME_BYTES} bytes a name."
        )
    return parts


def openat2(dirfd: int, path: bytes, flags: int) -> int:
    """Open a path beneath ``dirfd`` in one system call, without following a link.

    Raises:
        OSError: see openat2(2). ENOSYS if Linux lacks it.
    """
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE)
    for _ in range(_TRIES):
        fd = int(_libc.syscall(_SYS_OPENAT2, dirfd, path, how, len(how)))
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number not in (errno.EINTR, errno.EAGAIN):
            raise OSError(number, os.strerror(number))
    raise OSError(errno.EAGAIN, "the directory is being renamed meanwhile")


def walk_open(dirfd: int, parts: tuple[bytes, ...], flags: int) -> int:
    """Do the same as ``openat2`` on machines without it: one component at a time, no link, no other device.

    Raises:
        OSError: see open(2). ELOOP or ENOTDIR at a link, EXDEV at another device.
    """
    device = os.fstat(dirfd).st_dev
    current = os.dup(dirfd)
    try:
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            wanted = flags if last else os.O_PATH | os.O_DIRECTORY
            following = os.open(part, wanted | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            os.close(current)
            current = following
            info = os.fstat(current)
            if info.st_dev != device:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            # open(2): with O_PATH and O_NOFOLLOW a link is not refused. The descriptor is then that of the link.
            if stat.S_ISLNK(info.st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    except BaseException:
        os.close(current)
        raise
    return current


def _works() -> bool:
    with contextlib.suppress(OSError):
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.close(openat2(root, b".", os.O_PATH | os.O_DIRECTORY))
            return True
        finally:
            os.close(root)
    return False


#: Whether this machine has openat2; tests turn it off. The version of Linux does not tell: the seccomp filter of a
#: container may refuse the call.
HAS_OPENAT2 = _works()


def open_beneath(dirfd: int, parts: tuple[bytes, ...], flags: int) -> int:
    """Open the path ``parts`` beneath ``dirfd``. The caller closes the descriptor.

    Raises:
        OSError: it does not exist, or a component is a link or on another filesystem.
    """
    if not parts:
        return os.open(b".", flags | os.O_CLOEXEC, dir_fd=dirfd)
    if HAS_OPENAT2:
        return openat2(dirfd, b"/".join(parts), flags)
    return walk_open(dirfd, parts, flags)


_MESSAGES: dict[int, tuple[type[KernelsvcError], str]] = {
    errno.ENOENT: (NotFound, "There is no such file. List the directory and check the path."),
    errno.ENOTDIR: (NotFound, "A part of this path is no directory. List the directory and check the path."),
    errno.ELOOP: (BadRequest, "A link lies on this path. Links are not followed, name the file itself."),
    errno.EXDEV: (BadRequest, "This path leads out of the directory. Give one that stays in it."),
    errno.EISDIR: (Conflict, "This is a directory. Name a file in it."),
    errno.ENOTEMPTY: (Conflict, "The directory is not empty. Use recursive=true to delete all that is in it."),
    errno.EEXIST: (Conflict, "The name is taken. Choose another."),
    errno.ENAMETOOLONG: (BadRequest, "A name is too long. Choose a shorter one."),
    errno.ENOSPC: (AtCapacity, "The disk is full. Delete files, then try again."),
    errno.EDQUOT: (AtCapacity, "The disk quota is used up. Delete files, then try again."),
    errno.EFBIG: (TooLarge, "The file is larger than the filesystem takes. Send it in parts."),
    errno.EACCES: (Conflict, "The server may not do this to the file. Change its permissions in a cell."),
    errno.EPERM: (Conflict, "The server may not do this to the file. Change its permissions in a cell."),
    errno.EAGAIN: (Conflict, "The directory changes too fast to be read. Try again when no cell moves it."),
    errno.ENXIO: (BadRequest, "This is no regular file. Only regular files can be read."),
    errno.ESTALE: (NotFound, "The file is gone. List the directory."),
}


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Convert an OSError into an error for the client, without a path of the server's."""
    try:
        yield
    except OSError as error:
        cls, message = _MESSAGES.get(error.errno or 0, (Conflict, "The file can't be used. List the directory."))
        raise cls(message) from None


class RootedDirectory:
    """A session's directory. A context manager that holds one descriptor."""

    def __init__(self, path: Path) -> None:
        with explained():
            try:
                self._fd = open_directory(path, os.O_RDONLY)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                message = "A link lies in place of the session's directory and is not followed; move it back in a cell."
                raise Conflict(message) from None
        self._owner = os.fstat(self._fd)

    def __enter__(self) -> RootedDirectory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def open_file(self, parts: tuple[bytes, ...]) -> tuple[int, os.stat_result]:
        """Open a regular file for reading. Return the descriptor, which the caller closes, and its status.

        Never blocks: ``O_NONBLOCK`` opens a FIFO immediately (fifo(7)), and then the check refuses it.

        Raises:
            KernelsvcError: it does not exist, is no regular file, or has a second link, which may lie outside.
        """
        with explained():
            # open(2): without O_NOCTTY a terminal may become the controlling terminal of a server that has none.
            fd = open_beneath(self._fd, parts, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        info = os.fstat(fd)
        if stat.S_ISREG(info.st_mode) and info.st_nlink == 1:
            return fd, info
        os.close(fd)
        if stat.S_ISDIR(info.st_mode):
            raise Conflict("This is a directory. Name a file in it.")
        if stat.S_ISREG(info.st_mode):
            raise BadRequest("This file has a second name (a hard link) and is not served. Copy it first.")
        raise BadRequest("This is no regular file. Only regular files can be read.")

    def list(
        self, parts: tuple[bytes, ...], *, depth: int | None, limit: int
    ) -> tuple[list[tuple[bytes, os.stat_result]], bool]:
        """Return at most ``limit`` entries as path and status, sorted, and whether there are more.

        A path is relative to this directory. The status of a link is the link's own. ``depth`` is the number of levels:
        1 for the entries of the directory alone, None for all.

        Slow for a large tree: call it in a thread.

        Raises:
            KernelsvcError: it is no directory in here.
        """
        found: list[tuple[bytes, os.stat_result]] = []
        with explained(), contextlib.closing(self._walk(parts, depth)) as entries:
            for entry in entries:
                if len(found) >= limit:
                    return sorted(found, key=lambda entry: entry[0]), True
                found.append(entry)
        return sorted(found, key=lambda entry: entry[0]), False

    def _walk(self, top: tuple[bytes, ...], depth: int | None) -> Generator[tuple[bytes, os.stat_result], None, None]:
        deepest = MAX_DEPTH if depth is None else min(MAX_DEPTH, len(top) + depth - 1)
        pending = [top]
        while pending:
            parts = pending.pop()
            try:
                fd = open_beneath(self._fd, parts, os.O_RDONLY | os.O_DIRECTORY)
            except OSError:
                if parts == top:
                    raise
                continue  # It was removed or replaced by a link since its parent was read.
            try:
                for path, info in self._entries(fd, parts):
                    yield path, info
                    if stat.S_ISDIR(info.st_mode) and len(parts) < deepest:
                        pending.append(tuple(path.split(b"/")))
            finally:
                os.close(fd)

    def _entries(self, fd: int, parts: tuple[bytes, ...]) -> Iterator[tuple[bytes, os.stat_result]]:
        with os.scandir(fd) as names:
            for name in names:
                try:
                    info = name.stat(follow_symlinks=False)
                except OSError:
                    continue
                if os.fsencode(name.name).startswith(TEMPORARY):
                    continue
                yield b"/".join((*parts, os.fsencode(name.name))), info

    def stat_entry(self, parts: tuple[bytes, ...]) -> tuple[os.stat_result, bytes | None]:
        """Return the status of an entry, and its target if it is a link.

        A link is not followed. No parts: the directory.

        Raises:
            KernelsvcError: it does not exist.
        """
        if not parts:
            return os.fstat(self._fd), None
        with explained():
            parent = open_beneath(self._fd, parts[:-1], os.O_PATH | os.O_DIRECTORY)
            try:
                info = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
                target = os.readlink(parts[-1], dir_fd=parent) if stat.S_ISLNK(info.st_mode) else None
            finally:
                os.close(parent)
        return info, target

    def attributes(self, parts: tuple[bytes, ...]) -> dict[str, bytes]:
        """Return the extended attributes (``user.*``) of a file or directory, none of other kinds.

        Raises:
            KernelsvcError: it does not exist.
        """
        with explained():
            fd = open_beneath(self._fd, parts, os.O_PATH | os.O_NOFOLLOW)
            try:
                return _attributes(fd)
            finally:
                os.close(fd)

    def set_mode(self, parts: tuple[bytes, ...], mode: int) -> None:
        """Set the permissions of a file or directory.

        Raises:
            KernelsvcError: it does not exist, or is a link.
        """
        with explained():
            fd = open_beneath(self._fd, parts, os.O_PATH | os.O_NOFOLLOW)
            try:
                os.chmod(_proc_path(fd), mode)
            finally:
                os.close(fd)

    def open_directory(self, parts: tuple[bytes, ...]) -> int:
        """Open a directory with ``O_PATH``. The caller closes the descriptor.

        Raises:
            KernelsvcError: it does not exist, or is no directory.
        """
        with explained():
            return open_beneath(self._fd, parts, os.O_PATH | os.O_DIRECTORY)

    def make(self, parts: tuple[bytes, ...]) -> None:
        """Make a directory and its parents.

        Raises:
            KernelsvcError: a component is a link or a file, or the disk is full.
        """
        with explained():
            os.close(self._make_parents(parts))

    def move(self, source: tuple[bytes, ...], target: tuple[bytes, ...]) -> None:
        """Rename an entry. It makes missing parents, and an entry with the new name is replaced.

        Raises:
            KernelsvcError: it does not exist, or the new name is that of a directory that is not empty.
        """
        with contextlib.ExitStack() as stack, explained():
            old = open_beneath(self._fd, source[:-1], os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, old)
            # Before the parents of the new name are made: a move of a missing entry must change nothing.
            os.stat(source[-1], dir_fd=old, follow_symlinks=False)
            new = self._make_parents(target[:-1])
            stack.callback(os.close, new)
            os.rename(source[-1], target[-1], src_dir_fd=old, dst_dir_fd=new)

    def upload(self, parts: tuple[bytes, ...]) -> Upload:
        """Start to write a file. It makes missing parents.

        Raises:
            KernelsvcError: a component is a link or a file, or the disk is full.
        """
        with explained():
            parent = self._make_parents(parts[:-1])
        try:
            with explained():
                return Upload(parent, parts[-1], self._owner)
        except BaseException:
            os.close(parent)
            raise

    def _make_parents(self, parts: tuple[bytes, ...]) -> int:
        """Make directories, each relative to the descriptor of the one before, so that no step can be redirected."""
        current = os.dup(self._fd)
        try:
            for part in parts:
                made = False
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=current)
                    made = True
                following = open_beneath(current, (part,), os.O_RDONLY | os.O_DIRECTORY)
                os.close(current)
                current = following
                if made:
                    own(current, self._owner)
        except BaseException:
            os.close(current)
            raise
        return current

    def delete(self, parts: tuple[bytes, ...], *, recursive: bool) -> None:
        """Remove an entry: a file, a link (not its target), a directory. Slow for a large tree: call it in a thread.

        Raises:
            KernelsvcError: it does not exist, is a directory that is not empty, or is nested too deep.
        """
        with explained():
            parent = open_beneath(self._fd, parts[:-1], os.O_RDONLY | os.O_DIRECTORY)
            try:
                _remove(parent, parts[-1], recursive=recursive)
            finally:
                os.close(parent)


def _remove(parent: int, name: bytes, *, recursive: bool) -> None:
    if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=parent)
    elif not recursive:
        os.rmdir(name, dir_fd=parent)
    else:
        top = _open_entry(parent, name)
        try:
            passes = 0
            while _empty(top, top, 0):
                passes += 1
                if passes == MAX_PASSES:
                    raise Conflict("Its directories are nested too deep. Remove it in a cell, or end the session.")
        finally:
            os.close(top)
        os.rmdir(name, dir_fd=parent)


def _open_entry(parent: int, name: bytes) -> int:
    # If code replaces the directory by a link meanwhile, O_NOFOLLOW refuses it.
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)


def _empty(top: int, here: int, depth: int) -> bool:
    """Remove the entries of a directory. Return whether some were too deep, and moved to ``top`` for the next pass.

    Each level takes two descriptors, so the depth is limited. Code may run in the tree meanwhile: ``remove_tree`` is
    for trees in which none does, and shutil.rmtree takes descriptors and paths for every level.
    """
    moved = False
    with os.scandir(here) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(name, dir_fd=here)
            elif depth == MAX_REMOVED_DEPTH:
                os.rename(name, b".removing-" + secrets.token_hex(8).encode(), src_dir_fd=here, dst_dir_fd=top)
                moved = True
            else:
                inner = _open_entry(here, name)
                try:
                    moved |= _empty(top, inner, depth + 1)
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=here)
    return moved


def _proc_path(fd: int) -> str:
    """Return the path of an open file. open(2): operations on an O_PATH descriptor itself fail with EBADF."""
    return f"/proc/self/fd/{fd}"


def _attributes(fd: int) -> dict[str, bytes]:
    kind = os.fstat(fd).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        return {}
    proc_path = _proc_path(fd)
    found = {}
    with contextlib.suppress(OSError):  # a filesystem without extended attributes
        for name in os.listxattr(proc_path):
            with contextlib.suppress(OSError):  # it was removed meanwhile
                found[name] = os.getxattr(proc_path, name)
    return found


def own(fd: int, owner: os.stat_result) -> None:
    """Give a new file to the owner of its directory, if that is another user and this process is root."""
    if os.geteuid() == 0 and (owner.st_uid, owner.st_gid) != (0, 0):
        os.fchown(fd, owner.st_uid, owner.st_gid)


class Upload:
    """A file that is being written. Ends with ``commit`` or ``abort``."""

    def __init__(self, parent: int, name: bytes, owner: os.stat_result) -> None:
        self._parent, self._name = parent, name
        self._temporary = TEMPORARY + secrets.token_hex(8).encode()
        self._digest = hashlib.sha256()
        self.size = 0
        # open(2): O_CREAT with O_EXCL fails if the name exists, also if it is a link to nowhere.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._temporary, flags, 0o644, dir_fd=parent)
        own(self._fd, owner)

    def write(self, data: bytes) -> None:
        """Append data.

        Raises:
            KernelsvcError: the disk is full or failed. Call ``abort`` then.
        """
        with explained():
            view = memoryview(data)
            while view:
                # write(2): "The number of bytes written may be less than count", as on a disk that is almost full.
                view = view[os.write(self._fd, view) :]
        self._digest.update(data)
        self.size += len(data)

    def describe(self, attributes: Mapping[str, bytes]) -> None:
        """Set extended attributes (xattr(7)).

        Raises:
            NotSupported: the filesystem has none.
            TooLarge: they exceed its limit.
            KernelsvcError: the disk failed. Call ``abort`` then.
        """
        try:
            for name, value in attributes.items():
                os.setxattr(self._fd, name, value)
        except OSError as error:
            if error.errno == errno.ENOTSUP:
                raise NotSupported("The disk keeps no metadata of files. Keep it in a file of its own.") from None
            if error.errno in (errno.ENOSPC, errno.E2BIG, errno.ERANGE, errno.EDQUOT):
                raise TooLarge("The disk takes less metadata for one file. Send less of it.") from None
            with explained():
                raise

    def current(self) -> os.stat_result | None:
        """Return the status of the present file of this name, or None if there is none."""
        try:
            return os.stat(self._name, dir_fd=self._parent, follow_symlinks=False)
        except OSError:
            return None

    def commit(self) -> tuple[str, os.stat_result]:
        """Put the file in place of the present one. Return its SHA-256 and its status.

        Raises:
            KernelsvcError: the name is that of a directory.
        """
        with explained():
            os.rename(self._temporary, self._name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
        info = os.fstat(self._fd)  # by the descriptor: a cell may have replaced the name already
        self._temporary = b""
        self._release()
        return self._digest.hexdigest(), info

    def abort(self) -> None:
        """Remove the temporary file. Idempotent, and does nothing after ``commit``."""
        if self._fd >= 0 and self._temporary:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._parent)
        self._release()

    def _release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            os.close(self._parent)
            self._fd = self._parent = -1
