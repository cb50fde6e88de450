"""Remove kernelsvc's frames from the tracebacks of cells, and the middle of very long ones.

A model needs the line of its own code that failed. Frames of the import policy or of a lost variable do not help it,
and their file names show where the server is installed. A recursion may have a million frames, and IPython takes
milliseconds to render each.
"""

from __future__ import annotations

import os
import types
from collections import deque

#: Most frames that are rendered, half of them from the start and half from the end.
MAX_FRAMES = 200

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def without_own_frames(traceback: types.TracebackType | None) -> types.TracebackType | None:
    """Return the traceback without kernelsvc's frames, of at most ``MAX_FRAMES``.

    The first frame stays, since IPython removes it itself.
    """
    if traceback is None:
        return None
    first: list[types.TracebackType] = []
    last: deque[types.TracebackType] = deque(maxlen=MAX_FRAMES // 2)
    step = traceback.tb_next
    while step is not None:
        if not step.tb_frame.f_code.co_filename.startswith(_PACKAGE):
            if len(first) < MAX_FRAMES // 2:
                first.append(step)
            else:
                last.append(step)
        step = step.tb_next
    rest: types.TracebackType | None = None
    for entry in reversed([*first, *last]):
        rest = types.TracebackType(rest, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return types.TracebackType(rest, traceback.tb_frame, traceback.tb_lasti, traceback.tb_lineno)


def length(traceback: types.TracebackType | None) -> int:
    """Return the number of frames of a traceback."""
    count = 0
    while traceback is not None:
        count, traceback = count + 1, traceback.tb_next
    return count


def clean(error: BaseException) -> None:
    """Remove kernelsvc's frames from the traceback of an exception and of all its causes, in place."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = without_own_frames(one.__traceback__)
        waiting += [one.__cause__, one.__context__]
