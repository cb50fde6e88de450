"""Ids of sessions, cells, kernels and checkpoints."""

from __future__ import annotations

import os


def new_id(prefix: str) -> str:
    """Return a new id: the prefix and 64 random bits in hex, so that ids don't collide."""
    return f"{prefix}_{os.urandom(8).hex()}"


def new_cell_id() -> str:
    """Return an id for a cell whose request has none."""
    return new_id("c")


def new_kernel_id() -> str:
    """Return an id for a kernel. It is short because a socket's path contains it (unix(7): 108 bytes)."""
    return new_id("k")
