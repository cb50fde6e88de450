"""The disk space and the number of files that a session uses, measured against attempts to hide some of it.

Theory of operation. A walk goes from directory to directory by descriptor, so a path may be longer than PATH_MAX and no
rename leads it elsewhere. A directory that a session made unreadable is readable while the walk is in it: the server
owns the files of its sessions or is root. Files that were deleted while open or mapped are found at
the processes that hold them. A part that can't be measured is reported as ``unseen``, never counted as zero.

Not found: a deleted file whose only reference is a descriptor in flight over a Unix socket (unix(7), SCM_RIGHTS).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Iterable

import msgspec

from kernelsvc.linux import procfs
from kernelsvc.linux.nofollow import open_directory

#: Deepest directory that is measured. The walk holds a descriptor for each level.
MAX_DEPTH = 200
#: Entries that are counted where no limit of files is set.
_MAX_ENTRIES = 1_000_000
_READ_AND_SEARCH = 0o500
_DELETED = b" (deleted)"
_MAPS_LINE = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) +(/.*) \(deleted\)$")
_Inode = tuple[int, int]


class DiskUse(msgspec.Struct, frozen=True, kw_only=True):
    """The files that a session keeps on disk.

    Attributes:
        bytes: allocated blocks.
        files: directory entries, and deleted files that are still open.
        unseen: why something could not be measured, or "".
    """

    bytes: int = 0
    files: int = 0
    unseen: str = ""

    def plus(self, other: DiskUse) -> DiskUse:
        """Return the sum of two measurements of different files."""
        return DiskUse(
            bytes=self.bytes + other.bytes, files=self.files + other.files, unseen=self.unseen or other.unseen
        )


def measure_directory(
    directory: str, *, entries: int | None = _MAX_ENTRIES, skip: Callable[[str], bool] | None = None
) -> DiskUse:
    """Measure a directory and everything below. Links are not followed.

    Hard links are counted once, sparse files by their blocks.

    Args:
        directory: an absolute path. If it does not exist or a component is a link, nothing is counted: a session may
            have put a link to other files in its place.
        entries: stop after so many.
        skip: whether to leave out the directory with this path, relative to ``directory``.
    """
    try:
        above = open_directory(os.path.dirname(os.path.abspath(directory)))
    except OSError:
        return DiskUse()
    try:
        top = _Level.open(os.path.basename(directory), above, "")
    except PermissionError:
        return DiskUse(unseen=f"{directory} can't be read")
    except OSError:
        return DiskUse()
    finally:
        os.close(above)
    return _Walk(_MAX_ENTRIES if entries is None else entries, skip).run(top)


class _Level:
    """An open directory of a walk.

    Attributes:
        fd: its descriptor.
        path: relative to the directory where the walk began.
        names: its directories that are not visited yet.
    """

    def __init__(self, fd: int, path: str, restore: tuple[int, int] | None) -> None:
        self.fd = fd
        self.path = path
        self.names: list[str] = []
        self._restore = restore

    @classmethod
    def open(cls, name: str, parent: int, path: str) -> _Level:
        """Open a directory, also if its mode denies that to its owner.

        A lookup in a directory needs search permission at that time, not when it was opened (path_resolution(7)). So
        the mode stays changed until ``close``.

        Raises:
            OSError: it is no directory, or it belongs to another user.
        """
        flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(name, os.O_PATH | flags, dir_fd=parent)
        own, mode = f"/proc/self/fd/{handle}", stat.S_IMODE(os.fstat(handle).st_mode)
        if os.geteuid() == 0 or mode & _READ_AND_SEARCH == _READ_AND_SEARCH:
            try:
                return cls(os.open(own, os.O_RDONLY | flags & ~os.O_NOFOLLOW), path, None)
            finally:
                os.close(handle)
        try:
            os.chmod(own, mode | _READ_AND_SEARCH)
            return cls(os.open(own, os.O_RDONLY | flags & ~os.O_NOFOLLOW), path, (handle, mode))
        except OSError:
            os.close(handle)
            raise

    def close(self) -> None:
        """Close the directory and restore its mode."""
        os.close(self.fd)
        if self._restore is not None:
            handle, mode = self._restore
            with contextlib.suppress(OSError):
                os.chmod(f"/proc/self/fd/{handle}", mode)
            os.close(handle)


class _Walk:
    """One walk, depth first."""

    def __init__(self, entries: int, skip: Callable[[str], bool] | None) -> None:
        self._entries = entries
        self._skip = skip
        self._linked: set[_Inode] = set()
        self._bytes = self._files = 0
        self._unseen = ""

    def run(self, top: _Level) -> DiskUse:
        """Walk from an open directory, and close it."""
        levels = [top]
        top.names = self._list(top.fd)
        try:
            while levels:
                level = levels[-1]
                if not level.names or self._files > self._entries:
                    levels.pop().close()
                    continue
                name = level.names.pop()
                path = f"{level.path}/{name}" if level.path else name
                if self._skip is not None and self._skip(path):
                    continue
                if len(levels) >= MAX_DEPTH:
                    self._note(f"directories are nested more than {MAX_DEPTH} deep")
                elif (found := self._open(name, level.fd, path)) is not None:
                    levels.append(found)
                    found.names = self._list(found.fd)
        finally:
            for level in reversed(levels):
                level.close()
        return DiskUse(bytes=self._bytes, files=self._files, unseen=self._unseen)

    def _note(self, unseen: str) -> None:
        self._unseen = self._unseen or unseen

    def _open(self, name: str, parent: int, path: str) -> _Level | None:
        try:
            return _Level.open(name, parent, path)
        except OSError as error:
            # The others: it was removed, or replaced by a file or by a link meanwhile.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                self._note(f"a directory can't be read ({error.strerror})")
            return None

    def _list(self, fd: int) -> list[str]:
        """Count the entries of a directory. Return the names of its directories."""
        directories: list[str] = []
        try:
            with os.scandir(fd) as found:
                for entry in found:
                    self._files += 1
                    if self._files > self._entries:
                        self._note(f"there are more than {self._entries} files")
                        break
                    if self._count(entry):
                        directories.append(entry.name)
        except OSError as error:
            self._note(f"a directory can't be listed ({error.strerror})")
        return directories

    def _count(self, entry: os.DirEntry[str]) -> bool:
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            self._note(f"a file can't be examined ({error.strerror})")
            return False
        is_directory = stat.S_ISDIR(status.st_mode)
        if status.st_nlink > 1 and not is_directory:
            if (status.st_dev, status.st_ino) in self._linked:
                return False
            self._linked.add((status.st_dev, status.st_ino))
        self._bytes += status.st_blocks * 512
        return is_directory


def measure_deleted(pids: Iterable[int], *, workdir: str, home: str = "") -> DiskUse:
    """Measure the files that processes keep open or mapped after their deletion. Each file counts once.

    Files in memory (memfd, the session's ``/tmp`` and ``/dev/shm``) are not on disk and don't count.

    Args:
        pids: the processes of one session, its kernel first.
        workdir: the session's directory.
        home: the same directory as the session sees it, or "" to leave out mapped files. A file that an upgrade of the
            machine replaced is mapped and deleted, too, and does not lie in it.
    """
    pids = list(pids)
    found: dict[_Inode, int] = {}
    memory = _memory_devices(pids)
    with contextlib.suppress(OSError):
        memory.discard(os.stat(workdir, follow_symlinks=False).st_dev)
    unseen = ""
    for number, pid in enumerate(pids):
        try:
            _open_files(pid, found, memory)
            _mapped_files(pid, found, os.fsencode(home))
        except PermissionError:
            # proc(5): once a process has no memory any more, its files belong to root, until its parent waits for it.
            # Other threads of a process whose first one has ended still have the files open.
            ended = procfs.stat(pid)
            if ended is None or (ended.exiting and ended.threads <= 1):
                continue
            if number == 0:
                # The processes belong to another user, or this Linux hides them all. Only a quota counts there.
                return DiskUse()
            unseen = "a process hides its open files"
        except OSError:
            continue  # it has ended
    return DiskUse(bytes=sum(found.values()), files=len(found), unseen=unseen)


def _open_files(pid: int, found: dict[_Inode, int], memory: set[int]) -> None:
    directory = f"/proc/{pid}/fd"
    for name in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(f"{directory}/{name}")
            if status.st_nlink == 0 and stat.S_ISREG(status.st_mode) and status.st_dev not in memory:
                found[status.st_dev, status.st_ino] = status.st_blocks * 512


def _mapped_files(pid: int, found: dict[_Inode, int], home: bytes) -> None:
    """Add deleted files that are mapped and no longer open.

    Only root can read their size (proc_pid_map_files(5)). For others it is the end of the mapped part.
    """
    if not home:
        return
    # A kernel maps some hundred files and almost never a deleted one. To match every line would hold the interpreter's
    # lock, and with it the event loop, for 5 to 10 ms a process.
    with open(f"/proc/{pid}/maps", "rb") as file:
        text = file.read()
    # Linux escapes only newlines in these names (proc_pid_maps(5)). ``splitlines`` would end a line at "\r", too.
    for line in text.split(b"\n") if _DELETED in text else ():
        match = _MAPS_LINE.match(line) if line.endswith(_DELETED) else None
        if match is None or not match[7].startswith(home):
            continue
        start, end, offset, major, minor = (int(each, 16) for each in match.groups()[:5])
        inode, size = (os.makedev(major, minor), int(match[6])), offset + end - start
        with contextlib.suppress(OSError):
            size = os.stat(f"/proc/{pid}/map_files/{start:x}-{end:x}").st_blocks * 512
        found[inode] = max(found.get(inode, 0), size)


def _memory_devices(pids: list[int]) -> set[int]:
    """Return the devices of the filesystems in memory that a session can write to."""
    devices = set()
    if pids:
        for path in ("tmp", "dev/shm", "dev"):
            with contextlib.suppress(OSError):
                devices.add(os.stat(f"/proc/{pids[0]}/root/{path}").st_dev)
    with contextlib.suppress(OSError, AttributeError):
        fd = os.memfd_create("device")
        devices.add(os.fstat(fd).st_dev)
        os.close(fd)
    return devices
