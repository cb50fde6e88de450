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

#: Do something to each descriptor that leads to the server, then go on in one way or another.
SOCKETS = """
import os, socket, stat, time
for fd in range(3, 256):
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            {act}
    except OSError:
        pass
{after}
"""
EPOLL = """
import os, asyncio
for fd in os.listdir("/proc/self/fd"):
    try:
        if "eventpoll" in os.readlink(f"/proc/self/fd/{fd}"):
            os.close(int(fd))
    except OSError:
        pass
"""
CLOSE_ALL = "import asyncio, os, time; os.closerange(3, 4096)\n"

#: Either the server finds first that its socket is closed, or the kernel that it can't go on.
DEAF = "closed its own socket", "could not go on"
#: What ends a kernel: code, and what the cell's message says, or one of what it may say.
DEATHS = {
    "segfault": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    "exit": ("import os; os._exit(3)", "status 3"),
    "abort": ("import os; os.abort()", "SIGABRT"),
    "kill": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
    "main thread gone": ("import ctypes; ctypes.CDLL(None).pthread_exit(None)", ""),
    "stopped": ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "SIGSTOP"),
    "another program": ("import os; os.execv('/bin/sleep', ['sleep', '20'])", "closed its own socket"),
    "closed all, sleeps": (CLOSE_ALL + "time.sleep(20)", DEAF),
    "closed all, computes": (CLOSE_ALL + "while True: pass", DEAF),
    "closed all, prints": (CLOSE_ALL + "print(1)\ntime.sleep(20)", DEAF),
    "closed all, ends": (CLOSE_ALL, ""),
    "closed all, awaits": (CLOSE_ALL + "await asyncio.sleep(20)", ""),
    "closed 0 to 4095": ("import os; os.closerange(0, 4096)", ""),
    "closed sockets": (SOCKETS.format(act="os.close(fd)", after="time.sleep(20)"), DEAF),
    "sockets replaced": (
        SOCKETS.format(act="os.dup2(os.open('/dev/null', 2), fd)", after="time.sleep(20)"),
        DEAF,
    ),
    "closed epoll, awaits": (EPOLL + "await asyncio.sleep(20)", "could not go on"),
    "garbage": (SOCKETS.format(act="os.write(fd, b'garbage' * 100)", after="time.sleep(20)"), "protocol"),
    "half a frame": (SOCKETS.format(act="os.write(fd, b'\\0\\0')", after="print(1)\ntime.sleep(20)"), "protocol"),
}


@pytest.mark.parametrize("how", DEATHS)
async def test_found_within_a_second_and_restored(arena, how):
    code, said = DEATHS[how]
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        await session.run("x = 41")
        await witness.saw(ev.CheckpointMade)
        began = time.monotonic()
        cell = await session.run(f"print('before', flush=True)\nx = 0\n{code}", cell="last")
        took = time.monotonic() - began
        assert cell.reason == "kernel_died"
        assert any(each in cell.message for each in ([said] if isinstance(said, str) else said))
        assert cell.variables_kept
        if said != "protocol":  # what breaks the wire may take with it what it said in the same breath
            assert cell.text.startswith("before\n"), "what it said before it died is not lost"
        assert took < 1, "found, told and recorded"
        assert (await session.run("x + 1")).text.strip() == "42"
        await session.close()
        await witness.ended()
        check(arena.session_path(session.id), {}, [witness])


@pytest.mark.parametrize("code", [EPOLL, "import asyncio; asyncio.get_event_loop()._selector.close()"])
async def test_a_kernel_that_made_itself_deaf_is_replaced_between_cells(arena, code):
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        await session.run("x = 41")
        await witness.saw(ev.CheckpointMade)
        began = time.monotonic()
        assert (await session.run(code)).reason in ("ok", "kernel_died")
        cell = await session.run("x + 1")
        assert time.monotonic() - began < 1.5
        if cell.reason == "kernel_died":  # it was sent before the end was noticed
            cell = await session.run("x + 1")
        assert cell.text.strip() == "42"


async def test_descriptors_closed_one_by_one(arena):
    """The server may come back through a connection that is closed a moment later; what is closed by then differs."""
    code = "import os, time\nfor fd in range(3, 100):\n    try: os.close(fd)\n    except OSError: pass\ntime.sleep(20)"
    async with arena.client() as client, await client.create_session() as session:
        for _ in range(12):
            began = time.monotonic()
            cell = await session.run(code)
            assert cell.reason == "kernel_died"
            assert "closed its own socket" in cell.message or "could not go on" in cell.message
            assert time.monotonic() - began < 1.2


async def test_a_kernel_that_can_be_reached_by_no_next_server(arena):
    """Its connection lives, its listener is closed: that is found out when a server comes back."""
    code = SOCKETS.format(
        act="os.close(fd) if socket.socket(fileno=os.dup(fd)).getsockopt(1, socket.SO_ACCEPTCONN) else 0", after=""
    )
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        await session.run("x = 41")
        await witness.saw(ev.CheckpointMade)
        assert (await session.run(code)).reason == "ok"
        assert (await session.run("x + 1")).text.strip() == "42"
        await arena.restart()
        died = await witness.saw(ev.KernelDied)
        assert died.cause == "unreachable"
        assert (await session.run("x + 1")).text.strip() == "42"


async def test_a_short_stop_is_nobodys_death(arena):
    """Someone pauses a kernel for a moment, or for as long as no cell runs."""
    async with arena.client() as client, await client.create_session() as session:
        await session.run("x = 41")
        pid = (await session.info()).kernel.pid
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(1)
        os.kill(pid, signal.SIGCONT)
        running = asyncio.ensure_future(session.run("import time; time.sleep(1); x + 1"))
        await asyncio.sleep(0.3)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(0.1)
        os.kill(pid, signal.SIGCONT)
        assert (await running).text.strip() == "42"
        assert (await session.info()).kernel.pid == pid


async def test_a_kernel_at_its_memory_cap_still_takes_cells(place):
    async with Arena(place) as arena, arena.client() as client, await client.create_session() as session:
        await session.run("kept = []")
        hog = await session.run("while True: kept.append(bytearray(32 << 20))", timeout=60)
        assert hog.reason == "memory"
        if hog.variables_kept:
            assert (await session.run("n = len(kept); kept.clear(); n > 3", timeout=20)).text.strip() == "True"
        assert (await session.run("6 * 7", timeout=20)).text.strip() == "42"


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
        "import ctypes; ctypes.PyDLL(None).sleep(60)",
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
    ],
    ids=["holds the GIL", "ignores"],
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
