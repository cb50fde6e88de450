"""Linux calls for confinement that Python 3.11 does not offer.

Theory of operation. All of this runs in a freshly forked child that will run hostile code, so the rules are short:
standard library and ctypes only, each call raises ``OSError`` with its name, and no call is retried or skipped. Numbers
are from Linux' UAPI headers. Since Linux 5.1 new system calls have the same number on every architecture. ``_NUMBERS``
has the older ones that differ.

Control files under ``/proc`` and ``/sys`` need ``os.write`` on a raw descriptor: a buffered file object would report
the error at close, where it is easily lost.
"""

from __future__ import annotations

import platform
import struct

from kernelsvc.guest.private_modules import ctypes, fcntl, open_file, os, socket

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

CLONE_NEWNS = 0x0002_0000
CLONE_NEWCGROUP = 0x0200_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

#: Names in plans. One ``unshare`` call creates all of them.
NAMESPACES = {
    "user": CLONE_NEWUSER,
    "mount": CLONE_NEWNS,
    "pid": CLONE_NEWPID,
    "net": CLONE_NEWNET,
    "ipc": CLONE_NEWIPC,
    "uts": CLONE_NEWUTS,
    "cgroup": CLONE_NEWCGROUP,
}

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_SLAVE = 32, 4096, 16384, 1 << 19
MNT_DETACH = 2

ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8
ATTR_IDMAP = 0x0010_0000
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_SECUREBITS = 23, 24, 28
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 36, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4

# NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE with their locks, and KEEP_CAPS locked off.
_SECUREBITS = 0x1 | 0x2 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80
_CAPABILITY_VERSION_3 = 0x2008_0522

_NUMBERS = {
    "x86_64": {"pivot_root": 155, "seccomp": 317},
    "aarch64": {"pivot_root": 41, "seccomp": 277},
}.get(platform.machine(), {})
_MOUNT_SETATTR, _CLOSE_RANGE, _OPEN_TREE, _MOVE_MOUNT = 442, 436, 428, 429
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH, _AT_EMPTY_PATH = 1, 4, 0x1000
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446

LANDLOCK_EXECUTE, LANDLOCK_WRITE_FILE, LANDLOCK_READ_FILE, LANDLOCK_READ_DIR = 1, 2, 4, 8
_LANDLOCK_TRUNCATE, _LANDLOCK_IOCTL = 1 << 14, 1 << 15
#: Rights on files that each Landlock version knows. A later version is treated as version 5.
_LANDLOCK_FS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}
_LANDLOCK_FILE_RIGHTS = (
    LANDLOCK_EXECUTE | LANDLOCK_WRITE_FILE | LANDLOCK_READ_FILE | _LANDLOCK_TRUNCATE | _LANDLOCK_IOCTL
)
_LANDLOCK_SCOPE_ABI = 6
_LANDLOCK_SCOPES = 0b11  # abstract Unix sockets, signals


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _path(value: str | None) -> bytes | None:
    return None if value is None else os.fsencode(value)


def _number(name: str) -> int:
    if name not in _NUMBERS:
        raise OSError(38, f"{name}: no system call number known for {platform.machine()}")
    return _NUMBERS[name]


