"""Connect to a socket whose path untrusted code can change."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernelsvc.linux.unix_socket import connect_nofollow


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "real"
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(str(path))
        found.listen()
        yield path


def connect(path: Path, family: int | None = None) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        connect_nofollow(sock, str(path), family=family)
        assert sock.getpeername() is not None


def test_a_socket_is_connected_to(listener: Path) -> None:
    connect(listener)
    connect(listener, os.getpid())


@pytest.mark.parametrize("kind", ["link", "link to a link", "file", "directory", "fifo", "link to nothing"])
def test_nothing_else_is(listener: Path, kind: str) -> None:
    path = listener.with_name("s")
    if kind == "file":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        second = listener.with_name("second")
        second.symlink_to(listener)
        path.symlink_to({"link": listener, "link to a link": second}.get(kind, "nothing"))
    with pytest.raises(PermissionError, match="not a socket"):
        connect(path)


def test_a_link_in_place_of_its_directory_is_not_followed(listener: Path, tmp_path: Path) -> None:
    (tmp_path / "d").symlink_to(tmp_path)
    with pytest.raises(NotADirectoryError):
        connect(tmp_path / "d" / listener.name)


def test_a_listener_of_another_family_is_refused(listener: Path) -> None:
    """The process that listens is this test. Its own child's children are another family."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as parent:
        try:
            found: list[str] = []
            while not found:
                found = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
            with pytest.raises(PermissionError, match="another process"):
                connect(listener, int(found[0]))
        finally:
            assert parent.stdin is not None
            parent.stdin.close()


def test_a_path_without_a_listener_is_an_ordinary_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect(tmp_path / "none")
