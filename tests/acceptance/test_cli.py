"""The command line with a real server.

Commands run in processes of their own where a test is about processes: signals, pipes, and servers. Others run in this
process (``command_line``).
"""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from command_line import kernelsvc
from served import QUICK, Served
from waiting import wait_for

from kernelsvc import Client

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]


def start(*words, env, **options):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, "-m", "kernelsvc", *words], env=env, text=True, **pipes)


def run_process(*words, env, input="", code=0, **options):
    process = start(*words, env=env, **options)
    try:
        out, err = process.communicate(input, timeout=100)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(process.communicate()) from None
    assert process.returncode == code, f"{words}: {process.returncode}\n{out}\n{err}"
    return out, err


def read_until(stream, wanted, deadline=60.0):
    """Read a pipe until it has said something."""
    end, text = time.monotonic() + deadline, ""
    while wanted not in text:
        ready, _, _ = select.select([stream], [], [], max(0, end - time.monotonic()))
        assert ready, f"not said within {deadline} s: {wanted!r}; only {text!r}"
        piece = os.read(stream.fileno(), 4096).decode()
        assert piece, f"ended without saying {wanted!r}: {text!r}"
        text += piece
    return text


@pytest.fixture
def env(served: Served):
    return served.client_env


@pytest.fixture
def client(served: Served):
    with Client(served.url, served.token) as client:
        yield client


# --- run -----------------------------------------------------------------------------


def test_run_standard_input(env):
    out, err = run_process("run", "-", env=env, input="print(6 * 7)")
    assert (out, err) == ("42\n", "")


def test_run_shows_output_as_it_comes(env, client):
    session = client.create_session()
    looking = "while not os.path.exists('go'):\n    time.sleep(0.01)"
    waiting = f"import os, time\nprint('first', flush=True)\n{looking}\nprint('last')\n"
    process = start("run", "-", "--session", session.id, env=env)
    process.stdin.write(waiting)
    process.stdin.close()
    read_until(process.stdout, "first")
    session.upload(b"", "go")
    read_until(process.stdout, "last")
    assert process.wait(20) == 0
    process.stdout.close()
    process.stderr.close()
    assert session.info().state == "idle"
    session.close()


def test_run_stops_at_the_cell_that_fails(env, tmp_path):
    file = tmp_path / "cells.py"
    file.write_text("# %%\nx = 1\nprint('one')\n# %%\nprint(x); 1 / 0\n# %%\nprint('never')\n")
    out, err = kernelsvc("run", str(file), env=env, code=1)
    assert out == "one\n1\n"
    assert "ZeroDivisionError" in err
    assert "\x1b" not in out + err


def test_run_keeps_standard_error_apart(env):
    out, err = kernelsvc("run", "-", env=env, input="import sys\nprint('o')\nprint('e', file=sys.stderr)\n'value'")
    assert (out, err) == ("o\n'value'\n", "e\n")


def test_run_as_json_is_the_sessions_events(env):
    out, _ = kernelsvc("run", "-", "--json", env=env, input="print('a')\n1/0", code=1)
    events = [json.loads(line) for line in out.splitlines()]
    assert [e["type"] for e in events][:2] == ["cell_queued", "cell_started"]
    assert [e["seq"] for e in events] == sorted({e["seq"] for e in events})
    assert (events[-1]["type"], events[-1]["reason"]) == ("cell_finished", "error")


