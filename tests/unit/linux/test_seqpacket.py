"""Datagrams with descriptors between the host and those it talks to."""

import asyncio
import contextlib
import os
import socket

import pytest

from kernelsvc.linux import seqpacket

DEADLINE = 5.0


def descriptors_of(fd: int) -> int:
    """Return the number of this process's descriptors of the same file, both ends of a pipe. Other tests leave some."""
    same, found = os.fstat(fd), 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.path.samestat(os.fstat(int(name)), same)
    return found


async def test_a_datagram_arrives_whole_with_its_descriptors():
    ours, theirs = seqpacket.pair()
    got: asyncio.Future = asyncio.get_running_loop().create_future()
    reader, writer = os.pipe()
    there = seqpacket.SeqpacketChannel(theirs, lambda body, fds: got.set_result((body, fds)), lambda: None, fds=1)
    here = seqpacket.SeqpacketChannel(ours, lambda *_: None, lambda: None, fds=0)
    assert here.send({"a": "x" * 100_000}, [writer])
    async with asyncio.timeout(DEADLINE):
        body, fds = await got
    assert body == {"a": "x" * 100_000}
    os.write(fds[0], b"hi")
    assert os.read(reader, 2) == b"hi"
    for fd in (reader, writer, *fds):
        os.close(fd)
    here.close()
    there.close()


@pytest.mark.parametrize("garbage", [b"nonsense", b"[1]", b"\xff", b'{"a":' * 100_000, None])
async def test_garbage_and_an_end_close_the_channel(garbage):
    ours, theirs = seqpacket.pair()
    closed = asyncio.Event()
    there = seqpacket.SeqpacketChannel(theirs, lambda *_: None, closed.set, fds=0)
    if garbage is not None:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        try:
            ours.send(garbage)
        except OSError:  # larger than a datagram may be here
            ours.send(b"nonsense")
    else:
        ours.close()
    async with asyncio.timeout(DEADLINE):
        await closed.wait()
    assert not there.is_open
    assert not there.send({"a": 1})
    ours.close()


async def test_a_reader_that_does_not_read_is_told_of_and_does_not_block():
    ours, theirs = seqpacket.pair()
    here = seqpacket.SeqpacketChannel(ours, lambda *_: None, lambda: None, fds=0)
    sent = 0
    while here.send({"a": "x" * 1000}) and sent < 10_000:
        sent += 1
    assert 0 < sent < 10_000
    here.close()
    theirs.close()


async def test_what_a_slow_reader_leaves_waits_its_turn_with_its_descriptors():
    ours, theirs = seqpacket.pair()
    here = seqpacket.SeqpacketChannel(ours, lambda *_: None, lambda: None, fds=0)
    reader, writer = os.pipe()
    for number in range(2000):
        assert here.send({"n": number, "a": "x" * 1000}, [writer] if number == 1999 else ())
    os.close(writer)
    got: list[int] = []
    done = asyncio.Event()

    def received(body, fds):
        got.append(body["n"])
        if fds:
            os.write(fds[0], b"hi")
            seqpacket.close_all(fds)
            done.set()

    there = seqpacket.SeqpacketChannel(theirs, received, lambda: None, fds=1)
    async with asyncio.timeout(DEADLINE):
        await done.wait()
    assert got == list(range(2000))
    assert os.read(reader, 3) == b"hi"
    os.close(reader)
    here.close()
    there.close()


async def test_closing_drops_what_waits():
    ours, theirs = seqpacket.pair()
    here = seqpacket.SeqpacketChannel(ours, lambda *_: None, lambda: None, fds=0)
    reader, writer = os.pipe()
    for _ in range(1000):
        here.send({"a": "x" * 1000}, [reader])
    here.close()
    theirs.close()
    assert descriptors_of(reader) == 2
    for fd in (reader, writer):
        os.close(fd)


@pytest.mark.parametrize(("most", "sent"), [(0, 1), (1, 2), (2, 100)])
async def test_more_descriptors_than_belong_there_close_the_channel_and_are_closed(most, sent):
    ours, theirs = seqpacket.pair()
    closed = asyncio.Event()
    there = seqpacket.SeqpacketChannel(theirs, lambda *_: None, closed.set, fds=most)
    reader, writer = os.pipe()
    try:
        socket.send_fds(ours, [b"{}"], [reader] * sent)
    except PermissionError:  # since Linux 6.16, where none may be sent
        assert most == 0
        there.close()
    else:
        async with asyncio.timeout(DEADLINE):
            await closed.wait()
    assert descriptors_of(reader) == 2  # both ends are one file
    assert theirs.fileno() == -1
    for fd in (reader, writer):
        os.close(fd)
    ours.close()


async def test_an_empty_datagram_leaves_no_descriptor():
    ours, theirs = seqpacket.pair()
    closed = asyncio.Event()
    seqpacket.SeqpacketChannel(theirs, lambda *_: None, closed.set, fds=2)
    reader, writer = os.pipe()
    socket.send_fds(ours, [b""], [reader, reader])
    async with asyncio.timeout(DEADLINE):
        await closed.wait()
    assert descriptors_of(reader) == 2
    assert theirs.fileno() == -1
    for fd in (reader, writer):
        os.close(fd)
    ours.close()
