"""Objects of the template that no fork writes to, only because it uses them.

Python counts references in the objects themselves, so a cell that only calls a
function writes to its page, which then is a copy of the session's own. Since Python
3.12 an object may be *immortal* (PEP 683): its count has one certain value, and is
neither changed nor looked at. What the template has made is needed for as long as any
session lives, so all of it becomes immortal before the first fork. With numpy, pandas
and pyplot a cell then writes half as many pages, which is memory, and the time of
every copy, twice over.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import sysconfig
import types
from typing import Any

#: Objects that are taken apart while they live: whoever runs them looks at how many hold them.
_RUN = frozenset((types.FrameType, types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType))
#: How many objects are asked at once what they refer to.
_MANY = 4096


def possible() -> bool:
    """Whether this Python knows immortal objects, and keeps their mark where we put it."""
    known = sys.version_info >= (3, 12) and sys.implementation.name == "cpython"
    return known and not sysconfig.get_config_var("Py_GIL_DISABLED")


def immortalize() -> int:
    """Make every object that exists now immortal, but what is running. For a process with one thread.

    Returns:
        how many were not yet; 0 where it is not possible.
    """
    if not possible():
        return 0
    count, waiting = 0, gc.get_objects()
    mark = ctypes.c_uint32.from_address(id(None)).value
    while waiting:
        fresh = [each for each in waiting[-_MANY:] if _mark(each, mark)]
        del waiting[-_MANY:]
        count += len(fresh)
        waiting += gc.get_referents(*fresh)
        for each in fresh:
            if isinstance(each, dict):
                waiting += dict.keys(each)
            elif isinstance(each, types.CodeType):
                waiting += _parts(each)
    return count


def _mark(thing: object, mark: int) -> bool:
    """Mark it; whether that was new. The mark itself says what has been seen."""
    if type(thing) in _RUN:
        return False
    count = ctypes.c_uint32.from_address(id(thing))
    if count.value == mark:
        return False
    count.value = mark
    return True


def _parts(code: types.CodeType) -> list[Any]:
    """What a code object holds. The garbage collector does not look there, as it passes over a dictionary's names."""
    return [
        code.co_consts,
        code.co_names,
        code.co_filename,
        code.co_name,
        code.co_qualname,
        code.co_linetable,
        code.co_exceptiontable,
        *code.co_varnames,
        *code.co_freevars,
        *code.co_cellvars,
    ]
