"""Wait for a condition, never for a time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

#: Between two looks at a condition. Short at first, because most conditions come true at once. A look is often a
#: request to a server, so a long wait has fewer: the pause grows with the time that has passed.
LOOK_SECONDS, MOST_LOOK_SECONDS, GROWTH = 0.01, 0.25, 0.05


def wait_for(condition: Callable[[], T], *, deadline: float = 10.0, what: str = "") -> T:
    """Look until ``condition()`` is true and return what it gave.

    Args:
        condition: looked at again and again; must not block.
        deadline: seconds after which the wait is given up.
        what: what was waited for, in words.

    Raises:
        AssertionError: the deadline passed.
    """
    began = time.monotonic()
    while not (value := condition()):
        if (passed := time.monotonic() - began) > deadline:
            raise AssertionError(_told(condition, deadline, what))
        time.sleep(_pause(passed))
    return value


async def wait_until(condition: Callable[[], T | Awaitable[T]], *, deadline: float = 10.0, what: str = "") -> T:
    """``wait_for`` in a test that has a loop; ``condition`` may be awaitable. Safe to cancel."""
    began = time.monotonic()
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if (passed := time.monotonic() - began) > deadline:
            raise AssertionError(_told(condition, deadline, what))
        await asyncio.sleep(_pause(passed))


def _pause(passed: float) -> float:
    return min(MOST_LOOK_SECONDS, max(LOOK_SECONDS, GROWTH * passed))


def _told(condition: Callable[[], object], deadline: float, what: str) -> str:
    name = what or getattr(condition, "__qualname__", repr(condition))
    return f"not within {deadline:g} s: {name}"
