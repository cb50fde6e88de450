"""Wait for a condition, never for a time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

#: Between two looks at a condition. Short, because most conditions come true at once.
LOOK_SECONDS = 0.01


def wait_for(condition: Callable[[], T], *, deadline: float = 10.0, what: str = "") -> T:
    """Look until ``condition()`` is true and return what it gave.

    Args:
        condition: looked at again and again; must not block.
        deadline: seconds after which the wait is given up.
        what: what was waited for, in words.

    Raises:
        AssertionError: the deadline passed.
    """
    end = time.monotonic() + deadline
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(_told(condition, deadline, what))
        time.sleep(LOOK_SECONDS)
    return value


async def wait_until(condition: Callable[[], T | Awaitable[T]], *, deadline: float = 10.0, what: str = "") -> T:
    """``wait_for`` in a test that has a loop; ``condition`` may be awaitable. Safe to cancel."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(_told(condition, deadline, what))
        await asyncio.sleep(LOOK_SECONDS)


def _told(condition: Callable[[], object], deadline: float, what: str) -> str:
    name = what or getattr(condition, "__qualname__", repr(condition))
    return f"not within {deadline:g} s: {name}"
