"""Many calls while parts die: the server (SIGKILL), the client's socket, and the bridge to MCP servers.

Faults are caused at certain numbers of calls, not at times. Each handler must run once, as long as its process lives,
each result must reach the code once, and each call has exactly one end in the log.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from served import Served
from waiting import wait_for

from kernelsvc import Client
from kernelsvc.cli.companions.companion_process import holder
from kernelsvc.client.connection import _abort
from kernelsvc.model import events as ev

Fault = Literal["server", "socket", "bridge"]
CODE = """
import asyncio
got = []
free = asyncio.Semaphore(50)
async def one(n):
    async with free:
        got.append((n, {call}))
await asyncio.gather(*(one(n) for n in range({calls})))
print(len(got), sorted(got) == [(n, n + 1) for n in range({calls})], len(set(got)))
"""


@dataclass
class Storm:
    """One storm: the calls, and how often the handler ran for each of them."""

    own: Served
    calls: int
    faults: Sequence[Fault]
    seed: int = 0
    bridged: bool = False
    ran: Counter[int] = field(default_factory=Counter)

    def run(self) -> None:
        """Make the calls, cause the faults, and check what came of it."""
        chance = random.Random(self.seed)
        at = sorted(chance.sample(range(self.calls // 10, self.calls * 9 // 10), len(self.faults)))
        with Client(self.own.url, self.own.token, retry_seconds=300) as client:
            session = client.create_session(keep=True)

            @session.tool(effects="read", timeout=600)
            async def work(n: int) -> int:
                self.ran[n] += 1
                return n + 1

            call = "await tools.work(n=n)"
            if self.bridged:  # every tenth call is one of an MCP server's tools
                wait_for(lambda: "shop.add" in str(session.tools()), deadline=60, what="the MCP server's tools")
                call = "(await tools.shop.add(a=n, b=1)) if n % 10 == 0 else (await tools.work(n=n))"
            cell = session.run(CODE.format(calls=self.calls, call=call), wait="queued")
            share = 0.9 if self.bridged else 1.0
            for number, fault in zip(at, self.faults, strict=True):
                wait_for(lambda number=number: len(self.ran) >= number * share, deadline=300, what=f"{number} calls")
                self._cause(fault, client)
            wait_for(lambda: session.cell(cell.id).reason, deadline=300, what="the end of the cell")
            ended = session.cell(cell.id)
            assert ended.text == f"{self.calls} True {self.calls}\n", ended.error or ended.text[-2000:]
            self._check([*session.events(follow=False)])
            session.close()

    def _cause(self, fault: Fault, client: Client) -> None:
        if fault == "server":
            self.own.kill()
            self.own.start()
        elif fault == "bridge":
            pid = holder(self.own.runtime_dir / "bridge.lock")
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
        else:
            rpc = client._inner._rpc
            client._loop.run(_cut(rpc))

    def _check(self, events: list[Any]) -> None:
        twice = {n: times for n, times in self.ran.items() if times != 1}
        assert not twice, f"the function ran more than once for {twice}"
        called = Counter(each.call for each in events if isinstance(each, ev.ToolCalled))
        ended = Counter(each.call for each in events if isinstance(each, ev.ToolReturned))
        assert len(called) == self.calls
        assert called == ended, "a call has no end, or several"
        assert {each.status for each in events if isinstance(each, ev.ToolReturned)} == {"ok"}


async def _cut(rpc: Any) -> None:
    if rpc._socket is not None:
        _abort(rpc._socket)
