"""One line about the session's surroundings that explains an error: a fact, and no advice about Python.

The environment variable ``KERNELSVC_HINTS=0`` of a session turns hints off.
"""

from __future__ import annotations

import difflib
import errno
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import PathFinder
from itertools import islice
from typing import Any

from kernelsvc.guest import limit_errors
from kernelsvc.guest.private_modules import os, socket

#: Exceptions of a chain that are read.
_DEPTH = 8
#: Entries of a directory that are compared with a missing name, and columns that are listed.
_MAX_ENTRIES, _MAX_COLUMNS = 2000, 40
#: Modules with a similar purpose as one that is often missing.
_INSTEAD = {
    "torch": ("sklearn", "jax"),
    "tensorflow": ("sklearn", "torch"),
    "xgboost": ("sklearn",),
    "lightgbm": ("sklearn",),
    "polars": ("pandas",),
    "seaborn": ("matplotlib",),
    "plotly": ("matplotlib",),
    "altair": ("matplotlib",),
    "bokeh": ("matplotlib",),
    "requests": ("httpx", "urllib3"),
    "statsmodels": ("scipy",),
    "cv2": ("PIL", "skimage"),
}
_LIMITS = {
    "memory_bytes": "The session's limit of memory is reached.",
    "processes": "The session's limit of processes and threads is reached.",
    "open_files": "The session's limit of open files is reached.",
    "disk_bytes": "The session's limit of disk space is reached.",
    "scratch": "The session's scratch space (/tmp) is full.",
}


def hint(error: BaseException) -> str | None:
    """Return a fact about this session that explains an exception, or None. Never raises."""
    if os.environ.get("KERNELSVC_HINTS") == "0":
        return None
    try:
        chain = list(islice(_chain(error), _DEPTH))
        return next(filter(None, (find(one) for find in _HINTS for one in chain)), None)
    except Exception:  # An exception's own attributes can raise. The report of it is worth more than a hint.
        return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    seen: set[int] = set()
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def has_network() -> bool:
    """Whether there is an interface besides the loopback (netdevice(7)), or a route to addresses elsewhere."""
    try:
        return any(name != "lo" for _, name in socket.if_nameindex()) or _has_route()
    except OSError:
        return False


def _has_route() -> bool:
    """Whether there is a route to other hosts. A session with network rules has one, and no interface for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # connect(2) of a datagram socket looks the route up and sends nothing.
        return probe.connect_ex(("192.0.2.1", 9)) == 0


def _network(error: BaseException) -> str | None:
    failed = isinstance(error, socket.gaierror) or (isinstance(error, OSError) and error.errno == errno.ENETUNREACH)
    return "This session has no network." if failed and not has_network() else None


def no_network(error: BaseException) -> str | None:
    """Return the fact that there is no network, if an exception or one of its causes comes from that."""
    return next(filter(None, map(_network, islice(_chain(error), _DEPTH))), None)


def failed_install(command: str) -> str | None:
    """Return what is possible after a command that could not install a package, or None if it had a network."""
    words = command.split()
    if "install" not in words or not any(word.rpartition("/")[2] in ("pip", "pip3", "uv") for word in words):
        return None
    if has_network():
        return None
    if wheels := os.environ.get("PIP_FIND_LINKS"):
        return f"This session has no network. It can install the packages of {wheels}: list them with !ls {wheels}"
    return (
        "This session has no network, so pip finds no packages. Use the installed ones (!pip list), or upload a wheel "
        "and run: pip install --target lib ./NAME.whl"
    )


def _missing_module(error: BaseException) -> str | None:
    if not isinstance(error, ModuleNotFoundError) or type(error.name) is not str:
        return None
    name = error.name.partition(".")[0]
    if name in sys.modules or _is_installed(name):
        return None
    there = [each for each in _INSTEAD.get(name, ()) if _is_installed(each)]
    similar = f" {', '.join(there)} {'is' if len(there) == 1 else 'are'} installed." if there else ""
    offline = "" if has_network() else ", and there is no network to install it from"
    return f"{name} is not installed here{offline}.{similar}"


def _is_installed(name: str) -> bool:
    return PathFinder.find_spec(name) is not None


def _missing_file(error: BaseException) -> str | None:
    if not isinstance(error, FileNotFoundError) or type(error.filename) is not str:
        return None
    folder, name = os.path.split(error.filename)
    try:
        with os.scandir(folder or ".") as found:
            names = [entry.name for entry in islice(found, _MAX_ENTRIES)]
    except OSError:
        return None
    by_folded = {each.casefold(): each for each in names}
    close = difflib.get_close_matches(name.casefold(), by_folded, 3, 0.7)
    return f"Similar names there: {', '.join(by_folded[each] for each in close)}" if close else None


def _read_only(error: BaseException) -> str | None:
    denied = isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
    if not denied or type(getattr(error, "filename", None)) is not str:
        return None
    return f"This session may write below {os.path.expanduser('~')} and /tmp."


def _environment(error: BaseException) -> str | None:
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    file = os._Environ.__getitem__.__code__.co_filename
    if type(error) is not KeyError or step is None or step.tb_frame.f_code.co_filename != file:
        return None
    return "This environment variable is not set. A session has no variables of the server, and no secrets."


def _columns(error: BaseException) -> str | None:
    """The columns of the data frame in the user's line that has no such key."""
    pandas = sys.modules.get("pandas")
    if type(error) is not KeyError or pandas is None:
        return None
    step = error.__traceback__
    while step is not None:
        frame: Any = step.tb_frame.f_locals.get("self") if "pandas" in step.tb_frame.f_code.co_filename else None
        if type(frame) is pandas.DataFrame:
            names = [str(each) for each in frame.columns[:_MAX_COLUMNS] if type(each) in (str, int)]
            more = ", …" if len(frame.columns) > _MAX_COLUMNS else ""
            return f"The columns are: {', '.join(names)}{more}" if names else None
        step = step.tb_next
    return None


def _loop(error: BaseException) -> str | None:
    text = str(error) if type(error) is RuntimeError else ""
    running = "cannot be called from a running event loop" in text or "event loop is already running" in text
    return "Cells run inside an event loop, and may await." if running else None


def _input(error: BaseException) -> str | None:
    return "No client answers input() in this cell." if type(error).__name__ == "StdinNotImplementedError" else None


def _gpu(error: BaseException) -> str | None:
    text = str(error) if type(error) in (RuntimeError, AssertionError) else ""
    wanted = "CUDA" in text or "NVIDIA" in text
    return "There is no GPU here." if wanted and not os.path.exists("/dev/nvidia0") else None


def _limit(error: BaseException) -> str | None:
    found = limit_errors.limit_of(error)
    return _LIMITS.get(found["limit"]) if found is not None else None


_HINTS: tuple[Callable[[BaseException], Any], ...] = (
    *(_network, _missing_module, _missing_file, _environment, _columns, _loop, _input, _gpu, _limit, _read_only),
)
