"""Ids of sessions, cells, kernels and checkpoints."""

from __future__ import annotations

import os


def new_id(prefix: str) -> str:
    """A fresh id, unguessable enough to never collide."""
    return f"{prefix}_{os.urandom(8).hex()}"


def new_cell_id() -> str:
    """An id for a cell whose client gave none."""
    return new_id("c")


def new_kernel_id() -> str:
    """An id for a kernel; short, because it names a socket (unix(7): 108 bytes)."""
    return new_id("k")
