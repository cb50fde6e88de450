"""Paths of this machine's filesystem that a session may see, read-only.

An allow-list: the system's programs and libraries, the few files in ``/etc`` that programs need, and the prefixes of
the Python environment. The functions that read the disk are here. ``outermost`` is pure.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import msgspec

#: Roots of programs and libraries. On most systems all but ``/usr`` are links into it.
_SYSTEM_ROOTS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/gnu", "/nix/store")
#: Files that programs read in /etc. None of accounts, keys or services.
_ETC = (
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/fonts",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/pki/ca-trust/extracted",
    "/etc/pki/tls/certs",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/timezone",
    "/etc/R",
    "/etc/terminfo",
)
#: joblib and lscpu count cores there.
_SYS = ("/sys/devices/system/cpu",)
#: Directories that are never bound, even if an interpreter names one as its prefix.
_TOO_BROAD = frozenset({"/", "/home", "/root", "/etc", "/var", "/run", "/tmp", "/dev", "/proc", "/sys", "/opt", "/srv"})


class RootfsPaths(msgspec.Struct, frozen=True, kw_only=True):
    """The paths that every session of one environment sees.

    Attributes:
        links: target by path inside, for roots that are links on this machine.
        readonly: (source, path inside).
        path: the value of ``PATH``.
    """

    links: dict[str, str]
    readonly: list[tuple[str, str]]
    path: str


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


def is_reachable(paths: Iterable[str]) -> bool:
    """Return whether every user may walk to these paths: each directory above is searchable by all."""
    above = {str(parent) for path in paths for parent in PurePosixPath(os.path.realpath(path)).parents}
    return all(os.stat(directory).st_mode & stat.S_IXOTH for directory in above)


def find_paths(python: str = sys.executable, *, prefixes: Sequence[str] = ()) -> RootfsPaths:
    """Find the paths of the allow-list that exist on this machine.

    Args:
        python: the environment's interpreter.
        prefixes: directories with its modules, as the fork server reports them (its ``sys.path``). Directories that
            hold more than Python's files are omitted: whole homes, and the checkout that kernelsvc may run from.

    Raises:
        ValueError: the interpreter's own prefix is such a directory.
    """
    links, binds = {}, []
    for root in _SYSTEM_ROOTS:
        if os.path.islink(root):
            links[root] = os.readlink(root)
        elif os.path.isdir(root):
            binds.append(root)
    binds += [path for path in (*_ETC, *_SYS) if os.path.exists(path)]
    own_prefixes = python_prefixes(python)
    for prefix in own_prefixes:
        if prefix in _TOO_BROAD:
            raise ValueError(f"{prefix} can't be a Python prefix of a confined session. Use a virtual environment.")
    other_prefixes = {prefix for prefix in prefixes if prefix not in _TOO_BROAD and prefix != _checkout()}
    for prefix in sorted({*own_prefixes, *other_prefixes, *_guest_package()}):
        # Both names: that of the environment, and the real one that its links point to.
        binds += [path for path in {prefix, os.path.realpath(prefix)} if os.path.exists(path)]
    shown = [path for path in outermost(binds) if not any(is_beneath(path, link) for link in links)]
    return RootfsPaths(links=links, readonly=[(path, path) for path in shown], path=_search_path(python))


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


def _search_path(python: str) -> str:
    own_prefixes = os.path.dirname(os.path.abspath(python))
    return ":".join(dict.fromkeys([own_prefixes, "/usr/local/bin", "/usr/bin", "/bin"]))
