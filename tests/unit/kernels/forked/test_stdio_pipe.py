"""Raw descriptors as text, over real pipes."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernelsvc.kernels.forked.stdio_pipe import CHUNK, StdioPipe
from kernelsvc.kernels.forked.wire_parser import WireViolation


@pytest.fixture
def pipe() -> Iterator[tuple[StdioPipe, int]]:
    read, write = os.pipe()
    raw = StdioPipe(read, "stdout")
    os.close(read)
    yield raw, write
    raw.close()
    if write in {int(fd) for fd in os.listdir("/proc/self/fd")}:
        os.close(write)


def test_nothing_there_is_none(pipe: tuple[StdioPipe, int]) -> None:
    raw, _ = pipe
    assert raw.read() is None
    assert not raw.ended
    assert raw.drain() == []


def test_characters_that_come_in_two_are_joined_and_garbage_is_replaced(pipe: tuple[StdioPipe, int]) -> None:
    raw, write = pipe
    os.write(write, "ä".encode()[:1])
    assert raw.read() is None
    os.write(write, "ä".encode()[1:] + b"\xff")
    found = raw.read()
    assert found is not None
    assert (found.text, found.name, found.parent, found.frame) == ("ä�", "stdout", "", None)


def test_drain_takes_what_is_there(pipe: tuple[StdioPipe, int]) -> None:
    raw, write = pipe
    os.write(write, b"x" * 60_000)
    assert raw.available() == 60_000
    assert sum(len(t.text) for t in raw.drain()) == 60_000
    assert raw.available() == 0


def test_the_end_of_all_writers_is_seen(pipe: tuple[StdioPipe, int]) -> None:
    raw, write = pipe
    os.write(write, b"last")
    os.close(write)
    assert [t.text for t in raw.drain()] == ["last"]
    assert raw.read(CHUNK) is None
    assert raw.ended


def test_close_twice(pipe: tuple[StdioPipe, int]) -> None:
    raw, _ = pipe
    raw.close()
    raw.close()


def test_a_pipe_whose_other_description_blocks_is_read_without_blocking() -> None:
    read, write = os.pipe()
    raw = StdioPipe(read, "stdout")
    os.set_blocking(read, True)  # what a kernel that shares a description with its server can do at any time
    assert raw.read() is None
    assert not os.get_blocking(raw.fd)
    for fd in (read, write):
        os.close(fd)
    raw.close()


def test_no_more_is_drained_than_a_pipe_holds() -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    raw = StdioPipe(read, "stdout")
    os.write(write, b"x" * 4096)
    assert raw.available() == 4096
    for fd in (read, write):
        os.close(fd)
    raw.close()


def test_anything_but_a_pipe_of_the_server_is_refused_and_not_kept(tmp_path: Path) -> None:
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 48 << 20)
    one, two = socket.socketpair()
    files = [os.open(path, os.O_RDONLY) for path in (tmp_path / "sparse", "/dev/zero", "/")]
    others = [one.detach(), two.detach()]
    if os.geteuid() == 0:
        others += os.pipe()
        for fd in others[-2:]:
            os.fchown(fd, 65_533, 65_533)
    before = len(os.listdir("/proc/self/fd"))
    for fd in (*files, *others):
        with pytest.raises(WireViolation):
            StdioPipe(fd, "stdout")
    assert len(os.listdir("/proc/self/fd")) == before
    for fd in (*files, *others):
        os.close(fd)
