"""Paths of this machine's filesystem that a session may see, read-only.

An allow-list: the system's programs and libraries, the few files in ``/etc`` that programs need, and the prefixes of
the Python environment. The functions that read the disk are here. ``outermost`` is pure.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

import msgspec

#: Roots of programs and libraries. On most systems they are links into ``/usr``.
_SYSTEM_ROOTS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/gnu", "/nix/store")
#: Directories of ``/usr`` and of ``/usr/local`` (hier(7)). Not ``etc``, which may hold an administrator's secrets, nor
#: ``src``, ``games`` and directories that a program of the administrator's was unpacked into.
_USR = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "libexec", "share", "include")
_USR_LOCAL = (*_USR, "man")
#: Files that programs read in /etc. None of accounts, keys or services, and none that may hold a password or a token
#: for a registry (pip.conf, npmrc, gitconfig, maven, odbc.ini).
_ETC = (
    "/etc/ImageMagick-*",
    "/etc/OpenCL",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/crypto-policies",
    "/etc/dictionaries-common",
    "/etc/fonts",
    "/etc/ghostscript",
    "/etc/glvnd",
    "/etc/inputrc",
    "/etc/java*",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/libpaper.d",
    "/etc/localtime",
    "/etc/lsb-release",
    "/etc/manpath.config",
    "/etc/mime.types",
    "/etc/openmpi",
    "/etc/os-release",
    "/etc/papersize",
    "/etc/pki/ca-trust/extracted",
    "/etc/pki/java",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/openssl.cnf",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/timezone",
    "/etc/R",
    "/etc/terminfo",
    "/etc/texmf",
    "/etc/vulkan",
)
#: Files for name resolution, which a session with a network sees. Their text is a part of a datagram of 192 KiB.
_NETWORK_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/gai.conf")
_MAX_NETWORK_FILE = 16 * 1024
#: joblib and lscpu count cores there.
_SYS = ("/sys/devices/system/cpu",)
#: Directories that are never bound, even if an interpreter names one as its prefix.
TOO_BROAD = frozenset({"/", "/home", "/root", "/etc", "/var", "/run", "/tmp", "/dev", "/proc", "/sys", "/opt", "/srv"})


#: Directories that a session writes to: a link there could be replaced.
_WRITABLE = ("/tmp/", "/dev/shm/", "/home/", "/sessions/")


class RootfsPaths(msgspec.Struct, frozen=True, kw_only=True):
    """The paths that every session of one environment sees.

    Attributes:
        links: target by path inside, for roots that are links on this machine.
        readonly: (source, path inside).
        path: the value of ``PATH``.
        site: the directory of installed packages below a prefix, or "" if the Python's version is not known.
        overlays: (directory to mount an overlay of, path below it) by source (``kernelsvc.sandbox.own_inodes``).
        hidden: paths inside of private files and directories, which an empty one covers.
    """

    links: dict[str, str]
    readonly: list[tuple[str, str]]
    path: str
    site: str = ""
    overlays: dict[str, tuple[str, str]] = {}
    hidden: list[str] = []


def outermost(paths: Iterable[str]) -> list[str]:
    """Return the paths that no other one of them contains, sorted.

    >>> outermost(["/usr/lib/python3", "/usr", "/opt/env"])
    ['/opt/env', '/usr']
    """
    outer: list[str] = []
    for path in sorted(set(paths)):
        if not any(is_beneath(path, other) for other in outer):
            outer.append(path)
    return outer


def is_beneath(path: str, root: str) -> bool:
    """Return whether ``path`` is ``root`` or lies in it, by name only."""
    return PurePosixPath(path).is_relative_to(root)


def paths_inside(private: Iterable[str], readonly: Iterable[tuple[str, str]]) -> list[str]:
    """Return where sessions would see private files and directories: once for each shown directory that holds them.

    Args:
        private: paths without links.
        readonly: (source, path inside), as in ``RootfsPaths``. Inside, a directory may have another path, or two.

    Returns:
        Paths inside, sorted. A private directory that holds a shown one is not in it: it would cover an environment.
    """
    shown = [(os.path.realpath(source), target) for source, target in readonly]
    found = {
        os.path.normpath(f"{target}/{PurePosixPath(path).relative_to(source)}")
        for source, target in shown
        for path in private
        if is_beneath(path, source)
    }
    return sorted(found)


def is_reachable(paths: Iterable[str]) -> bool:
    """Return whether every user may walk to these paths: each directory above is searchable by all."""
    above = {str(parent) for path in paths for parent in PurePosixPath(os.path.realpath(path)).parents}
    return all(os.stat(directory).st_mode & stat.S_IXOTH for directory in above)


def find_paths(
    python: str = sys.executable, *, prefixes: Sequence[str] = (), moves: Mapping[str, str] | None = None
) -> RootfsPaths:
    """Find the paths of the allow-list that exist on this machine.

    Args:
        python: the environment's interpreter.
        prefixes: directories with its modules, as the fork server reports them (its ``sys.path``). Directories that
            hold more than Python's files are omitted: whole homes, and the checkout that kernelsvc may run from.
        moves: path inside by path, where the environment has other paths inside. Its own paths are links to them.

    Raises:
        ValueError: the interpreter's own prefix is such a directory.
    """
    links, binds = _system_links(), []
    for root in _SYSTEM_ROOTS:
        if os.path.islink(root):
            links[root] = os.readlink(root)
        elif os.path.isdir(root):
            binds.append(root)
    binds += _system_directories()
    binds += [path for pattern in (*_ETC, *_SYS) for path in glob.glob(pattern) if os.path.exists(path)]
    # With a prefix of /usr or /usr/local, Python's files lie in the directories that are shown already.
    own_prefixes = [prefix for prefix in python_prefixes(python) if prefix not in ("/usr", "/usr/local")]
    for prefix in own_prefixes:
        if prefix in TOO_BROAD:
            raise ValueError(f"{prefix} can't be a Python prefix of a confined session. Use a virtual environment.")
    other_prefixes = {prefix for prefix in prefixes if prefix not in TOO_BROAD and prefix != _checkout()}
    # A forked session has the guest package in memory.
    package = [] if moves else _guest_package()
    for prefix in sorted({*own_prefixes, *other_prefixes, *package}):
        # Both names: that of the environment, and the real one that its links point to.
        binds += [path for path in {prefix, os.path.realpath(prefix)} if os.path.exists(path)]
    shown = [path for path in outermost(binds) if not any(is_beneath(path, link) for link in links)]
    moved = [(source, target) for source, target in (moves or {}).items()]
    for path in list(shown):
        inside = (moves or {}).get(os.path.realpath(path))
        if inside is not None and not path.startswith(_WRITABLE):
            # Scripts of the environment name its interpreter by this path.
            links[path] = os.path.relpath(inside, os.path.dirname(path))
            shown.remove(path)
    own_bin = os.path.dirname(os.path.abspath(python))
    inside = (moves or {}).get(os.path.realpath(os.path.dirname(own_bin)))
    return RootfsPaths(
        links=links,
        readonly=[(path, path) for path in shown] + moved,
        path=_search_path(own_bin if inside is None else f"{inside}/bin"),
        site=site_of(prefixes),
    )


def site_of(prefixes: Iterable[str]) -> str:
    """Return the directory of installed packages below a prefix, by the version that ``sys.path`` names.

    >>> site_of(["/opt/env", "/usr/lib/python3.13/lib-dynload"])
    'lib/python3.13/site-packages'
    """
    versions = (re.search(r"/lib/(python3\.\d+)(?:/|$)", prefix) for prefix in prefixes)
    return next((f"lib/{found[1]}/site-packages" for found in versions if found), "")


def read_network_files() -> dict[str, str]:
    """Return the text of the host's files that name resolution reads (resolv.conf(5), hosts(5)), by path."""
    found = {}
    for path in _NETWORK_FILES:
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            # Whole lines: half a line would be another name.
            text = file.read(_MAX_NETWORK_FILE)
            found[path] = text if len(text) < _MAX_NETWORK_FILE else text.rpartition("\n")[0] + "\n"
    return found


