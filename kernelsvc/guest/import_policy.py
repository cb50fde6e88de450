"""Explain at an import which modules a template does not want in cells, and what to use instead.

This is advice and not isolation: confinement limits the access of a cell, and code can avoid this check. It helps a
model: the message "'requests' is not for this session. It has no network. Work with files in the current directory." is
a better base for its next step than a time-out.

Only imports in cells are checked (their globals are ``__main__``'s). numpy and pandas may import any module.
``__import__`` is wrapped, since a finder is never called for a module that is loaded already, and in a fork of a warm
template most are.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Mapping, Sequence
from typing import Any

from kernelsvc.guest import kept_builtins

_PROCESSES = "Write it in Python; for files use pathlib and shutil."
_NETWORK = "This session has no network; work with files in the current directory."
#: Alternatives to the modules that are denied most often.
INSTEAD: Mapping[str, str] = {
    "aiohttp": _NETWORK,
    "ctypes": "Use numpy for raw memory and fast loops.",
    "ftplib": _NETWORK,
    "http": _NETWORK,
    "httpx": _NETWORK,
    "multiprocessing": "Use numpy, which runs on all cores, or concurrent.futures.ThreadPoolExecutor.",
    "os": "Use pathlib for paths and files.",
    "paramiko": _NETWORK,
    "pty": _PROCESSES,
    "requests": _NETWORK,
    "sh": _PROCESSES,
    "smtplib": _NETWORK,
    "socket": _NETWORK,
    "subprocess": _PROCESSES,
    "torch": "Use numpy or scikit-learn.",
    "tensorflow": "Use numpy or scikit-learn.",
    "urllib": _NETWORK,
    "urllib3": _NETWORK,
}
_MOST_NAMES = 20


class ImportNotAllowed(ImportError):
    """The session's template does not allow this module in cells. The message names an alternative."""


def refusal(module: str, allow: Sequence[str] | None, deny: Sequence[str]) -> str | None:
    """Return why a cell should not import ``module``, with a replacement, or None if the import is allowed.

    A name in either list covers all modules below it (``xml`` covers ``xml.etree``). The longest match wins, and
    ``deny`` wins a tie.

    Args:
        module: The dotted name.
        allow: The only modules that a cell may import, or None for all.
        deny: Modules that a cell may not import.
    """
    denied, allowed = _depth(module, deny), _depth(module, allow or ())
    if denied >= allowed and denied > 0:
        return _text(module, allow)
    if allow is not None and allowed == 0 and module != "__future__":
        return _text(module, allow)
    return None


def _depth(module: str, names: Sequence[str]) -> int:
    """Return the number of parts of the longest name that covers ``module``, or 0."""
    return max((len(name.split(".")) for name in names if module == name or module.startswith(name + ".")), default=0)


def _text(module: str, allow: Sequence[str] | None) -> str:
    top = module.partition(".")[0]
    parts = [f"{module!r} is not for this session."]
    if top in INSTEAD:
        parts.append(INSTEAD[top])
    if allow:
        names = sorted(allow)
        more = "" if len(names) <= _MOST_NAMES else f" and {len(names) - _MOST_NAMES} more"
        parts.append(f"You may import: {', '.join(names[:_MOST_NAMES])}{more}.")
    elif top not in INSTEAD:
        parts.append("Use the standard library or another installed package.")
    return " ".join(parts)


def install(allow: Sequence[str] | None, deny: Sequence[str]) -> None:
    """Wrap ``__import__`` in this process. Does nothing if every import is allowed.

    Modules in the working directory belong to the session and are always allowed.

    Args:
        allow: See ``refusal``.
        deny: See ``refusal``.
    """
    if allow is None and not deny:
        return
    original = builtins.__import__

    def guarded(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        if level == 0 and globals is not None and globals.get("__name__") == "__main__":
            _check(name, fromlist or (), allow, deny)
        return original(name, globals, locals, fromlist or (), level)

    kept_builtins.replace("__import__", guarded)


def _check(name: str, fromlist: Sequence[str], allow: Sequence[str] | None, deny: Sequence[str]) -> None:
    # "from os import path" can name a module that is denied by itself.
    for module in (name, *(f"{name}.{part}" for part in fromlist if f"{name}.{part}" in deny)):
        why = refusal(module, allow, deny)
        if why is not None and not _own(module):
            raise ImportNotAllowed(why, name=module)


def _own(module: str) -> bool:
    top = module.partition(".")[0]
    return os.path.isfile(f"{top}.py") or os.path.isdir(top)
