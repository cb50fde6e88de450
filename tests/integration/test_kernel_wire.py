"""The wire between a kernel and a server that comes and goes, with real processes at both ends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from kernel_processes import Client, Template, kernel, now, rss, wait_blocked
from waiting import wait_until

from kernelsvc.errors import AtCapacity, KernelDead, Timeout
from kernelsvc.kernels.forked import wire_client as wires
from kernelsvc.kernels.forked.reassembly import reassembly
from kernelsvc.kernels.forked.wire_client import WireClient, WireLost
from kernelsvc.kernels.port import Output, StreamText
from kernelsvc.protocol.jupyter import join_v1

MiB = 1 << 20


def path_of(k: Client) -> Path:
    return Path(k.wire._path)


# --- who connects ------------------------------------------------------------------------------


async def test_peer_credentials_come_from_linux(k: Client) -> None:
    assert k.wire.peer_pid == k.pid
    assert k.wire.welcome["python"].startswith("3.")
    assert k.wire.welcome["kernel"] == path_of(k).stem


async def test_connect_waits_for_a_listener_that_does_not_exist_yet(template: Template, tmp_path: Path) -> None:
    connecting = asyncio.create_task(WireClient.connect(str(template.folder / f"{template._count + 1}.k")))
    await asyncio.sleep(0)  # it begins, and finds no socket
    template.spawn()
    wire = await connecting
    wire.close()


async def test_a_listener_that_never_answers_is_a_time_out(tmp_path: Path) -> None:
    with pytest.raises(Timeout):
        await WireClient.connect(str(tmp_path / "none"), deadline=0.1)


async def test_a_newer_server_replaces_the_older(k: Client) -> None:
    await k.run("x = 1")
    newer = await Client.open(k.template, path_of(k), last_frame=k.wire.last_frame)
    k.wire.close()
    assert (await newer.run("x")).result == "1"
    newer.wire.close()


async def test_invalid_data_at_the_listener_does_not_disturb_the_connection(k: Client) -> None:
    for data in (b"", b"\xff" * 100, struct.pack("<IBQ", 3, 2, 0) + b"abc", struct.pack("<IBQ", 1 << 31, 1, 0)):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path_of(k)))
            sock.sendall(data)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(path_of(k)))
        assert (await k.run("1 + 1")).result == "2"


# --- a server that comes back --------------------------------------------------------------------


async def _numbers(k: Client, msg_id: str, wires: list[Client]) -> list[int]:
    text = "".join(i.text for c in wires for i in c.got if isinstance(i, StreamText))
    return [int(n) for n in text.split()]


async def test_a_cell_continues_without_a_server_and_its_output_arrives_once(k: Client) -> None:
    code = "import time\nfor i in range(3000):\n    print(i)\n    if i % 100 == 0: time.sleep(0.005)"
    msg_id = k.execute(code)
    clients = [k]
    for _ in range(6):
        current = clients[-1]
        await current.until(lambda c=current: len(c.got) > 3 or c.idle(msg_id))
        if current.idle(msg_id):
            break  # a fast machine
        current.wire.close()
        clients.append(await Client.open(k.template, path_of(k), last_frame=current.wire.last_frame))
    last = clients[-1]
    await last.until(lambda: last.idle(msg_id))
    assert await _numbers(k, msg_id, clients) == list(range(3000))
    frames = [i.frame for c in clients for i in c.got if i.frame is not None]
    assert frames == sorted(set(frames))
    last.wire.close()


async def test_unacknowledged_frames_are_sent_again(k: Client) -> None:
    k.refusing = True
    msg_id = k.execute("print('once')")
    await wait_blocked(k.pid)
    k.wire.close()
    again = await Client.open(k.template, path_of(k), last_frame=0)
    assert (await again.finish(msg_id)).stdout == "once\n"
    again.wire.close()


async def test_a_sleeping_cell_does_not_delay_a_connection(k: Client) -> None:
    msg_id = k.execute("print('on'); import time; time.sleep(2)")
    await k.until(lambda: k.answer(msg_id).stdout)
    k.wire.close()
    began = now()
    again = await Client.open(k.template, path_of(k), last_frame=k.wire.last_frame)
    assert now() - began < 1
    assert again.wire.welcome["busy"] == msg_id
    await again.finish(msg_id)
    again.wire.close()


def cpu_seconds(pid: int) -> float:
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


async def test_a_kernel_that_sits_in_c_code_is_adopted_and_nothing_runs_twice(k: Client) -> None:
    # One call: no bytecode ends in it, so no handler runs.
    await k.run("n = 0; long = range(150_000_000)")
    msg_id = k.execute("print('on'); n += 1; sum(long); print('off')")
    await k.until(lambda: "on\n" in k.answer(msg_id).stdout)
    used = cpu_seconds(k.pid)
    await wait_until(lambda: cpu_seconds(k.pid) > used + 0.1, what="the middle of the call")
    k.wire.close()
    began = now()
    again = await Client.open(k.template, path_of(k), last_frame=k.wire.last_frame, deadline=0.2, busy_ok=True)
    assert now() - began < 2
    assert again.wire.peer_pid == k.pid
    content = {"code": "n += 1", "silent": False, "store_history": True, "allow_stdin": False}
    again.wire.send_message("shell", "execute_request", content, msg_id=msg_id)
    later = again.execute("n")
    answer = await again.finish(msg_id)
    assert answer.stdout == "off\n"
    assert (await again.finish(later)).result == "1"
    assert again.wire.seen(msg_id)


async def test_the_kernel_reports_the_requests_that_it_received(k: Client) -> None:
    msg_id = k.execute("import time; time.sleep(0.3)", terse=False)
    await k.until(lambda: k.answer(msg_id).messages("execute_input"))
    queued = k.execute("'queued'")
    k.wire.close()
    again = await Client.open(k.template, path_of(k), last_frame=k.wire.last_frame)
    assert again.wire.seen(msg_id)
    assert again.wire.seen(queued)
    assert not again.wire.seen("never")
    assert (await again.finish(queued)).result == "'queued'"
    again.wire.close()


async def test_a_connection_that_breaks_is_made_again(k: Client) -> None:
    await k.run("x = 5")
    link = k.wire._connection
    assert link is not None
    link.sock.shutdown(socket.SHUT_RDWR)
    msg_id = k.execute("x + 1")
    assert (await k.finish(msg_id)).result == "6"
    assert k.wire._connection is not link


async def test_a_server_that_claims_unsent_frames_gets_an_error(k: Client) -> None:
    k.wire.close()
    with pytest.raises(WireLost, match="never sent"):
        await WireClient.connect(str(path_of(k)), last_frame=10_000)


# --- back-pressure ----------------------------------------------------------------------------------


async def test_a_writer_blocks_until_its_frames_are_acknowledged(k: Client) -> None:
    k.refusing = True
    before = rss(k.pid)
    msg_id = k.execute("for i in range(40):\n    print(str(i) * 500_000)")
    await wait_blocked(k.pid)
    assert not k.idle(msg_id)
    assert rss(k.pid) - before < 24 * MiB
    k.refusing = False
    k.wire.resume()
    answer = await k.finish(msg_id)
    assert answer.stdout == "".join(f"{str(i) * 500_000}\n" for i in range(40))


async def test_a_blocked_writer_can_be_interrupted(k: Client) -> None:
    k.refusing = True
    msg_id = k.execute("while True: print('x' * 100_000)")
    await wait_blocked(k.pid)
    k.interrupt()
    k.refusing = False
    k.wire.resume()
    assert (await k.finish(msg_id)).reply.content["ename"] == "KeyboardInterrupt"
    assert (await k.run("1 + 1")).result == "2"


async def test_a_blocked_writer_accepts_another_server(k: Client) -> None:
    msg_id = k.execute("for i in range(200): print(str(i % 10) * 99_999)")
    k.wire.close()
    await wait_blocked(k.pid)
    again = await Client.open(k.template, path_of(k))
    answer = await again.finish(msg_id)
    assert len(answer.stdout) == 200 * 100_000
    again.wire.close()


async def test_a_100_mb_print_is_whole_and_costs_little_memory_at_either_end(template: Template) -> None:
    async with kernel(template) as k:
        total, most_here, most_there = 0, 0, 0
        await k.run("s = 'x' * 100_000_000")
        here, there = rss(os.getpid()), rss(k.pid)

        def count(batch: Sequence[Output]) -> None:
            nonlocal total, most_here, most_there
            total += sum(len(i.text) for i in batch if isinstance(i, StreamText))
            most_here, most_there = max(most_here, rss(os.getpid())), max(most_there, rss(k.pid))
            k.batches.append([i for i in batch if not isinstance(i, StreamText)])
            k.got += k.batches[-1]
            k._news.set()

        k.wire._deliver = count
        msg_id = k.execute("print(s)")
        await k.finish(msg_id)
        assert total == 100_000_001
        assert most_here - here < 32 * MiB
        assert most_there - there < 24 * MiB


async def test_one_message_may_be_larger_than_the_buffer(k: Client) -> None:
    answer = await k.run("display({'text/plain': 'x' * 20_000_000}, raw=True)")
    assert len(answer.displays[0]["text/plain"]) == 20_000_000


async def test_a_flood_of_raw_bytes_is_whole(k: Client) -> None:
    code = "import subprocess\nsubprocess.run('head -c 30000000 /dev/zero | tr \"\\\\0\" y', shell=True); None"
    answer = await k.run(code)
    assert answer.stdout == "y" * 30_000_000


async def test_requests_that_the_kernel_does_not_read_are_bounded(k: Client) -> None:
    await k.run("x = 1")
    msg_id = k.execute("import time; time.sleep(60)", terse=False)
    await k.until(lambda: k.answer(msg_id).messages("execute_input"))
    big = {"code": "x" * (16 * MiB), "cursor_pos": 1}
    for _ in range(4):
        k.send("is_complete_request", big)
    with pytest.raises(AtCapacity):
        k.send("is_complete_request", big)
    await k.interrupted(msg_id)
    assert (await k.finish(k.execute("x"))).result == "1"


async def test_a_request_as_large_as_the_buffer_is_echoed(k: Client) -> None:
    """Frames that are held back, to be sent together, must go out before there is room for a large one."""
    answer = await k.run("x = '" + "x" * (9 * MiB) + "'")
    assert answer.reply.content["status"] == "ok"


async def test_100_000_prints_are_whole_and_quick(k: Client) -> None:
    await k.run("1")
    began = now()
    answer = await k.run("for i in range(100_000): print(i)")
    took = now() - began
    assert answer.stdout == "".join(f"{i}\n" for i in range(100_000))
    assert took < 10, "a shared machine may be slow, but not ten times"


# --- what refuses, what ends --------------------------------------------------------------------------


async def test_a_refused_batch_is_delivered_again_complete_and_in_order(k: Client) -> None:
    await k.run("1")
    seen: list[Any] = []

    def sometimes(batch: Sequence[Output]) -> None:
        seen.append(batch)
        if len(seen) % 2:
            raise OSError(28, "No space left on device")
        k.got += batch
        k._news.set()

    k.wire._deliver = sometimes
    k.got.clear()
    msg_id = k.execute("for i in range(2000): print(i)")

    async def resumes() -> None:
        while True:
            await asyncio.sleep(0.001)
            k.wire.resume()

    resuming = asyncio.create_task(resumes())
    answer = await k.finish(msg_id)
    resuming.cancel()
    assert answer.stdout.split() == [str(i) for i in range(2000)]
    assert all(a is b for a, b in itertools.batched(seen, 2)) if hasattr(itertools, "batched") else True


async def test_the_end_is_reported_once_after_the_last_output(k: Client) -> None:
    await k.run("1")
    k.execute("import os\nprint('last words')\nos.write(2, b'and raw ones')\nos._exit(3)")
    with pytest.raises(WireLost) as loss:
        await k.until(lambda: False)
    assert not loss.value.violation
    text = "".join(i.text for i in k.got if isinstance(i, StreamText))
    assert "last words" in text
    assert "and raw ones" in text


async def test_the_end_waits_for_a_sink_that_refuses(k: Client) -> None:
    k.refusing = True
    k.execute("print('last words'); import os; os._exit(0)")
    await asyncio.sleep(0.3)
    assert k.loss is None
    k.refusing = False
    k.wire.resume()
    with pytest.raises(WireLost):
        await k.until(lambda: False)
    assert "last words" in "".join(i.text for i in k.got if isinstance(i, StreamText))


async def test_drain_takes_what_a_dead_kernel_left(k: Client) -> None:
    await k.run("import os, time")
    msg_id = k.execute("print('x' * 50_000); os.kill(os.getpid(), 9)")
    end = now() + 10
    while now() < end and Path(f"/proc/{k.pid}").exists() and "Z" not in _state(k.pid):
        pass  # the loop must not run, so that nothing is read before drain
    assert k.wire.drain()
    assert "x" * 50_000 in k.answer(msg_id).stdout


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


async def test_close_leaves_the_kernel_alone_and_ends_waiting_requests(k: Client) -> None:
    msg_id = k.execute("import time; time.sleep(0.2); y = 1", terse=False)
    waiting = asyncio.create_task(k.wire.control("survey"))
    await k.until(lambda: k.answer(msg_id).messages("execute_input"))
    k.wire.close()
    with pytest.raises(KernelDead):
        await waiting
    again = await Client.open(k.template, path_of(k), last_frame=k.wire.last_frame)
    assert (await again.run("y")).result == "1"
    again.wire.close()


async def test_nothing_stays_open(template: Template) -> None:
    async with kernel(template) as k:
        await k.run("1")
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(5):
        async with kernel(template) as k:
            await k.run("1")
    assert len(os.listdir("/proc/self/fd")) <= len(before)


# --- a hostile kernel --------------------------------------------------------------------------------------


HEADER = struct.Struct("<IBQ")
WELCOME = json.dumps({"version": 1, "seen": []}).encode()


class Impostor:
    """Something that listens as a kernel would and says what a test makes it say."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.server: asyncio.Server | None = None
        self.says = b""
        self.heard = bytearray()
        self.visits = 0
        self.pipes = [*os.pipe(), *os.pipe()]
        self.hands_over = [self.pipes[0], self.pipes[2]]

    async def __aenter__(self) -> Impostor:
        self.server = await asyncio.start_unix_server(self._serve, str(self.path))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.server is not None
        self.server.close()
        for fd in self.pipes:
            os.close(fd)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            self.visits += 1
            sock = socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno()))
            with sock:  # descriptors come with the first bytes
                sent = socket.send_fds(sock, [self.says[:1000]], self.hands_over)
            writer.write(self.says[sent:])
            while data := await reader.read(65536):
                self.heard += data
        writer.close()


