"""The paths of a template's Python environment in its sessions, the same on every machine. Reads files only."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from kernelsvc.guest.confine.neutral_paths import TOP
from kernelsvc.sandbox.rootfs_paths import TOO_BROAD, is_beneath, python_prefixes

#: Paths of an interpreter's installation, of a virtual environment over it, and of the guest package.
PYTHON, ENVIRONMENT, GUEST = f"{TOP}/python", f"{TOP}/environment", f"{TOP}/guest"
_SYSTEM = ("/usr", "/usr/local")
#: Programs that print the paths of the interpreter that their first line names.
_SCRIPTS = ("pip", "pip3")


class EnvironmentPaths(msgspec.Struct, frozen=True, kw_only=True):
    """The new paths of one environment.

    Attributes:
        names: new path by the machine's path, for the prefixes. Two of the machine's may be one directory.
        binds: the same for each directory and file that is bound, once.
        python: the interpreter's new path.
        guest: the guest package's new path.
    """

    names: dict[str, str]
    binds: dict[str, str]
    python: str
    guest: str = GUEST


def environment_paths(python: str, guest: str, config: Path) -> EnvironmentPaths | None:
    """Choose the new paths, or return None if the environment keeps its own.

    A system's Python in ``/usr`` keeps its paths, which say nothing of the machine. An environment in a directory that
    the new paths cover keeps them too.

    Args:
        python: the environment's interpreter.
        guest: the directory of the guest package.
        config: a file to write, if the environment is virtual: its ``pyvenv.cfg`` with the interpreter's new path.
            Further ones with this name as their beginning are the environment's ``pip``, with the new path, too.

    Raises:
        OSError: a file can't be written.
    """
    python = os.path.abspath(python)
    first, *bases = python_prefixes(python)
    old = Path(first, "pyvenv.cfg")
    names = {first: ENVIRONMENT if old.exists() else PYTHON}
    names |= {base: PYTHON for base in bases if base not in names}
    names |= {os.path.realpath(path): target for path, target in names.items()}
    names = {path: target for path, target in names.items() if path not in _SYSTEM}
    if not names or os.path.basename(os.path.dirname(python)) != "bin" or not all(map(_is_movable, names)):
        return None
    binds = {os.path.realpath(path): target for path, target in names.items()}
    if len(set(binds.values())) != len(binds):
        # Two installations, one for each name.
        return None
    if old.exists() and PYTHON in names.values():
        lines = old.read_text(encoding="utf-8").splitlines()
        config.write_text("".join(f"{_moved(line)}\n" for line in lines), encoding="utf-8")
        binds[str(config)] = f"{ENVIRONMENT}/pyvenv.cfg"
    inside = names.get(first)
    start = python if inside is None else f"{inside}/bin/{os.path.basename(python)}"
    if inside is not None:
        binds |= _scripts(Path(first, "bin"), inside, start, config)
    return EnvironmentPaths(names=names, binds={**binds, guest: GUEST}, python=start)


def _scripts(directory: Path, inside: str, python: str, config: Path) -> dict[str, str]:
    """Write the scripts with the interpreter's new path. Return their binds."""
    binds = {}
    for name in _SCRIPTS:
        script = directory / name
        if script.is_file() and not script.is_symlink() and (text := script.read_bytes()).startswith(b"#!"):
            moved = config.with_name(f"{config.name}.{name}")
            moved.write_bytes(f"#!{python}\n".encode() + text.partition(b"\n")[2])
            moved.chmod(0o755)
            binds[str(moved)] = f"{inside}/bin/{name}"
    return binds


def _is_movable(path: str) -> bool:
    covered = (PYTHON, ENVIRONMENT, GUEST)
    return path not in TOO_BROAD and not any(is_beneath(path, new) or is_beneath(new, path) for new in covered)


def _moved(line: str) -> str:
    """Return a line of ``pyvenv.cfg`` (PEP 405) with the new path. Others than ``home`` are only informative."""
    name = line.partition("=")[0].strip()
    if name == "home":
        return f"home = {PYTHON}/bin"
    return line if name in ("include-system-site-packages", "version", "version_info") else ""
