"""Private copies of standard modules, for the guest's code in a session.

User code may replace or remove attributes of modules: ``os.fork = None`` is usual in programs that run the code of
benchmarks. A replaced attribute must not keep the kernel from making a checkpoint or from answering a server, so the
guest's modules import these copies. A copy has its own dictionary and the same functions. It is made in the template,
so a session pays nothing for it.

``sys`` has no copy, because its attributes are shared state (``sys.stdout``).
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import random
import select
import signal
import socket
import stat
import threading
import time
import types
from io import open as open_file

__all__ = [
    "ctypes",
    "current_directory",
    "fcntl",
    "gc",
    "open_file",
    "os",
    "random",
    "select",
    "signal",
    "socket",
    "stat",
    "threading",
    "time",
]


def _copy(module: types.ModuleType) -> types.ModuleType:
    made = types.ModuleType(module.__name__, module.__doc__)
    made.__dict__.update(module.__dict__)
    return made


globals().update(
    {
        module.__name__: _copy(module)
        for module in (ctypes, fcntl, gc, os, random, select, signal, socket, stat, threading, time)
    }
)


def current_directory() -> str:
    """Return the working directory, or "" if it was removed (getcwd(3), ENOENT)."""
    try:
        return os.getcwd()
    except OSError:
        return ""
