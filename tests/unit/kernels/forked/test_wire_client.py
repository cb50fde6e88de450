"""Requests that a kernel reads and does not confirm."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from kernelsvc.kernels.forked import wire_client
from kernelsvc.kernels.forked.wire_client import WireClient
from kernelsvc.kernels.forked.wire_parser import HEADER, HELLO

MIB = 1 << 20


async def test_requests_that_are_not_confirmed_take_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_client, "MAX_KEPT", 3 * MIB)
    pipes = [*os.pipe(), *os.pipe()]
    path = str(tmp_path / "k")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        connecting = asyncio.create_task(WireClient.connect(path))
        kernel, _ = await asyncio.to_thread(listener.accept)
        with kernel:
            welcome = b'{"version":1}'
            socket.send_fds(kernel, [HEADER.pack(len(welcome), HELLO, 1) + welcome], [pipes[0], pipes[2]])
            client = await connecting
            for number in range(8):
                client.send_message("shell", "comm_msg", {}, msg_id=f"m{number}", buffers=[bytes(MIB)])
                received = 0
                while received < MIB:
                    received += len(await asyncio.to_thread(kernel.recv, MIB))
            assert 2 * MIB < client.kept_bytes <= 3 * MIB
            assert "m7" in client._requests
            client.close()
    for fd in pipes:
        os.close(fd)
