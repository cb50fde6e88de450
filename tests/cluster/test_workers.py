"""Workers of one machine: killed, stopped, drained, and without their front."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from served import Served, serving
from waiting import wait_for

from kernelsvc import Client
from kernelsvc.errors import AtCapacity, NodeUnreachable, NotFound

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def machine(short_tmp: Path) -> Iterator[Served]:
    with serving(short_tmp / "machine", "--workers", "2") as served:
        yield served


@pytest.fixture
def client(machine: Served) -> Iterator[Client]:
    with Client(machine.url, machine.token) as client:
        yield client


def workers(machine: Served) -> dict[str, psutil.Process]:
    """The servers of the workers, by the path of their socket."""
    found = {}
    for process in psutil.Process(machine.pid).children():
        line = process.cmdline()
        if "--worker" in line:
            found[line[line.index("--uds") + 1]] = process
    return found


def process_of(machine: Served, session: str) -> psutil.Process:
    """The server of a session's worker."""
    (url,) = [each["url"] for each in nodes(machine) if each["node"] == session[2:8]]
    return workers(machine)[url.removeprefix("unix:")]


def nodes(machine: Served) -> list[dict[str, Any]]:
    return machine.call("GET", "/v1/nodes")["nodes"]


def all_ready(machine: Served) -> bool:
    return len(nodes(machine)) == 2 and all(each["state"] == "ready" for each in nodes(machine))


def one_on_each(client: Client) -> list[Any]:
    found: dict[str, Any] = {}
    while len(found) < 2:
        session = client.create_session()
        found.setdefault(session.id[2:8], session)
    return [*found.values()]


def test_an_environment_is_one_of_all_workers(machine: Served, client: Client) -> None:
    add = ["env", "add", "everywhere", "--python", sys.executable, "--data-dir", str(machine.data_dir)]
    subprocess.run([sys.executable, "-m", "kernelsvc", *add], check=True, timeout=120)
    sessions: dict[str, Any] = {}

    def is_on_both() -> bool:
        with contextlib.suppress(NotFound, AtCapacity):  # until both have started it
            session = client.create_session(template="everywhere")
            sessions.setdefault(session.id[2:8], session)
        return len(sessions) == 2

    wait_for(is_on_both, deadline=60, what="a session on each worker")
    assert [each.run("print(6 * 7)").text for each in sessions.values()] == ["42\n"] * 2
    for each in sessions.values():
        each.close()


def test_a_data_directory_keeps_its_sessions_when_workers_serve_it(short_tmp: Path) -> None:
    root = short_tmp / "grown"
    alone = Served(root).start()
    session = alone.call("POST", "/v1/sessions")["id"]
    alone.call("POST", f"/v1/sessions/{session}/cells", {"code": "x = 41"})
    assert alone.process is not None
    alone.process.send_signal(signal.SIGHUP)  # sessions wait for the next server
    assert alone.process.wait(60) == 0
    with serving(root, "--workers", "2") as served:
        cell = served.call("POST", f"/v1/sessions/{session}/cells", {"code": "print(x + 1)"})
        assert cell["text"] == "42\n"
        made = [served.call("POST", "/v1/sessions")["id"] for _ in range(4)]
        assert {each["id"] for each in served.call("GET", "/v1/sessions")["sessions"]} == {session, *made}


def run_when_served(session: Any, code: str) -> str:
    """Run a cell, also on a machine that needs longer for a start than requests wait."""
    end = time.monotonic() + 120
    while True:
        try:
            return session.run(code).text
        except NodeUnreachable:  # nothing ran
            assert time.monotonic() < end