def frame(kind: int, number: int, payload: bytes) -> bytes:
    return HEADER.pack(len(payload), kind, number) + payload


def message(number: int, **parts: bytes) -> bytes:
    given = {"header": b'{"msg_id":"a","msg_type":"status"}', "parent": b"{}", "metadata": b"{}", "content": b"{}"}
    return frame(2, number, join_v1("iopub", list({**given, **parts}.values())))


@pytest.mark.parametrize(
    "said",
    [
        frame(2, 1, b"garbage"),
        frame(2, 1, struct.pack("<Q", 1 << 60)),
        frame(2, 2, b""),
        frame(5, 1, b"\x01\xff\xff"),
        frame(5, 1, b""),
        frame(5, 1, b"\x01\x00\x00" + b"x" * (MiB)),
        frame(9, 1, b""),
        frame(1, 1, WELCOME),
        frame(6, 1, b"[]"),
        frame(6, 1, b'{"request": "x"}'),
        HEADER.pack(0xFFFFFFFF, 2, 1),
        message(1, content=b"[]"),
        message(1, content=b"{" * 5),
        message(1, content=b'{"a":' * 500 + b"1" + b"}" * 500),
        message(1, content=b'{"a":[' + b"0," * 2_100_000 + b"0]}"),
        message(1, content=b'{"a": NaN}'),
        message(1, content=b'{"a": "\xff"}'),
        message(1, header=b'{"msg_id": 5}'),
        message(1, header=b'{"msg_id": "' + b"a" * 2000 + b'"}'),
        message(1, metadata=b"1"),
        message(1) + message(1),
        message(1) + message(3),
    ],
    ids=range(22),
)
async def test_a_violation_of_the_wire_protocol_ends_the_connection(tmp_path: Path, said: bytes) -> None:
    async with Impostor(tmp_path / "k") as impostor:
        impostor.says = frame(1, 1, WELCOME) + said
        wire = await WireClient.connect(str(impostor.path))
        lost: asyncio.Future[WireLost] = asyncio.get_running_loop().create_future()
        wire.start(lambda _batch: None, lost.set_result)
        loss = await asyncio.wait_for(lost, 10)
        assert loss.violation
        assert "broke its protocol" in loss.message


