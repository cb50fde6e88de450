"""Environments that ``kernelsvc env`` has made: more templates than those of the settings.

::

    <data>/environments/<name>/environment.json    written last, atomically: without it there is no environment
                               venv/, venv-2/ ...  versions of the virtual environment: the newest is used, and earlier
                                                   ones stay while sessions use them. None if one was registered
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from kernelsvc.errors import Conflict
from kernelsvc.linux.atomic_file import replace_bytes

#: The directory of all environments, below the data directory.
DIRECTORY = "environments"
_RECORD, _VENV = "environment.json", "venv"
_USERINFO = re.compile(r"(?<=://)[^/\s]*@")


class EnvironmentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An environment that was checked and can be used.

    Attributes:
        name: of the template.
        python: path of its interpreter.
        preload: modules that are imported before the first session.
        packages: version of each installed distribution, by name.
        start_ms: time of the imports.
        memory_bytes: resident memory after them.
        wanted: requirements that it was made from, as pip takes them.
        files: paths of files of requirements that it was made from.
        base: interpreter that it was made with, "" for the server's.
        owner: principal for whose template of E2B's builder it was made, who may change and remove it. "" if the
            operator made it.
    """

    name: str
    python: str
    preload: list[str] = []
    packages: dict[str, str] = {}
    start_ms: float = 0.0
    memory_bytes: int = 0
    wanted: list[str] = []
    files: list[str] = []
    base: str = ""
    owner: str = ""

    @property
    def shown(self) -> list[str]:
        """The requirements as callers see them: addresses have no credentials (RFC 3986, section 3.2.1)."""
        return [_USERINFO.sub("", each) for each in self.wanted]


class EnvironmentStore:
    """All environments of a data directory.

    Args:
        data: the data directory.
    """

    def __init__(self, data: Path) -> None:
        self._root = data / DIRECTORY

    def directory(self, name: str) -> Path:
        """Return the directory of an environment."""
        return self._root / name

    def venv(self, name: str) -> Path:
        """Return the place of its first virtual environment."""
        return self._root / name / _VENV

    def versions(self, name: str) -> list[Path]:
        """Return all versions of its virtual environment."""
        return sorted(self._root.glob(f"{name}/{_VENV}*"))

    def next_venv(self, name: str) -> Path:
        """Return the place of a further version."""
        taken = [int(path.name[len(_VENV) + 1 :] or 1) for path in self.versions(name)]
        return self._root / name / f"{_VENV}-{max(taken, default=1) + 1}"

    def remove_versions(self, name: str, python: str) -> list[Path]:
        """Remove the versions that nothing uses, but for the one of this interpreter. Return those that stay."""
        old = [path for path in self.versions(name) if not Path(python).is_relative_to(path)]
        for path in old:
            if not self._in_use(path):
                shutil.rmtree(path, ignore_errors=True)
        return [path for path in old if path.exists()]

    def owner(self, name: str) -> str | None:
        """Return the principal for whom an environment was made, "" for the operator. None if there is none."""
        found = self.read_all().get(name)
        return found.owner if found is not None else None

    def read_all(self) -> dict[str, EnvironmentRecord]:
        """Return all environments by name, without those whose record can't be read.

        In another user's data directory there are none: a root host would run that user's programs as root.
        """
        if not self.is_own():
            return {}
        found = {}
        for path in sorted(self._root.glob(f"*/{_RECORD}")):
            try:
                found[path.parent.name] = msgspec.json.decode(path.read_bytes(), type=EnvironmentRecord)
            except (OSError, msgspec.DecodeError):
                continue
        return found

    def is_own(self) -> bool:
        """Return whether the data directory belongs to this process's user."""
        try:
            return self._root.parent.stat().st_uid == os.geteuid()
        except FileNotFoundError:
            return True

    def marks(self) -> list[tuple[str, int]]:
        """Return a value that changes with every new, changed or removed environment. Costs microseconds."""
        return sorted((str(path), path.stat().st_mtime_ns) for path in self._root.glob(f"*/{_RECORD}"))

    @contextlib.contextmanager
    def changing(self, name: str) -> Iterator[None]:
        """Hold the lock of an environment while it is made or removed, and remove the rest of a run that was killed.

        Raises:
            Conflict: another process makes or removes it, or sessions use the files of a removed one.
        """
        self._root.mkdir(mode=0o755, parents=True, exist_ok=True)
        with (self._root / f".{name}.lock").open("w") as lock:
            try:
                # flock(2): Linux releases it when the process ends, also when it is killed.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Conflict(f"Another command works on the environment {name!r}. Wait for it.") from None
            if self.directory(name).exists() and not (self.directory(name) / _RECORD).exists():
                if self.in_use(name):
                    raise Conflict(f"Sessions still use the removed environment {name!r}. Choose another name.")
                shutil.rmtree(self.directory(name))
            yield

    def write(self, environment: EnvironmentRecord) -> None:
        """Write a record. From then on servers use it.

        Raises:
            OSError: the disk failed.
        """
        self.directory(environment.name).mkdir(mode=0o755, parents=True, exist_ok=True)
        replace_bytes(self.directory(environment.name) / _RECORD, msgspec.json.encode(environment))

    def withdraw(self, name: str) -> None:
        """Remove the record, so that no new session uses the environment. Its files stay."""
        (self.directory(name) / _RECORD).unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove an environment with its files. Takes time in proportion to them."""
        self.withdraw(name)
        shutil.rmtree(self.directory(name), ignore_errors=True)

    def in_use(self, name: str) -> bool:
        """Return whether a process of this machine has the environment's files in its mount namespace."""
        return any(self._in_use(path) for path in self.versions(name))

    @staticmethod
    def _in_use(path: Path) -> bool:
        venv = os.fsencode(os.path.realpath(path))
        for entry in os.listdir("/proc"):
            if entry.isdigit() and entry != str(os.getpid()):
                try:
                    shown = Path("/proc", entry, "mountinfo").read_bytes()
                    argv = Path("/proc", entry, "cmdline").read_bytes()
                except OSError:
                    continue
                # proc_pid_mountinfo(5): the root of a bind mount is a path within its filesystem.
                if venv + b"/" in argv or any(_ends(line.split(b" ")[3], venv) for line in shown.splitlines()):
                    return True
        return False


def _ends(root: bytes, venv: bytes) -> bool:
    """Return whether the root of a mount, which lacks its filesystem's mount point, is this directory or below."""
    parts = venv.split(b"/")
    tail = b"/".join(parts[-3:])  # environments/NAME/venv-2
    return root.endswith(b"/" + tail) or b"/" + tail + b"/" in root
