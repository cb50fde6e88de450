"""The sockets of a cold kernel against a peer that does what it likes: real ZMQ on both sides."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import zmq
from waiting import wait_until

from kernelsvc.kernels.port import KernelMessage
from kernelsvc.kernels.read_budget import ReadBudgets
from kernelsvc.kernels.zmq import channels as cold_channels
from kernelsvc.kernels.zmq.channels import MAX_WAITING_REQUESTS, ChannelAddresses, Channels
from kernelsvc.kernels.zmq.messages import DELIMITER, MAX_PARTS, HmacKey, encode

KEY = HmacKey(b"secret")
MAX_BYTES = 100_000


class Peer:
    """What stands for a kernel: bound sockets, and no manners."""

    def __init__(self, addresses: ChannelAddresses) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.iopub = self.context.socket(zmq.XPUB)
        self.shell = self.context.socket(zmq.ROUTER)
        for socket, channel in ((self.iopub, "iopub"), (self.shell, "shell")):
            socket.linger = 1000
            socket.sndhwm = 0
            socket.bind(addresses.url(channel))  # type: ignore[arg-type]

    def publish(self, *texts: str) -> None:
        for text in texts:
            parts = encode(KEY, "peer", "stream", {"name": "stdout", "text": text}, msg_id="m")
            self.iopub.send_multipart([b"topic", *parts])

    def close(self) -> None:
        for socket in (self.iopub, self.shell):
            socket.close()
        self.context.destroy(linger=1000)


@dataclass
class Heard:
    messages: list[KernelMessage] = field(default_factory=list)
    garbled: list[str] = field(default_factory=list)
    lags: list[bool] = field(default_factory=list)
    hangups: int = 0

    def hang_up(self) -> None:
        self.hangups += 1

    @property
    def texts(self) -> list[str]:
        return [m.content["text"] for m in self.messages]


@dataclass
class Pair:
    peer: Peer
    channels: Channels
    heard: Heard


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
async def pair(short_tmp: Path, context: zmq.Context[zmq.Socket[bytes]]) -> AsyncIterator[Pair]:
    prefix = str(short_tmp / uuid.uuid4().hex[:8])
    addresses = ChannelAddresses(path=prefix, ports={"shell": 1, "iopub": 2, "stdin": 3, "control": 4}, identity="me")
    peer, heard = Peer(addresses), Heard()
    channels = Channels(
        context,
        addresses,
        KEY,
        max_message_bytes=MAX_BYTES,
        budget=ReadBudgets().open("k"),
        on_messages=heard.messages.extend,
        on_invalid=heard.garbled.append,
        on_lag=heard.lags.append,
        on_disconnect=heard.hang_up,
    )
    await wait_until(lambda: peer.iopub.poll(0), what="the subscription")
    yield Pair(peer, channels, heard)
    channels.close()
    peer.close()


async def test_messages_come_in_order_and_none_is_lost_behind_a_high_water_mark(pair: Pair) -> None:
    texts = [str(i) for i in range(5000)]
    pair.peer.publish(*texts)
    await wait_until(lambda: len(pair.heard.messages) == 5000)
    assert pair.heard.texts == texts


async def test_requests_reach_the_kernel_under_one_identity(pair: Pair) -> None:
    request = encode(KEY, "s", "kernel_info_request", {}, msg_id="a")
    assert pair.channels.send("shell", request)
    await wait_until(lambda: pair.peer.shell.poll(0))
    identity, *parts = pair.peer.shell.recv_multipart()
    assert (identity, parts) == (b"me", request)
    pair.peer.shell.send_multipart([identity, *encode(KEY, "k", "kernel_info_reply", {}, msg_id="b")])
    await wait_until(lambda: pair.heard.messages)
    assert pair.heard.messages[0].channel == "shell"


async def test_a_kernel_that_does_not_read_is_noticed(pair: Pair) -> None:
    request = encode(KEY, "s", "comm_msg", {}, msg_id="a")
    sent = sum(pair.channels.send("control", request) for _ in range(MAX_WAITING_REQUESTS + 10))
    assert sent == MAX_WAITING_REQUESTS  # nobody is bound there


@pytest.mark.parametrize(
    "parts",
    [
        [b"no delimiter"],
        [DELIMITER, b"sig", b"{}", b"{}", b"{}", b"{}"],
        [DELIMITER, *[b"x"] * (MAX_PARTS + 1)],
        [DELIMITER, *[b"x" * (MAX_BYTES // 10)] * 11],
    ],
    ids=["no delimiter", "forged", "too many parts", "too large in all"],
)
async def test_what_breaks_the_protocol_ends_the_reading(pair: Pair, parts: list[bytes]) -> None:
    pair.peer.publish("before")
    pair.peer.iopub.send_multipart(parts)
    pair.peer.publish("after")
    await wait_until(lambda: pair.heard.garbled)
    assert len(pair.heard.garbled) == 1
    assert pair.heard.texts in ([], ["before"])
    assert not pair.channels.send("shell", [b""])


async def test_a_part_above_the_limit_breaks_the_connection(pair: Pair) -> None:
    pair.peer.iopub.send_multipart([DELIMITER, b"x" * (MAX_BYTES + 1)])
    await wait_until(lambda: pair.heard.garbled, what="its being told")
    assert pair.heard.garbled == [f"a message above {MAX_BYTES} bytes or {MAX_PARTS} parts"]
    assert not pair.heard.messages


async def test_nothing_is_read_while_paused(pair: Pair) -> None:
    pair.channels.pause()
    pair.peer.publish("held", "too")
    pair.peer.shell.close()  # the other connection's end is noticed all the same: so much has come through
    await wait_until(lambda: pair.heard.hangups)
    assert not pair.heard.messages
    pair.channels.resume()
    await wait_until(lambda: len(pair.heard.messages) == 2)
    assert pair.heard.texts == ["held", "too"]


async def test_a_sender_that_outruns_the_reader_is_told_to_stop(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_channels, "LAG_SECONDS", 0.0)
    pair.channels.pause()
    pair.peer.publish(*[str(i) for i in range(3000)])
    pair.channels.resume()
    await wait_until(lambda: len(pair.heard.messages) == 3000 and not pair.channels.lagging)
    # libzmq hands messages over in portions, so it may have been behind more than once.
    assert pair.heard.lags[:2] == [True, False]
    assert pair.heard.lags == [True, False] * (len(pair.heard.lags) // 2)


async def test_all_that_was_sent_is_read_after_the_peer_is_gone(pair: Pair) -> None:
    pair.channels.pause()
    pair.peer.publish(*[str(i) for i in range(2000)])
    pair.peer.close()
    await wait_until(pair.channels.disconnected.is_set, what="both connections' end")
    pair.channels.resume()
    await pair.channels.read_rest()
    assert pair.heard.texts == [str(i) for i in range(2000)]


def descriptors() -> set[str]:
    """The open descriptors, without the one that lists them: its number may be any that is free."""
    return {name for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")}


async def test_closing_twice_frees_the_descriptors(short_tmp: Path) -> None:
    before = descriptors()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    addresses = ChannelAddresses(
        path=str(short_tmp / "nobody"), ports={"shell": 1, "iopub": 2, "stdin": 3, "control": 4}, identity="me"
    )
    heard = Heard()
    channels = Channels(
        context,
        addresses,
        KEY,
        max_message_bytes=1,
        budget=ReadBudgets().open("k"),
        on_messages=heard.messages.extend,
        on_invalid=heard.garbled.append,
        on_lag=heard.lags.append,
        on_disconnect=heard.hang_up,
    )
    channels.close()
    channels.close()
    context.destroy(linger=0)
    # The relays' thread ends by itself, and so do those of tests before this one.
    await wait_until(lambda: descriptors() <= before, what="every descriptor to be free")
