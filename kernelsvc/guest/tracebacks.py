"""Tracebacks of cells, without our own frames.

What a model needs is the line of its own that failed. Our frames in between (the
sign at an import, a name that was lost when the session was saved) tell it nothing,
and their file names tell where this machine's server keeps its things.
"""

from __future__ import annotations

import os
import types

_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep


def without_ours(traceback: types.TracebackType | None) -> types.TracebackType | None:
    """The same traceback without our frames, but for its first one, which IPython leaves out by itself."""
    if traceback is None:
        return None
    entries = []
    step = traceback.tb_next
    while step is not None:
        if not step.tb_frame.f_code.co_filename.startswith(_OURS):
            entries.append(step)
        step = step.tb_next
    rest: types.TracebackType | None = None
    for entry in reversed(entries):
        rest = types.TracebackType(rest, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return types.TracebackType(rest, traceback.tb_frame, traceback.tb_lasti, traceback.tb_lineno)


def clean(error: BaseException) -> None:
    """Take our frames out of an exception's traceback, and out of those of the exceptions that led to it."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = without_ours(one.__traceback__)
        waiting += [one.__cause__, one.__context__]
