"""A directory that an attacker writes to, opened so that nothing in it leads out of it.

Theory of operation. Names are never joined to a path and looked at first: the
kernel of the machine resolves each name itself, in one call, beneath a
descriptor of the directory, with links, magic links and other filesystems
forbidden (openat2(2): ``RESOLVE_BENEATH | NO_SYMLINKS | NO_MAGICLINKS |
NO_XDEV``). What was opened is then judged by its descriptor: a regular file
with one link, or nothing. So there is no moment between looking and using.

Where openat2 is missing (Linux before 5.6, or a filter that refuses it), each
component is opened on its own with ``O_NOFOLLOW``, relative to the one before,
and must lie on the same device; that is as safe, one call per component.

Writing goes to a new name in the target's directory and is renamed into place,
both relative to that directory's descriptor: it replaces a link, never follows
one. When the directory belongs to a session's own user, so does the new file.

Everything here is synchronous and short, but ``walk`` and ``delete`` of a large
tree; call those in a thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import secrets
import shutil
import stat
import struct
from collections.abc import Generator, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from kernelsvc.errors import AtCapacity, BadRequest, Conflict, KernelsvcError, NotFound, NotSupported, TooLarge
from kernelsvc.linux.nofollow import open_plain

#: linux/openat2.h
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 1, 2, 4, 8
_RESOLVE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
#: The same number on every architecture: it is younger than the common table (asm-generic/unistd.h).
_SYS_OPENAT2 = 437
#: openat2(2) says EAGAIN when a rename raced with it; an attacker can race for ever.
_TRIES = 64

MAX_PATH_BYTES, MAX_NAME_BYTES, MAX_DEPTH = 4096, 255, 64
TEMPORARY = b".kernelsvc-upload-"

_libc = ctypes.CDLL(None, use_errno=True)


def parse_path(raw: bytes) -> tuple[bytes, ...]:
    """A relative path from a URL, percent-decoded, as its components.

    Raises:
        BadRequest: it is absolute, empty, too long or deep, or has a part that climbs.
    """
    parts = tuple(raw.split(b"/"))
    if raw.startswith(b"/"):
        raise BadRequest("The path is absolute. Give one relative to the session's directory.")
    if any(part in (b"..", b".") for part in parts):
        raise BadRequest("The path has a '.' or '..'. Give a plain path below the session's directory.")
    if b"" in parts or b"\0" in raw:
        raise BadRequest("The path has an empty part or a NUL byte. Give a plain path such as 'data/a.csv'.")
    if len(raw) > MAX_PATH_BYTES or len(parts) > MAX_DEPTH or any(len(part) > MAX_NAME_BYTES for part in parts):
        raise BadRequest(
            f"The path is too long. At most {MAX_PATH_BYTES} bytes, {MAX_DEPTH} levels, {MAX_NAME_BYTES} bytes a name."
        )
    return parts


def openat2(dirfd: int, path: bytes, flags: int) -> int:
    """Open what lies beneath ``dirfd``, in one call of the machine's kernel, and follow no link.

    Raises:
        OSError: as the system call; ENOSYS where there is none.
    """
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE)
    for _ in range(_TRIES):
        fd = int(_libc.syscall(_SYS_OPENAT2, dirfd, path, how, len(how)))
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number not in (errno.EINTR, errno.EAGAIN):
            raise OSError(number, os.strerror(number))
    raise OSError(errno.EAGAIN, "the directory is being renamed under us")


def walk_open(dirfd: int, parts: tuple[bytes, ...], flags: int) -> int:
    """``openat2`` for machines without it: one component at a time, no link followed, no other device entered.

    Raises:
        OSError: as ``open``; ELOOP or ENOTDIR at a link, EXDEV at another device.
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


#: Whether this machine has openat2; tests turn it off.
HAS_OPENAT2 = _works()


def open_beneath(dirfd: int, parts: tuple[bytes, ...], flags: int) -> int:
    """A descriptor of what ``parts`` names beneath ``dirfd``; the caller closes it.

    Raises:
        OSError: it isn't there, or a link or another filesystem lies on the way.
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
    errno.EXDEV: (BadRequest, "This path leads out of the session's directory. Give one that stays in it."),
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
    """Turn the machine's errors into ours, with no path of the server's in them."""
    try:
        yield
    except OSError as error:
        cls, message = _MESSAGES.get(error.errno or 0, (Conflict, "The file can't be used. List the directory."))
        raise cls(message) from None


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One name: ``path`` relative to the root, as bytes."""

    path: bytes
    kind: str
    size: int
    mtime_ns: int

    @property
    def modified(self) -> str:
        """UTC, ISO 8601; a time that no calendar has becomes the epoch."""
        try:
            at = datetime.fromtimestamp(self.mtime_ns / 1e9, UTC)
        except (ValueError, OverflowError, OSError):
            at = datetime.fromtimestamp(0, UTC)
        return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def kind_of(mode: int) -> str:
    """What a mode says that something is."""
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "link" if stat.S_ISLNK(mode) else "other"


