"""What is counted between a cold kernel and libzmq: real sockets, and a peer that speaks ZMTP by hand."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import threading
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from waiting import wait_until

from kernelsvc.kernels.zmq.messages import MAX_PARTS, MAX_ROUTING, InvalidMessage
from kernelsvc.kernels.zmq.metering_proxy import MeteringProxy, ZmtpMeter

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48)
MOST = 10_000


def part(body: bytes, *, more: bool = False, command: bool = False) -> bytes:
    flags = more | (4 if command else 0)
    if len(body) > 255:
        return bytes([flags | 2]) + len(body).to_bytes(8, "big") + body
    return bytes([flags, len(body)]) + body


@given(
    st.lists(st.lists(st.binary(max_size=600), min_size=1, max_size=5), max_size=5),
    st.integers(min_value=1, max_value=700),
)
def test_messages_within_the_bounds_pass_in_pieces_of_any_size(messages: list[list[bytes]], step: int) -> None:
    wire = GREETING + part(b"\x05READY", command=True)
    for parts in messages:
        wire += b"".join(part(one, more=one is not parts[-1]) for one in parts[:-1]) + part(parts[-1])
    meter = ZmtpMeter(MOST)
    for at in range(0, len(wire), step):
        meter.feed(wire[at : at + step])


@pytest.mark.parametrize(
    "wire",
    [
        part(bytes(6_000), more=True) + part(bytes(6_000)),
        part(b"", more=True) * (MAX_PARTS + MAX_ROUTING + 1),
        b"\x02" + (1 << 62).to_bytes(8, "big"),
        b"\x03" + (1 << 64).__sub__(1).to_bytes(8, "big"),
        part(bytes(70_000), command=True),
    ],
    ids=["sum of parts", "number of parts", "one large part", "a size that overflows", "a command"],
)
def test_what_is_beyond_the_bounds_is_refused(wire: bytes) -> None:
    meter = ZmtpMeter(MOST)
    meter.feed(GREETING)
    with pytest.raises(InvalidMessage):
        meter.feed(wire)


@pytest.mark.parametrize("greeting", [b"\x01\x00" * 32, b"\xff" + bytes(8) + b"\x7f\x01" + bytes(53)])
def test_older_framings_are_refused(greeting: bytes) -> None:
    with pytest.raises(InvalidMessage, match="ZMTP"):
        ZmtpMeter(MOST).feed(greeting)


async def test_a_message_goes_both_ways_and_an_end_is_passed_on(tmp_path: Path) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    relay = MeteringProxy(str(tmp_path / "k"), MOST, lambda _why: None)
    ours = context.socket(zmq.DEALER)
    ours.linger = 0
    ours.connect(relay.url)
    ours.send(b"early")
    kernel = context.socket(zmq.ROUTER)
    kernel.bind(f"ipc://{tmp_path / 'k'}")
    try:
        await wait_until(lambda: kernel.poll(0), what="the request")
        who, said = kernel.recv_multipart()
        assert said == b"early"
        kernel.send_multipart([who, b"answer", b"in parts"])
        await wait_until(lambda: ours.poll(0), what="the answer")
        assert ours.recv_multipart() == [b"answer", b"in parts"]
    finally:
        relay.close()
        ours.close(0)
        kernel.close(0)
        context.term()


def hostile(listener: socket.socket, done: threading.Event) -> None:
    """Speak ZMTP by hand, and never say which part is the last."""
    peer, _ = listener.accept()
    with peer:
        peer.sendall(GREETING + part(b"\x05READY\x0bSocket-Type\x00\x00\x00\x03PUB", command=True))
        one = part(bytes(1 << 20), more=True)
        try:
            for _ in range(2_000):
                peer.sendall(one)
        except OSError:
            done.set()


async def test_an_endless_message_costs_no_memory_and_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "k"))
        listener.listen()
        done = threading.Event()
        thread = threading.Thread(target=hostile, args=(listener, done))
        thread.start()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        relay = MeteringProxy(str(tmp_path / "k"), 8 << 20, told.append)
        ours = context.socket(zmq.SUB)
        ours.subscribe(b"")
        ours.connect(relay.url)
        try:
            await wait_until(lambda: told, what="its being told", deadline=20)
            await wait_until(done.is_set, what="the end of the connection")
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
        finally:
            relay.close()
            ours.close(0)
            context.term()
            await asyncio.to_thread(thread.join)


async def test_nobody_else_is_let_in(tmp_path: Path) -> None:
    relay = MeteringProxy(str(tmp_path / "k"), MOST, lambda _why: None)
    name = relay.url.removeprefix("ipc://@")
    code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect(chr(0) + {name!r}); print(len(s.recv(1)))"
    try:
        process = await asyncio.create_subprocess_exec(
            os.sys.executable,
            "-c",
            code,
            stdout=asyncio.subprocess.PIPE,  # type: ignore[attr-defined]
        )
        out, _ = await process.communicate()
        assert out.strip() == b"0"
    finally:
        relay.close()
