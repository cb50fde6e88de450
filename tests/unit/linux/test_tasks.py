"""Background tasks and their owner."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading

import pytest

from kernelsvc.linux.tasks import OwnedTasks, in_daemon_thread


async def test_a_task_runs_without_another_reference_and_is_forgotten_at_its_end() -> None:
    tasks, go = OwnedTasks(), asyncio.Event()
    done: list[int] = []

    async def work() -> None:
        await go.wait()
        done.append(1)

    tasks.start(work())
    await asyncio.sleep(0)
    gc.collect()
    assert len(tasks) == 1
    go.set()
    await tasks.wait()
    assert (done, len(tasks)) == ([1], 0)


async def test_a_result_and_a_failure_belong_to_the_one_that_awaits_the_task() -> None:
    tasks = OwnedTasks()

    async def fail() -> None:
        raise ValueError("no")

    async def answer() -> int:
        return 42

    failed = tasks.start(fail(), name="fails")
    assert failed.get_name() == "fails"
    assert await tasks.start(answer()) == 42
    await tasks.wait()
    assert str(failed.exception()) == "no"


async def test_wait_ends_after_its_time_and_leaves_the_tasks() -> None:
    tasks = OwnedTasks(asyncio.get_running_loop())
    never = tasks.start(asyncio.Event().wait())
    await tasks.wait(0.01)
    assert not never.done()
    tasks.cancel()
    await tasks.wait()
    assert never.cancelled()


async def test_a_task_that_cancels_all_goes_on_itself() -> None:
    tasks = OwnedTasks()
    other = tasks.start(asyncio.Event().wait())

    async def end_others() -> str:
        tasks.cancel()
        await asyncio.sleep(0)
        return "done"

    assert await tasks.start(end_others()) == "done"
    assert other.cancelled()


async def test_work_in_a_thread_returns_or_raises() -> None:
    assert await in_daemon_thread(lambda: 42) == 42
    with pytest.raises(ZeroDivisionError):
        await in_daemon_thread(lambda: 1 // 0)


async def test_a_cancelled_wait_leaves_the_thread_alone() -> None:
    go, done = threading.Event(), threading.Event()

    def work() -> None:
        go.wait()
        done.set()

    waiting = asyncio.ensure_future(in_daemon_thread(work))
    await asyncio.sleep(0)
    waiting.cancel()
    go.set()
    assert await asyncio.to_thread(done.wait, 10)


def test_a_process_ends_although_such_a_thread_hangs() -> None:
    code = """
import asyncio, contextlib, threading
from kernelsvc.linux.tasks import in_daemon_thread
async def main():
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await in_daemon_thread(threading.Event().wait)
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
