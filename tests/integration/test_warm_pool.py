"""Sessions that were ready before anybody asked."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from served import Served, serving
from waiting import wait_for

from kernelsvc import Client

KEPT = 3


@pytest.fixture(scope="module")
def shared(short_tmp: Path) -> Iterator[Served]:
    """A server that keeps a few kernels ready, with imported libraries."""
    with serving(Path(tempfile.mkdtemp(dir=short_tmp)), f"--warm-pool={KEPT}", preload=True) as server:
        yield server


@pytest.fixture
def served(shared: Served) -> Iterator[Served]:
    """The shared server, in which a test leaves no session."""
    yield shared
    with Client(shared.url, shared.token) as client:
        for session in client.sessions():
            if session.state != "closed":
                client.session(session.id).close()


@pytest.fixture
def own(short_tmp: Path) -> Iterator[Served]:
    """A server for a test that ends it."""
    with serving(Path(tempfile.mkdtemp(dir=short_tmp)), f"--warm-pool={KEPT}") as server:
        yield server


def ready(served: Served) -> set[str]:
    """Sessions that nobody has: a directory, and a journal without an entry."""
    return {path.parent.name for path in served.data_dir.glob("sessions/*/journal.jsonl") if not path.stat().st_size}


def filled(served: Served) -> set[str]:
    return wait_for(lambda: found if len(found := ready(served)) == KEPT else None, deadline=60)


def listening(served: Served) -> int:
    return len(list(served.runtime_dir.glob("k_*.k")))


def test_a_session_is_one_that_was_ready_and_another_takes_its_place(served: Served) -> None:
    before = filled(served)
    wait_for(lambda: listening(served) >= KEPT)
    with Client(served.url, served.token) as client:
        session = client.create_session(name="mine")
        assert session.id in before
        assert session.run("import os; os.getcwd(), os.environ['HOME']").text.strip() == "('/home/user', '/home/user')"
        session.upload(b"mine", "here.txt")
        assert session.run("print(open('here.txt').read())").text == "mine\n"
        first = next(iter(session.events()))
        assert (first.seq, first.name, first.principal != "") == (1, "mine", True)
        assert first.sandbox.isolation
        assert filled(served).isdisjoint({session.id})


def test_two_sessions_share_nothing_and_no_random_numbers(served: Served) -> None:
    filled(served)
    draw = "import random, numpy, uuid; print(random.random(), numpy.random.rand(), uuid.uuid4())"
    with Client(served.url, served.token) as client:
        one, two = client.create_session(), client.create_session()
        assert one.run(draw).text != two.run(draw).text
        one.run("open('secret', 'w').write('x')")
        assert two.run("import os; print(os.listdir('/home/user'))").text.strip() == "[]"


def test_other_limits_are_forked_and_an_environment_is_told(served: Served) -> None:
    before = filled(served)
    with Client(served.url, served.token) as client:
        small = client.create_session(limits={"memory_bytes": 256 << 20})
        assert small.id not in before
        named = client.create_session(env={"NAME": "value"})
        assert named.id in before
        look = "import os; print(os.environ['NAME'])"
        cell = named.run(look)
        assert (cell.text.strip(), cell.execution_count) == ("value", 1)
        assert next(iter(named.events())).env_names == ["NAME"]
        named.run("import os; os._exit(3)")
        assert named.run(look).text.strip() == "value"
        named.restart()
        assert named.run(look).text.strip() == "value"


def test_a_sandbox_of_e2bs_clients_is_one_that_was_ready(served: Served) -> None:
    before = filled(served)
    asked = {"templateID": "base", "timeout": 60, "envVars": {"NAME": "value"}, "metadata": {"user": "x"}}
    made = served.call("POST", "/v2/sandboxes", asked, headers={"X-API-KEY": served.token})
    # E2B's clients put the id into host names, so it is written with a hyphen for them.
    assert made["sandboxID"].replace("-", "_", 1) in before
    with Client(served.url, served.token) as client:
        session = client.session(made["sandboxID"])
        plot = "import matplotlib.pyplot as plt, os; plt.plot([1, 2]); plt.show(); print(os.environ['NAME'])"
        cell = session.run(plot)
        assert "value" in cell.text
        assert any("application/vnd.e2b.chart+json" in output.get("data", {}) for output in cell.outputs)


def guests_of(served: Served) -> list[psutil.Process]:
    """Return the template and its forks: they keep its command line."""
    children = psutil.Process(served.pid).children(recursive=True)
    return [each for each in children if "forkserver import main" in " ".join(each.cmdline())]


def test_one_that_died_waiting_is_replaced_and_nobody_gets_it(served: Served) -> None:
    before = filled(served)
    guests = guests_of(served)
    victims = [p for p in guests if p.ppid() in {one.pid for one in guests} and not p.children()]
    os.kill(victims[0].pid, signal.SIGKILL)
    wait_for(lambda: not before <= ready(served), deadline=30)
    with Client(served.url, served.token) as client:
        for session in [client.create_session() for _ in range(KEPT)]:
            assert session.run("1+1").text.strip() == "2"


def test_they_give_way_to_sessions_when_there_is_no_room(short_tmp: Path) -> None:
    served = Served(Path(tempfile.mkdtemp(dir=short_tmp)), f"--warm-pool={KEPT}", "--max-sessions=4")
    served.start()
    try:
        filled(served)
        with Client(served.url, served.token) as client:
            sessions = [client.create_session(env={"N": str(n)}) for n in range(4)]
            assert all(session.run("1").text.strip() == "1" for session in sessions)
            wait_for(lambda: not ready(served), deadline=30)
    finally:
        served.stop()


def test_nothing_is_left_of_them_after_the_server(own: Served) -> None:
    filled(own)
    own.stop()
    assert ready(own) == set()
    assert listening(own) == 0


def test_a_crash_leaves_some_and_the_next_start_removes_them(own: Served) -> None:
    before = filled(own)
    own.process.kill()
    own.process.wait()
    own.start()
    wait_for(lambda: ready(own).isdisjoint(before), deadline=60)
    with Client(own.url, own.token) as client:
        assert client.create_session().run("1+1").text.strip() == "2"
