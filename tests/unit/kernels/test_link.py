"""Connecting to a kernel that is late, silent, or none."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from kernelsvc.kernels.link import Link, knock
from kernelsvc.kernels.wire_frames import HEADER, HELLO, Violation


def listening(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


async def test_a_listener_that_comes_later_is_met(tmp_path: Path) -> None:
    knocking = asyncio.create_task(knock(str(tmp_path / "k"), patient=True))
    await asyncio.sleep(0)
    with listening(tmp_path / "k"):
        (await asyncio.wait_for(knocking, 5)).close()


async def test_nobody_there_is_said_at_once_to_the_impatient(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await knock(str(tmp_path / "k"), patient=False)
    listening(tmp_path / "dead").close()
    with pytest.raises(ConnectionRefusedError):
        await knock(str(tmp_path / "dead"), patient=False)


async def test_hello_names_the_frame_and_welcome_is_read_in_pieces(tmp_path: Path) -> None:
    with listening(tmp_path / "k") as server:
        link = await Link.open(str(tmp_path / "k"), 7, {"kernel": "x"}, patient=False)
        theirs, _ = server.accept()
        with theirs:
            length, kind, number = HEADER.unpack(theirs.recv(HEADER.size))
            assert (kind, number) == (HELLO, 7)
            assert theirs.recv(length) == b'{"version":1,"identity":{"kernel":"x"}}'
            waiting = asyncio.create_task(link.welcomed())
            said = b'{"version":1}'
            for piece in (HEADER.pack(len(said), HELLO, 8), said[:5], said[5:] + b"more"):
                socket.send_fds(theirs, [piece], [0] if b"more" in piece else [])
                await asyncio.sleep(0)
            await asyncio.wait_for(waiting, 5)
        assert (link.first, link.rest, len(link.fds)) == (8, b"more", 1)
        assert link.peer_pid == os.getpid()
        link.close()


async def test_waiting_for_welcome_can_be_cancelled_and_taken_up_again(tmp_path: Path) -> None:
    with listening(tmp_path / "k") as server:
        link = await Link.open(str(tmp_path / "k"), 0, patient=False)
        theirs, _ = server.accept()
        with theirs:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(link.welcomed(), 0.01)
            theirs.sendall(HEADER.pack(13, HELLO, 1) + b'{"version":1}')
            await asyncio.wait_for(link.welcomed(), 5)
        link.close()


async def test_an_end_and_garbage_are_told_apart(tmp_path: Path) -> None:
    with listening(tmp_path / "k") as server:
        for said, error in ((b"", EOFError), (b"x" * 100, Violation)):
            link = await Link.open(str(tmp_path / "k"), 0, patient=False)
            theirs, _ = server.accept()
            theirs.sendall(said)
            theirs.shutdown(socket.SHUT_WR)
            with pytest.raises(error):
                await link.welcomed()
            theirs.close()
            link.close()
