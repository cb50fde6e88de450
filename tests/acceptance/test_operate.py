"""The recipes of docs/howto/operate.md: a token is rotated under a live session, a backup is restored elsewhere."""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from command_line import kernelsvc
from served import Served, serving

from kernelsvc import Client
from kernelsvc.errors import KernelsvcError

pytestmark = pytest.mark.timeout(240)


def configured(root: Path, *tokens: str) -> Path:
    """Write a settings file with one principal that has these tokens."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / "kernelsvc.toml"
    record = '[[tokens]]\nname = "agents"\nsha256 = "{}"\n'
    path.write_text("".join(record.format(hashlib.sha256(token.encode()).hexdigest()) for token in tokens))
    return path


class Configured(Served):
    """A server whose tokens come from a settings file."""

    def command(self) -> list[str]:
        command = super().command()
        at = command.index("--token")
        return command[:at] + command[at + 2 :]


def restarted(server: Served) -> None:
    """Start it again as the page says: SIGHUP, then a new server on the same directories."""
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)
    server.process.wait(30)
    server.start()


def test_a_token_is_rotated_and_the_session_keeps_its_variables(short_tmp: Path) -> None:
    root = short_tmp / "rotate"
    path = configured(root, "old")
    server = Configured(root, "--config", str(path)).start()
    try:
        with Client(server.url, "old") as client:
            session = client.create_session()
            session.run("x = 41")
            id = session.id
        configured(root, "old", "new")
        restarted(server)
        for token in ("old", "new"):
            with Client(server.url, token) as client:
                assert client.session(id).run("x + 1").text.strip() == "42"
        configured(root, "new")
        restarted(server)
        with Client(server.url, "new") as client:
            assert client.session(id).run("x + 1").text.strip() == "42"
        with pytest.raises(KernelsvcError, match="token is unknown"), Client(server.url, "old") as client:
            client.session(id)
    finally:
        server.stop()


def test_a_server_removes_copies_of_sessions_that_a_crash_left(short_tmp: Path) -> None:
    """``restore`` and ``drain --move`` copy sessions within the data directory, and nothing else removes them."""
    root = short_tmp / "left"
    left = [root / "data" / name for name in (".move-x1", ".restore-0123456789abcdef")]
    root.mkdir()
    (root / "data").mkdir(mode=0o700)
    for each in left:
        (each / "s_0123456789abcdef").mkdir(parents=True)
    with serving(root) as served:
        assert not any(each.exists() for each in left)
        assert served.call("GET", "/v1/sessions")["sessions"] == []


def test_a_backup_under_load_is_restored_elsewhere_and_every_log_is_proven(short_tmp: Path) -> None:
    root = short_tmp / "backup"
    archive = root / "backup.tar.gz"
    server = Served(root).start()
    try:
        with Client(server.url, server.token) as client:
            sessions = [client.create_session(name=f"analysis {number}") for number in range(2)]
            sessions[0].run("print('kept')")
            sessions[0].upload(b"a,b\n", "data.csv")
            sessions[1].run("import os; os.mkfifo('pipe'); os.symlink('/etc', 'link'); os.mkdir('full')")
            ids = [session.id for session in sessions]
            with subprocess.Popen(
                [sys.executable, "-c", RUN_CELLS, *ids], env=server.client_env, stdout=subprocess.PIPE, text=True
            ) as busy:
                assert busy.stdout is not None
                assert busy.stdout.readline() == "runs\n"
                command = [sys.executable, "-m", "kernelsvc", "backup", archive, "--data-dir", server.data_dir]
                subprocess.run(command, env=server.env, check=True)
                assert busy.poll() is None, "cells ran during the whole backup"
                busy.kill()
        key = server.call("GET", "/v1/info")["public_key"]
        with urllib.request.urlopen(server.url + "/metrics", timeout=30) as response:
            made_at = re.search(
                r"^kernelsvc_last_backup_timestamp_seconds (\S+)$", response.read().decode(), re.MULTILINE
            )
        assert made_at is not None
        assert float(made_at[1]) == pytest.approx(archive.stat().st_mtime, abs=10)
    finally:
        server.stop()
    assert archive.stat().st_mode & 0o777 == 0o600
    restored = Served(short_tmp / "restored")
    restored.data_dir.parent.mkdir(parents=True)
    # Nothing of the old place is used.
    server.data_dir.rename(root / "gone")
    command = [sys.executable, "-m", "kernelsvc", "restore", "--key", key, archive, restored.data_dir]
    subprocess.run(command, check=True)
    restored.start()
    try:
        with Client(restored.url, restored.token) as client:
            session = client.session(ids[0])
            assert b"kept" in session.notebook()
            assert session.download("data.csv") == b"a,b\n"
            assert session.run("1 + 1").text.strip() == "2"
            for id in ids:
                client.session(id).close()
        for id in ids:
            log = restored.data_dir / "sessions" / id / "journal.jsonl"
            # Exit code 0: as written, and every entry is covered by a signature of this key.
            kernelsvc("verify", "--key", key, str(log), env=restored.client_env)
    finally:
        restored.stop()


#: Runs cells in some sessions without a pause, and says when they run.
RUN_CELLS = """
import sys, threading
from kernelsvc import Client

def work(id):
    with Client() as client:
        session = client.session(id)
        while True:
            session.run("1 + 1")

with Client() as client:
    for id in sys.argv[1:]:
        client.session(id).run("2")
threads = [threading.Thread(target=work, args=(id,)) for id in sys.argv[1:]]
for thread in threads:
    thread.start()
print("runs", flush=True)
for thread in threads:
    thread.join()
"""


def test_a_backup_names_the_directory_that_is_none(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kernelsvc", "backup", tmp_path / "x.tar.gz", "--data-dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "is no data directory" in done.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []
