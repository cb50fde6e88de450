"""Packages that a session installs into its own directory.

A session with a network has ``PIP_PREFIX`` in its environment, so that pip installs below ``$HOME/.local``. A program
finds the packages by ``PYTHONPATH``. The kernel is a fork of a process that started long ago with other variables, so
it takes the directory here.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

from kernelsvc.guest.private_modules import os

_VARIABLES = ("PIP_PREFIX", "PYTHONPATH", "PATH")


class InstalledPackages:
    """The last finder on ``sys.meta_path``: packages that were installed after their directory was not found.

    ``sys.path_importer_cache`` remembers that a directory does not exist, and the program that installs the first
    package may be another process, so the directory may appear at any time.
    """

    def __init__(self) -> None:
        self._directory = ""

    def use(self) -> None:
        """Take the directory from the environment, in place of an earlier one."""
        before, prefix = self._directory, os.environ.get("PIP_PREFIX", "")
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self._directory = os.path.join(prefix, "lib", version, "site-packages") if prefix else ""
        if before and before in sys.path:  # "" is the working directory
            sys.path.remove(before)
        if self._directory:
            # Last: what the kernel has imported from its environment stays.
            sys.path.append(self._directory)
            if self not in sys.meta_path:
                sys.meta_path.append(self)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Search the directory again if it was missing at the last search. See ``importlib.abc.MetaPathFinder``."""
        if path is not None or sys.path_importer_cache.get(self._directory, self) is not None:
            return None
        sys.path_importer_cache.pop(self._directory, None)
        return importlib.machinery.PathFinder.find_spec(name, [self._directory], target)


def move_variables(before: str, home: str) -> None:
    """Change the variables for installed packages to another home directory: a branch has its own."""
    old, new = f"{before}/.local", f"{home}/.local"
    for name in _VARIABLES if before and before != home else ():
        value = os.environ.get(name, "")
        if old in value:
            os.environ[name] = value.replace(old, new)
