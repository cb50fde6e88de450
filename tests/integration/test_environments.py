"""``kernelsvc env``: environments that a running server uses without a restart."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Served, serving
from waiting import wait_for

from kernelsvc import Client
from kernelsvc.cli import main
from kernelsvc.errors import NotFound
from kernelsvc.store.environments import EnvironmentRecord, EnvironmentStore
from packages import write_wheel

#: Leaves a thread running, as some libraries do at import.
THREADED = """import threading, time
def more():
    time.sleep(0.2)
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    time.sleep(60)
threading.Thread(target=more, daemon=True).start()
"""


@pytest.fixture(scope="module")
def server(short_tmp: Path) -> Iterator[Served]:
    with serving(short_tmp / "environments") as served:
        yield served


def kernelsvc_env(server: Served, *words: str, status: int = 0) -> str:
    """Run the command in this process, and return what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        assert main(["env", *words, "--data-dir", str(server.data_dir)]) == status, out.getvalue()
    return out.getvalue()


def ready(client: Client, name: str) -> dict[str, object]:
    def found() -> dict[str, object] | None:
        return next((one for one in client.templates() if one["name"] == name and one["state"] == "ready"), None)

    return wait_for(found, deadline=60, what=f"the template {name}")


def test_a_running_server_uses_an_environment_and_loses_it(server: Served) -> None:
    with Client(server.url, server.token) as client:
        with pytest.raises(NotFound, match="no template 'numpy-first'"):
            client.create_session(template="numpy-first")
        said = kernelsvc_env(server, "add", "numpy-first", "--python", sys.executable, "--preload", "numpy,csv")
        assert "numpy-first is ready" in said
        about = ready(client, "numpy-first")
        assert about["preload"] == ["numpy", "csv"]
        assert "ipykernel" in about["packages"]  # type: ignore[operator]
        with client.create_session(template="numpy-first") as session:
            assert session.run("import sys; 'csv' in sys.modules").text.strip() == "True"
            assert kernelsvc_env(server, "list").startswith("numpy-first  ")
            kernelsvc_env(server, "remove", "numpy-first")
            wait_for(lambda: all(one["name"] != "numpy-first" for one in client.templates()), what="its end")
            assert session.run("6 * 7").text.strip() == "42"  # it continues
        with pytest.raises(NotFound):
            client.create_session(template="numpy-first")
        with client.create_session() as session:  # the others were left alone
            assert session.run("6 * 7").text.strip() == "42"


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--python", "/nonexistent/python"], 3, "can't be checked"),
        (["x", "--python", "9.9"], 2, "no interpreter '9.9'"),
        (["--python", sys.executable, "--preload", "nothere"], 3, "No module named 'nothere'"),
        (["--python", "/bin/true"], 3, "/bin/true is no Python"),
        (["x", "--", "--index-url=http://127.0.0.1:9"], 2, "is an option of pip"),
    ],
)
def test_a_failed_add_leaves_nothing(server: Served, words: list[str], status: int, message: str) -> None:
    assert message in kernelsvc_env(server, "add", "broken", *words, status=status)
    assert not EnvironmentStore(server.data_dir).directory("broken").exists()


