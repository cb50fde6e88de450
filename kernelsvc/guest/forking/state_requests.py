"""Saving a session's variables to a descriptor that came with the request, and loading them."""

from __future__ import annotations

import gc
import os
from typing import Any

from kernelsvc.guest.forking import state_pickle


def answer(shell: Any, body: dict[str, Any], fd: int) -> dict[str, Any]:
    """Answer a ``save`` or ``load`` request. The descriptor is closed. Never raises."""
    try:
        return _save(shell, fd) if body["op"] == "save" else _load(shell, fd, int(body.get("count") or 1))
    except Exception as error:
        return {"ok": False, "refused": [f"{type(error).__name__}: {error}"[:500]]}


def _save(shell: Any, fd: int) -> dict[str, Any]:
    names = state_pickle.user_names(shell.user_ns, shell.user_ns_hidden)
    with os.fdopen(fd, "wb") as file:
        lost = state_pickle.dump(shell.user_ns, names, file)
        file.flush()
        os.fsync(file.fileno())
    return {"ok": True, "saved": len(names) - len(lost), "lost": lost}


def _load(shell: Any, fd: int, count: int) -> dict[str, Any]:
    collecting = gc.isenabled()
    gc.disable()  # a large pickle makes many objects and no garbage
    try:
        with os.fdopen(fd, "rb") as file:
            found, lost = state_pickle.load(file, shell.user_ns)
    finally:
        if collecting:
            gc.enable()
    shell.execution_count = count
    return {"ok": True, "saved": found, "lost": lost}
