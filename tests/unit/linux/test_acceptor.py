"""Accepting connections, with and without descriptors left."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from kernelsvc.linux.acceptor import Acceptor


@pytest.fixture(params=[socket.SOCK_STREAM, socket.SOCK_SEQPACKET], ids=["stream", "seqpacket"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, request.param) as made:
        made.bind("")  # an abstract name that Linux chooses (unix(7))
        made.listen(8)
        made.setblocking(False)
        yield made


def connected(listener: socket.socket) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, listener.type)
    client.connect(listener.getsockname())
    return client


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """This process may open no file: each number below the limit is in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    # setrlimit(2): the limit is "a value one greater than the maximum file descriptor number that can be opened".
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def test_every_connection_is_passed_on_until_it_is_closed(listener: socket.socket) -> None:
    taken: list[socket.socket] = []
    acceptor = Acceptor(listener, lambda sock, _: taken.append(sock))
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(connected(listener))
        await until(lambda: len(taken) == 5)
        assert not any(each.getblocking() for each in taken)
        acceptor.close()
        acceptor.close()
        stack.enter_context(connected(listener))
        await asyncio.sleep(0)
        assert len(taken) == 5
        for each in taken:
            each.close()


async def test_without_descriptors_it_pauses_logs_once_and_goes_on(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[socket.socket] = []
    acceptor = Acceptor(listener, lambda sock, _: taken.append(sock))
    turns = 0

    def count() -> None:
        nonlocal turns
        turns += 1

    with connected(listener), no_descriptors(), caplog.at_level(logging.DEBUG, "kernelsvc.linux.acceptor"):
        original, calls = acceptor._failed, []
        acceptor._failed = lambda error: (calls.append(turns), original(error))  # type: ignore[method-assign]
        while len(calls) < 4:
            count()
            await asyncio.sleep(0)
        # It did not try on every turn of the loop.
        assert calls[-1] - calls[0] > 3 * len(calls)
        assert not taken
    await until(lambda: taken)
    assert len(caplog.records) == 1
    assert "Too many open files" in caplog.text
    acceptor.close()
    taken[0].close()


async def test_it_can_be_closed_during_a_pause(listener: socket.socket) -> None:
    acceptor = Acceptor(listener, lambda sock, _: sock.close())
    with connected(listener), no_descriptors():
        await until(lambda: acceptor._pause)
        acceptor.close()
