"""An eye on a process that must do something."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest
from waiting import wait_until

from kernelsvc.linux.stopped_process import ResumeIfStopped


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


async def test_what_is_stopped_is_told_of_again_and_again(sleeper):
    seen = []
    with ResumeIfStopped(lambda: sleeper.pid, seen.append):
        os.kill(sleeper.pid, signal.SIGSTOP)
        await wait_until(lambda: len(seen) >= 2, deadline=5)
    assert set(seen) == {sleeper.pid}


async def test_what_runs_is_left_alone_and_so_is_nobody(sleeper):
    seen = []
    with ResumeIfStopped(lambda: sleeper.pid, seen.append), ResumeIfStopped(lambda: 0, seen.append):
        await asyncio.sleep(0.7)
    assert seen == []


async def test_nobody_looks_after_the_end(sleeper):
    seen = []
    with ResumeIfStopped(lambda: sleeper.pid, seen.append):
        pass
    os.kill(sleeper.pid, signal.SIGSTOP)
    await asyncio.sleep(0.7)
    assert seen == []
