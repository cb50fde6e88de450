"""An encrypted data directory: on a file system of ext4's that is made here, whose bytes are searched afterwards."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import kernelsvc
from served import Served
from waiting import wait_for

from kernelsvc import Client
from kernelsvc.linux.atomic_file import sync_filesystem

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted ext4 that can encrypt. Its device is the file ``disk.img`` beside it."""
    image, place = tmp_path / "disk.img", tmp_path / "disk"
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("to mount a file system, the test must be root and needs mkfs.ext4 (e2fsprogs)")
    with image.open("wb") as file:
        file.truncate(512 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "encrypt", image], check=True)
    place.mkdir()
    mounted = subprocess.run(["mount", "-o", "loop", image, place], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this machine does not mount a file system from a file: {mounted.stderr.strip()}")
    yield place
    # Mounts of ended sessions may keep it busy for a moment.
    if os.path.ismount(place):
        wait_for(lambda: subprocess.run(["umount", place], check=False).returncode == 0, what="an unmounted disk")


def configured(path: Path, key: str) -> Path:
    """Write a settings file with this key, and the key."""
    file = path.with_suffix(".key")
    file.write_text(key + "\n")
    file.chmod(0o600)
    path.write_text(f"[encryption]\nkey_file = {json.dumps(str(file))}\n")
    return path


def holds(image: Path, text: bytes) -> bool:
    """Whether a disk has these bytes anywhere."""
    with image.open("rb") as file:
        before = b""
        while piece := file.read(1 << 22):
            if text in before + piece:
                return True
            before = piece[-len(text) :]
    return False


def test_the_disk_has_nothing_in_clear_and_only_the_key_opens_it(
    disk: Path, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KERNELSVC_TEST_WORKERS", raising=False)
    canary, control = secrets.token_hex(16), secrets.token_hex(16)
    right = configured(short_tmp / "right.toml", secrets.token_hex(64))
    wrong = configured(short_tmp / "wrong.toml", secrets.token_hex(32))
    server = Served(short_tmp / "served", "--config", str(right), "--on-stop", "hibernate", "--adoption-seconds", "1")
    server.data_dir = disk / "data"
    try:
        server.start()
        with Client(server.url, server.token) as client:
            session = client.create_session(env={"SECRET": canary})
            session.run(f"kept = {canary!r}; print(kept); open('notes.txt', 'w').write(kept)")
            id = session.id
            session.hibernate()
        kernelsvc("lock", "--data-dir", str(server.data_dir), env=server.env, code=3)  # The server runs.
        assert server.process is not None
        server.process.terminate()
        assert server.process.wait(60) == 0
    finally:
        server.kill()
    wait_for(lambda: kernelsvc_lock(server), what="a locked data directory", deadline=60)
    assert not {"sessions", "keys"} & set(os.listdir(server.data_dir))

    for settings, why in ((None, "its key is missing"), (wrong, "with another key")):
        words = [] if settings is None else ["--config", str(settings)]
        command = [sys.executable, "-m", "kernelsvc", "serve", "--data-dir", server.data_dir, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, why in done.stderr) == (2, True), done.stderr
        _, err = kernelsvc("backup", str(short_tmp / "no.tar.gz"), "--data-dir", str(server.data_dir), *words,
                           env=server.env, code=2)  # fmt: skip
        assert why in err

    (disk / "clear").write_text(control)
    sync_filesystem(disk)
    image = disk.with_name("disk.img")
    assert holds(image, control.encode())
    assert not holds(image, canary.encode())
    assert not holds(image, id.encode())

    try:
        server.start()
        with Client(server.url, server.token) as client:
            session = client.session(id)
            assert session.run("kept").text.strip() == repr(canary)
            assert session.download("notes.txt").decode() == canary
            session.close()
        log = server.data_dir / "sessions" / id / "journal.jsonl"
        kernelsvc("verify", "--key", server.call("GET", "/v1/info")["public_key"], str(log), env=server.client_env)
        archive, restored = short_tmp / "b.tar.gz", disk / "restored"
        kernelsvc("backup", str(archive), "--data-dir", str(server.data_dir), env=server.env)
        kernelsvc("restore", "--config", str(wrong), str(archive), str(restored), env=server.env)
        assert (restored / "sessions" / id / "journal.jsonl").read_bytes() == log.read_bytes()
        kernelsvc("lock", "--data-dir", str(restored), env=server.env)
        assert "sessions" not in os.listdir(restored)
    finally:
        server.stop()


def kernelsvc_lock(server: Served) -> bool:
    """Whether ``kernelsvc lock`` succeeds. Kernels that end have files open for a moment."""
    command = [sys.executable, "-m", "kernelsvc", "lock", "--data-dir", server.data_dir]
    return subprocess.run(command, env=server.env, capture_output=True, check=False).returncode == 0
