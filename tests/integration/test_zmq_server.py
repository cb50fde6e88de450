"""A kernel behind the port, served to jupyter_client's own client over ZMQ."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import zmq
from jupyter_client.asynchronous import AsyncKernelClient
from waiting import wait_until

from kernelsvc.jupyter_app import zmq_server as bridge_module
from kernelsvc.jupyter_app.usage import UsageMeter
from kernelsvc.jupyter_app.zmq_server import ZmqServer
from kernelsvc.kernels.fake import FakeKernel, FakeLauncher
from kernelsvc.kernels.port import StartRequest
from kernelsvc.model.exit_status import Exit
from kernelsvc.model.limits import Limits

#: More displays than may wait for one reader in these tests, in the socket's buffers included.
MANY = "\n".join(["show text/plain " + "x" * 1000] * 2000 + ["show text/plain last"])


@dataclass
class Rig:
    bridge: ZmqServer
    kernel: FakeKernel
    client: AsyncKernelClient
    info: dict[str, Any]
    exits: list[Exit] = field(default_factory=list)
    shutdowns: list[int] = field(default_factory=list)

    async def run(self, code: str, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Reply and iopub messages of one cell."""
        msg_id = self.client.execute(code, **options)
        heard = []
        while True:
            message = await self.client.get_iopub_msg(timeout=10)
            if message["parent_header"].get("msg_id") != msg_id:
                continue
            heard.append(message)
            if message["content"].get("execution_state") == "idle":
                break
        while True:
            reply = await self.client.get_shell_msg(timeout=10)
            if reply["parent_header"].get("msg_id") == msg_id:
                return reply, heard


@pytest.fixture
async def rig(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(bridge_module, "IOPUB_MESSAGES", 500)
    info = {
        "transport": "ipc",
        "ip": str(short_tmp / uuid.uuid4().hex[:8]),
        "key": b"secret",
        "signature_scheme": "hmac-sha256",
    }
    info |= {f"{name}_port": i for i, name in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)}
    exits: list[Exit] = []
    shutdowns: list[int] = []
    bridge = ZmqServer(info, on_exit=exits.append, on_shutdown=lambda: shutdowns.append(1))
    bridge.open()
    launcher = FakeLauncher()
    request = StartRequest(session="s", kernel="k", template="fake", workdir="/", limits=Limits())
    kernel = await launcher.start(request, bridge)
    bridge.serve(kernel)
    client = AsyncKernelClient()
    client.load_connection_info(info)
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=10)
        yield Rig(bridge, kernel, client, info, exits, shutdowns)
    finally:
        client.stop_channels()
        client.context.destroy(linger=0)
        launcher.close()
        bridge.close()
        bridge.close()


async def test_a_cell_as_a_jupyter_client_sees_it(rig: Rig) -> None:
    reply, heard = await rig.run("print a\nraw b\nshow text/html <b>\nresult 3")
    assert [m["msg_type"] for m in heard] == [
        "status",
        "execute_input",
        "stream",
        "stream",
        "display_data",
        "execute_result",
        "status",
    ]
    assert [m["content"]["text"] for m in heard if m["msg_type"] == "stream"] == ["a\n", "b\n"]
    assert reply["content"]["status"] == "ok"
    assert reply["parent_header"]["session"] == rig.client.session.session
    assert all(m["parent_header"]["msg_type"] == "execute_request" for m in heard)


async def test_an_error_and_what_comes_after_it(rig: Rig) -> None:
    reply, heard = await rig.run("error ValueError no")
    assert reply["content"]["ename"] == "ValueError"
    assert "error" in [m["msg_type"] for m in heard]
    reply, _ = await rig.run("print on")
    assert reply["content"]["status"] == "ok"


async def test_input_goes_to_the_client_that_runs_the_cell(rig: Rig) -> None:
    cell = asyncio.ensure_future(rig.run("input who?", allow_stdin=True))
    question = await rig.client.get_stdin_msg(timeout=10)
    assert question["content"]["prompt"] == "who?"
    rig.client.input("me")
    _, heard = await cell
    assert "me\n" in [m["content"].get("text") for m in heard]


async def test_interrupt_and_shutdown_by_message(rig: Rig) -> None:
    cell = asyncio.ensure_future(rig.run("print on\nwait for-ever"))
    await wait_until(lambda: rig.kernel.process.seen)
    message = rig.client.session.msg("interrupt_request", {})
    rig.client.control_channel.send(message)
    answer = await rig.client.get_control_msg(timeout=10)
    assert answer["msg_type"] == "interrupt_reply"
    reply, _ = await cell
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    rig.client.control_channel.send(rig.client.session.msg("shutdown_request", {"restart": True}))
    answer = await rig.client.get_control_msg(timeout=10)
    assert answer["content"] == {"status": "ok", "restart": True}
    assert rig.shutdowns == [1]


