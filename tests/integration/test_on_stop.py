"""SIGTERM ends, saves or keeps the sessions, as the setting ``on_stop`` says."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import requests
from command_line import kernelsvc
from served import QUICK, STOP_SECONDS, Served
from waiting import wait_for

from kernelsvc import Client
from kernelsvc.errors import AtCapacity


def _terminate(served: Served) -> None:
    assert served.process is not None
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(STOP_SECONDS) == 0, served.output()


def is_ready(served: Served) -> bool:
    return requests.get(f"{served.url}/readyz", timeout=10).ok


@pytest.mark.parametrize("on_stop", ["hibernate", "keep"])
def test_the_next_server_has_the_variables(on_stop: str, short_tmp: Path) -> None:
    served = Served(short_tmp / on_stop, "--on-stop", on_stop, env=QUICK).start()
    try:
        with Client(served.url, served.token) as client:
            idle, busy = client.create_session(keep=True), client.create_session(keep=True)
            idle.run("x = 41")
            assert idle.details.kernel is not None
            pid = idle.details.kernel.pid
            busy.run("import time; time.sleep(0.5); y = 6", wait="queued")
        _terminate(served)
        assert psutil.pid_exists(pid) == (on_stop == "keep")
        served.start()
        with Client(served.url, served.token) as client:
            assert client.session(idle.id).run("x + 1").text == "42\n"
            assert client.session(busy.id).run("y + 1").text == "7\n"
            with client.session(idle.id).events(follow=False) as events:
                kinds = [type(event).__name__ for event in events]
            assert ("Hibernated" in kinds) == (on_stop == "hibernate")
    finally:
        served.stop()


def test_a_drained_server_takes_no_session_and_stops_when_no_cell_runs_or_waits(short_tmp: Path) -> None:
    served = Served(short_tmp / "drain", "--on-stop", "keep", env=QUICK).start()
    try:
        with Client(served.url, served.token) as client:
            session = client.create_session(keep=True)
            session.run("import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)\nz = 3", wait="queued")
            second = session.run("time.sleep(0.2); z += 1", wait="queued")
            assert served.process is not None
            command = [sys.executable, "-m", "kernelsvc", "drain", "--data-dir", str(served.data_dir)]
            drain = subprocess.Popen(command, env=served.env)
            wait_for(lambda: not is_ready(served), what="a server that is not ready for new sessions", deadline=60)
            with pytest.raises(AtCapacity, match="stopping"):
                client.create_session()
            # A client with an open session can end its work. The cell comes before the end of those that run.
            third = session.run("z", wait="queued")
            session.upload(b"", "go")
        assert served.process.wait(STOP_SECONDS) == 0, served.output()
        assert drain.wait(STOP_SECONDS) == 0
        kernelsvc("drain", "--data-dir", str(served.data_dir), env=served.env, code=3)
        served.start()
        with Client(served.url, served.token) as client:
            again = client.session(session.id)
            assert again.cell(second.id).reason == "ok"
            assert again.cell(third.id).text == "4\n"
            assert again.run("z").text == "4\n"
    finally:
        served.stop()


def test_a_session_that_cannot_be_saved_keeps_its_kernel(short_tmp: Path) -> None:
    settings = ("--on-stop", "hibernate", "--shutdown-seconds", "0.2")
    served = Served(short_tmp / "busy", *settings, env=QUICK).start()
    try:
        with Client(served.url, served.token) as client:
            session = client.create_session(keep=True)
            session.run("import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)\nz = 3", wait="queued")
        _terminate(served)
        assert f"{session.id} is not saved and keeps its kernel: a cell runs" in served.output()
        served.start()
        with Client(served.url, served.token) as client:
            again = client.session(session.id)
            again.upload(b"", "go")
            assert again.run("z").text == "3\n"
    finally:
        served.stop()