def etag_of(info: os.stat_result) -> str:
    """Changes whenever the file's content may have."""
    facts = f"{info.st_ino}:{info.st_size}:{info.st_mtime_ns}:{info.st_ctime_ns}"
    return '"' + hashlib.sha256(facts.encode()).hexdigest()[:32] + '"'


class RootedDirectory:
    """A session's directory. A context manager: holds one descriptor."""

    def __init__(self, path: Path) -> None:
        with explained():
            try:
                self._fd = open_plain(path, os.O_RDONLY)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                said = "A link lies in place of the session's directory and is not followed; move it back in a cell."
                raise Conflict(said) from None
        self._owner = os.fstat(self._fd)

    def __enter__(self) -> RootedDirectory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def open_file(self, parts: tuple[bytes, ...]) -> tuple[int, os.stat_result]:
        """A readable descriptor of a regular file, and what it is. The caller closes it.

        Never waits: ``O_NONBLOCK`` opens a FIFO at once, and then it is refused.

        Raises:
            KernelsvcError: it isn't there, no regular file, or has a second link (to who knows what).
        """
        with explained():
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

    def is_directory(self, parts: tuple[bytes, ...]) -> bool:
        """Whether this names a directory in here."""
        try:
            os.close(open_beneath(self._fd, parts, os.O_PATH | os.O_DIRECTORY))
        except OSError:
            return False
        return True

    def list(self, parts: tuple[bytes, ...], *, recursive: bool, limit: int) -> tuple[list[Entry], bool]:
        """At most ``limit`` entries, sorted, and whether there are more. May take long; call it in a thread.

        Raises:
            KernelsvcError: it is no directory in here.
        """
        found: list[Entry] = []
        with explained(), contextlib.closing(self._walk(parts, recursive=recursive)) as entries:
            for entry in entries:
                if len(found) >= limit:
                    return sorted(found, key=lambda e: e.path), True
                found.append(entry)
        return sorted(found, key=lambda e: e.path), False

    def _walk(self, top: tuple[bytes, ...], *, recursive: bool) -> Generator[Entry, None, None]:
        pending = [top]
        while pending:
            parts = pending.pop()
            try:
                fd = open_beneath(self._fd, parts, os.O_RDONLY | os.O_DIRECTORY)
            except OSError:
                if parts == top:
                    raise
                continue  # It went away, or became a link, since its parent was read.
            try:
                for entry in self._entries(fd, parts):
                    yield entry
                    if recursive and entry.kind == "directory" and len(parts) < MAX_DEPTH:
                        pending.append(tuple(entry.path.split(b"/")))
            finally:
                os.close(fd)

    def _entries(self, fd: int, parts: tuple[bytes, ...]) -> Iterator[Entry]:
        with os.scandir(fd) as names:
            for name in names:
                try:
                    info = name.stat(follow_symlinks=False)
                except OSError:
                    continue
                if os.fsencode(name.name).startswith(TEMPORARY):
                    continue
                path = b"/".join((*parts, os.fsencode(name.name)))
                kind = kind_of(info.st_mode)
                yield Entry(path=path, kind=kind, size=info.st_size, mtime_ns=info.st_mtime_ns)

    def look(self, parts: tuple[bytes, ...]) -> tuple[os.stat_result, bytes | None]:
        """What a name is, itself: a link is not followed, its target is told. No parts: the directory.

        Raises:
            KernelsvcError: it isn't there.
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
        """The extended attributes of a name's own (``user.*``); none of what is no file and no directory.

        Raises:
            KernelsvcError: it isn't there.
        """
        with explained():
            fd = open_beneath(self._fd, parts, os.O_PATH | os.O_NOFOLLOW)
            try:
                return _attributes(fd)
            finally:
                os.close(fd)

    def open_directory(self, parts: tuple[bytes, ...]) -> int:
        """A descriptor (``O_PATH``) of a directory in here; the caller closes it.

        Raises:
            KernelsvcError: it isn't there, or is no directory.
        """
        with explained():
            return open_beneath(self._fd, parts, os.O_PATH | os.O_DIRECTORY)

    def make(self, parts: tuple[bytes, ...]) -> None:
        """Make a directory, and those on its way.

        Raises:
            KernelsvcError: a link or something else is in the way, or the disk is full.
        """
        with explained():
            os.close(self._make_parents(parts))

    def move(self, source: tuple[bytes, ...], target: tuple[bytes, ...]) -> None:
        """Give what has a name another one; directories on its way are made, what has that name is replaced.

        Raises:
            KernelsvcError: it isn't there, or the new name is a directory's with something in it.
        """
        with contextlib.ExitStack() as held, explained():
            old = open_beneath(self._fd, source[:-1], os.O_RDONLY | os.O_DIRECTORY)
            held.callback(os.close, old)
            os.stat(source[-1], dir_fd=old, follow_symlinks=False)
            new = self._make_parents(target[:-1])
            held.callback(os.close, new)
            os.rename(source[-1], target[-1], src_dir_fd=old, dst_dir_fd=new)

    def upload(self, parts: tuple[bytes, ...]) -> Upload:
        """Begin to write a file; directories on its way are made.

        Raises:
            KernelsvcError: a link or something else is in the way, or the disk is full.
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
        """Each step is relative to the descriptor of the one before, so that no step can be redirected."""
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
        """Remove a name: a file, a link (not what it points to), a directory. May take long; call it in a thread.

        Raises:
            KernelsvcError: it isn't there, or is a directory with something in it.
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
    elif recursive:
        try:
            # Descriptor-based on Linux: a directory swapped for a link is not entered (shutil.rmtree's docs).
            shutil.rmtree(os.fsdecode(name), dir_fd=parent)
        except RecursionError:
            raise OSError(errno.ENOTEMPTY, "nested too deep") from None
    else:
        os.rmdir(name, dir_fd=parent)


def _attributes(fd: int) -> dict[str, bytes]:
    kind = os.fstat(fd).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        return {}
    place = f"/proc/self/fd/{fd}"  # leads to what O_PATH has open; the descriptor itself is refused (open(2))
    found = {}
    with contextlib.suppress(OSError):  # a filesystem without them
        for name in os.listxattr(place):
            with contextlib.suppress(OSError):  # removed meanwhile
                found[name] = os.getxattr(place, name)
    return found


def own(fd: int, owner: os.stat_result) -> None:
    """Give a new file to whom the directory belongs to, when that is somebody else and we may."""
    if os.geteuid() == 0 and (owner.st_uid, owner.st_gid) != (0, 0):
        os.fchown(fd, owner.st_uid, owner.st_gid)


class Upload:
    """A file that is being written. Ends with ``commit`` or ``abort``."""

    def __init__(self, parent: int, name: bytes, owner: os.stat_result) -> None:
        self._parent, self._name = parent, name
        self._temporary = TEMPORARY + secrets.token_hex(8).encode()
        self._digest = hashlib.sha256()
        self.size = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._temporary, flags, 0o644, dir_fd=parent)
        own(self._fd, owner)

    def write(self, data: bytes) -> None:
        """Append.

        Raises:
            KernelsvcError: the disk is full or fails; ``abort`` is still to be called.
        """
        with explained():
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
        self._digest.update(data)
        self.size += len(data)

    def describe(self, attributes: Mapping[str, bytes]) -> None:
        """Give it extended attributes (xattr(7)).

        Raises:
            NotSupported: the filesystem has none.
            TooLarge: they are more than it takes.
            KernelsvcError: the disk fails; ``abort`` is still to be called.
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
        """What has the name now, None if nothing has."""
        try:
            return os.stat(self._name, dir_fd=self._parent, follow_symlinks=False)
        except OSError:
            return None

    def commit(self) -> tuple[str, str]:
        """Put it in place of whatever had the name. Returns its SHA-256 and ETag.

        Raises:
            KernelsvcError: the name is a directory's.
        """
        with explained():
            os.rename(self._temporary, self._name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
        etag = etag_of(os.fstat(self._fd))
        self._temporary = b""
        self._release()
        return self._digest.hexdigest(), etag

    def abort(self) -> None:
        """Forget it; calling it again, or after ``commit``, does nothing."""
        if self._fd >= 0 and self._temporary:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._parent)
        self._release()

    def _release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            os.close(self._parent)
            self._fd = self._parent = -1
