"""The kernel's read ends of its own pipes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from itertools import chain

import pytest

from kernelsvc.guest.stdio.stdio_reads import StdioReads

Pipes = list[tuple[int, int]]


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    made = [os.pipe(), os.pipe()]
    yield made
    for fd in chain(*made):
        os.close(fd)


def test_what_is_in_the_pipes_is_taken_once(pipes: Pipes) -> None:
    reads = StdioReads([read for read, _ in pipes])
    assert not reads.readable()
    os.write(pipes[1][1], b"error")
    os.write(pipes[0][1], "ä".encode()[:1])
    assert reads.readable()
    assert list(reads.take()) == [("stdout", "ä".encode()[:1]), ("stderr", b"error")]
    assert list(reads.take()) == []
    assert not reads.readable()


def test_a_pipe_is_locked_until_its_bytes_are_used(pipes: Pipes) -> None:
    reads = StdioReads([read for read, _ in pipes])
    servers = os.open(f"/proc/self/fd/{pipes[0][0]}", os.O_RDONLY)
    os.write(pipes[0][1], b"text")
    for _ in reads.take():
        with pytest.raises(BlockingIOError):
            fcntl.flock(servers, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(servers, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(servers)


def test_a_descriptor_that_user_code_has_reused_is_not_read(pipes: Pipes) -> None:
    reads = StdioReads([read for read, _ in pipes])
    other = os.pipe()
    os.dup2(other[0], pipes[0][0])
    os.write(other[1], b"not ours")
    assert list(reads.take()) == []
    assert not reads.readable()
    assert os.read(other[0], 100) == b"not ours"
    for fd in other:
        os.close(fd)
