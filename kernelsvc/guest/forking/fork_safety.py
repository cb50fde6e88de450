"""Find resources of this process that a fork would break or share.

Obstacles prevent the fork: it would hang, crash or corrupt data later, far from its cause. Warnings do not: both
processes work, but may surprise. Each is one sentence for the model that uses the session, and ends with the next step.

This runs after every cell and must be fast: it checks descriptors, threads and modules, and searches the heap only if
an open file requires it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from kernelsvc.guest.private_modules import current_directory, fcntl, gc, open_file, os, socket, stat, threading

MAX_NAMED = 10

_OPENMP = ("libgomp", "libomp", "libiomp")
_SHARED = " rw-s "
#: Tokens of the lines in /proc/self/maps that matter here.
MAPPINGS_OF_INTEREST = tuple(token.encode() for token in (*_OPENMP, _SHARED))
_POOL_THREADS = ("ThreadPoolExecutor", "ExecutorManagerThread", "QueueFeederThread", "QueueManagerThread")


class ForkSafety(NamedTuple):
    """Result of a survey: ``obstacles`` prevent a fork, ``warnings`` do not."""

    obstacles: list[str]
    warnings: list[str]


class Descriptor(NamedTuple):
    """An open descriptor that does not belong to the kernel."""

    fd: int
    target: str
    mode: int
    writable: bool

    @property
    def regular(self) -> bool:
        """Whether it is a file on disk."""
        return stat.S_ISREG(self.mode)


def survey(loop: asyncio.AbstractEventLoop, own: set[int], forks: Iterable[int], mapped: str) -> ForkSafety:
    """Check the process between cells.

    Args:
        loop: The session's event loop.
        own: Descriptors of the kernel itself.
        forks: Pids of forks that the kernel made of itself.
        mapped: Lines of ``/proc/self/maps``, at least those with ``MAPPINGS_OF_INTEREST``.
    """
    open_files = list(descriptors(own))
    obstacles = [
        *_threads(),
        *_libraries(),
        *_databases(open_files),
        *_connections(open_files),
    ]
    warnings = [
        *_tasks(loop),
        *_children(set(forks)),
        *_shared(open_files),
        *_shared_memory(mapped),
    ]
    return ForkSafety(_limited(obstacles), _limited(warnings))


def _limited(found: list[str]) -> list[str]:
    return found if len(found) <= MAX_NAMED else [*found[:MAX_NAMED], f"and {len(found) - MAX_NAMED} more like these"]


def descriptors(own: set[int]) -> Iterator[Descriptor]:
    """Yield all open descriptors but 0, 1, 2 and the kernel's own."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd < 3 or fd in own:
            continue
        try:
            mode, flags = os.fstat(fd).st_mode, fcntl.fcntl(fd, fcntl.F_GETFL)
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # The descriptor of the directory listing.
        yield Descriptor(fd, target, mode, flags & os.O_ACCMODE != os.O_RDONLY)


# --- obstacles -------------------------------------------------------------------------


def _threads() -> Iterator[str]:
    for thread in threading.enumerate():
        if thread is threading.main_thread() or getattr(thread, "is_pydev_daemon_thread", False):  # See _debugger.
            continue
        name = thread.name
        if name.startswith("asyncio_") or name.startswith(_POOL_THREADS):
            yield f"Executor thread {name!r} is alive. Shut the executor down, or use it in a 'with' block."
        else:
            yield f"Thread {name!r} is running and would not exist in a fork. End and join it."


def _libraries() -> Iterator[str]:
    for name, check in _CHECKS.items():
        module = sys.modules.get(name)
        if module is not None:
            try:
                found = check(module)
            except Exception:
                found = None  # Another version with other private names.
            if found:
                yield found


def thread_names() -> list[str]:
    """Return the names of native threads (proc(5), ``/proc/pid/task/tid/comm``)."""
    names = []
    for task in os.listdir("/proc/self/task"):
        try:
            with open_file(f"/proc/self/task/{task}/comm") as file:
                names.append(file.read().strip())
        except OSError:
            continue
    return names


def _polars(_: Any) -> str | None:
    if any(name.startswith("polars") for name in thread_names()):
        return (
            "polars has started its thread pool, and polars calls would hang in a fork. Use pandas or pyarrow instead."
        )
    return None


def _process_pool(module: Any) -> str | None:
    if getattr(module, "_threads_wakeups", None):
        return "A ProcessPoolExecutor is alive. Shut it down (joblib's: get_reusable_executor().shutdown())."
    return None


def _numba(module: Any) -> str | None:
    layer = getattr(module, "_threading_layer", None)
    if getattr(module, "_is_initialized", False) and layer and "omp" in str(layer):
        return "numba runs on OpenMP, which aborts in a fork. Import it with NUMBA_THREADING_LAYER=workqueue."
    return None


def _torch(module: Any) -> str | None:
    if module.cuda.is_initialized():
        return "torch has opened a GPU, and CUDA can't be used in a fork. Restart and use device='cpu'."
    return None


def _jax(module: Any) -> str | None:
    return "jax has started its threads and would hang in a fork." if getattr(module, "_backends", None) else None


