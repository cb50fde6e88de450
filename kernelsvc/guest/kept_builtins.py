"""Builtins that a cell deletes. They are back when its code ends.

All modules read the dictionary of ``builtins``, also IPython and this package. Without ``isinstance`` or ``__import__``
later cells can't run, and no traceback says why. A cell may also replace builtins. Replacements stay, and a wrong one
can end the kernel. What a thread deletes while no cell runs is back after the next cell, if that one can run.
"""

from __future__ import annotations

import builtins
from typing import Any

_LIVE = vars(builtins)
_ORIGINALS = dict(_LIVE)


def replace(name: str, value: Any) -> None:
    """Replace a builtin for all code of this process. If a cell deletes it, ``value`` comes back.

    Args:
        name: The builtin's name.
        value: The new builtin.
    """
    _ORIGINALS[name] = _LIVE[name] = value


class KeptBuiltins:
    """The part of IPython's shell that puts deleted builtins back. It precedes every other part."""

    def init_builtins(self) -> None:
        """See IPython, which adds names for good here."""
        base: Any = super()
        base.init_builtins()
        _ORIGINALS.update(_LIVE)

    async def run_code(self, code_obj: Any, result: Any = None, *, async_: bool = False) -> bool:
        """See ``InteractiveShell.run_code``."""
        base: Any = super()
        try:
            failed: bool = await base.run_code(code_obj, result, async_=async_)
            return failed
        finally:
            self._restore()

    def showtraceback(self, *args: Any, **kwargs: Any) -> None:
        """See ``InteractiveShell.showtraceback``. It is called before ``run_code`` ends."""
        self._restore()
        base: Any = super()
        base.showtraceback(*args, **kwargs)

    def _restore(self) -> None:
        # Only operators and methods: a function that this calls could be a deleted builtin. IPython adds some names for
        # the time of a cell, and removes them after it.
        shell: Any = self
        for kept in (_ORIGINALS, shell.builtin_trap.auto_builtins):
            if not kept.keys() <= _LIVE.keys():
                for name in kept.keys() - _LIVE.keys():
                    _LIVE[name] = kept[name]
