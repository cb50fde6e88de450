"""Processes of cold kernels without a kernel host."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

from kernelsvc.errors import Internal
from kernelsvc.kernels.zmq.processes import LocalProcesses, ProcessRequest, exit_of, inherited
from kernelsvc.model.exit_status import Cause
from kernelsvc.model.limits import Limits


@pytest.fixture
async def processes() -> AsyncIterator[LocalProcesses]:
    made = LocalProcesses()
    yield made
    await made.end("k")


def request(code: str, tmp: Path, program: str = sys.executable) -> ProcessRequest:
    return ProcessRequest(
        kernel="k",
        session="s",
        argv=[program, "-c", code],
        env={"PATH": os.environ["PATH"]},
        cwd=str(tmp),
        limits=Limits(),
        share=str(tmp),
        stdin=0,
        stdout=1,
        stderr=2,
    )


SLEEP = "import time; time.sleep(60)"


async def test_a_process_is_found_until_it_ends(processes: LocalProcesses, tmp_path: Path) -> None:
    assert await processes.find("k") is None
    started = await processes.start(request(SLEEP, tmp_path))
    os.close(started.pidfd)
    found = await processes.find("k")
    assert found is not None
    os.close(found.pidfd)
    assert found.pid == started.pid
    assert started.sandbox.policy == "off"
    processes.signal("k", signal.SIGTERM)
    ended = await processes.wait_exit("k")
    assert (ended.cause, ended.signal) == (Cause.SIGNALLED, signal.SIGTERM)
    assert await processes.find("k") is None
    processes.signal("k", signal.SIGTERM)  # gone: no error
    processes.signal("nobody", signal.SIGTERM)


async def test_end_takes_everybody_and_may_be_repeated(processes: LocalProcesses, tmp_path: Path) -> None:
    code = "import subprocess, sys, time\nsubprocess.Popen(['sleep', '60'], start_new_session=True)\ntime.sleep(60)"
    started = await processes.start(request(code, tmp_path))
    os.close(started.pidfd)
    process = psutil.Process(started.pid)
    (child,) = await wait_until(process.children, what="its child")
    await processes.end("k")
    await processes.end("k")
    await wait_until(lambda: not child.is_running() and not process.is_running(), what="their end")
    assert (await processes.wait_exit("k")).cause is Cause.LOST


async def test_a_program_that_is_none(processes: LocalProcesses, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\0")
    program.chmod(0o755)
    with pytest.raises(Internal, match="kernelspec"):
        await processes.start(request("", tmp_path, str(program)))


def test_an_exit_in_words() -> None:
    assert exit_of(0).exit_code == 0
    assert exit_of(-9).signal == 9
    assert "SIGKILL" in exit_of(-9).message
    assert "-64" not in exit_of(-64).message


def test_what_is_inherited_holds_nothing_of_the_server_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELSVC_TOKEN", "x")
    monkeypatch.setenv("TZ", "UTC")
    assert inherited()["TZ"] == "UTC"
    assert "KERNELSVC_TOKEN" not in inherited()
