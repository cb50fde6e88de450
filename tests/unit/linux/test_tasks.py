"""Background tasks and their owner."""

from __future__ import annotations

import asyncio
import gc

from kernelsvc.linux.tasks import OwnedTasks


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
