"""Kernels that were stopped in the middle of a cell."""

import asyncio
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from waiting import wait_for, wait_until

from kernelsvc.linux import procfs
from kernelsvc.model.limits import Limits
from kernelsvc.service.resource_monitor import ResourceMonitor, StoppedKernelDetector


class Registry:
    """A registry with one session."""

    def __init__(self, session):
        self.sessions = [session]

    def open_sessions(self):
        return self.sessions


class Sleeper:
    """Looks like a session, with a real process for a kernel."""

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        self.id, self.info = "s", SimpleNamespace(pid=self.process.pid)
        self.running = "cell"
        self.ended = 0

    def on_kernel_stopped(self):
        self.ended += 1

    def signal(self, number, state):
        os.kill(self.process.pid, number)
        wait_for(lambda: procfs.stat(self.process.pid).state in state)


@pytest.fixture
def sleeper():
    one = Sleeper()
    yield one
    one.process.kill()
    one.process.wait()


def test_ended_at_the_second_look(sleeper):
    looks = StoppedKernelDetector(Registry(sleeper))
    sleeper.signal(signal.SIGSTOP, "T")
    looks.check()
    assert sleeper.ended == 0
    looks.check()
    assert sleeper.ended == 1


def test_one_that_goes_on_is_left_alone(sleeper):
    looks = StoppedKernelDetector(Registry(sleeper))
    for _ in range(3):
        sleeper.signal(signal.SIGSTOP, "T")
        looks.check()
        sleeper.signal(signal.SIGCONT, "RS")
        looks.check()
    assert sleeper.ended == 0


def test_without_a_cell_nobody_is_asked(sleeper):
    looks = StoppedKernelDetector(Registry(sleeper))
    sleeper.running = None
    sleeper.signal(signal.SIGSTOP, "T")
    looks.check()
    looks.check()
    assert sleeper.ended == 0


async def test_a_measurement_that_fails_does_not_end_the_supervision(monkeypatch, caplog):
    polled = []

    def poll(watchdog, watched):
        polled.append(watched)
        raise [ValueError("a name that can't be read"), OSError("out of descriptors")][len(polled) % 2]

    monkeypatch.setattr("kernelsvc.service.resource_monitor.Watchdog.poll", poll)

    session = SimpleNamespace(
        id="s",
        info=SimpleNamespace(pid=os.getpid()),
        running=None,
        kernel=None,
        limits=Limits(),
        spec=SimpleNamespace(binds=[], workdir="/", workspace=""),
        sandbox=SimpleNamespace(enforced=[], limits={}),
    )
    registry = SimpleNamespace(open_sessions=lambda: [session], usage={})
    running = asyncio.create_task(ResourceMonitor(registry, 0.001).run())
    try:
        await wait_until(lambda: len(polled) > 3)
        assert not running.done()
        assert "a name that can't be read" in caplog.text
        assert "out of descriptors" in caplog.text
    finally:
        running.cancel()


def test_ending():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert not procfs.ending(process.pid)
    process.kill()
    wait_for(lambda: procfs.ending(process.pid))
    process.wait()
    assert procfs.ending(process.pid)
