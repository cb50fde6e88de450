"""Tasks that run in the background and belong to one object."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

Result = TypeVar("Result")


class OwnedTasks:
    """The background tasks of one owner.

    The owner must keep a reference to each task. asyncio, ``create_task``: "Save a reference to the result of this
    function, to avoid a task disappearing mid-execution. The event loop only keeps weak references to tasks." A task
    that fails is reported by the event loop, as any task is whose exception was never retrieved.

    Args:
        loop: the loop that runs the tasks. The running loop at the time of ``start`` when None.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, Result], *, name: str | None = None) -> asyncio.Task[Result]:
        """Run a coroutine as a task until it ends or is cancelled.

        Args:
            work: the coroutine.
            name: for asyncio's log lines.
        """
        task = (self._loop or asyncio.get_running_loop()).create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def cancel(self) -> None:
        """Cancel every task but the one that calls this."""
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()

    async def wait(self, seconds: float | None = None) -> None:
        """Wait until the tasks of this moment have ended. Their failures are not raised. Safe to cancel.

        Args:
            seconds: at the longest, or None for any time.
        """
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)


async def in_daemon_thread(work: Callable[[], Result]) -> Result:
    """Run blocking work in a thread of its own, and return its result. Safe to cancel: the work continues.

    The end of the process does not wait for the thread, as it would for those of ``asyncio.to_thread``, and work that
    blocks forever takes none of those. For work on other machines.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(setter: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            setter(value)

    def run() -> None:
        try:
            settled = partial(settle, future.set_result, work())
        except BaseException as error:
            settled = partial(settle, future.set_exception, error)
        with contextlib.suppress(RuntimeError):  # The loop is closed.
            loop.call_soon_threadsafe(settled)

    threading.Thread(target=run, daemon=True).start()
    return await future