def test_run_with_limits_files_pictures_and_a_notebook(env, tmp_path):
    (tmp_path / "n.txt").write_text("5")
    code = "import matplotlib.pyplot as plt\nplt.plot(range(int(open('n.txt').read())))\nplt.show()"
    kernelsvc(
        "run", "-", "--upload", str(tmp_path / "n.txt"), "--limit", "memory_bytes=1e9", "--name", "plot",
        "--images", str(tmp_path / "pictures"), "--save", str(tmp_path / "plot.ipynb"), env=env, input=code,
    )  # fmt: skip
    assert (tmp_path / "pictures" / "001.png").read_bytes().startswith(b"\x89PNG")
    notebook = nbformat.read(tmp_path / "plot.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert "image/png" in notebook.cells[-1].outputs[-1].data


def test_run_is_interrupted_by_ctrl_c(env):
    process = start("run", "-", env=env)
    process.stdin.write("print('running', flush=True)\nwhile True: pass\n")
    process.stdin.close()
    read_until(process.stdout, "running")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 1
    assert "KeyboardInterrupt" in process.stderr.read()
    process.stdout.close()
    process.stderr.close()


def test_run_finds_your_own_running_server(served, tmp_path):
    env = {**served.env, "KERNELSVC_RUNTIME_DIR": str(served.runtime_dir), "KERNELSVC_DATA_DIR": str(served.data_dir)}
    out, _ = kernelsvc("run", "-", env=env, input="print('found')")
    assert out == "found\n"


def test_run_without_any_server_starts_one_for_itself(short_tmp, tmp_path):
    (short_tmp / "nobody").mkdir()
    env = {**os.environ, **QUICK, "KERNELSVC_RUNTIME_DIR": str(short_tmp / "nobody"), "HOME": str(tmp_path)}
    out, _ = run_process("run", "-", "--save", str(tmp_path / "x.py"), env=env, input="print('alone')")
    assert out == "alone\n"
    assert "print('alone')" in (tmp_path / "x.py").read_text()


def test_a_wrong_limit_is_refused(env):
    _, err = kernelsvc("run", "-", "--limit", "memory_bytes=1e18", env=env, input="1", code=3)
    assert "memory_bytes" in err


# --- looking ----------------------------------------------------------------------------


def test_sessions_show_and_tree(env, client):
    with client.create_session(name="looked at") as session:
        session.run("x = 20\nx + 22")
        session.run("1 / 0")
        out, _ = kernelsvc("sessions", env=env)
        assert re.search(rf"^{session.id} +idle +python3 +2 .*looked at$", out, re.MULTILINE)
        rows = json.loads(kernelsvc("sessions", "--json", env=env)[0])
        assert session.id in {row["id"] for row in rows}
        out, _ = kernelsvc("show", session.id, env=env)
        assert "In [1]: x = 20\n   ...: x + 22\n" in out
        assert "ZeroDivisionError" in out
        shown = json.loads(kernelsvc("show", session.id, "--json", env=env)[0])
        assert [cell["reason"] for cell in shown["cells"]] == ["ok", "error"]
        out, _ = kernelsvc("show", session.id, "--events", "--json", env=env)
        assert [json.loads(line)["seq"] for line in out.splitlines()] == list(range(1, session.info().last_seq + 1))
        out, _ = kernelsvc("tree", session.id, env=env)
        assert out.startswith(f"{session.id} idle, 2 cells  looked at")
    assert session.id not in kernelsvc("sessions", env=env)[0]
    assert session.id in kernelsvc("sessions", "--all", env=env)[0]


def test_branches_checkpoints_and_the_tree_of_them(env, client):
    with client.create_session(name="root") as session:
        session.run("n = 1")
        out, _ = kernelsvc("checkpoint", session.id, "one", env=env)
        assert out.rstrip().endswith("one")
        session.run("n = 2")
        made = kernelsvc("branch", session.id, "--count", "2", "--label", "try=a", env=env)[0].split()
        (early,) = kernelsvc("branch", session.id, "--at", "one", env=env)[0].split()
        (below,) = json.loads(kernelsvc("branch", made[0], "--json", env=env)[0])
        assert below["parent"]["session"] == made[0]
        values = [client.session(id).run("n").text.strip() for id in (*made, early, below["id"])]
        assert values == ["2", "2", "1", "2"]
        kernelsvc("rollback", session.id, "one", env=env)
        assert session.run("n").text.strip() == "1"
        out, _ = kernelsvc("tree", below["id"], env=env)
        lines = [re.sub(r" (idle|busy|closed).*", "", line) for line in out.splitlines()]
        below_id = below["id"]
        # The two were made at the same time, so either may be the older one.
        first = [f"├─ {made[0]}", f"│  └─ {below_id}"]
        second = [f"├─ {made[1]}"]
        assert lines in ([session.id, *one, *other, f"└─ {early}"] for one, other in ((first, second), (second, first)))
        found = {one.id for one in client.sessions(label="try=a")}
        assert found >= set(made)
        for id in (*made, early, below_id):
            client.session(id).close()
    _, err = kernelsvc("branch", session.id, env=env, code=3)
    assert "closed" in err
    _, err = kernelsvc("branch", session.id, "--label", "x", env=env, code=2)
    assert "NAME=VALUE" in err


def test_what_does_not_exist(env):
    _, err = run_process("show", "nothing", env=env, code=3)
    assert "nothing" in err
    _, err = run_process("sessions", env={**env, "KERNELSVC_TOKEN": "wrong"}, code=3)
    assert "token" in err


# --- records ------------------------------------------------------------------------------


@pytest.fixture
def recorded(client):
    with client.create_session(name="record") as session:
        session.run("print('kept')\n6 * 7")
        session.run("import random\nrandom.random()")
    return session.id


def test_export_verify_and_tampering(env, client, recorded, tmp_path):
    key = ("--key", client.info()["public_key"])
    for suffix in ("ipynb", "html", "py", "jsonl"):
        kernelsvc("export", recorded, "-o", str(tmp_path / f"r.{suffix}"), env=env)
    nbformat.validate(nbformat.read(tmp_path / "r.ipynb", as_version=4))
    assert "kept" in (tmp_path / "r.html").read_text()
    assert "6 * 7" in (tmp_path / "r.py").read_text()
    journal, notebook = tmp_path / "r.jsonl", tmp_path / "r.ipynb"
    for file in (notebook, journal):
        out, _ = kernelsvc("verify", str(file), *key, env=env)
        assert out.startswith("verified")
        out, _ = kernelsvc("verify", str(file), env={**env, "FORCE_COLOR": "1"}, code=3)
        assert out.startswith("\x1b[33mNOT PROVEN")
    kernelsvc("verify", str(notebook), "--journal", str(journal), *key, env=env)
    (tmp_path / "cut.jsonl").write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))
    kernelsvc("verify", str(tmp_path / "cut.jsonl"), *key, env=env, code=3)
    journal.write_bytes(journal.read_bytes().replace(b"kept", b"kepT"))
    out, _ = kernelsvc("verify", str(journal), "--json", *key, env=env, code=1)
    assert json.loads(out)["result"] == "not_as_written"
    notebook.write_bytes(notebook.read_bytes().replace(b"kept", b"kepT"))
    out, _ = kernelsvc("verify", str(notebook), *key, env=env, code=1)
    assert out.startswith("NOT AS WRITTEN")


