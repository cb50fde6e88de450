"""An interrupt and a limit reach the processes that a cell has started, and no others."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from served import Served
from waiting import wait_for

from kernelsvc import Client
from kernelsvc.client.sync_client import Session

#: How a cell starts processes that a signal to the kernel alone does not reach. Each waits for ``sleep MARK``.
STARTED = {
    "a process of its own session that ignores it": (
        "import subprocess\n"
        "subprocess.Popen(['sh', '-c', 'trap \"\" INT; sleep MARK; sleep MARK'], start_new_session=True).wait()"
    ),
    "jobs of a shell": "%%bash\nset -m; sleep MARK & sleep MARK; wait",
    "posix_spawn": "import os\nos.waitpid(os.posix_spawn('/bin/sleep', ['sleep', 'MARK'], os.environ), 0)",
    "a worker process": (
        "import multiprocessing as mp, os, subprocess\n"
        "def work(): subprocess.run(['sleep', 'MARK'])\n"
        "p = mp.get_context('fork').Process(target=work); p.start(); p.join()"
    ),
    "a shell command": "!sleep MARK | cat",
    "os.system": "import os; os.system('sleep MARK')",
}


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client]:
    with Client(served.url, served.token) as one:
        yield one


@pytest.fixture
def session(client: Client) -> Iterator[Session]:
    with client.create_session() as one:
        one.run("x = 41")
        yield one


def running(session: Session, mark: str) -> str:
    """The number of the session's processes that sleep for so many seconds, as text."""
    code = (
        "import glob\ndef read(path):\n    try: return open(path, 'rb').read()\n    except OSError: return b''\n"
        f"sum(read(p) == b'sleep\\0{mark}\\0' for p in glob.glob('/proc/[0-9]*/cmdline'))"
    )
    return session.run(code).text.strip()


@pytest.mark.parametrize(("number", "case"), list(enumerate(STARTED)))
def test_all_that_the_cell_has_started_ends_and_the_session_stays(session: Session, number: int, case: str) -> None:
    mark = str(43210 + number)
    timer = threading.Timer(0.7, session.interrupt)
    timer.start()
    cell = session.run(STARTED[case].replace("MARK", mark), timeout=20)
    timer.join()
    assert cell.reason == "interrupted"
    assert cell.variables_kept
    wait_for(lambda: running(session, mark) == "0", deadline=15)
    assert session.run("x + 1").text.strip() == "42"


def test_a_process_that_an_earlier_cell_has_started_goes_on(session: Session) -> None:
    # The first cell ends some ticks after the process began: Linux counts start times in ticks of 10 ms.
    session.run(
        "import subprocess, time; server = subprocess.Popen(['sleep', '4320']); began = time.monotonic()\n"
        "while time.monotonic() < began + 0.1: pass"
    )
    cell = session.run("child = subprocess.Popen(['sleep', '4319']); time.sleep(20)", timeout=1)
    assert cell.reason == "timeout"
    wait_for(lambda: session.run("child.poll()").text.strip() == "-2", deadline=15)
    assert session.run("server.poll() is None").text.strip() == "True"
    session.run("server.kill(); server.wait();")


#: Code that catches the interrupt of its limit, and ends well.
CAUGHT = {
    "BaseException": "import time\ntry: time.sleep(20)\nexcept BaseException: pass",
    "KeyboardInterrupt": "import time\ntry: time.sleep(20)\nexcept KeyboardInterrupt: print('caught')",
    "a finally that returns": "import time\ndef f():\n    try: time.sleep(20)\n    finally: return 1\nf()",
}


@pytest.mark.parametrize("case", CAUGHT)
def test_a_limit_is_the_cells_reason_whatever_catches_it(session: Session, case: str) -> None:
    cell = session.run(CAUGHT[case], timeout=0.5)
    assert (cell.reason, cell.ok, cell.variables_kept) == ("timeout", False, True)
    assert "cell_seconds: 0.5 s reached" in cell.message
    assert session.run("x + 1").text.strip() == "42"


def test_the_text_of_a_pager_is_output(session: Session) -> None:
    session.run("def scaled(values):\n    'Each value times a factor.'\n    return values")
    assert "times a factor" in session.run("scaled?").text
    assert "return values" in session.run("scaled??").text
    assert "function calls" in session.run("%prun sum([1, 2])").text


#: The interrupt almost always arrives in ``seen``, whose exceptions Python prints and drops.
IGNORING = {
    "weak reference": "import weakref\nwhile True:\n    some = Some()\n    ref = weakref.ref(some, seen)\n    del some",
    "finalizer": "Some.__del__ = seen\nwhile True:\n    Some()",
    "finalizer of a local": "Some.__del__ = seen\ndef f():\n    some = Some()\nwhile True:\n    f()",
}


@pytest.mark.parametrize("case", IGNORING)
def test_an_interrupt_whose_exception_python_ignores_ends_the_cell(session: Session, case: str) -> None:
    session.run("class Some: pass\ndef seen(it):\n    for _ in range(100_000): pass\nprint('before')")
    for _ in range(5):
        timer = threading.Timer(0.1, session.interrupt)
        timer.start()
        cell = session.run(IGNORING[case], timeout=20)
        timer.join()
        assert cell.reason == "interrupted"
        assert "ignored" not in cell.text
        assert "kernelsvc" not in cell.text
    assert session.run("x + 1").text.strip() == "42"
