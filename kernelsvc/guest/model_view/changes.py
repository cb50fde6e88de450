"""The variables and files that a cell made, changed or removed, for cells whose client asks for them.

Variables are compared by identity, size and columns, so an element that is replaced in a list is not found. Objects are
not kept alive for the comparison.

Files are compared only after a cell that opened one for writing, renamed or removed one, or started a program. An audit
hook finds this out (PEP 578). It can't be removed, so it is installed by the first cell that asks.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

from kernelsvc.guest import variables
from kernelsvc.guest.private_modules import current_directory, os, time

#: Most variables and files of each kind of change that are named.
MAX_NAMED = 20
#: Most variables that are compared.
MAX_VARIABLES = 2000
#: Most entries of the working directory that are read, and the seconds that this may take.
MAX_ENTRIES, MAX_SECONDS = 2000, 0.005
#: Longest text of which a change of the content is found, in characters.
_MAX_TEXT = 10_000
_SCALARS = variables.Types(int, float, complex, bool, type(None))
_SIZED = variables.Types(list, dict, set, tuple, frozenset)
_EVENTS = frozenset(
    (
        *("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"),
        *("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork", "os.forkpty", "shutil.move"),
    )
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT

Files = dict[str, tuple[int, int, int]]


class Changes:
    """Finds the changes of one cell after the other. Create it in the process of the session."""

    def __init__(self) -> None:
        self._variables: dict[str, Any] = {}
        self._files: Files | None = None
        self._directory = ""
        self._is_hooked = False
        self._may_have_written = True

    def begin(self, namespace: Mapping[str, Any], hidden: Mapping[str, Any]) -> None:
        """Note the state before a cell.

        Args:
            namespace: the user's globals.
            hidden: names that exist before user code runs, and their values.
        """
        if not self._is_hooked:
            self._is_hooked = True
            sys.addaudithook(self._audited)
        self._variables = dict(_marks(namespace, hidden))
        if self._directory != (directory := current_directory()):
            self._directory, self._files = directory, _files(directory)
        self._may_have_written = False

    def end(self, namespace: Mapping[str, Any], hidden: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return descriptions by kind: ``new``, ``changed``, ``gone``, ``files``. Empty kinds are absent."""
        before, self._variables = self._variables, {}
        after = dict(_marks(namespace, hidden))
        new = [_described(name, namespace.get(name)) for name in after if name not in before]
        changed = [
            _difference(name, before[name], mark, namespace.get(name))
            for name, mark in after.items()
            if name in before and before[name] != mark
        ]
        gone = [name for name in before if name not in after]
        found = {"new": new, "changed": changed, "gone": gone, "files": self._file_changes()}
        return {kind: names[:MAX_NAMED] for kind, names in found.items() if names}

    def _audited(self, event: str, details: tuple[Any, ...]) -> None:
        if event == "open":
            flags = details[2] if len(details) > 2 else 0
            if type(flags) is int and flags & _WRITES:
                self._may_have_written = True
        elif event in _EVENTS:
            self._may_have_written = True

    def _file_changes(self) -> list[str]:
        if not self._may_have_written or self._files is None or current_directory() != self._directory:
            return []
        before, self._files = self._files, _files(self._directory)
        if self._files is None:
            return []
        after = self._files
        found = [f"+{name} ({_size(after[name][0])})" for name in after if name not in before]
        found += [f"~{name} ({_size(mark[0])})" for name, mark in after.items() if before.get(name, mark) != mark]
        return [*found, *(f"-{name}" for name in before if name not in after)]


def _marks(namespace: Mapping[str, Any], hidden: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each variable of the user and a value that differs if the variable has changed."""
    count = 0
    for name, value in list(namespace.items()):
        if type(name) is not str or name[:1] == "_" or type(value) is types.ModuleType:
            continue
        if name in hidden and hidden[name] is value:
            continue
        count += 1
        if count > MAX_VARIABLES:
            return
        yield name, _mark(value)


def _mark(value: Any) -> Any:
    kind = type(value)
    # Marks are compared, which would call the metaclass of a class.
    mark = id(kind)
    if kind in _SCALARS:
        return mark, repr(value) if kind is float or kind is complex else value
    if kind is str:
        return mark, len(value), value if len(value) <= _MAX_TEXT else id(value)
    if kind in _SIZED:
        return mark, id(value), len(value)
    numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
    if pandas is not None and kind is getattr(pandas, "DataFrame", None):
        return mark, id(value), value.shape[0], tuple(each for each in value.columns if type(each) is str)
    if numpy is not None and kind is getattr(numpy, "ndarray", None):
        return mark, id(value), value.shape, value.dtype.str
    return mark, id(value)


def _described(name: str, value: Any) -> str:
    kind, summary = variables.type_name(value), variables.summary(value)
    if type(value) in _SCALARS or type(value) is str:
        return f"{name}: {kind} = {summary}"
    if type(value) is types.FunctionType:
        return f"{name}: function"
    return f"{name}: {kind} {summary}".rstrip()


def _difference(name: str, before: Any, after: Any, value: Any) -> str:
    """Return the columns that a data frame gained and lost, or the new value."""
    is_frame = len(before) == len(after) == 4 and before[0] == after[0] and type(before[3]) is tuple
    if is_frame and before[2] == after[2]:
        gained = [f"+{each}" for each in after[3] if each not in before[3]]
        lost = [f"-{each}" for each in before[3] if each not in after[3]]
        if gained or lost:
            return f"{name}: columns {', '.join([*gained, *lost][:MAX_NAMED])}"
    return _described(name, value)


def _files(directory: str) -> Files | None:
    """Return size, time of change and inode of the files below a directory, or None if there are too many."""
    found: Files = {}
    waiting = [""]
    end = time.monotonic() + MAX_SECONDS
    entries = 0
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(os.path.join(directory, below)) as some:
                for entry in some:
                    entries += 1
                    if entries > MAX_ENTRIES or time.monotonic() > end:
                        return None
                    if entry.name.startswith(".") or entry.name == "__pycache__":
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{below}{entry.name}/")
                    elif entry.is_file(follow_symlinks=False):
                        facts = entry.stat(follow_symlinks=False)
                        found[below + entry.name] = facts.st_size, facts.st_mtime_ns, facts.st_ino
        except OSError:  # The cell may remove a directory while it is read.
            continue
    return found


def _size(count: int) -> str:
    return (
        f"{count} bytes" if count < 1000 else f"{count / 1000:.0f} kB" if count < 10**7 else f"{count / 10**6:.0f} MB"
    )
