"""Cells, drops, kills and restarts in any order, and the four accounts agree in the end.

Small by default and the same each time. ``KERNELSVC_EXAMPLES=20 KERNELSVC_CHAOS_SEED=7`` tries more.
A failure prints the steps that lead to it.
"""

import asyncio
import contextlib
import json
import os
import tempfile
from pathlib import Path

import pytest
import websockets
from examples import MORE, examples
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from chaos.arena import Arena, Witness, check, counting
from kernelsvc.errors import KernelsvcError
from kernelsvc.model import events as ev

EXAMPLES = examples(4)
SEED = os.environ.get("KERNELSVC_CHAOS_SEED")

CRASHES = [
    "import os; os._exit(1)",
    "import ctypes; ctypes.string_at(0)",
    "import os; os.kill(os.getpid(), 9)",
    "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "import os, time; os.closerange(3, 4096); time.sleep(20)",
]


class AnyOrder(RuleBasedStateMachine):
    """One session, and everything that may go wrong around it."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.place = tempfile.TemporaryDirectory(prefix="kc", dir="/tmp", ignore_cleanup_errors=True)
        self.cells, self.running, self.branches, self.count = {}, [], [], 0

    def do(self, work):
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    @initialize()
    def begin(self):
        self.arena = Arena(Path(self.place.name))
        self.do(self.arena.__aenter__())
        self.do(self._begin())

    async def _begin(self):
        self.client = self.arena.client()
        self.session = await self.client.create_session()
        self.witness = Witness(self.session)

    def name(self):
        self.count += 1
        return f"c{self.count}"

    def submit(self, code, cell):
        async def run():
            return await self.session.run(code, cell=cell, on_error="continue")

        self.running.append((cell, self.loop.create_task(run())))

    @rule(count=st.integers(0, 200), pause=st.sampled_from([0, 0, 0.002]))
    def a_cell(self, count, pause):
        cell = self.name()
        self.cells[cell] = count
        self.submit(counting(cell, count, pause), cell)
        self.do(asyncio.sleep(0.02))

    @rule()
    def the_same_cell_again(self):
        for cell in list(self.cells)[-1:]:
            code = next(e.code for e in self.seen(ev.CellQueued) if e.cell == cell) if self.queued(cell) else None
            if code is not None:
                self.submit(code, cell)

    def seen(self, kind):
        return [e for e in self.witness.seen if isinstance(e, kind)]

    def queued(self, cell):
        return any(e.cell == cell for e in self.seen(ev.CellQueued))

    @rule(code=st.sampled_from(CRASHES))
    def a_cell_that_kills_its_kernel(self, code):
        self.submit(code, self.name())

    @rule()
    def wait_for_all(self):
        self.do(self._all())

    async def _all(self):
        await asyncio.gather(*(task for _, task in self.running))

    @rule()
    def roll_back(self):
        """The variables of an earlier moment; the record keeps everything. Refused while something runs."""
        with contextlib.suppress(KernelsvcError):
            self.do(self.session.rollback())

    @rule()
    def a_checkpoint_by_name(self):
        with contextlib.suppress(KernelsvcError):
            self.do(self.session.checkpoint(self.name()))

    @rule(count=st.integers(0, 100))
    def branch(self, count):
        """A session of its own from here on, which counts as its parent does. Refused where it can't be forked."""
        if len(self.branches) == 3:
            return
        try:
            [session] = self.do(self.session.branch())
        except KernelsvcError:
            return
        cell = self.name()
        task = self.loop.create_task(session.run(counting(cell, count), cell=cell))
        self.branches.append((session, cell, count, task))

    @rule(count=st.integers(0, 50))
    def a_cell_by_the_jupyter_door(self, count):
        """Another client, another protocol, the same session, one record."""
        cell = self.name()
        self.wait_for_all()
        self.do(by_jupyter(self.arena, self.session.id, cell, counting(cell, count)))
        self.cells[cell] = count

    @rule()
    def cut_the_link(self):
        self.arena.proxy.cut()
        self.do(asyncio.sleep(0.01))

    @rule(pause=st.sampled_from([0, 0.3]))
    def kill_the_server(self, pause):
        self.arena.kill()
        self.do(asyncio.sleep(pause))
        self.do(self.arena.start())

    @rule()
    def kill_the_host(self):
        if self.arena.host_pid():
            self.arena.kill_host()

    @rule()
    def kill_both(self):
        self.arena.kill()
        if self.arena.host_pid():
            self.arena.kill_host()
        self.do(self.arena.start())

    def teardown(self):
        try:
            if hasattr(self, "session"):
                self.do(self._end())
        finally:
            if hasattr(self, "arena"):
                self.do(self.arena.__aexit__(None, None, None))
            self.loop.close()
            self.place.cleanup()

    async def _end(self):
        ends = {cell: (await task).reason for cell, task in self.running}
        assert {c for c, reason in ends.items() if c in self.cells and reason != "ok"} == set()
        for session, cell, count, task in self.branches:
            assert (await task).reason == "ok"
            await session.close()
            check(self.arena.session_path(session.id), {cell: count})
        await self.session.close()
        await self.witness.ended()
        await self.client.close()
        check(self.arena.session_path(self.session.id), self.cells, [self.witness])


async def by_jupyter(arena, session, cell, code):
    """Run a cell as a Jupyter client does, and wait for its reply and its idle."""
    url = arena.served.url.replace("http", "ws") + f"/api/kernels/{session}/channels?session_id={cell}"
    headers = {"Authorization": f"token {arena.served.token}"}
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    header = {"msg_id": cell, "msg_type": "execute_request", "username": "", "session": cell, "version": "5.4"}
    request = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
    async with websockets.connect(url, additional_headers=headers, max_size=None) as link:
        await link.send(json.dumps(request))
        waits = {"execute_reply", "status"}
        while waits:
            message = json.loads(await link.recv())
            kind = message["header"]["msg_type"]
            if message["parent_header"].get("msg_id") == cell and (
                kind == "execute_reply" or message["content"].get("execution_state") == "idle"
            ):
                waits.discard(kind)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=8,
    deadline=None,
    derandomize=SEED is None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink] if MORE else [Phase.generate],
)
TestAnyOrder = pytest.mark.timeout(60 * EXAMPLES + 60)(TestAnyOrder)
if SEED is not None:
    TestAnyOrder = seed(int(SEED))(TestAnyOrder)
