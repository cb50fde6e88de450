"""Save the user's variables as one pickle and load them, for hibernation.

One *joint* pickle keeps shared objects shared: a view remains a view of its array, and a class in a list remains the
class of its instances. One object that can't be pickled would spoil the whole pickle. So each name is first dumped and
loaded alone, and names that fail are skipped and reported. After loading, such a name holds a ``LostVariable``, whose
use raises an error with the reason.

Reducers support objects that notebooks hold and pickle refuses: open files, locks, events, queues, in-memory SQLite,
weak references, idle thread pools, modules created by hand, views of arrays. A pickle is a program, so it is loaded
only in the confined kernel.

The environment needs cloudpickle. Without it hibernation is refused.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import io
import json
import pickle
import queue
import sqlite3
import sys
import types
import weakref
from collections.abc import Callable, Mapping
from signal import ITIMER_REAL, SIG_DFL, SIGALRM, setitimer
from signal import signal as set_handler
from time import monotonic
from typing import Any

from kernelsvc.guest.private_modules import gc, open_file, os, threading

try:
    import cloudpickle
except ImportError:  # The user's own environment.
    cloudpickle = None

#: Seconds for one name, and after which each further name gets only a little. The server waits for 300 s.
NAME_SECONDS, MAX_SECONDS, _LEAST_SECONDS = 30.0, 120.0, 0.1
#: Longest reason for one name, in characters.
_REASON = 200
_LOCK, _RLOCK = type(threading.Lock()), type(threading.RLock())
_FILES = (io.TextIOWrapper, io.BufferedReader, io.BufferedWriter, io.BufferedRandom)
_QUEUES = (queue.Queue, queue.LifoQueue, queue.PriorityQueue)
_THE_NAMESPACE = "namespace"
#: Where states that were saved by earlier versions look for this module and its classes. A session that hibernated
#: before an upgrade is resumed after it, so the names of functions that pickles refer to must not change without a row.
_OLD_MODULES = frozenset(("kernelsvc.guest.namespace",))
_OLD_NAMES = {"Lost": "LostVariable"}


class NotPortable(Exception):
    """The object's state is outside of the process and can't be saved."""


class LostVariable:
    """Replaces an object that could not be saved. Any use raises an error with the reason."""

    def __init__(self, name: str, why: str) -> None:
        self.__dict__.update(_name=name, _why=why)

    def __repr__(self) -> str:
        return f"<{self._name} was lost when the session was saved: {self._why}>"

    def _refuse(self, *_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError(f"{self._name} was lost when the session was saved ({self._why}). Create it again.")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._refuse()

    __call__ = __getitem__ = __iter__ = __len__ = __add__ = __enter__ = __next__ = _refuse


# --- rebuilding objects: module-level functions, which pickle by name --------------------


def _file(path: str, mode: str, position: int, encoding: str | None) -> Any:
    # The file exists now: "x" would fail, and "w" would truncate it.
    mode = mode.replace("x", "w")
    if "w" in mode:
        mode = mode.replace("w", "r" if "+" in mode else "r+")
    opened = open_file(path, mode, encoding=encoding)
    opened.seek(position)
    return opened


def _function(code: Any, namespace: dict[str, Any], name: str, defaults: Any, closure: Any) -> types.FunctionType:
    return types.FunctionType(code, namespace, name, defaults, closure)


def _set_function(made: Any, state: Any) -> None:
    kwdefaults, attributes, qualname, doc, annotations, module = state
    made.__kwdefaults__, made.__qualname__, made.__doc__ = kwdefaults, qualname, doc
    made.__annotations__, made.__module__ = annotations, module
    made.__dict__.update(attributes)


def _database(image: bytes) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.deserialize(image)
    return connection


def _view(base: Any, offset: int, dtype: Any, shape: Any, strides: Any) -> Any:
    import numpy

    return numpy.ndarray(shape, dtype, buffer=base, offset=offset, strides=strides)


def _event(is_set: bool) -> threading.Event:
    made = threading.Event()
    if is_set:
        made.set()
    return made


def _queue(kind: Any, items: list[Any], size: int) -> Any:
    made = kind(size)
    for item in items:
        made.put_nowait(item)
    return made


def _cached(function: Any, parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _module(name: str, content: dict[str, Any]) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__dict__.update(content)
    return made


# --- reducers ---------------------------------------------------------------------------------


def _reduce_file(file: Any) -> Any:
    if not isinstance(file.name, str) or not os.path.isfile(file.name):
        raise NotPortable("an open file that has no path")
    if file.closed:
        raise NotPortable("a closed file")
    if file.writable():
        file.flush()
    position = file.tell() if file.seekable() else 0
    return _file, (os.path.abspath(file.name), file.mode, position, getattr(file, "encoding", None))


def _reduce_database(connection: sqlite3.Connection) -> Any:
    if connection.in_transaction:
        raise NotPortable("a database connection in an open transaction (commit it first)")
    path = connection.execute("pragma database_list").fetchone()[2]
    # The file of a database is named by its whole path. One in memory has no name, or "x" once it was deserialized
    # (memdb.c of SQLite), so that a session which is saved twice would lose it.
    return (sqlite3.connect, (path,)) if os.path.isabs(path) else (_database, (connection.serialize(),))


def _reduce_lock(lock: Any) -> Any:
    if lock.locked():
        raise NotPortable("a held lock")
    return threading.Lock, ()


def _reduce_pool(pool: Any) -> Any:
    if pool._work_queue.qsize():
        raise NotPortable("a thread pool with work in it")
    return concurrent.futures.ThreadPoolExecutor, (pool._max_workers,)


_REDUCERS: dict[type, Callable[[Any], Any]] = {
    sqlite3.Connection: _reduce_database,
    _LOCK: _reduce_lock,
    _RLOCK: lambda _: (threading.RLock, ()),
    threading.Event: lambda event: (_event, (event.is_set(),)),
    concurrent.futures.ThreadPoolExecutor: _reduce_pool,
    functools._lru_cache_wrapper: lambda f: (_cached, (f.__wrapped__, f.cache_parameters())),
    **dict.fromkeys(_FILES, _reduce_file),
    **dict.fromkeys(_QUEUES, lambda q: (_queue, (type(q), list(q.queue), q.maxsize))),
}
_OUTSIDE = {"Popen": "a running process", "socket": "a socket", "Task": "an asyncio task", "Connection": "a connection"}


def _reduce_array(array: Any) -> Any:
    """Reduce a view of an array, so that both share memory after loading."""
    import numpy

    base = array
    while isinstance(base.base, numpy.ndarray):
        base = base.base
    if base is array or type(base) is not numpy.ndarray or base.base is not None or not base.flags.c_contiguous:
        return NotImplemented
    if array.dtype.hasobject:
        return NotImplemented
    offset = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    return _view, (base, offset, array.dtype, array.shape, array.strides)


def _pickler(namespace: dict[str, Any]) -> type:
    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def persistent_id(self, value: Any) -> Any:
            return _THE_NAMESPACE if value is namespace else None

        def reducer_override(self, value: Any) -> Any:
            kind = type(value)
            if kind is types.FunctionType and value.__globals__ is namespace:
                return _reduce_function(value, namespace)
            if kind in _REDUCERS:
                return _REDUCERS[kind](value)
            if kind.__name__ in _OUTSIDE and kind.__module__.split(".")[0] in ("subprocess", "socket", "asyncio"):
                raise NotPortable(_OUTSIDE[kind.__name__])
            if kind is weakref.ref and value() is not None:
                return weakref.ref, (value(),)
            if kind is types.ModuleType and getattr(value, "__spec__", None) is None:
                content = {k: v for k, v in value.__dict__.items() if not k.startswith("__")}
                return _module, (value.__name__, content)
            numpy = sys.modules.get("numpy")
            if numpy is not None and kind is numpy.ndarray and value.base is not None:
                found = _reduce_array(value)
                if found is not NotImplemented:
                    return found
            return super().reducer_override(value)

    return Pickler


def _reduce_function(value: Any, namespace: dict[str, Any]) -> Any:
    made = (value.__code__, namespace, value.__name__, value.__defaults__, value.__closure__)
    state = (
        value.__kwdefaults__,
        dict(value.__dict__),
        value.__qualname__,
        value.__doc__,
        dict(value.__annotations__),
        value.__module__,
    )
    return _function, made, state, None, None, _set_function


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, namespace: dict[str, Any]) -> None:
        super().__init__(file)
        self._namespace = namespace

    def find_class(self, module: str, name: str, /) -> Any:
        if module in _OLD_MODULES:
            return globals()[_OLD_NAMES.get(name, name)]
        return super().find_class(module, name)

    def persistent_load(self, name: Any) -> Any:
        return self._namespace


# --- saving and loading -------------------------------------------------------------------------


def user_names(namespace: Mapping[str, Any], hidden: Mapping[str, Any]) -> list[str]:
    """Return the names that the user created: no private names and none of IPython's."""
    found = object()
    return [
        name
        for name, value in namespace.items()
        if not name.startswith("_") and hidden.get(name, found) is not value and name not in ("In", "Out")
    ]