@pytest.mark.parametrize(
    "said",
    [
        b"\x00" * 64,
        frame(2, 1, WELCOME),
        frame(1, 1, b"[]"),
        frame(1, 1, b'{"version": 2}'),
        frame(1, 1, b'{"version": 1, "seen": 5}'),
        frame(1, 0, WELCOME),
        HEADER.pack(1 << 30, 1, 1),
    ],
    ids=range(7),
)
async def test_an_invalid_welcome_is_refused(tmp_path: Path, said: bytes) -> None:
    async with Impostor(tmp_path / "k") as impostor:
        impostor.says = said
        with pytest.raises(WireLost) as loss:
            await WireClient.connect(str(impostor.path), deadline=5)
        assert loss.value.violation


async def test_results_that_are_sent_in_one_turn_of_the_loop_all_arrive(tmp_path: Path) -> None:
    sizes = [1, *range(200), 20_000, 1]
    async with Impostor(tmp_path / "k") as impostor:
        impostor.says = frame(1, 1, WELCOME)
        wire = await WireClient.connect(str(impostor.path))
        wire.start(lambda _batch: None, lambda _loss: None)
        for number, size in enumerate(sizes):
            wire.send_message("tools", "tool_result", {"call": f"<{number}>", "x": "x" * size}, msg_id="t")
        await wait_until(
            lambda: all(impostor.heard.count(b"<%d>" % number) == 1 for number in range(len(sizes))), deadline=60
        )
        wire.close()


