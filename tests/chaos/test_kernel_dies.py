"""The kernel dies, or does all it can to seem dead: the cell ends with its cause, the session goes on."""

import asyncio
import os
import signal
import time

import pytest
from waiting import wait_until

from chaos.arena import Arena, Witness, check
from kernelsvc.model import events as ev

pytestmark = pytest.mark.timeout(120)

#: name, code, what the message says.
DEATHS = [
    ("segfault", "import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    ("exit", "import os; os._exit(3)", "status 3"),
    ("abort", "import os; os.abort()", "SIGABRT"),
    ("kill", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
    (
        "closed socket",
        "import os, time\nfor fd in range(3, 64):\n    try: os.close(fd)\n    except OSError: pass\ntime.sleep(20)",
        "",
    ),
    (
        "garbage",
        "import os, stat, time\n"
        "for fd in range(3, 64):\n"
        "    try:\n"
        "        if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, b'garbage' * 100)\n"
        "    except OSError: pass\n"
        "time.sleep(20)",
        "protocol",
    ),
]


@pytest.mark.parametrize(("code", "said"), [(c, s) for _, c, s in DEATHS], ids=[n for n, _, _ in DEATHS])
async def test_found_within_a_second_and_restored(arena, code, said):
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        await session.run("x = 41")
        await witness.saw(ev.CheckpointMade)
        began = time.monotonic()
        cell = await session.run(f"print('before', flush=True)\nx = 0\n{code}", cell="last")
        took = time.monotonic() - began
        assert cell.reason == "kernel_died"
        assert said in cell.message
        assert cell.variables_kept
        if said != "protocol":  # what breaks the wire may take with it what it said in the same breath
            assert cell.text.startswith("before\n"), "what it said before it died is not lost"
        assert took < 2.5  # a second, on a machine that does nothing else
        assert (await session.run("x + 1")).text.strip() == "42"
        await session.close()
        await witness.ended()
        check(arena.session_path(session.id), {}, [witness])


async def test_killed_from_outside_between_cells(arena):
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        await session.run("x = 41")
        await witness.saw(ev.CheckpointMade)
        os.kill((await session.info()).kernel.pid, signal.SIGKILL)
        await witness.saw(ev.KernelRestored, deadline=5)
        assert (await session.run("x + 1")).text.strip() == "42"


@pytest.mark.parametrize(
    "code",
    [
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
        "import ctypes; ctypes.PyDLL(None).sleep(60)",
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
    ],
    ids=["stopped", "holds the GIL", "ignores"],
)
async def test_the_cells_limit_ends_what_does_not_answer(arena, code):
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        await session.run("x = 41")
        await witness.saw(ev.CheckpointMade)
        began = time.monotonic()
        cell = await session.run(code, timeout=1)
        assert cell.reason == "timeout"
        assert cell.variables_kept
        assert 1 < time.monotonic() - began < 6
        assert (await session.run("x + 1")).text.strip() == "42"


async def test_stuck_in_c_while_the_server_restarts(arena):
    """It can't answer the next server for a while; it is waited for, and its outcome is the true one."""
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        running = asyncio.ensure_future(session.run("import ctypes; ctypes.PyDLL(None).sleep(8); 'done'", cell="c"))
        await witness.saw(ev.CellStarted, "c")
        await arena.restart()
        assert (await running).reason == "ok"
        assert (await running).text.strip() == "'done'"
        assert not any(isinstance(e, ev.KernelDied) for e in witness.seen)


async def test_without_a_checkpoint_the_loss_is_said(place):
    async with (
        Arena(place, "--checkpoints", "0") as arena,
        arena.client() as client,
        await client.create_session() as session,
    ):
        await session.run("x = 1")
        cell = await session.run("import os; os._exit(1)")
        assert cell.reason == "kernel_died"
        assert not cell.variables_kept
        assert "variables are lost" in cell.message
        assert (await session.run("'x' in globals()")).text.strip() == "False"


async def test_deaths_while_no_server_is_there(arena):
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        await session.run("x = 41")
        await witness.saw(ev.CheckpointMade)
        code = "import os, time, ctypes\nprint('on', flush=True)\ntime.sleep(0.7)\nctypes.string_at(0)"
        running = asyncio.ensure_future(session.run(code, cell="c"))
        await witness.saw(ev.Stream, "c")
        pid = (await session.info()).kernel.pid
        arena.kill()
        await wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="the kernel's death")
        await arena.start()
        cell = await running
        assert cell.reason == "kernel_died"
        assert "SIGSEGV" in cell.message, "the host saw how"
        assert (await session.run("x + 1")).text.strip() == "42"
