"""The kernel's read ends of its own pipes."""

from __future__ import annotations

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
    os.write(pipes[0][1], "ä".encode()[:1])  # the rest of the character comes later
    assert reads.readable()
    reads.take()
    assert list(reads.taken) == [("stderr", "error")]
    os.write(pipes[0][1], "ä".encode()[1:])
    reads.take()
    assert reads.taken[1] == ("stdout", "ä")
    assert not reads.readable()


def test_a_descriptor_that_user_code_has_reused_is_not_read(pipes: Pipes) -> None:
    reads = StdioReads([read for read, _ in pipes])
    other = os.pipe()
    os.dup2(other[0], pipes[0][0])
    os.write(other[1], b"not ours")
    reads.take()
    assert not reads.taken
    assert not reads.readable()
    assert os.read(other[0], 100) == b"not ours"
    for fd in other:
        os.close(fd)
