"""Tell the model, at the import itself, what a session is not meant to use.

A sign, not a wall: what a cell may reach is decided by confinement, and code
that wants around this gets around it. It exists because a model that reads
"'requests' is not for this session: it has no network; work with files in the
current directory" does better at its next step than one that waits for a time-out.

Only imports written in cells are looked at (those whose globals are
``__main__``'s): numpy and pandas go on importing what they like. That is why
``__import__`` is wrapped and no finder added: a finder never sees a module that
is already loaded, and everything is, in a fork of a warm template.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Mapping, Sequence
from typing import Any

_PROCESSES = "Write it in Python; for files use pathlib and shutil."
_NETWORK = "This session has no network; work with files in the current directory."
#: What to do instead, for what is denied most often.
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
    """The session's template doesn't want this module in cells; the message names what to use."""


def refusal(module: str, allow: Sequence[str] | None, deny: Sequence[str]) -> str | None:
    """Why a cell should not import ``module``, and what it may use; None if it may.

    A name in either list stands for itself and all beneath it (``xml`` for
    ``xml.etree``); the longest match wins, and ``deny`` wins a tie.

    Args:
        module: the dotted name.
        allow: the only modules a cell may import, or None for all.
        deny: modules that it may not.
    """
    denied, allowed = _depth(module, deny), _depth(module, allow or ())
    if denied >= allowed and denied > 0:
        return _text(module, allow)
    if allow is not None and allowed == 0 and module != "__future__":
        return _text(module, allow)
    return None


def _depth(module: str, names: Sequence[str]) -> int:
    """How many parts of the longest name that covers ``module``; 0 if none does."""
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
    """Put up the sign in this process. With nothing to say it does nothing.

    Modules that lie in the working directory are the session's own and always allowed.

    Args:
        allow: see ``refusal``.
        deny: see ``refusal``.
    """
    if allow is None and not deny:
        return
    plain = builtins.__import__

    def guarded(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        if level == 0 and globals is not None and globals.get("__name__") == "__main__":
            _check(name, fromlist or (), allow, deny)
        return plain(name, globals, locals, fromlist or (), level)

    builtins.__import__ = guarded


def _check(name: str, fromlist: Sequence[str], allow: Sequence[str] | None, deny: Sequence[str]) -> None:
    # "from os import path" may name a module that is denied on its own.
    for module in (name, *(f"{name}.{part}" for part in fromlist if f"{name}.{part}" in deny)):
        why = refusal(module, allow, deny)
        if why is not None and not _own(module):
            raise ImportNotAllowed(why, name=module)


def _own(module: str) -> bool:
    top = module.partition(".")[0]
    return os.path.isfile(f"{top}.py") or os.path.isdir(top)
