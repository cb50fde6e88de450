"""Fronts and nodes are killed while cells print: no line is lost, and no cell runs twice.

``KERNELSVC_KILLS`` is the number of kills. ``make test-chaos`` kills 100 times.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest
from chaos.arena import Witness, check, counting
from cluster.test_nodes import RunningFront, node
from waiting import wait_until

from kernelsvc import AsyncClient

KILLS = int(os.environ.get("KERNELSVC_KILLS", "6"))
#: Lines of a cell, and the seconds between two: kills come in its middle.
LINES, PAUSE = 400, 0.005
#: A busy machine needs longer for a start than requests wait otherwise.
HOLD = ("--hold-seconds", "240")

pytestmark = pytest.mark.timeout(60 + 120 * KILLS)


async def test_no_line_is_lost_and_no_cell_runs_twice(short_tmp: Path) -> None:
    root = short_tmp / "kills"
    chance = random.Random(22)
    front = RunningFront(root, *HOLD)
    port = int(front.url.rpartition(":")[2])
    nodes = [node(root / name, front) for name in ("a", "b")]
    cells: dict[str, int] = {}
    killed = {"front": 0, "node": 0}
    try:
        async with AsyncClient(front.url, "test-token", retry_seconds=240.0, connect_seconds=240.0) as client:
            sessions = {}
            while len(sessions) < 2:
                made = await client.create_session()
                if sessions.setdefault(made.id[2:8], made) is not made:
                    await made.close()
            witnesses = [Witness(each) for each in sessions.values()]
            while sum(killed.values()) < KILLS:
                cell = f"c{len(cells)}"
                cells[cell] = LINES
                code = counting(cell, LINES, PAUSE)
                running = [asyncio.ensure_future(each.run(code, cell=cell)) for each in sessions.values()]
                seen = [len(each.seen) for each in witnesses]
                await wait_until(
                    lambda seen=seen: all(len(w.seen) > n + 3 for w, n in zip(witnesses, seen, strict=True)),
                    deadline=240, what="output of the cell",
                )  # fmt: skip
                victims = chance.choice([("front",), ("a",), ("b",), ("front", "a"), ("a", "b")])
                if "front" in victims:
                    front.kill()
                    killed["front"] += 1
                dead = [each for each, name in zip(nodes, ("a", "b"), strict=True) if name in victims]
                for each in dead:
                    each.kill()
                    killed["node"] += 1
                await asyncio.gather(*(asyncio.to_thread(each.start) for each in dead))
                if "front" in victims:
                    front = await asyncio.to_thread(RunningFront, root, *HOLD, port=port)
                assert [done.reason for done in await asyncio.gather(*running)] == ["ok", "ok"]
            for each in sessions.values():
                await each.close()
            for witness in witnesses:
                await witness.ended()
        for served in nodes:
            session = sessions[(served.data_dir / "node").read_text()]
            path = served.data_dir / "sessions" / session.id
            check(path, cells, [each for each in witnesses if each.session is session])
        print(f"killed: the front {killed['front']} times, nodes {killed['node']} times, in {len(cells)} cells")
    finally:
        front.stop()
        for each in nodes:
            each.stop()