def test_a_session_that_died_is_explained_from_its_log_alone(served, env, client):
    with client.create_session(name="dies", limits={"cell_seconds": 1, "memory_bytes": 512 << 20}) as session:
        session.run("while True: pass")
        session.run("bytearray(1 << 30)[0]")
        session.run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    told, _ = kernelsvc("why", session.id, env=env)
    first, *causes = told.splitlines()
    assert first.startswith(f"{session.id} was closed at ")
    assert first.endswith(": closed. Its owner closed it.")
    text = "\n".join(causes)
    for cause in ("the kernel died (signalled)", "SIGSEGV", "memory", "limit cell_seconds", "ended as timeout"):
        assert cause in text, text
    # Without a server: of a backup, or after a disaster.
    log = served.data_dir / "sessions" / session.id / "journal.jsonl"
    alone = {name: value for name, value in env.items() if name not in ("KERNELSVC_URL", "KERNELSVC_TOKEN")}
    assert kernelsvc("why", str(log), env=alone)[0] == told


def test_export_to_standard_output(env, recorded):
    out, _ = kernelsvc("export", recorded, "-o", "-", env=env)
    assert nbformat.reads(out, as_version=4).cells


def test_replay_says_what_came_out_different(env, recorded, tmp_path):
    kernelsvc("export", recorded, "-o", str(tmp_path / "r.ipynb"), env=env)
    out, _ = kernelsvc("replay", str(tmp_path / "r.ipynb"), "--json", env=env, code=1)
    verdicts = [json.loads(line) for line in out.splitlines()]
    assert [verdict["outcome"] for verdict in verdicts] == ["same", "different"]
    assert verdicts[1]["why"].startswith("text/plain: line 1: '0.")


# --- demo -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_demo(tmp_path):
    env = {k: v for k, v in os.environ.items() if k not in ("KERNELSVC_URL", "KERNELSVC_TOKEN")}
    out, err = run_process("demo", "--out", str(tmp_path / "out"), env={**env, "FORCE_COLOR": "1"})
    assert "Simpson" in out
    assert "unexpected" not in err
    notebook = nbformat.read(tmp_path / "out" / "penguins.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert (tmp_path / "out" / "penguins-1.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "penguins.html").read_text()
    assert "Simpson" in page
    assert "<th>species</th>" in page
    assert "&lt;t" not in page
    assert "<script" not in page
    journal = str(tmp_path / "out" / "penguins.jsonl")
    [key] = re.findall(r"--key (\S+)", out)
    run_process("verify", str(tmp_path / "out" / "penguins.ipynb"), "--journal", journal, "--key", key, env=env)


# --- serve ------------------------------------------------------------------------------------


class Bare:
    """``kernelsvc serve`` without a configured token."""

    def __init__(self, home: Path, *options: str, **more) -> None:
        self.env = {k: v for k, v in os.environ.items() if k not in ("KERNELSVC_URL", "KERNELSVC_TOKEN")} | QUICK
        where = ("--data-dir", str(home / "d"), "--runtime-dir", str(home / "r"))
        self.process = start("serve", "--port", "0", *where, *options, env=self.env, stdin=subprocess.DEVNULL, **more)
        self.runtime = home / "r"

    def __enter__(self):
        self.said = read_until(self.process.stdout, "ready after")
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=30)

    def stop(self, *signals: int) -> int:
        for number in signals:
            self.process.send_signal(number)
        return self.process.wait(30)


