"""The tests' own tools hold what they say."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import leaks
import pytest
from waiting import wait_for, wait_until


def test_a_condition_that_comes_true_is_returned() -> None:
    looks = iter([0, None, 7])
    assert wait_for(lambda: next(looks)) == 7


def test_a_condition_that_stays_false_is_named() -> None:
    with pytest.raises(AssertionError, match=r"not within 0\.02 s: the moon"):
        wait_for(lambda: False, deadline=0.02, what="the moon")


async def test_an_awaitable_condition() -> None:
    looks = iter([False, True])

    async def look() -> bool:
        return next(looks)

    assert await wait_until(look)


def test_an_orphan_of_a_run_is_found_and_ended() -> None:
    orphan = [sys.executable, "-c", "import time; time.sleep(60)"]
    # An orphan that kept the pipe would keep this test waiting for its end.
    quiet = "stdout=s.DEVNULL, stderr=s.DEVNULL, start_new_session=True"
    starter = f"import subprocess as s; print(s.Popen({orphan!r}, {quiet}).pid)"
    out = subprocess.run([sys.executable, "-c", starter], capture_output=True, text=True, check=True).stdout
    found = [process for process in leaks.processes(os.environ[leaks.MARK]) if process.pid == int(out)]
    assert len(found) == 1
    leaks.end(found)
    assert not found[0].is_running()


def test_a_socket_of_a_run_is_found(short_tmp: Path) -> None:
    # A directory of its own: servers of other tests in this process have sockets below short_tmp.
    place = short_tmp / "own"
    place.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "x.sock"))
        assert leaks.sockets(place) == [str(place / "x.sock")]
    assert leaks.sockets(place) == []