def test_a_killed_worker_loses_nothing_and_no_cell_runs_twice(machine: Served, client: Client) -> None:
    here, there = one_on_each(client)
    there.run("n = 0")
    longest = 0.0
    for number in range(5):
        process = process_of(machine, there.id)
        process.kill()
        began = time.monotonic()
        assert run_when_served(there, "n += 1; print(n)") == f"{number + 1}\n"
        longest = max(longest, time.monotonic() - began)
        assert here.run("print('here')").text == "here\n"
        wait_for(lambda: all_ready(machine), deadline=60, what="the worker is back")
    page = machine.call("GET", f"/v1/sessions/{there.id}/events?limit=1000")
    seqs = [event["seq"] for event in page["events"]]
    assert seqs == list(range(1, len(seqs) + 1))
    print(f"longest pause after a kill: {longest:.2f} s")
    here.close()
    there.close()


def test_a_stopped_worker_is_noticed_and_others_go_on(machine: Served, client: Client) -> None:
    here, there = one_on_each(client)
    process = process_of(machine, there.id)
    began = time.monotonic()
    process.suspend()
    try:
        wait_for(
            lambda: any(each["state"] == "unreachable" for each in nodes(machine)), deadline=20, what="it is noticed"
        )
        print(f"a stopped worker was noticed after {time.monotonic() - began:.2f} s")
        assert here.run("print(1)").text == "1\n"
        listed = machine.call("GET", "/v1/sessions")
        assert listed["unreachable"] == [there.id[2:8]]
    finally:
        process.resume()
    wait_for(lambda: all_ready(machine), deadline=60, what="it is back")
    assert there.run("print(2)").text == "2\n"
    here.close()
    there.close()


def test_a_drained_worker_comes_back_with_its_sessions(machine: Served, client: Client) -> None:
    (session, other) = one_on_each(client)
    session.run("kept = [1, 2]")
    process = process_of(machine, session.id)
    assert machine.call("POST", f"/v1/nodes/{session.id[2:8]}/drain")["state"] == "draining"
    process.wait(60)
    wait_for(lambda: all_ready(machine), deadline=60, what="it is started again")
    assert session.run("print(kept)").text == "[1, 2]\n"
    session.close()
    other.close()


def test_a_killed_front_leaves_all_sessions_for_the_next(short_tmp: Path) -> None:
    root = short_tmp / "killed"
    first = Served(root, "--workers", "2").start()
    with Client(first.url, first.token) as client:
        ids = [each.id for each in one_on_each(client)]
    for session in ids:
        first.call("POST", f"/v1/sessions/{session}/cells", {"code": "x = 7"})
    own = workers(first)
    first.kill()
    psutil.wait_procs(own.values(), timeout=30)
    with serving(root, "--workers", "2") as second:
        for session in ids:
            cell = second.call("POST", f"/v1/sessions/{session}/cells", {"code": "print(x)"})
            assert cell["text"] == "7\n"


def test_a_term_signal_keeps_what_on_stop_says(short_tmp: Path) -> None:
    root = short_tmp / "term"
    first = Served(root, "--workers", "2", "--on-stop", "hibernate").start()
    with Client(first.url, first.token) as client:
        sessions = one_on_each(client)
        for each in sessions:
            each.run("y = 'saved'")
        ids = [each.id for each in sessions]
    assert first.process is not None
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(60) == 0
    with serving(root, "--workers", "2") as second:
        for session in ids:
            assert second.call("POST", f"/v1/sessions/{session}/cells", {"code": "print(y)"})["text"] == "saved\n"


def test_fewer_workers_than_before_are_named(short_tmp: Path) -> None:
    root = short_tmp / "fewer"
    with serving(root, "--workers", "3"):
        pass
    with serving(root, "--workers", "2") as served:
        wait_for(lambda: "--workers 3" in served.output(), what="the message")


def test_a_second_server_on_the_directory_is_refused(machine: Served) -> None:
    again = Served(machine.root, "--workers", "2")
    again.log = machine.root / "again.log"
    with pytest.raises(AssertionError, match="not ready"):
        again.start()
    assert "Another server uses" in again.output()
    os.unlink(again.log)