def test_an_interpreter_without_ipykernel_is_refused_with_the_next_step(server: Served, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    said = kernelsvc_env(server, "add", "bare", "--python", str(tmp_path / "env" / "bin" / "python"), status=3)
    assert "No module named 'ipykernel'. Install it there." in said


def test_the_rest_of_a_killed_add_is_removed(server: Served) -> None:
    store = EnvironmentStore(server.data_dir)
    left = store.directory("json-again") / "venv"
    left.mkdir(parents=True)
    with store.changing("json-again"):
        assert not left.exists()
        said = kernelsvc_env(server, "add", "json-again", "--python", sys.executable, status=3)
        assert "Another command works on the environment 'json-again'" in said
    assert "json-again is ready" in kernelsvc_env(server, "add", "json-again", "--python", sys.executable)
    kernelsvc_env(server, "remove", "json-again")


def test_a_pool_that_ends_at_a_fork_is_none(server: Served, tmp_path: Path) -> None:
    """OpenBLAS has one, on a machine with several processors."""
    said = kernelsvc_env(server, "add", "pool", "--python", sys.executable, "--preload", "numpy.linalg,pandas")
    assert "pool is ready" in said
    kernelsvc_env(server, "remove", "pool")


def test_an_import_that_leaves_a_thread_is_named(server: Served, tmp_path: Path) -> None:
    made = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made)], check=True)
    (site,) = made.glob("lib/python*/site-packages")
    (site / "threaded.py").write_text(THREADED)
    (site / "slow.py").write_text("import time; time.sleep(0.5)  # the second thread starts meanwhile")
    (site / "own.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    python = str(made / "bin" / "python")
    said = kernelsvc_env(server, "add", "threads", "--python", python, "--preload", "csv,threaded,slow", status=3)
    assert re.search(r"which a fork would lose: threaded \([^;]+\)\. Leave them out", said)
    assert EnvironmentStore(server.data_dir).read_all() == {}


@pytest.mark.parametrize("words", [["add"], ["add", "../x"], ["show", "x"], ["remove", "x"]])
def test_bad_input_says_the_next_step(server: Served, words: list[str]) -> None:
    said = kernelsvc_env(server, *words, status=3 if words[-1] == "x" else 2)
    assert "kernelsvc env" in said


def test_a_template_of_the_settings_keeps_its_name(server: Served) -> None:
    said = kernelsvc_env(server, "add", "python3", "--python", sys.executable, status=3)
    assert "Choose another name" in said


def test_an_environment_below_the_data_directory_is_seen_and_the_rest_is_not(server: Served) -> None:
    """Its files are used by sessions although the data directory is private."""
    store = EnvironmentStore(server.data_dir)
    venv = store.venv("inside")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "own.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    write_wheel("unused", venv)
    (site / "inside.py").write_text("ANSWER = 42\n")
    store.write(EnvironmentRecord(name="inside", python=str(venv / "bin" / "python"), preload=[]))
    with Client(server.url, server.token) as client:
        ready(client, "inside")
        with client.create_session(template="inside") as session:
            assert session.run("import inside; inside.ANSWER").text.strip() == "42"
            program = "!python -c 'import inside; print(inside.ANSWER)'"
            assert session.run(program).text.strip() == "42"
            secret = f"import os; os.path.exists({os.fspath(server.data_dir / 'keys')!r})"
            if client.info()["sandbox"]["isolation"] == "full":
                assert session.run(secret).text.strip() == "False"
                assert store.in_use("inside")
        assert "inside" in kernelsvc_env(server, "list", "--json")
    store.remove("inside")


def test_environments_of_another_users_data_directory_are_not_used(tmp_path: Path) -> None:
    """A root host would run that user's programs as root."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a directory to another user")
    store = EnvironmentStore(tmp_path)
    store.write(EnvironmentRecord(name="theirs", python=sys.executable))
    assert list(store.read_all()) == ["theirs"]
    os.chown(tmp_path, 12345, -1)
    assert store.read_all() == {}
    out = io.StringIO()
    with contextlib.redirect_stderr(out):
        assert main(["env", "add", "mine", "--python", sys.executable, "--data-dir", str(tmp_path)]) == 3
    assert "belongs to another user" in out.getvalue()


#: In place of uv: makes an environment that has this one's packages, and installs nothing. It waits if it is told to.
UV = """#!{python}
import os, subprocess, sys
if sys.argv[1] == "venv":
    made = sys.argv[-1]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True)
    site = next(os.path.join(root, d) for root, dirs, _ in os.walk(made) for d in dirs if d == "site-packages")
    open(os.path.join(site, "own.pth"), "w").write({sites!r})
elif os.environ.get("WAIT"):
    child = subprocess.Popen(["sleep", "600"])
    open(os.environ["WAIT"], "w").write(str(child.pid))
    child.wait()
elif "broken" in sys.argv:
    sys.exit("no package 'broken'")
"""


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sites = "\n".join(path for path in sys.path if path.endswith("site-packages"))
    program = tmp_path / "bin" / "uv"
    program.parent.mkdir()
    program.write_text(UV.format(python=sys.executable, sites=sites))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


def test_an_update_makes_a_new_version_and_sessions_continue(server: Served, uv: Path) -> None:
    store = EnvironmentStore(server.data_dir)
    kernelsvc_env(server, "add", "grows", "first>=1")
    with Client(server.url, server.token) as client:
        ready(client, "grows")
        with client.create_session(template="grows") as session:
            session.run("x = 6").raise_for_error()
            said = kernelsvc_env(server, "update", "grows", "second")
            assert "installing ipykernel>=7,<8 cloudpickle first>=1 second" in said
            record = store.read_all()["grows"]
            assert record.wanted == ["first>=1", "second"]
            assert "/venv-2/" in record.python
            assert "no package 'broken'" in kernelsvc_env(server, "update", "grows", "broken", status=2)
            assert store.read_all()["grows"] == record
            assert session.run("x * 7").text.strip() == "42"  # its version stays while it runs
        used = lambda: ready(client, "grows")["executable"] == record.python  # noqa: E731
        wait_for(used, deadline=60, what="the new version")
        (about,) = [one for one in client.templates() if one["name"] == "grows"]
        assert about["wanted"] == ["first>=1", "second"]
    kernelsvc_env(server, "remove", "grows")
    assert "no environment" in kernelsvc_env(server, "update", "grows", status=3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_installer_and_leaves_nothing(
    server: Served, uv: Path, tmp_path: Path, number: signal.Signals
) -> None:
    waits = tmp_path / "waits"
    command = [sys.executable, "-m", "kernelsvc", "env", "add", "stopped", "x", "--data-dir", str(server.data_dir)]
    process = subprocess.Popen(command, env={**os.environ, "WAIT": str(waits)}, stderr=subprocess.DEVNULL)
    installer = int(wait_for(lambda: waits.exists() and waits.read_text(), deadline=60))
    process.send_signal(number)
    assert process.wait(30) == 130
    wait_for(lambda: not Path(f"/proc/{installer}").exists(), what="the end of the installer's child")
    assert not EnvironmentStore(server.data_dir).directory("stopped").exists()
