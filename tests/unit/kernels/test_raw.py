"""Raw descriptors as text, over real pipes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from kernelsvc.kernels.raw import CHUNK, RawPipe


@pytest.fixture
def pipe() -> Iterator[tuple[RawPipe, int]]:
    read, write = os.pipe()
    raw = RawPipe(read, "stdout")
    yield raw, write
    raw.close()
    if write in {int(fd) for fd in os.listdir("/proc/self/fd")}:
        os.close(write)


def test_nothing_there_is_none(pipe: tuple[RawPipe, int]) -> None:
    raw, _ = pipe
    assert raw.read() is None
    assert not raw.ended
    assert raw.drain() == []


def test_characters_that_come_in_two_are_joined_and_garbage_is_replaced(pipe: tuple[RawPipe, int]) -> None:
    raw, write = pipe
    os.write(write, "ä".encode()[:1])
    assert raw.read() is None
    os.write(write, "ä".encode()[1:] + b"\xff")
    found = raw.read()
    assert found is not None
    assert (found.text, found.name, found.parent, found.frame) == ("ä�", "stdout", "", None)


def test_drain_takes_what_is_there(pipe: tuple[RawPipe, int]) -> None:
    raw, write = pipe
    os.write(write, b"x" * 60_000)
    assert raw.available() == 60_000
    assert sum(len(t.text) for t in raw.drain()) == 60_000
    assert raw.available() == 0


def test_the_end_of_all_writers_is_seen(pipe: tuple[RawPipe, int]) -> None:
    raw, write = pipe
    os.write(write, b"last")
    os.close(write)
    assert [t.text for t in raw.drain()] == ["last"]
    assert raw.read(CHUNK) is None
    assert raw.ended


def test_close_twice(pipe: tuple[RawPipe, int]) -> None:
    raw, _ = pipe
    raw.close()
    raw.close()
