"""Names that a cell deletes from ``builtins``: they are back when its code ends.

Every module reads that dictionary, IPython and this package included. Without ``isinstance`` or ``__import__`` no later
cell could run, and no traceback could say why. What a cell puts in the place of a builtin stays: programs do that.
"""

from __future__ import annotations

import builtins
from typing import Any

_LIVE = vars(builtins)
_ORIGINALS = dict(_LIVE)


def replace(name: str, value: Any) -> None:
    """Replace a builtin for all code of this process, also after a cell has deleted it."""
    _ORIGINALS[name] = _LIVE[name] = value


class KeptBuiltins:
    """Mix it into IPython's shell."""

    async def run_code(self, code_obj: Any, result: Any = None, *, async_: bool = False) -> bool:
        """See ``InteractiveShell.run_code``."""
        base: Any = super()
        size = _LIVE.__len__()
        try:
            failed: bool = await base.run_code(code_obj, result, async_=async_)
            return failed
        finally:
            if _LIVE.__len__() != size:
                self.restore_builtins()

    def restore_builtins(self) -> None:
        """Put deleted names back, also IPython's own. Uses no builtin itself: only operators and methods."""
        shell: Any = self
        for kept in (_ORIGINALS, shell.builtin_trap.auto_builtins):
            for name in kept.keys() - _LIVE.keys():
                _LIVE[name] = kept[name]
