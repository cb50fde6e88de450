"""Pillow's ``save`` and ``show`` display the image, in sessions of E2B's clients.

E2B's own sandboxes do this, and code for them relies on it. Pillow is patched when it is imported, so that sessions
which do not use it pay nothing.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_MODULE = "PIL.Image"


def install() -> None:
    """Patch Pillow now if it is imported, otherwise when it is."""
    if _MODULE in sys.modules:
        _patch(sys.modules[_MODULE])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds Pillow's module once, and patches it when it is executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _patch(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _patch(module: Any) -> None:
    original = module.Image.save
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def save(self: Any, fp: Any, *args: Any, **options: Any) -> None:
        original(self, fp, *args, **options)
        if isinstance(fp, str | os.PathLike) and not _is_in_matplotlib(sys._getframe(1).f_globals):
            _display(self)

    def show(self: Any, title: str | None = None) -> None:
        """Display this image as a result."""
        _display(self)

    module.Image.save, module.Image.show = save, show


def _is_in_matplotlib(caller: dict[str, Any]) -> bool:
    """Whether matplotlib saves a figure, which is a result of its own at the end of the cell."""
    return str(caller.get("__name__", "")).partition(".")[0] == "matplotlib"


def _display(image: Any) -> None:
    from IPython.display import display

    display(image)