def _tensorflow(_: Any) -> str:
    return "tensorflow is loaded and its threads would be missing in a fork."


def _grpc(_: Any) -> str:
    return "grpc is loaded and its threads would be missing in a fork."


def _debugger(module: Any) -> str | None:
    if module.get_global_debugger() is None:
        return None
    return "The debugger is on, and its threads would not exist in a fork. Turn the debugger off."


_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "pydevd": _debugger,
    "polars": _polars,
    "concurrent.futures.process": _process_pool,
    "numba.np.ufunc.parallel": _numba,
    "torch": _torch,
    "jax._src.xla_bridge": _jax,
    "tensorflow": _tensorflow,
    "grpc": _grpc,
}


def _databases(open_files: list[Descriptor]) -> Iterator[str]:
    suspects = [d for d in open_files if d.regular and d.writable]
    if not suspects:
        return
    for suspect in suspects:
        if _magic(suspect.fd, 8, 4) == b"DUCK":
            yield f"A DuckDB connection to {suspect.target} can write. Close it, or open it read-only."
    if "sqlite3" in sys.modules and any(_may_be_sqlite(d) for d in suspects):
        yield from _sqlite()


def _may_be_sqlite(suspect: Descriptor) -> bool:
    return _magic(suspect.fd, 0, 16) in (b"", b"SQLite format 3\0")


def _magic(fd: int, at: int, length: int) -> bytes:
    """Read a file's magic number. The file is opened again, since its descriptor may be write-only."""
    try:
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.pread(again, length, at)
    except OSError:
        return b""
    finally:
        os.close(again)


def _sqlite() -> Iterator[str]:
    kind = sys.modules["sqlite3"].Connection
    # isinstance would ask each object for __class__, which runs code of a lazy proxy, and raises for a dead weak one.
    for found in [o for o in gc.get_objects() if issubclass(type(o), kind)]:
        try:
            path = next((row[2] for row in found.execute("PRAGMA database_list") if row[2]), "")
            readonly = path and found.execute("PRAGMA query_only").fetchone()[0]
            open_transaction = found.in_transaction
        except Exception:
            continue  # Closed, or of another thread, which is an obstacle itself.
        if path and not readonly:
            what = " has an open transaction" if open_transaction else " can write"
            yield f"An SQLite connection to {path}{what}. Close it, or both copies would corrupt the file."


def _connections(open_files: list[Descriptor]) -> Iterator[str]:
    for found in open_files:
        if not stat.S_ISSOCK(found.mode):
            continue
        peer = _peer(found.fd)
        if peer:
            yield f"A network connection to {peer} is open and both copies would talk on it. Close it."


def _peer(fd: int) -> str | None:
    try:
        sock = socket.socket(fileno=os.dup(fd))
    except OSError:
        return None
    with sock:
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        try:
            name = sock.getpeername()
        except OSError:
            return None
        return f"{name[0]}:{name[1]}"


# --- warnings ----------------------------------------------------------------------------


def _tasks(loop: asyncio.AbstractEventLoop) -> Iterator[str]:
    for task in asyncio.all_tasks(loop):
        what = getattr(task.get_coro(), "__qualname__", "?")
        yield f"The background task {what} runs on in both copies."


def children(forks: set[int]) -> set[int]:
    """Return the pids of user code's child processes, as far as /proc shows them."""
    try:
        with open_file(f"/proc/self/task/{os.getpid()}/children") as file:
            return {int(pid) for pid in file.read().split()} - forks
    except (OSError, ValueError):
        return set()


def _children(forks: set[int]) -> Iterator[str]:
    for pid in sorted(children(forks)):
        yield f"Child process {pid} stays with the original. A fork can't wait for it."


def _shared(open_files: list[Descriptor]) -> Iterator[str]:
    here = current_directory()
    private = (f"{here}/", "/memfd:") if here else ("/memfd:",)
    for found in open_files:
        if stat.S_ISSOCK(found.mode):
            yield f"Socket {found.fd} is shared by both copies."
        elif stat.S_ISFIFO(found.mode):
            yield f"Pipe {found.fd} is shared by both copies."
        elif found.regular and found.writable and not found.target.startswith(private):
            yield f"The file {found.target} is open for writing. Both copies write into the same file."


def _shared_memory(mapped: str) -> Iterator[str]:
    for path in _mapped(mapped, lambda line: _SHARED in line):
        if not path.endswith("(deleted)"):
            yield f"The memory-mapped file {path} is shared: a write in one copy shows in the other."


def _mapped(mapped: str, wanted: Callable[[str], bool]) -> list[str]:
    if not wanted(mapped):  # Usually there is no such line, and the text need not be split.
        return []
    lines = [line.split(None, 5) for line in mapped.splitlines() if wanted(line)]
    return sorted({line[5] for line in lines if len(line) == 6 and line[5].startswith("/")})


def openmp(mapped: str) -> list[str]:
    """Return the paths of loaded OpenMP libraries. Wheels bundle their own, with names that begin like these."""
    return _mapped(mapped, lambda text: any(name in text for name in _OPENMP))