def _system_directories() -> list[str]:
    """Return the directories of ``/usr`` and ``/usr/local`` that hold programs, their libraries and data."""
    paths = [f"/usr/{name}" for name in _USR] + [f"/usr/local/{name}" for name in _USR_LOCAL]
    paths += glob.glob("/usr/local/cuda*")
    return [path for path in paths if os.path.isdir(path) and not os.path.islink(path) and os.listdir(path)]


def _system_links() -> dict[str, str]:
    """Return those that are links, for example ``/usr/lib64`` or ``/usr/local/man``, by their path."""
    paths = [f"/usr/{name}" for name in _USR] + [f"/usr/local/{name}" for name in _USR_LOCAL]
    paths += glob.glob("/usr/local/cuda*")
    return {path: os.readlink(path) for path in paths if os.path.islink(path)}


def python_prefixes(python: str) -> list[str]:
    """Return the prefixes of an interpreter, found from its files without running it.

    A virtual environment names its base in ``pyvenv.cfg``. Otherwise the prefix is the directory that holds ``bin``.
    """
    prefix = os.path.dirname(os.path.dirname(os.path.abspath(python)))
    found = [prefix]
    try:
        with open(os.path.join(prefix, "pyvenv.cfg"), encoding="utf-8") as f:
            home = dict(line.partition("=")[::2] for line in f.read().replace(" = ", "=").splitlines()).get("home")
    except OSError:
        home = None
    if home:
        found.append(os.path.dirname(home.strip()))
    found.append(os.path.dirname(os.path.dirname(os.path.realpath(python))))
    return [path for path in dict.fromkeys(found) if path not in ("/", "")]


def private_files(paths: Iterable[str], *, maximum: int = 100_000) -> list[str]:
    """Return files below these paths that only the current user may read: a session of this user can read them, too.

    Args:
        paths: directories and files that sessions see.
        maximum: of the entries to look at.
    """
    found, remaining, todo = [], maximum, list(paths)
    while todo and remaining > 0:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    remaining -= 1
                    status = entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                    elif stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077:
                        found.append(entry.path)
        except OSError:
            continue
    return sorted(found)


def _package() -> str:
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _checkout() -> str | None:
    """Return the source tree of kernelsvc, which holds more than modules, or None if it is installed."""
    above = os.path.dirname(_package())
    return None if os.path.basename(above) in ("site-packages", "dist-packages") else above


def _guest_package() -> list[str]:
    """Return the paths of the guest package, which runs inside."""
    package = _package()
    return [os.path.join(package, "guest"), os.path.join(package, "__init__.py")]


def _search_path(own: str) -> str:
    return ":".join(dict.fromkeys([own, "/usr/local/bin", "/usr/bin", "/bin"]))