def write_file(path: str, text: str) -> None:
    """Write ``text`` to a control file by one ``write`` call. Raises its error."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def unshare(names: list[str]) -> None:
    """Move this process to new namespaces, named by keys of ``NAMESPACES``. See the manual page of the call."""
    flags = 0
    for name in names:
        flags |= NAMESPACES[name]
    _check(_libc.unshare(ctypes.c_int(flags)), f"unshare({'+'.join(names)})")


def join(pidfd: int, names: list[str]) -> None:
    """Enter the named namespaces of the process of a pidfd, all or none (setns(2), Linux 5.8)."""
    flags = 0
    for name in names:
        flags |= NAMESPACES[name]
    _check(_libc.setns(ctypes.c_int(pidfd), ctypes.c_int(flags)), f"setns({'+'.join(names)})")


def mount(source: str | None, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """Mount a filesystem (mount(2))."""
    result = _libc.mount(_path(source), _path(target), _path(kind), ctypes.c_ulong(flags), _path(data))
    _check(result, f"mount {kind or source} on {target}")


def bind(source: str, target: str, attributes: int, *, idmap: int | None = None) -> None:
    """Bind ``source`` with all its submounts, and set attributes on each mount.

    A remount would change only the top mount. ``mount_setattr(2)`` is recursive.

    Args:
        source: The file or directory to show.
        target: An existing file or directory of the same type.
        attributes: ``ATTR_*`` to set. None are cleared.
        idmap: Descriptor of a user namespace whose maps translate the owners.
    """
    if idmap is None:
        mount(source, target, None, MS_BIND | MS_REC)
        request = struct.pack("=QQQQ", attributes, 0, 0, 0)
        result = _libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, _path(target), _AT_RECURSIVE, request, len(request))
        _check(result, f"mount_setattr {target}")
        return
    tree = mapped_tree(source, attributes, idmap)
    try:
        result = _libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, _path(target), _MOVE_MOUNT_F_EMPTY_PATH)
        _check(result, f"move_mount on {target}")
    finally:
        os.close(tree)


def mapped_tree(source: str, attributes: int, idmap: int) -> int:
    """Return a descriptor of a detached mount of ``source`` with translated owners.

    Linux sets an id map only on a detached mount (mount_setattr(2)). Submounts of ``source`` are not in it.
    """
    tree = int(_libc.syscall(_OPEN_TREE, _AT_FDCWD, _path(source), _OPEN_TREE_CLONE | os.O_CLOEXEC))
    _check(tree, f"open_tree {source}")
    request = struct.pack("=QQQQ", attributes | ATTR_IDMAP, 0, 0, idmap)
    try:
        _check(
            _libc.syscall(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, request, len(request)), f"mount_setattr {source}"
        )
    except BaseException:
        os.close(tree)
        raise
    return tree


def detach(path: str) -> None:
    """Unmount ``path`` here. What is bound from it elsewhere stays (umount2(2), MNT_DETACH)."""
    _check(_libc.umount2(_path(path), MNT_DETACH), f"detach {path}")


def pivot_into(root: str) -> None:
    """Make ``root`` the root of this mount namespace and detach the old one.

    ``pivot_root(".", ".")`` needs no directory for the old root: it is stacked on the new one and detached from there
    (pivot_root(2), NOTES).
    """
    os.chdir(root)
    _check(_libc.syscall(_number("pivot_root"), b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", MNT_DETACH), "detach the old root")
    os.chdir("/")


def prctl(option: int, a: int = 0, b: int = 0) -> int:
    """Change an attribute of this process, and raise if Linux refuses. See the manual page of the call."""
    zero = ctypes.c_ulong(0)
    return _check(_libc.prctl(option, ctypes.c_ulong(a), ctypes.c_ulong(b), zero, zero), f"prctl({option})")


def set_hostname(name: str) -> None:
    """Call sethostname(2)."""
    encoded = name.encode()
    _check(_libc.sethostname(encoded, len(encoded)), "sethostname")


def raise_loopback() -> None:
    """Bring ``lo`` up, which is down in a new network namespace (netdevice(7))."""
    get_flags, set_flags, up = 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        answer = fcntl.ioctl(s, get_flags, struct.pack("16sh22x", b"lo", 0))
        flags = struct.unpack("16sh22x", answer)[1]
        fcntl.ioctl(s, set_flags, struct.pack("16sh22x", b"lo", flags | up))


def drop_bounding_set() -> None:
    """Empty the bounding set and lock the secure bits: no exec can grant a capability (capabilities(7)).

    The last capability is found by trying, so that a newer Linux' capabilities are dropped too, without ``/proc``.
    """
    prctl(PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    capability = 0
    while _libc.prctl(PR_CAPBSET_READ, ctypes.c_ulong(capability), 0, 0, 0) >= 0:
        prctl(PR_CAPBSET_DROP, capability)
        capability += 1
    prctl(PR_SET_SECUREBITS, _SECUREBITS)


def drop_capabilities() -> None:
    """Drop all permitted, effective and inheritable capabilities (capset(2))."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, b"\0" * 24), "capset")