async def test_frames_that_come_with_the_welcome_and_in_pieces_are_read(tmp_path: Path) -> None:
    text = frame(5, 1, b"\x01\x01\x00p" + b"one ") + frame(5, 2, b"\x01\x01\x00ptwo") + frame(5, 3, b"\x02\x01\x00pX")
    got: list[Output] = []
    async with Impostor(tmp_path / "k") as impostor:
        impostor.says = frame(1, 1, WELCOME) + text[:20]
        wire = await WireClient.connect(str(impostor.path))
        wire.start(got.extend, lambda _loss: None)
        await asyncio.sleep(0)
        for byte in text[20:]:
            wire._feed(bytes([byte]))
        assert "".join(i.text for i in got if isinstance(i, StreamText)) == "one twoX"
        assert wire.last_frame == 3
        wire.close()


async def test_a_sink_with_a_bug_ends_the_wire_and_not_the_server(k: Client) -> None:
    def broken(_batch: Sequence[Output]) -> None:
        raise ZeroDivisionError

    k.wire._deliver = broken
    k.execute("1")
    with pytest.raises(WireLost, match="log has the details"):
        await k.until(lambda: False)


async def _lost(wire: WireClient) -> WireLost:
    lost: asyncio.Future[WireLost] = asyncio.get_running_loop().create_future()
    wire.start(lambda _batch: None, lost.set_result)
    return await asyncio.wait_for(lost, 20)