def _dumps(value: Any, namespace: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    _pickler(namespace)(buffer, protocol=5).dump(value)
    return buffer.getvalue()


def dump(namespace: dict[str, Any], names: list[str], file: Any) -> dict[str, str]:
    """Write these variables to ``file``. Return the lost ones, name to reason.

    Raises:
        NotPortable: cloudpickle is not installed.
        OSError: The disk refused.
    """
    if cloudpickle is None:
        raise NotPortable("this environment has no cloudpickle. Install it to save sessions")
    lost = _find_lost(namespace, names)
    kept = {name: namespace[name] for name in names if name not in lost}
    _pickler(namespace)(file, protocol=5).dump((kept, lost))
    return lost


def _find_lost(namespace: dict[str, Any], names: list[str]) -> dict[str, str]:
    """Dump and load each name alone, in a fork. Return the names that fail, with reasons.

    Loading a class changes the existing one (cloudpickle tracks classes), and an object may crash the process. A crash
    loses only the name that caused it, and so does one that takes too long: nothing could interrupt it.
    """
    _flush()
    deadline = monotonic() + MAX_SECONDS
    lost: dict[str, str] = {}
    waiting = list(names)
    while waiting:
        tried, late = _try_in_fork(namespace, waiting, lost, deadline)
        if tried < len(waiting):
            lost[waiting[tried]] = "saving it takes too long" if late else "saving it ended the process"
        waiting = waiting[tried + 1 :]
    return lost


def _flush() -> None:
    """Flush buffered files, which the fork would write again."""
    for found in gc.get_objects():
        if type(found) in _FILES and not found.closed and found.writable():
            with contextlib.suppress(OSError, ValueError):
                found.flush()


def _try_in_fork(
    namespace: dict[str, Any], names: list[str], lost: dict[str, str], deadline: float
) -> tuple[int, bool]:
    """Try names until the fork ends, and add the lost ones to ``lost``.

    Returns:
        How many were tried, and whether the next one took too long.
    """
    # The fork reports line by line, so that a crash loses only the name that caused it.
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        set_handler(SIGALRM, SIG_DFL)
        with os.fdopen(write, "w", buffering=1, encoding="utf-8", errors="replace") as report:
            for name in names:
                # Its default action ends the process, whatever code runs (signal(7)).
                setitimer(ITIMER_REAL, max(_LEAST_SECONDS, min(NAME_SECONDS, deadline - monotonic())))
                report.write(json.dumps(_try(namespace, name)) + "\n")
        os._exit(0)
    os.close(write)
    tried = 0
    with os.fdopen(read, encoding="utf-8", errors="replace") as report:
        for name, line in zip(names, report, strict=False):
            why = json.loads(line)
            if why is not None:
                lost[name] = why
            tried += 1
    status = os.waitpid(pid, 0)[1]
    return tried, os.WIFSIGNALED(status) and os.WTERMSIG(status) == SIGALRM


def _try(namespace: dict[str, Any], name: str) -> str | None:
    try:
        _Unpickler(io.BytesIO(_dumps(namespace[name], namespace)), dict(namespace)).load()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:_REASON]
    return None