def become(uid: int, gid: int, *, dumpable: bool = True) -> None:
    """Change to another user without supplementary groups. For root."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if dumpable:
        # A change of the user id clears it (prctl(2)), and /proc/self would belong to root.
        prctl(PR_SET_DUMPABLE, 1)


def forget_start() -> None:
    """Overwrite this process's arguments and initial environment, which /proc shows to other processes.

    ``cmdline`` is world-readable even if the process is not dumpable (proc(5)). Only for a process that will exec: this
    also destroys the environment of its C library.
    """
    with open_file("/proc/self/stat", "rb") as f:
        fields = f.read().rpartition(b")")[2].split()
    for start, end in (fields[45:47], fields[47:49]):  # arg_start, arg_end; env_start, env_end
        if 0 < int(start) < int(end):
            ctypes.memset(int(start), 0, int(end) - int(start))


def landlock_abi() -> int:
    """Return Linux' version of Landlock, or 0."""
    return int(max(_libc.syscall(_LANDLOCK_CREATE, None, 0, 1), 0))


def landlock(grants: list[tuple[str, str]], *, scope: bool) -> None:
    """Restrict this process permanently to the granted paths (landlock(7)).

    Args:
        grants: (path, kind). "read": read and execute below the path. "write": also all changes. "device": read and
            write existing files, without creating or removing any.
        scope: Whether to also block signals and abstract sockets to processes outside (version 6).
    """
    abi = landlock_abi()
    if abi < 1:
        raise OSError(38, "landlock: not available in this kernel")
    every = _LANDLOCK_FS[min(abi, 5)]
    read = LANDLOCK_EXECUTE | LANDLOCK_READ_FILE | LANDLOCK_READ_DIR
    device = LANDLOCK_READ_FILE | LANDLOCK_READ_DIR | LANDLOCK_WRITE_FILE | _LANDLOCK_TRUNCATE | _LANDLOCK_IOCTL
    rights = {"read": read, "write": every, "device": device & every}
    attributes = struct.pack("=QQQ", every, 0, _LANDLOCK_SCOPES if scope and abi >= _LANDLOCK_SCOPE_ABI else 0)
    size = 8 if abi < 4 else 16 if abi < _LANDLOCK_SCOPE_ABI else 24
    ruleset = _check(_libc.syscall(_LANDLOCK_CREATE, attributes[:size], size, 0), "landlock_create_ruleset")
    try:
        for path, kind in grants:
            _landlock_grant(ruleset, path, rights[kind] & every)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        _check(_libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _landlock_grant(ruleset: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            rights &= _LANDLOCK_FILE_RIGHTS  # Landlock refuses rights of directories on a file.
        rule = struct.pack("=Qi", rights, fd)
        _check(_libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0), f"landlock_add_rule {path}")
    finally:
        os.close(fd)


def install_filter(program: bytes) -> None:
    """Install a seccomp filter on this thread, which must be the only one (seccomp(2)).

    Args:
        program: ``struct sock_filter`` instructions, 8 bytes each.
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    _check(_libc.syscall(_number("seccomp"), 1, 0, fprog), "seccomp")


def close_others(keep: set[int]) -> None:
    """Close all descriptors that are not in ``keep`` (close_range(2))."""
    low = 0
    for fd in [*sorted(keep), 1 << 31]:
        if fd > low:
            _check(_libc.syscall(_CLOSE_RANGE, ctypes.c_uint(low), ctypes.c_uint(fd - 1), 0), "close_range")
        low = fd + 1
