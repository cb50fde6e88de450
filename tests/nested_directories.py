"""Directories nested so deep that no system call takes their path."""

from __future__ import annotations

import os
from pathlib import Path


def nest(top: Path, levels: int, name: str, data: bytes | None = None) -> None:
    """Make nested directories.

    Args:
        top: the directory in which the first one is made.
        levels: how many there are.
        name: of each.
        data: content of a file ``f`` in the last one. None for no file.
    """
    here = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=here)
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    if data is not None:
        with open("f", "wb", opener=lambda path, flags: os.open(path, flags, dir_fd=here)) as file:
            file.write(data)
    os.close(here)
