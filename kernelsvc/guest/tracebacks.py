"""Remove kernelsvc's frames from the tracebacks of cells, and the middle of very long ones.

A model needs the line of its own code that failed. Frames of the import policy or of a lost variable do not help it,
and their file names show where the server is installed. A recursion may have a million frames, and IPython takes
milliseconds to render each.
"""

from __future__ import annotations

import inspect
import os
import re
import traceback as traceback_module
import types
from collections import deque
from collections.abc import Container, Mapping

#: Most frames that are rendered, half of them from the start and half from the end.
MAX_FRAMES = 40
#: Most exceptions of a chain whose frames are read.
_MAX_CHAIN = 20
#: A name in the code of the cell that calls a function for ``POST /v1/execute`` (``protocol.function_call``). It is not
#: the caller's code.
_WRAPPER = "_kernelsvc_call"
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_FILE = re.compile(r'File "([^"\n]+)"')


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
        code = step.tb_frame.f_code
        if not code.co_filename.startswith(_PACKAGE) and _WRAPPER not in code.co_names:
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
        if isinstance(one, BaseExceptionGroup):
            waiting += BaseExceptionGroup.exceptions.__get__(one)


def skip_module_search(error: BaseException, cells: Container[str]) -> None:
    """Have ``inspect.getmodule`` find at once that no module belongs to the code of cells and of Cython.

    IPython asks for each frame, and the search through all modules takes most of the time of a traceback.

    Args:
        error: an exception that IPython is about to format.
        cells: the file names of the code of cells.
    """
    one: BaseException | None = error
    for _ in range(_MAX_CHAIN):
        if one is None:
            break
        step = one.__traceback__
        while step is not None:
            file = step.tb_frame.f_code.co_filename
            if file in cells or not file.endswith(".py"):
                # A name that is no module's. ``getmodule`` looks it up in ``sys.modules`` and returns None.
                inspect.modulesbyfile.setdefault(os.path.abspath(file), "")
            step = step.tb_next
        one = one.__cause__ or one.__context__


def group_lines(error: BaseException, cells: Mapping[str, int]) -> list[str]:
    """Return the traceback of an exception group, which IPython does not format, in Python's own format.

    Args:
        error: an exception with a group in its chain.
        cells: the number of the cell of each file name that IPython gave to a cell's code.
    """
    step = start = error.__traceback__
    while step is not None and step.tb_frame.f_code.co_filename not in cells:
        step = step.tb_next
    text = "".join(traceback_module.format_exception(type(error), error, step or start))
    named = _FILE.sub(lambda match: f"Cell In[{cells[match[1]]}]" if match[1] in cells else match[0], text)
    return named.rstrip("\n").split("\n")


def contains_group(error: BaseException | None) -> bool:
    """Whether IPython prints this exception instead of formatting it: a group is in its chain."""
    for _ in range(1000):
        if error is None or isinstance(error, BaseExceptionGroup):
            break
        error = error.__context__
    return isinstance(error, BaseExceptionGroup)