def load(file: Any, namespace: dict[str, Any]) -> tuple[int, dict[str, str]]:
    """Put the variables of a ``dump`` into ``namespace``. Return their number and the lost ones.

    Raises:
        Exception: Any error of unpickling. The namespace is unchanged.
    """
    kept, lost = _Unpickler(file, namespace).load()
    namespace.update(kept)
    for name, why in lost.items():
        namespace[name] = LostVariable(name, why)
    return len(kept), lost


# --- requests of the server -----------------------------------------------------------


def answer(shell: Any, body: dict[str, Any], fd: int) -> dict[str, Any]:
    """Handle a ``save`` or ``load`` request and return the reply. Closes the descriptor. Never raises."""
    try:
        return _save(shell, fd) if body["op"] == "save" else _load(shell, fd, int(body.get("count") or 1))
    except Exception as error:
        return {"ok": False, "refused": [f"{type(error).__name__}: {error}"[:500]]}


def _save(shell: Any, fd: int) -> dict[str, Any]:
    names = user_names(shell.user_ns, shell.user_ns_hidden)
    with os.fdopen(fd, "wb") as file:
        lost = dump(shell.user_ns, names, file)
        file.flush()
        # The kernel ends after the reply, so the variables must be on disk (fsync(2)).
        os.fsync(file.fileno())
    return {"ok": True, "saved": len(names) - len(lost), "lost": lost}


def _load(shell: Any, fd: int, count: int) -> dict[str, Any]:
    collecting = gc.isenabled()
    gc.disable()  # A large pickle creates many objects and no garbage.
    try:
        with os.fdopen(fd, "rb") as file:
            found, lost = load(file, shell.user_ns)
    finally:
        if collecting:
            gc.enable()
    shell.execution_count = count
    return {"ok": True, "saved": found, "lost": lost}