async def test_other_pipes_at_a_reconnection_end_it(tmp_path: Path) -> None:
    async with Impostor(tmp_path / "k") as impostor:
        impostor.says = frame(1, 1, WELCOME)
        wire = await WireClient.connect(str(impostor.path))
        own = os.pipe()
        impostor.hands_over = [own[0], impostor.pipes[2]]
        before = len(os.listdir("/proc/self/fd"))
        wire._connection_ended()
        loss = await _lost(wire)
        assert loss.violation
        assert "other pipes" in loss.message
        assert len(os.listdir("/proc/self/fd")) < before
        for fd in own:
            os.close(fd)


async def test_a_frame_that_does_not_become_whole_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wires, "PARTIAL_SECONDS", 0.02)
    async with Impostor(tmp_path / "k") as impostor:
        impostor.says = frame(1, 1, WELCOME) + HEADER.pack(MiB, 2, 1) + bytes(MiB // 2)
        wire = await WireClient.connect(str(impostor.path))
        loss = await _lost(wire)  # it never does, so that its connections are counted
        assert loss.violation
        assert "connection ended more than 20 times" in loss.message
        assert impostor.visits == wires.MAX_DISCONNECTS + 1
        assert (wire._parser.pending, reassembly.total) == (0, 0)


async def test_half_frames_of_many_kernels_share_one_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reassembly, "max_bytes", 3 * MiB)
    async with contextlib.AsyncExitStack() as open_:
        impostors = [await open_.enter_async_context(Impostor(tmp_path / f"k{n}")) for n in range(4)]
        wires_: list[WireClient] = []
        for impostor in impostors:
            impostor.says = frame(1, 1, WELCOME) + HEADER.pack(2 * MiB, 2, 1) + bytes(MiB)
            wire = await WireClient.connect(str(impostor.path))
            impostor.says = frame(1, 1, WELCOME)  # the next time it behaves
            wire.start(lambda _batch: None, lambda _loss: None)
            wires_.append(wire)
        await wait_until(lambda: sum(impostor.visits for impostor in impostors) > 4)
        assert sum(wire._parser.pending for wire in wires_) == reassembly.total <= 3 * MiB
        assert not any(wire._disconnects for wire in wires_), "it is not their doing"
        for wire in wires_:
            wire.close()
        assert (sum(wire._parser.pending for wire in wires_), reassembly.total) == (0, 0)


async def test_a_kernel_that_disconnects_rarely_continues(k: Client) -> None:
    for n in range(5):
        k.wire._connection_ended()
        assert (await k.run(str(n))).result == str(n)
