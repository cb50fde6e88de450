"""The order of operations on a kernel."""

from __future__ import annotations

import asyncio

from kernelsvc.session.kernel_requests import OperationQueue


class Kernel:
    """Writes down the requests in the order in which they are written."""

    def __init__(self) -> None:
        self.operations, self.written, self.tasks = OperationQueue(), [], []
        self.forked = asyncio.Event()

    def send(self, name: str) -> None:
        self.operations.put(lambda: self.written.append(name))

    def fork(self, name: str) -> None:
        async def work() -> None:
            self.written.append(name)
            await self.forked.wait()

        self.tasks.append(asyncio.create_task(self.operations.request(work)))


async def test_an_operation_begins_now_if_none_waits() -> None:
    kernel = Kernel()
    kernel.send("cell")
    assert kernel.written == ["cell"]


async def test_operations_behind_a_fork_wait_until_its_request_is_written_and_no_longer() -> None:
    kernel = Kernel()
    for name in ("cell 1", "fork 1", "cell 2", "message", "fork 2", "cell 3"):
        (kernel.fork if name.startswith("fork") else kernel.send)(name)
    assert kernel.written == ["cell 1"]
    assert kernel.operations.request_waits
    async with asyncio.timeout(5):
        while kernel.operations.request_waits:
            await asyncio.sleep(0)
    assert kernel.written == ["cell 1", "fork 1", "cell 2", "message", "fork 2", "cell 3"]
    assert not any(task.done() for task in kernel.tasks), "the forks themselves are still under way"
    kernel.forked.set()
    await asyncio.gather(*kernel.tasks)
