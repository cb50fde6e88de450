"""Move the paths that libraries computed below the template's home directory to the session's home directory.

A template imports libraries with a home directory of its own, which no session can open. Many libraries compute paths
below it at import (``site.USER_BASE``, parso's cache, matplotlib's style directories). The template finds these paths
once, and each session replaces them. A library makes its directory when it first needs it.
"""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path, PurePath
from typing import Any

#: Functions of matplotlib that remember a directory from their first call.
_MATPLOTLIB = ("get_configdir", "get_cachedir")


class HomePaths:
    """The paths below one home directory that modules, classes and IPython hold.

    Args:
        shell: IPython's shell. Its traits are set without the observers that would make directories.
    """

    def __init__(self, shell: Any) -> None:
        self._home = os.path.expanduser("~")
        self._shell = shell
        shell.unobserve_all("ipython_dir")
        shell.profile_dir.unobserve_all()
        self._found = [place for owner in _owners() for place in _places(owner, self._home)]

    def move(self, home: str) -> None:
        """Replace the home directory in all paths. A path that user code has changed since stays.

        Args:
            home: the new home directory, absolute.
        """
        before, self._home = self._home, home
        if before == home:
            return
        for owner, name in self._found:
            value = vars(owner).get(name)
            moved = _moved(value, before, home)
            if moved is not value:
                setattr(owner, name, moved)
        self._move_ipython(before, home)
        _free_matplotlib()

    def _move_ipython(self, before: str, home: str) -> None:
        shell, profile = self._shell, self._shell.profile_dir
        for holder, names in ((shell, ["ipython_dir"]), (profile, profile.trait_names())):
            for name in names:
                value = getattr(holder, name)
                moved = _moved(value, before, home)
                if moved is not value:
                    setattr(holder, name, moved)
        if isinstance(getattr(type(shell), "db", None), property):
            shell.db = None  # IPython 9 opens the database of %cd and %bookmark at its first use
        else:
            shell.db.root = Path(profile.location, "db")


def _owners() -> list[Any]:
    """Return all imported modules, and the classes that they define."""
    modules = [module for module in list(sys.modules.values()) if isinstance(module, type(sys))]
    classes = [
        value
        for module in modules
        for value in list(vars(module).values())
        if type(value) is type and value.__dict__.get("__module__") == module.__name__
    ]
    return [*modules, *classes]


def _places(owner: Any, home: str) -> list[tuple[Any, str]]:
    names = [*vars(owner).items()]
    return [(owner, name) for name, value in names if _moved(value, home, "/") is not value]


def _moved(value: Any, before: str, home: str) -> Any:
    """Return a path, or a flat collection of paths, with another home directory. Other values are returned as they are.

    A list or a dictionary is a new one, because ``_places`` only asks whether something would change.
    """
    kind = type(value)
    if kind is str:
        below = value == before or value.startswith(before + "/")
        return home + value[len(before) :] if below else value
    if isinstance(value, PurePath):
        text = str(value)
        moved = _moved(text, before, home)
        return value if moved is text else kind(moved)
    if kind in (list, tuple):
        several = [_moved(each, before, home) for each in value if not isinstance(each, list | tuple | dict)]
        unchanged = len(several) != len(value) or all(new is old for new, old in zip(several, value, strict=True))
        return value if unchanged else kind(several)
    if kind is dict:
        changed = {
            name: new
            for name, old in value.items()
            if type(old) is str and (new := _moved(old, before, home)) is not old
        }
        return value | changed if changed else value
    return value


def _free_matplotlib() -> None:
    """Remove the memory of matplotlib's functions. They make the directory at each call, also if a cell removed it."""
    matplotlib = sys.modules.get("matplotlib")
    for name in _MATPLOTLIB:
        function = getattr(matplotlib, name, None)
        if function is not None:
            setattr(matplotlib, name, inspect.unwrap(function))
