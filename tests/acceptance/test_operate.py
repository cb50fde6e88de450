"""The recipes of docs/howto/operate.md: a token is rotated under a live session, a backup is restored elsewhere."""

from __future__ import annotations

import hashlib
import signal
import subprocess
from pathlib import Path

import pytest
from served import Served

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


def test_a_copy_of_the_live_data_directory_can_be_served_elsewhere(short_tmp: Path) -> None:
    root = short_tmp / "backup"
    server = Served(root).start()
    try:
        with Client(server.url, server.token) as client:
            session = client.create_session(name="analysis")
            session.run("print('kept')")
            session.upload(b"a,b\n", "data.csv")
            id = session.id
        subprocess.run(["tar", "-C", server.data_dir, "-czf", root / "backup.tar.gz", "."], check=True)
    finally:
        server.stop()
    restored = Served(short_tmp / "restored")
    restored.data_dir.mkdir(parents=True, mode=0o700)
    subprocess.run(["tar", "-C", restored.data_dir, "-xzf", root / "backup.tar.gz"], check=True)
    restored.start()
    try:
        with Client(restored.url, restored.token) as client:
            session = client.session(id)
            assert b"kept" in session.notebook()
            assert session.download("data.csv") == b"a,b\n"
            assert session.run("1 + 1").text.strip() == "2"
            session.close()
    finally:
        restored.stop()
