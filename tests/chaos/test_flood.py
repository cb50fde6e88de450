"""A cell that prints without end does not fill the disk."""

import asyncio

import pytest
from waiting import wait_until

from chaos.arena import Arena, Witness
from kernelsvc.model import events as ev

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
IGNORES = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
FOREVER = "line = 'x' * 1000\nwhile True:\n    print(line)\n"
THREAD = (
    "import threading\ndef speak():\n    while True:\n        print('x' * 1000)\n"
    "threading.Thread(target=speak, daemon=True).start()\n"
)


@pytest.mark.parametrize("code", [FOREVER, IGNORES + FOREVER], ids=["interrupted", "killed"])
async def test_print_without_end(place, code):
    async with (
        Arena(place, "--max-cell-output-bytes", str(4 * MIB), "--interrupt-grace-seconds", "0.5") as arena,
        arena.client() as client,
        await client.create_session() as session,
    ):
        witness = Witness(session)
        await session.run("x = 5")
        await witness.saw(ev.CheckpointMade)
        cell = await asyncio.wait_for(session.run(code, cell="flood"), 60)
        assert cell.reason == "interrupted"
        assert "max_cell_output_bytes" in cell.message
        assert cell.variables_kept
        reached = await witness.saw(ev.LimitReached, "flood")
        assert (reached.limit, reached.bound) == ("max_cell_output_bytes", 4 * MIB)
        assert (arena.session_path(session.id) / "journal.jsonl").stat().st_size < 300 * MIB
        assert (await session.run("x")).text.strip() == "5"


async def test_a_thread_that_prints_when_no_cell_runs(place):
    async with (
        Arena(place, "--max-cell-output-bytes", str(4 * MIB)) as arena,
        arena.client() as client,
        await client.create_session() as session,
    ):
        witness = Witness(session)
        await session.run("x = 5")
        await session.run(THREAD, cell="starts")
        await witness.saw(ev.LimitReached)
        await witness.saw(ev.KernelDied)
        path = arena.session_path(session.id) / "journal.jsonl"
        await wait_until(lambda: any(isinstance(e, ev.KernelRestored | ev.KernelRestarted) for e in witness.seen))
        size = path.stat().st_size
        assert (await session.run("1 + 1")).text.strip() == "2"
        assert path.stat().st_size - size < MIB, "and it is silent"
