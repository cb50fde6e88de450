"""Connecting to a kernel that is late, silent, or none."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from kernelsvc.kernels.forked import wire_connection as links
from kernelsvc.kernels.forked.reassembly import reassembly
from kernelsvc.kernels.forked.wire_connection import WireConnection, connect
from kernelsvc.kernels.forked.wire_parser import HEADER, HELLO, WireViolation

WELCOME = HEADER.pack(13, HELLO, 1) + b'{"version":1}'


@pytest.fixture
def pipes() -> Iterator[list[int]]:
    """The read ends of two pipes."""
    ends = [*os.pipe(), *os.pipe()]
    yield [ends[0], ends[2]]
    for fd in ends:
        os.close(fd)


def listening(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


async def test_a_listener_that_comes_later_is_met(tmp_path: Path) -> None:
    knocking = asyncio.create_task(connect(str(tmp_path / "k"), wait=True))
    await asyncio.sleep(0)
    with listening(tmp_path / "k"):
        (await asyncio.wait_for(knocking, 5)).close()


async def test_nobody_there_is_said_at_once_to_the_impatient(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await connect(str(tmp_path / "k"), wait=False)
    listening(tmp_path / "dead").close()
    with pytest.raises(ConnectionRefusedError):
        await connect(str(tmp_path / "dead"), wait=False)


async def test_hello_names_the_frame_and_welcome_is_read_in_pieces(tmp_path: Path, pipes: list[int]) -> None:
    with listening(tmp_path / "k") as server:
        link = await WireConnection.open(str(tmp_path / "k"), 7, {"kernel": "x"}, wait=False)
        theirs, _ = server.accept()
        with theirs:
            length, kind, number = HEADER.unpack(theirs.recv(HEADER.size))
            assert (kind, number) == (HELLO, 7)
            assert theirs.recv(length) == b'{"version":1,"identity":{"kernel":"x"}}'
            waiting = asyncio.create_task(link.wait_welcome())
            said = b'{"version":1}'
            for piece in (HEADER.pack(len(said), HELLO, 8), said[:5], said[5:] + b"more"):
                socket.send_fds(theirs, [piece], [] if said[:5] in piece or b"more" in piece else pipes)
                await asyncio.sleep(0)
            await asyncio.wait_for(waiting, 5)
        assert (link.first, link.rest, len(link.pipes)) == (8, b"more", 2)
        assert link.peer_pid == os.getpid()
        link.close()


async def test_waiting_for_welcome_can_be_cancelled_and_taken_up_again(tmp_path: Path, pipes: list[int]) -> None:
    with listening(tmp_path / "k") as server:
        link = await WireConnection.open(str(tmp_path / "k"), 0, wait=False)
        theirs, _ = server.accept()
        with theirs:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(link.wait_welcome(), 0.01)
            socket.send_fds(theirs, [WELCOME], pipes)
            await asyncio.wait_for(link.wait_welcome(), 5)
        link.close()


async def test_an_end_and_garbage_are_told_apart(tmp_path: Path) -> None:
    with listening(tmp_path / "k") as server:
        for said, error in ((b"", EOFError), (b"x" * 100, WireViolation)):
            link = await WireConnection.open(str(tmp_path / "k"), 0, wait=False)
            theirs, _ = server.accept()
            theirs.sendall(said)
            theirs.shutdown(socket.SHUT_WR)
            with pytest.raises(error):
                await link.wait_welcome()
            theirs.close()
            link.close()


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "pieces",
    [
        [(WELCOME, 0)],
        [(WELCOME, 1)],
        [(WELCOME, 3)],
        [(WELCOME, 200)],
        [(WELCOME[:5], 0), (WELCOME[5:], 2)],
        [(WELCOME[:5], 2), (WELCOME[5:], 2)],
        [(HEADER.pack(1 << 20, HELLO, 1), 2), *[(b" ", 1)] * 50],
    ],
    ids=["none", "one", "three", "many", "late", "twice", "again and again"],
)
async def test_descriptors_that_do_not_belong_there_end_it_and_are_closed(
    tmp_path: Path, pipes: list[int], pieces: list[tuple[bytes, int]]
) -> None:
    with listening(tmp_path / "k") as server:
        before = _descriptors()
        link = await WireConnection.open(str(tmp_path / "k"), 0, wait=False)
        theirs, _ = server.accept()
        with theirs:
            waiting = asyncio.create_task(link.wait_welcome())
            for data, count in pieces:
                socket.send_fds(theirs, [data], (pipes * 100)[:count])
                await wait_until(lambda: link.rest or waiting.done())
            with pytest.raises(WireViolation, match="descriptors"):
                await waiting
        link.close()
        assert _descriptors() == before


async def test_what_is_no_pipe_ends_it_and_is_closed(tmp_path: Path, pipes: list[int]) -> None:
    with listening(tmp_path / "k") as server, (tmp_path / "file").open("w+") as file:
        before = _descriptors()
        link = await WireConnection.open(str(tmp_path / "k"), 0, wait=False)
        theirs, _ = server.accept()
        with theirs:
            socket.send_fds(theirs, [WELCOME], [pipes[0], file.fileno()])
            with pytest.raises(WireViolation, match="stderr is not the pipe"):
                await link.wait_welcome()
        link.close()
        assert _descriptors() == before


async def test_descriptors_after_welcome_do_not_arrive(tmp_path: Path, pipes: list[int]) -> None:
    with listening(tmp_path / "k") as server:
        link = await WireConnection.open(str(tmp_path / "k"), 0, wait=False)
        theirs, _ = server.accept()
        with theirs:
            socket.send_fds(theirs, [WELCOME], pipes)
            await link.wait_welcome()
            before = _descriptors()
            try:
                socket.send_fds(theirs, [b"x"], pipes)
            except PermissionError:  # since Linux 6.16
                theirs.send(b"x")
            assert link.sock.recv(1) == b"x"
            assert _descriptors() == before
        link.close()


async def test_a_welcome_that_does_not_end_is_given_up(
    tmp_path: Path, pipes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "WELCOME_SECONDS", 0.05)
    with listening(tmp_path / "k") as server:
        link = await WireConnection.open(str(tmp_path / "k"), 0, wait=False)
        theirs, _ = server.accept()
        with theirs:
            socket.send_fds(theirs, [WELCOME[:-1]], pipes)
            with pytest.raises(WireViolation, match="incomplete after"):
                await asyncio.wait_for(link.wait_welcome(), 5)
        assert reassembly.total > 0
        link.close()
        assert reassembly.total == 0


async def test_a_welcome_for_which_no_memory_is_left_is_given_up(
    tmp_path: Path, pipes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reassembly, "max_bytes", 10)
    with listening(tmp_path / "k") as server:
        link = await WireConnection.open(str(tmp_path / "k"), 0, wait=False)
        theirs, _ = server.accept()
        with theirs:
            socket.send_fds(theirs, [WELCOME[:-1]], pipes)
            with pytest.raises(WireViolation, match="memory for incomplete frames"):
                await asyncio.wait_for(link.wait_welcome(), 5)
        link.close()
