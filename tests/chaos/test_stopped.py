"""Somebody stops a process (SIGSTOP) that a session needs: nothing hangs, nothing is lost, and it is said in the log.

(A kernel that is stopped in the middle of a cell: ``test_kernel_dies.py``.)
"""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from waiting import wait_until

from chaos.arena import Witness, check, counting
from kernelsvc.model import events as ev

pytestmark = pytest.mark.timeout(120)


def copies_of(kernel):
    """The parked copies of a kernel: its children that are Python themselves."""
    return psutil.Process(kernel).children()


async def test_the_template_is_stopped(arena):
    async with arena.client() as client, await client.create_session() as session:
        os.kill(arena.template_pid(), signal.SIGSTOP)
        assert (await session.run("1 + 1")).text.strip() == "2"
        began = time.monotonic()
        async with await client.create_session() as other:
            assert time.monotonic() - began < 5
            assert (await other.run("2 + 2")).text.strip() == "4"


async def test_the_host_is_stopped(arena):
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        await session.run("x = 1")
        await witness.saw(ev.CheckpointMade)
        host = arena.host_pid()
        os.kill(host, signal.SIGSTOP)
        assert (await session.run(counting("one", 10), cell="one")).reason == "ok", "sessions don't notice"
        began = time.monotonic()
        async with await client.create_session() as other:
            assert time.monotonic() - began < 5
            assert (await other.run("2 + 2")).text.strip() == "4"
        os.kill(host, signal.SIGSTOP)
        died = await session.run("import os; os._exit(3)", cell="dies")
        assert died.reason == "kernel_died"
        assert (await session.run("x")).text.strip() == "1"
        os.kill(host, signal.SIGSTOP)
        await arena.restart()
        assert (await session.run("x + 1")).text.strip() == "2"
        os.kill(arena.host_pid(), signal.SIGSTOP)
        await session.close()
        await witness.ended()
        check(arena.session_path(session.id), {"one": 10}, [witness])


async def test_the_checkpoint_is_stopped(arena):
    """It is told to go on when it is needed, and the variables are there."""
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        await session.run("x = 41")
        await witness.saw(ev.CheckpointMade)
        for copy in copies_of((await session.info()).kernel.pid):
            copy.suspend()
        assert (await session.run("import os; os._exit(3)")).reason == "kernel_died"
        began = time.monotonic()
        assert (await session.run("x + 1")).text.strip() == "42"
        assert time.monotonic() - began < 4
        await session.close()
        await witness.ended()


#: Stops processes again and again, quicker than one of them can do anything in between; for 20 s at most.
STOP_THEM = """
import os, signal, sys, time
end = time.monotonic() + 20
while time.monotonic() < end:
    for pid in sys.argv[1:]:
        try:
            os.kill(int(pid), signal.SIGSTOP)
        except ProcessLookupError:
            sys.exit()
"""


async def test_the_checkpoint_is_stopped_again_and_again(arena):
    """Then it is given up, soon and with the cause, and the session goes on with an empty kernel."""
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        await session.run("x = 41")
        await witness.saw(ev.CheckpointMade)
        copies = copies_of((await session.info()).kernel.pid)
        stopping = subprocess.Popen([sys.executable, "-c", STOP_THEM, *(str(copy.pid) for copy in copies)])
        try:
            await wait_until(lambda: all(copy.status() == psutil.STATUS_STOPPED for copy in copies), what="the stop")
            await session.run("import os; os._exit(3)")
            began = time.monotonic()
            assert (await session.run("'x' in dir()")).text.strip() == "False"
            assert time.monotonic() - began < 8
        finally:
            stopping.kill()
            stopping.wait()
        dropped = [each for each in witness.seen if isinstance(each, ev.CheckpointDropped)]
        assert any("SIGSTOP" in each.why for each in dropped)
        assert any(isinstance(each, ev.KernelRestarted) for each in witness.seen)
        await session.close()
        await witness.ended()


async def test_the_init_is_stopped(arena):
    """The process that owns the session's namespace: cells go on, and the session still ends, leaving nothing."""
    async with arena.client() as client, await client.create_session() as session:
        await session.run("x = 1")
        init = psutil.Process((await session.info()).kernel.pid).parent()
        init.suspend()
        assert (await session.run("x + 1")).text.strip() == "2"
        began = time.monotonic()
        await session.close()
        assert time.monotonic() - began < 8
        await wait_until(lambda: not init.is_running(), what="the end of init")
