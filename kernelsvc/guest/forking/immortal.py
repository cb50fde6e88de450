"""Make the template's objects immortal, so that their use does not write to shared pages.

Python counts references in the objects, so a cell that only calls a function writes to its page, which is then copied
for the session. Since Python 3.12 an object can be *immortal* (PEP 683): its count has one fixed value and is not
changed. All objects of the template are needed while any session lives, so all become immortal before the first fork.
With numpy, pandas and pyplot a cell then writes half as many pages, which saves memory and the time of each page fault.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import sysconfig
import types
from typing import Any

#: Objects that change while they run: CPython checks their reference counts.
_RUNNING = frozenset((types.FrameType, types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType))
#: Objects per call of ``gc.get_referents``.
_BATCH = 4096
#: User space on x86-64 and arm64 ends below this address unless mmap(2) is given a hint above it.
_ADDRESSES = 1 << 48


def possible() -> bool:
    """Whether this Python supports immortal objects with the layout that this module writes."""
    known = sys.version_info >= (3, 12) and sys.implementation.name == "cpython"
    return known and not sysconfig.get_config_var("Py_GIL_DISABLED")


def immortalize() -> int:
    """Make all existing objects immortal except running frames. For a process with one thread.

    Returns:
        The number of objects that became immortal, or 0 if this Python does not support it.
    """
    if not possible():
        return 0
    count, waiting = 0, gc.get_objects()
    memory = _memory()
    mark = memory[id(None) >> 2]
    while waiting:
        # By address, since the same object is often found several times. The mark also shows which were visited.
        batch = {address: each for each in waiting[-_BATCH:] if memory[(address := id(each)) >> 2] != mark}
        del waiting[-_BATCH:]
        marked = [each for each in batch.values() if type(each) not in _RUNNING]
        for each in marked:
            memory[id(each) >> 2] = mark
        count += len(marked)
        waiting += gc.get_referents(*marked)
        for each in marked:
            if isinstance(each, dict):
                waiting += dict.keys(each)
            elif isinstance(each, types.CodeType):
                waiting += _parts(each)
    return count


def _memory() -> memoryview:
    """Return this process's memory as words of 32 bits, for the count at the start of each object.

    One view of all is ten times as fast as one ctypes object for each of a million addresses.
    """
    words = (ctypes.c_uint32 * (_ADDRESSES >> 2)).from_address(0)
    return memoryview(words).cast("B").cast("I")


def _parts(code: types.CodeType) -> list[Any]:
    """Return the objects that a code object refers to, which the garbage collector does not report."""
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
