"""Forking a live kernel: what both copies hold, what is refused, what is told."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from kernel_processes import Client, Template, now
from waiting import wait_until

from kernelsvc.kernels.forked.wire_client import WireClient, WireLost


@pytest.fixture(scope="session")
def template(preloaded_template: Template) -> Template:
    return preloaded_template


async def value(client: Client, expression: str) -> str | None:
    answer = await client.run(expression)
    assert answer.error is None, answer.messages("error")[0].content["traceback"]
    return answer.result


def private_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


# --- branches and checkpoints -----------------------------------------------------------------


async def test_a_branch_copies_the_variables_and_changes_independently(k: Client) -> None:
    await k.run("import numpy as np\nx = [1, 2]; a = np.ones(1000); y = x")
    b = await k.branch()
    assert await value(b, "x, y is x, a.sum().item()") == "([1, 2], True, 1000.0)"
    await b.run("x.append(3); a[:] = 0")
    assert await value(k, "x, a.sum().item()") == "([1, 2], 1000.0)"
    assert await value(b, "y, a.sum().item()") == "([1, 2, 3], 0.0)"
    assert b.pid != k.pid
    assert b.wire.welcome["kernel"] == path_stem(b)


def path_stem(client: Client) -> str:
    return Path(client.wire._path).stem


async def test_a_branch_continues_history_and_execution_count(k: Client) -> None:
    await k.run("10")
    await k.run("20")
    b = await k.branch()
    answer = await b.run("_, In[1], Out[1], get_ipython().execution_count")
    assert answer.result == "(20, '10', 10, 4)"
    assert answer.reply.content["execution_count"] == 3


async def test_a_branch_has_frames_and_message_ids_of_its_own(k: Client) -> None:
    await k.run("1")
    b = await k.branch()
    answer = await b.run("1")
    assert answer.messages("execute_result")[0].frame == 1
    mine = {m.msg_id for m in (await k.run("1")).messages("execute_reply")}
    assert mine
    assert not mine & {m.msg_id for m in answer.messages("execute_reply")}


async def test_a_checkpoint_resumes_after_its_original_has_ended(k: Client) -> None:
    await k.run("x = 5")
    path, reply = await k.fork("checkpoint")
    assert reply["ok"]
    await k.run("x = 6")
    k.kill()
    with pytest.raises(WireLost):
        await k.until(lambda: False)
    woken = await Client.open(k.template, path, identity={"kernel": "woken", "session": "same"})
    assert woken.wire.welcome["kernel"] == "woken"
    assert await value(woken, "x") == "5"


async def test_a_copy_ends_after_the_grace_time_unless_a_server_connected(k: Client) -> None:
    visited, there = await k.fork("checkpoint", claim_seconds=0.5)
    await WireClient.peer(str(visited))
    _, forgotten = await k.fork("checkpoint", claim_seconds=0.5)

    async def gone() -> bool:
        return "Z" in _state(forgotten["pid"]) or not _state(forgotten["pid"])

    await wait_until(gone, what="the end of the copy that nobody came for")
    assert _state(there["pid"]) == "S"


def _state(pid: int) -> str:
    stat = Path(f"/proc/{pid}/stat")
    return stat.read_text().rpartition(")")[2].split()[0] if stat.exists() else ""


@pytest.mark.parametrize("crash", ["os.kill(os.getpid(), 11)", "os._exit(1)", "os.abort()", "os.kill(os.getpid(), 9)"])
async def test_a_crash_costs_one_cell(k: Client, crash: str) -> None:
    await k.run("import os; x = 'kept'")
    path, _ = await k.fork("checkpoint")
    k.execute("x = 'lost'; " + crash)
    with pytest.raises(WireLost):
        await k.until(lambda: False)
    woken = await Client.open(k.template, path)
    assert await value(woken, "x") == "'kept'"


async def test_a_checkpoint_can_be_forked_from_a_branch_of_a_branch(k: Client) -> None:
    await k.run("path = ['root']")
    b = await k.branch()
    await b.run("path.append('b')")
    c = await b.branch()
    await c.run("path.append('c')")
    woken = await Client.open(k.template, (await c.fork("checkpoint"))[0])
    assert await value(woken, "path") == "['root', 'b', 'c']"
    assert await value(k, "path") == "['root']"


async def test_a_checkpoint_runs_no_code(k: Client) -> None:
    await k.run("import asyncio, time\nn = 0\nasync def count():\n    global n\n    while True:\n"
                "        await asyncio.sleep(0.01); n += 1\nt = asyncio.create_task(count())")  # fmt: skip
    path, reply = await k.fork("checkpoint")
    before = _cpu(reply["pid"])
    await wait_until(lambda: value_above(k, "n", 10))
    assert _cpu(reply["pid"]) == before
    woken = await Client.open(k.template, path)
    await wait_until(lambda: value_above(woken, "n", 10))


async def value_above(client: Client, name: str, bound: int) -> bool:
    return int(await value(client, name) or 0) > bound


def _cpu(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


async def test_a_status_request_does_not_resume_a_checkpoint(k: Client) -> None:
    await k.run("x = 1")
    path, reply = await k.fork("checkpoint")
    for _ in range(3):
        assert await WireClient.peer(str(path)) == reply["pid"]
    woken = await Client.open(k.template, path)
    assert await value(woken, "x") == "1"


async def test_a_branch_survives_its_original_which_does_not_wait_for_it(k: Client) -> None:
    b = await k.branch()
    k.kill()
    assert await value(b, "1 + 1") == "2"


async def test_a_copy_that_ended_is_reaped_and_the_users_children_are_not(k: Client) -> None:
    await k.run("import os, subprocess\nchild = subprocess.Popen(['true'])")
    _, reply = await k.fork("checkpoint")
    os.kill(reply["pid"], signal.SIGKILL)
    await wait_until(lambda: _state(reply["pid"]) in ("Z", None))
    await k.wire.control("survey")
    assert _state(reply["pid"]) is None
    assert await value(k, "child.wait()") == "0"


def _state(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return None


async def test_identity_moves_directory_and_environment(k: Client, tmp_path: Path) -> None:
    await k.run("import os")
    home = tmp_path / "home"
    home.mkdir()
    path, _ = await k.fork("branch", identity={"kernel": "b", "workdir": str(home), "env": {"HOME": str(home)}})
    b = await Client.open(k.template, path)
    assert b.wire.welcome["workdir"] == str(home)
    assert await value(b, "os.getcwd()") == await value(b, "os.environ['HOME']") == f"'{home}'"
    assert str(home) not in str(await value(k, "os.getcwd()"))


async def test_a_fork_into_a_missing_directory_fails_and_keeps_the_session(k: Client, tmp_path: Path) -> None:
    path, _ = await k.fork("branch", identity={"workdir": str(tmp_path / "none")})
    b = await Client.open(k.template, path)
    assert b.wire.welcome["workdir"] == k.wire.welcome["workdir"]
    assert await value(b, "1 + 1") == "2"


# --- what goes with it ------------------------------------------------------------------------------


async def test_both_copies_draw_the_same_random_numbers_until_reseeded(k: Client) -> None:
    await k.run("import random, numpy as np\nrandom.seed(1); np.random.seed(1); g = np.random.default_rng(1)")
    b = await k.branch()
    code = "[random.random(), float(np.random.rand()), float(g.random())]"
    assert await value(k, code) == await value(b, code)
    fresh = "__import__('uuid').uuid4(), __import__('secrets').token_hex(), __import__('tempfile').mktemp()"
    one, two = await value(k, fresh), await value(b, fresh)
    assert not set(str(one).split(", ")) & set(str(two).split(", "))


async def test_raw_output_of_a_branch_is_its_own(k: Client) -> None:
    await k.run("import os, ctypes; libc = ctypes.CDLL(None)")
    b = await k.branch()
    assert (await b.run("os.system('echo b'); libc.puts(b'c')")).stdout.split() == ["b", "c"]
    assert (await k.run("os.system('echo k')")).stdout == "k\n"


async def test_files_keep_what_was_written_and_get_an_offset_of_their_own(k: Client) -> None:
    await k.run("f = open('f.txt', 'w'); f.write('before;')")
    b = await k.branch()
    assert await value(k, "f.write('original'), f.flush(), f.tell()") == "(8, None, 15)"
    assert await value(b, "f.write('branch!!'), f.flush(), f.tell()") == "(8, None, 15)"
    assert await value(k, "open('f.txt').read()") == "'before;branch!!'"


async def test_tasks_continue_in_both_copies_and_the_reply_names_them(k: Client) -> None:
    await k.run("import asyncio\nn = 0\nasync def count():\n    global n\n    while True:\n"
                "        await asyncio.sleep(0.01); n += 1\nt = asyncio.create_task(count())")  # fmt: skip
    path, reply = await k.fork()
    assert reply["warnings"] == ["The background task count runs on in both copies."]
    b = await Client.open(k.template, path)
    await wait_until(lambda: value_above(b, "n", 20))
    await wait_until(lambda: value_above(k, "n", 20))
    await b.run("t.cancel()")
    assert await value(k, "t.cancelled()") == "False"


async def test_both_copies_keep_a_loop_that_works(k: Client) -> None:
    """One epoll instance in two processes would take events from each other."""
    await k.run("import asyncio, os\nr, w = os.pipe(); got = asyncio.Event()\n"
                "asyncio.get_running_loop().add_reader(r, lambda: (os.read(r, 10), got.set()))")  # fmt: skip
    b = await k.branch()
    await b.run("asyncio.get_running_loop().remove_reader(r)")
    for client in (b, k):
        assert await value(client, "await asyncio.sleep(0.01, 'slept')") == "'slept'"
    assert await value(k, "os.write(w, b'x'), await asyncio.wait_for(got.wait(), 5)") == "(1, True)"


async def test_an_idle_executor_of_the_loop_does_not_prevent_a_fork(k: Client) -> None:
    await k.run("import asyncio\nawait asyncio.to_thread(lambda: 1)")
    b = await k.branch()
    for client in (k, b):
        assert await value(client, "await asyncio.to_thread(lambda: 'threaded')") == "'threaded'"


async def test_figures_and_frames_work_in_a_branch(k: Client) -> None:
    await k.run("import matplotlib.pyplot as plt, pandas as pd\ndf = pd.DataFrame({'a': [1, 2, 3]})")
    b = await k.branch()
    answer = await b.run("df.plot()\ndf.a.sum()")
    assert "image/png" in answer.displays[0]
    assert answer.result == "np.int64(6)"


async def test_comms_and_input_work_in_a_branch(k: Client) -> None:
    b = await k.branch()
    msg_id = b.execute("input('?')")
    await b.until(lambda: b.answer(msg_id).messages("input_request"))
    b.send("input_reply", {"value": "yes"}, "stdin")
    assert (await b.finish(msg_id)).result == "'yes'"


async def test_an_interrupt_reaches_one_copy(k: Client) -> None:
    b = await k.branch()
    msg_id = b.execute("print('on'); import time; time.sleep(30)")
    await b.until(lambda: b.answer(msg_id).stdout)
    assert (await b.interrupted(msg_id)).error == "KeyboardInterrupt"
    assert await value(k, "1 + 1") == "2"


async def test_a_copy_shares_its_memory(k: Client) -> None:
    await k.run("import numpy as np\na = np.ones(50_000_000)")
    path, reply = await k.fork("checkpoint")
    assert private_bytes(reply["pid"]) < 24 << 20
    began = now()
    b = await Client.open(k.template, path)
    assert await value(b, "a[-1].item()") == "1.0"
    assert now() - began < 5


async def test_the_oom_killer_takes_the_live_kernel_before_its_checkpoint(k: Client) -> None:
    path, reply = await k.fork("checkpoint")

    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    await wait_until(lambda: score(reply["pid"]) < score(k.pid))
    woken = await Client.open(k.template, path)
    await wait_until(lambda: score(woken.pid) == score(k.pid))


# --- libraries ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setup", "use", "expected"),
    [
        (
            "import numpy as np; a = np.random.rand(300, 300)",
            "bool(np.allclose(np.linalg.solve(a, a @ a[0]), a[0])), np.linalg.svd(a)[1].shape",
            "(True, (300,))",
        ),
        (
            "import pandas as pd\ndf = pd.DataFrame({'k': ['a', 'b'] * 1000, 'v': range(2000)})",
            "int(df.groupby('k').v.sum().sum()), df.k.str.upper().nunique()",
            "(1999000, 2)",
        ),
        (
            "from sklearn.ensemble import HistGradientBoostingClassifier as H\nimport numpy as np\n"
            "X = np.random.RandomState(0).rand(5000, 4); y = X[:, 0] > .5; H(max_iter=5).fit(X, y)",
            "bool(H(max_iter=5).fit(X, y).score(X, y) > .9)",
            "True",
        ),
        (
            "from sklearn.cluster import KMeans\nimport numpy as np\nX = np.random.rand(3000, 3)\n"
            "KMeans(3, n_init=1).fit(X)",
            "KMeans(3, n_init=1).fit(X).cluster_centers_.shape",
            "(3, 3)",
        ),
        (
            "from sklearn.ensemble import RandomForestClassifier as R\nimport numpy as np\n"
            "X = np.random.rand(500, 3); y = X[:, 0] > .5; R(10, n_jobs=2).fit(X, y)",
            "R(10, n_jobs=2).fit(X, y).predict(X).shape",
            "(500,)",
        ),
        (
            "import sqlite3; db = sqlite3.connect(':memory:'); db.execute('create table t(a)')",
            "db.execute('insert into t values(1)').rowcount, db.execute('select count(*) from t').fetchone()",
            "(1, (1,))",
        ),
        (
            "import tempfile; t = tempfile.TemporaryFile('w+'); t.write('x')",
            "t.seek(0), t.read()",
            "(0, 'x')",
        ),
        (
            "import multiprocessing as mp\ndef f():\n    with mp.get_context('fork').Pool(2) as p:\n"
            "        return p.map(abs, [-1, -2])",
            "f()",
            "[1, 2]",
        ),
    ],
    ids=[
        "openblas",
        "pandas",
        "hist_gradient_boosting",
        "kmeans",
        "random_forest",
        "sqlite_memory",
        "tempfile",
        "pool",
    ],
)
async def test_libraries_work_in_both_copies_after_use(k: Client, setup: str, use: str, expected: str) -> None:
    await k.run(setup, deadline=60)
    b = await k.branch()
    assert await value(b, use) == expected
    assert await value(k, use) == expected


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import threading as t\nt.Thread(target=t.Event().wait, name='worker-1', daemon=True).start()",
         "Thread 'worker-1' is running"),
        ("from concurrent.futures import ThreadPoolExecutor\ne = ThreadPoolExecutor(1); e.submit(int).result()",
         "Executor thread 'ThreadPoolExecutor-0_0' is alive. Shut the executor down"),
        ("from concurrent.futures import ProcessPoolExecutor\ne = ProcessPoolExecutor(1); e.submit(int).result()",
         "A ProcessPoolExecutor is alive"),
        ("import sqlite3; db = sqlite3.connect('a.db'); db.execute('create table t(a)'); db.commit()",
         "An SQLite connection to .*a.db can write"),
        ("import sqlite3; db = sqlite3.connect('a.db'); db.execute('create table t(a)')\n"
         "db.execute('insert into t values(1)')", "has an open transaction"),
        ("import socket\ns = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(s.getsockname())\n"
         "a, _ = s.accept()", "A network connection to 127.0.0.1:"),
    ],
    ids=["thread", "thread_pool", "process_pool", "sqlite", "transaction", "connection"],
)  # fmt: skip
async def test_a_fork_that_would_break_the_session_is_refused_with_a_reason(k: Client, code: str, reason: str) -> None:
    assert (await k.run(code)).reply.content["status"] == "ok"
    _, reply = await k.fork()
    assert reply["ok"] is False
    assert any(re.search(reason, said) for said in reply["refused"]), reply
    survey = await k.wire.control("survey")
    assert survey["obstacles"] == reply["refused"]
    assert await value(k, "1 + 1") == "2"
    await k.run("e.shutdown()" if "Executor" in code else "")


async def test_a_forced_fork_lists_the_lost_resources(k: Client) -> None:
    await k.run(
        "import threading\nt = threading.Thread(target=threading.Event().wait, name='w', daemon=True); t.start()"
    )
    path, reply = await k.fork(force=True)
    assert reply["ok"]
    assert any("Thread 'w'" in said for said in reply["warnings"])
    b = await Client.open(k.template, path)
    assert await value(b, "threading.active_count()") == "1"
    assert await value(k, "threading.active_count()") == "2"


@pytest.mark.parametrize(
    ("code", "warning"),
    [
        ("import subprocess; p = subprocess.Popen(['sleep', '30'])", "Child process .* stays with the original"),
        ("import os; r, w = os.pipe()", "Pipe .* is shared"),
        ("import socket; a, b = socket.socketpair()", "Socket .* is shared"),
        ("import tempfile; f = open(tempfile.mktemp(), 'w')", "is open for writing. Both copies"),
        (
            "import numpy as np; m = np.memmap('m.bin', 'float64', 'w+', shape=10)",
            "memory-mapped file .*m.bin is shared",
        ),
    ],
    ids=["child", "pipe", "socket", "file", "memmap"],
)
async def test_the_reply_to_a_fork_lists_shared_resources(k: Client, code: str, warning: str) -> None:
    await k.run(code)
    path, reply = await k.fork()
    assert reply["ok"]
    assert any(re.search(warning, said) for said in reply["warnings"]), reply
    b = await Client.open(k.template, path)
    assert await value(b, "1 + 1") == "2"
    await k.run("p.kill()" if "Popen" in code else "")


async def test_a_session_without_shared_resources_forks_without_a_warning(k: Client) -> None:
    await k.run("import numpy, pandas, matplotlib.pyplot as plt\nplt.plot([1]); x = 1")
    assert await k.wire.control("survey") == {"ok": True, "obstacles": [], "warnings": []}
    _, reply = await k.fork()
    assert reply["warnings"] == []


async def test_a_running_cell_prevents_a_fork(k: Client) -> None:
    msg_id = k.execute("print('on'); import asyncio; await asyncio.sleep(1)")
    await k.until(lambda: k.answer(msg_id).stdout)
    _, reply = await k.fork()
    assert reply["refused"] == ["A cell is still running; wait for its end."]
    await k.finish(msg_id)


async def test_an_invalid_fork_request_is_refused(k: Client) -> None:
    assert (await k.fork("sideways"))[1]["ok"] is False
    assert (await k.wire.control("fork", mode="branch"))["ok"] is False
    assert (await k.wire.control("fly"))["ok"] is False
    assert await value(k, "1 + 1") == "2"


async def test_many_forks_leak_nothing(k: Client) -> None:
    await k.run("import os")
    count = "len(os.listdir('/proc/self/fd'))"
    before = await value(k, count)
    for _ in range(10):
        _, reply = await k.fork("checkpoint")
        os.kill(reply["pid"], signal.SIGKILL)
    assert await value(k, count) == before
    b = await k.branch()
    assert int(await value(b, count) or 0) <= int(before or 0)
