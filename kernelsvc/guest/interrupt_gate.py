"""Where an interrupt of a session goes: into the cell's code, to the future that the cell awaits, or nowhere."""

from __future__ import annotations

import asyncio
import sys
import weakref
from _thread import interrupt_main
from operator import methodcaller
from typing import Any


class InterruptGate:
    """State that decides whether SIGINT is delivered, and where."""

    def __init__(self) -> None:
        self.open = False
        self.waiting: asyncio.Future[Any] | None = None
        self.cancelled = False

    def deliver(self) -> None:
        """Handle SIGINT: raise in the cell's code, or cancel the future that the cell awaits.

        Raises:
            KeyboardInterrupt: The cell's code was running.
        """
        if not self.open:
            return
        cell = self.waiting
        if cell is None or cell.done():
            raise KeyboardInterrupt
        loop = cell.get_loop()
        current = asyncio.current_task(loop)
        if current is cell or (self.cancelled and current is not None):
            raise KeyboardInterrupt
        self.cancelled = True
        loop.call_soon_threadsafe(cell.cancel)


class _EndMark(set[None]):
    """An object whose end is seen by a weak reference."""


class _Flag(weakref.ref[_EndMark]):
    """Sets the flag of SIGINT when its object ends, without any bytecode. Python looks at such flags after calls."""

    raise_later = staticmethod(interrupt_main)


def deliver_again_if_ignored() -> None:
    """Let an interrupt that Python ignores arrive once more.

    Python prints and drops an exception of a finalizer or a callback of a weak reference (``sys.unraisablehook``). The
    cell would go on, and its output would have paths of this package.
    """
    show = sys.unraisablehook
    flags: list[_Flag] = []

    def unraisable(ignored: sys.UnraisableHookArgs) -> None:
        step = ignored.exc_traceback
        while step is not None and step.tb_next is not None:
            step = step.tb_next
        if step is not None and step.tb_frame.f_code is InterruptGate.deliver.__code__:
            # The handler must not run before this function has returned: its exception would be ignored, too.
            mark = _EndMark()
            flags[:] = [_Flag(mark, methodcaller("raise_later"))]
        else:
            show(ignored)

    sys.unraisablehook = unraisable