@pytest.mark.parametrize(
    ("request_type", "fields"),
    [
        ("connect_request", {"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5}),
        ("kernel_info_request", {"status": "ok"}),
        ("usage_request", {}),
    ],
)
async def test_the_control_channel_answers_while_a_cell_runs(
    rig: Rig, request_type: str, fields: dict[str, Any]
) -> None:
    cell = asyncio.ensure_future(rig.run("print on\nwait for-ever"))
    await wait_until(lambda: rig.kernel.process.seen)
    rig.client.control_channel.send(rig.client.session.msg(request_type, {}))
    answer = await rig.client.get_control_msg(timeout=10)
    assert answer["msg_type"] == request_type.replace("_request", "_reply")
    assert {name: answer["content"][name] for name in fields} == fields
    assert answer["content"]["status"] == "ok"
    assert not cell.done()
    rig.kernel.interrupt()
    await cell


def test_usage_is_measured_from_outside() -> None:
    meter = UsageMeter(os.getpid())
    found = meter.content()
    assert found["pid"] == os.getpid()
    assert found["kernel_memory"] > 1 << 20
    assert {"hostname", "kernel_cpu", "host_cpu_percent", "cpu_count", "host_virtual_memory"} < found.keys()
    assert UsageMeter(2**22 + 1).content()["kernel_memory"] == 0


async def test_the_heart_beats(rig: Rig) -> None:
    assert await rig.client._async_is_alive()
    rig.client.hb_channel.unpause()
    await wait_until(lambda: rig.client.hb_channel.is_beating())


async def test_the_end_of_the_kernel_is_told(rig: Rig) -> None:
    rig.client.execute("die 9")
    await wait_until(lambda: rig.exits)
    assert rig.exits[0].signal == 9


async def test_a_client_without_the_key_is_not_heard(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    stranger = AsyncKernelClient()
    stranger.load_connection_info(rig.info | {"key": b"guess"})
    stranger.start_channels(iopub=False, stdin=False, hb=False, control=False)
    stranger.execute("print never")
    await wait_until(lambda: "signature" in caplog.text)
    stranger.stop_channels()
    stranger.context.destroy(linger=0)
    assert not rig.kernel.process.seen


async def test_a_reader_that_is_slow_blocks_the_kernel_and_loses_nothing(rig: Rig) -> None:
    rig.client.iopub_channel.stop()
    reader = zmq.Context.instance().socket(zmq.SUB)
    reader.rcvhwm = 10
    reader.subscribe(b"")
    reader.connect(f"ipc://{rig.info['ip']}-{rig.info['iopub_port']}")
    await wait_until(lambda: reader.poll(0), what="the welcome")
    rig.client.execute(MANY)
    await wait_until(lambda: rig.bridge._stalled_since is not None, deadline=30, what="a full reader")
    texts: list[bytes] = []

    def drained() -> bool:
        while reader.poll(0):
            parts = reader.recv_multipart()
            if parts[0].endswith(b".display_data"):
                texts.append(parts[-1])
        return len(texts) == MANY.count("\n") + 1

    await wait_until(drained, deadline=30, what="every display")
    assert b'"last"' in texts[-1]
    reader.close(0)


async def test_a_reader_that_is_stuck_does_not_hold_up_the_others(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge_module, "STALL_SECONDS", 0.1)
    reader = zmq.Context.instance().socket(zmq.SUB)
    reader.rcvhwm = 10
    reader.subscribe(b"")
    reader.connect(f"ipc://{rig.info['ip']}-{rig.info['iopub_port']}")
    await wait_until(lambda: reader.poll(0), what="the welcome")
    msg_id = rig.client.execute(MANY)
    reply = await rig.client.get_shell_msg(timeout=30)
    assert reply["parent_header"].get("msg_id") == msg_id
    assert reply["content"]["status"] == "ok"
    reader.close(0)


async def test_nothing_is_left_open(short_tmp: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    info = {"transport": "ipc", "ip": str(short_tmp / "x"), "key": b"k", "signature_scheme": "hmac-sha256"}
    info |= {f"{name}_port": i for i, name in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)}
    bridge = ZmqServer(info, on_exit=lambda _: None, on_shutdown=lambda: None)
    bridge.open()
    bridge.close()
    await wait_until(lambda: set(os.listdir("/proc/self/fd")) == before)
