"""The process at the other end of a Unix socket."""

from __future__ import annotations

import os
import socket

import pytest

from kernelsvc.linux import peer, procfs


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_credentials_are_those_of_the_process_that_made_the_socket(kind: int) -> None:
    one, two = socket.socketpair(socket.AF_UNIX, kind)
    with one, two:
        assert peer.credentials(one) == (os.getpid(), os.geteuid(), os.getegid())


@pytest.mark.parametrize("known", [True, False], ids=["SO_PEERPIDFD", "before Linux 6.5"])
def test_a_pidfd_stands_for_the_process(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not known:
        monkeypatch.setattr(peer, "_SO_PEERPIDFD", 9999)
    one, two = socket.socketpair(socket.AF_UNIX)
    with one, two:
        fd = peer.pidfd(one)
    try:
        assert procfs.pid_of(fd) == os.getpid()
    finally:
        os.close(fd)


def test_a_socket_that_is_closed_has_no_peer() -> None:
    one, two = socket.socketpair(socket.AF_UNIX)
    two.close()
    one.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        peer.credentials(one)