def test_serve_says_where_it_is_and_ctrl_c_ends_everything(short_tmp):
    with Bare(short_tmp / "bare") as server:
        first = server.said.splitlines()[0]
        url, token = re.search(r"(http://127\.0\.0\.1:\d+) with token (\S+)", first).groups()
        assert re.search(r"ready after [\d.]+ m?s", server.said)
        info = json.loads((server.runtime / "server.json").read_text())
        assert (info["url"], info["token"]) == (url, token)
        assert (server.runtime / "server.json").stat().st_mode & 0o777 == 0o600
        with Client(url, token) as client:
            pid = client.create_session().details.kernel.pid
        assert server.stop(signal.SIGINT) == 0
        wait_for(lambda: not _alive(pid), what="the kernel's end")
        assert not (server.runtime / "server.json").exists()


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_serve_says_that_a_template_cannot_start_and_why(short_tmp):
    env = {**os.environ, "XDG_RUNTIME_DIR": str(short_tmp), "KERNELSVC_TEMPLATES": '{"python3": {"python": "/nope"}}'}
    process = start("serve", "--port", "0", "--data-dir", str(short_tmp / "d"), "--sandbox", "off", env=env)
    try:
        assert "The template 'python3' can't be started" in read_until(process.stderr, "/nope")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def test_a_second_server_on_the_same_data_is_refused(served, short_tmp):
    where = ("--data-dir", str(served.data_dir), "--runtime-dir", str(short_tmp / "twice" / "r2"))
    _, err = run_process("serve", "--port", "0", *where, env=served.env, code=3)
    assert "--data-dir" in err


def test_a_port_that_is_taken(served, short_tmp):
    where = ("--data-dir", str(short_tmp / "taken" / "d"), "--runtime-dir", str(short_tmp / "taken" / "r"))
    _, err = run_process("serve", "--port", served.url.rpartition(":")[2], *where, env=served.env, code=3)
    assert "--port" in err


@contextlib.contextmanager
def ended(process):
    """A process that does not outlive its test, whatever happens in it."""
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_a_kernel_host_of_its_own_outlives_the_server(short_tmp):
    home = short_tmp / "host"
    where = ("--data-dir", str(home / "d"), "--runtime-dir", str(home / "r"))
    with ended(start("kernel-host", *where, env=os.environ | QUICK, stdin=subprocess.DEVNULL)) as host:
        assert "templates: python3" in read_until(host.stdout, "templates")
        with Bare(home, "--token", "of-the-test") as server:
            url = json.loads((server.runtime / "server.json").read_text())["url"]
            with Client(url, "of-the-test") as client:
                assert client.execute_once("6 * 7").text.strip() == "42"
            assert server.stop(signal.SIGHUP) == 0
        assert host.poll() is None
    assert host.returncode == 0


def test_hangup_ends_no_session_and_the_next_server_finds_it(short_tmp):
    home = short_tmp / "again"
    with Bare(home, "--token", "the-same") as server:
        url = json.loads((server.runtime / "server.json").read_text())["url"]
        with Client(url, "the-same") as client:
            session = client.create_session()
            session.run("kept = 41")
        assert server.stop(signal.SIGHUP) == 0
    with Bare(home, "--token", "the-same") as server:
        url = json.loads((server.runtime / "server.json").read_text())["url"]
        with Client(url, "the-same") as client:
            again = client.session(session.id)
            assert again.run("kept + 1").text.strip() == "42"


def test_a_stop_by_systemd_ends_no_session(short_tmp, tmp_path):
    where = ("--data-dir", str(short_tmp / "unit" / "d"), "--runtime-dir", str(short_tmp / "unit" / "r"))
    # There is no unit for the kernel host here, so the server starts one, which a unit does not do by itself.
    words = [
        "serve",
        "--port",
        "0",
        *where,
        "--sandbox",
        "best-effort",
        "--token",
        "unit-token",
        "--start-host",
        "true",
    ]
    # The unit's own process carries its own number in this variable (systemd.exec(5)).
    shell = 'SYSTEMD_EXEC_PID=$$ exec "$0" -m kernelsvc "$@"'
    with ended(
        subprocess.Popen(
            ["sh", "-c", shell, sys.executable, *words], stdout=subprocess.PIPE, text=True, env=os.environ | QUICK
        )
    ) as unit:
        said = read_until(unit.stdout, "ready after")
        with Client(re.search(r"http://\S+", said)[0], "unit-token") as client:
            pid = client.create_session().details.kernel.pid
    assert unit.returncode == 0
    assert _alive(pid)
    with Bare(short_tmp / "unit", "--token", "unit-token") as server:
        assert server.stop(signal.SIGTERM) == 0
    wait_for(lambda: not _alive(pid), what="the kernel's end")


def test_a_server_ends_with_the_one_who_holds_its_pipe(short_tmp):
    alive_end, alive = os.pipe()
    with Bare(short_tmp / "pipe", "--while-fd", str(alive_end), pass_fds=[alive_end]) as server:
        os.close(alive_end)
        os.close(alive)
        assert server.process.wait(30) == 0
