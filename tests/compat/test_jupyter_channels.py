"""The Jupyter API as a plain client meets it: REST, and both framings of the channels."""

from __future__ import annotations

import asyncio
import contextlib
import urllib.error
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from served import Served
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from kernelsvc.model.cluster.ids import session_of_kernel
from kernelsvc.protocol import jupyter
from kernelsvc.protocol.jupyter import JupyterMessage

SECONDS = 30
ME = "client-1"


class Socket:
    """A Jupyter client's end of the channels."""

    def __init__(self, ws: ClientConnection) -> None:
        self.ws = ws
        self.v1 = ws.subprotocol == jupyter.SUBPROTOCOL

    async def send(self, msg_type: str, content: dict[str, Any], *, channel: str = "shell", **more: Any) -> str:
        header = {"msg_id": uuid.uuid4().hex, "msg_type": msg_type, "session": ME, "username": "", "version": "5.0"}
        message = JupyterMessage(channel=channel, header=header, content=content, **more)
        await self.ws.send(jupyter.encode_v1(message) if self.v1 else jupyter.encode_json(message))
        return str(header["msg_id"])

    async def next(self) -> JupyterMessage:
        async with asyncio.timeout(SECONDS):
            data = await self.ws.recv()
        return jupyter.decode_v1(data) if self.v1 and isinstance(data, bytes) else jupyter.decode_json(data)

    async def until_idle(self, parent: str) -> list[JupyterMessage]:
        found = []
        while True:
            message = await self.next()
            if message.parent == parent:
                found.append(message)
                if message.content.get("execution_state") == "idle":
                    return found

    async def run(self, code: str, **content: Any) -> list[JupyterMessage]:
        return await self.until_idle(await self.send("execute_request", {"code": code, **content}))

    async def ask(self, msg_type: str, content: dict[str, Any], channel: str = "shell") -> dict[str, Any]:
        found = await self.until_idle(await self.send(msg_type, content, channel=channel))
        (reply,) = (m for m in found if m.msg_type.endswith("_reply"))
        assert reply.channel == channel
        return reply.content


def types(found: list[JupyterMessage]) -> list[str]:
    return [str(m.content.get("execution_state") or m.msg_type) for m in found]


def text(found: list[JupyterMessage]) -> str:
    return "".join(m.content["text"] for m in found if m.msg_type == "stream")


@pytest.fixture
async def kernel(served: Served) -> AsyncIterator[str]:
    made = served.call("POST", "/api/kernels")
    yield made["id"]
    with contextlib.suppress(urllib.error.HTTPError):  # some tests end it themselves
        served.call("DELETE", f"/api/kernels/{made['id']}")


def channels(served: Served, kernel: str, *, v1: bool = False, client: str = ME, query: bool = True) -> connect:
    asked = f"?token={served.token}&session_id={client}" if query else ""
    url = served.url.replace("http", "ws", 1) + f"/api/kernels/{kernel}/channels{asked}"
    protocols = [jupyter.SUBPROTOCOL] if v1 else None
    return connect(url, subprotocols=protocols, max_size=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("v1", [False, True])
async def test_a_cell_in_both_framings(served: Served, kernel: str, v1: bool) -> None:
    async with channels(served, kernel, v1=v1) as ws:
        socket = Socket(ws)
        assert socket.v1 == v1
        info = await socket.ask("kernel_info_request", {})
        assert info["language_info"]["name"] == "python"
        found = await socket.run("print('a')\n1+1")
        assert list(dict.fromkeys(types(found))) == [
            "busy",
            "execute_input",
            "stream",
            "execute_result",
            "execute_reply",
            "idle",
        ]
        assert {m.parent_header["session"] for m in found} == {ME}
        failed = await socket.run("1/0")
        assert types(failed)[-3:] == ["error", "execute_reply", "idle"]
        assert failed[-2].content["ename"] == "ZeroDivisionError"


async def test_the_gateway_s_rest(served: Served) -> None:
    assert "version" in served.call("GET", "/api")
    specs = served.call("GET", "/api/kernelspecs")
    assert specs["default"] in specs["kernelspecs"]
    assert served.call("GET", "/api/kernelspecs/python3")["spec"]["language"] == "python"
    assert served.call("GET", "/kernelspecs/python3/kernel.json")["display_name"]
    made = served.call(
        "POST", "/api/sessions", {"path": "a/b.ipynb", "type": "notebook", "kernel": {"name": "python3"}}
    )
    kernel = made["kernel"]["id"]
    assert (made["path"], kernel.count("-")) == ("a/b.ipynb", 4)
    assert kernel in [each["id"] for each in served.call("GET", "/api/kernels")]
    assert kernel in [each["kernel"]["id"] for each in served.call("GET", "/api/sessions")]
    assert served.call("GET", f"/api/kernels/{kernel}")["last_activity"].endswith("Z")
    assert served.call("POST", f"/api/kernels/{kernel}/interrupt") is None
    assert served.call("POST", f"/api/kernels/{kernel}/restart")["id"] == kernel
    assert served.call("DELETE", f"/api/kernels/{kernel}") is None
    with pytest.raises(urllib.error.HTTPError, match="404"):
        served.call("GET", f"/api/kernels/{kernel}")


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/api/kernels", {"Authorization": "token test-token"}),
        ("/api/kernels", {"Authorization": "Token test-token"}),
        ("/api/kernels?token=test-token", {"Authorization": ""}),
        ("/t/test-token/api/kernels", {"Authorization": ""}),
    ],
)
def test_a_token_may_come_in_many_ways(served: Served, path: str, headers: dict[str, str]) -> None:
    assert isinstance(served.call("GET", path, headers=headers), list)


@pytest.mark.parametrize("path", ["/api/kernels", "/t/wrong/api/kernels", "/api/kernels?token=wrong"])
async def test_without_a_token_the_door_is_closed(served: Served, kernel: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        served.call("GET", path, headers={"Authorization": ""})
    with pytest.raises(InvalidStatus, match="401"):
        await channels(served, kernel, query=False).__aenter__()
    assert served.token not in served.output().partition("\n")[2]


async def test_the_journal_has_what_came_through_this_door(served: Served, kernel: str) -> None:
    async with channels(served, kernel) as ws:
        found = await Socket(ws).run("6*7")
    session = session_of_kernel(kernel)
    (cell,) = served.call("GET", f"/v1/sessions/{session}/cells")["cells"]
    assert (cell["id"], cell["text"].strip()) == (found[0].parent, "42")


async def test_two_sockets_see_one_kernel(served: Served, kernel: str) -> None:
    async with channels(served, kernel) as one, channels(served, kernel, client="client-2") as two:
        first, second = Socket(one), Socket(two)
        await second.ask("kernel_info_request", {})
        sent = await first.send("execute_request", {"code": "print(5)"})
        assert "execute_reply" in types(await first.until_idle(sent))
        assert text(await second.until_idle(sent)) == "5\n"


async def test_a_socket_that_comes_back_gets_what_it_missed(served: Served, kernel: str) -> None:
    async with channels(served, kernel) as ws:
        socket = Socket(ws)
        await socket.run("import time; from pathlib import Path")
        code = (
            "print('begun', end='', flush=True)\nwhile not Path('go').exists(): time.sleep(.01)\nprint('missed')\n1/0"
        )
        cell = await socket.send("execute_request", {"code": code})
        while (await socket.next()).msg_type != "stream":
            pass
        # The pong that says that this arrived goes out before what this ping asks for.
        await (await ws.ping())
    session = session_of_kernel(kernel)
    served.call("PUT", f"/v1/sessions/{session}/files/go", {})
    async with channels(served, kernel) as ws:
        found = await Socket(ws).until_idle(cell)
    assert text(found) == "missed\n"
    assert list(dict.fromkeys(types(found))) == ["stream", "error", "execute_reply", "idle"]
    assert found[-2].content["ename"] == "ZeroDivisionError"


async def test_questions(served: Served, kernel: str) -> None:
    async with channels(served, kernel) as ws:
        socket = Socket(ws)
        await socket.run("alpha = [1]")
        assert "alpha" in (await socket.ask("complete_request", {"code": "alp", "cursor_pos": 3}))["matches"]
        assert (await socket.ask("inspect_request", {"code": "alpha", "cursor_pos": 5, "detail_level": 0}))["found"]
        assert (await socket.ask("is_complete_request", {"code": "for"}))["status"] == "invalid"
        tail = {"hist_access_type": "tail", "n": 1, "output": False, "raw": True}
        assert (await socket.ask("history_request", tail))["history"][-1][2] == "alpha = [1]"
        assert (await socket.ask("comm_info_request", {}))["comms"] == {}
        assert (await socket.ask("nonsense_request", {}))["ename"] == "bad_request"


@pytest.mark.parametrize(
    ("code", "source"), [("zip?", "page"), ("get_ipython().set_next_input('1')", "set_next_input")]
)
async def test_the_payload_of_a_cell_reaches_the_client(served: Served, kernel: str, code: str, source: str) -> None:
    async with channels(served, kernel) as ws:
        found = await Socket(ws).run(code)
    assert [each["source"] for each in found[-2].content["payload"]] == [source]


async def test_metadata_goes_to_the_kernel_and_the_start_comes_back(served: Served, kernel: str) -> None:
    async with channels(served, kernel) as ws:
        socket = Socket(ws)
        code = "print(get_ipython().kernel.get_parent('shell')['metadata'].get('cellId'))"
        sent = await socket.send("execute_request", {"code": code}, metadata={"cellId": "abc"})
        found = await socket.until_idle(sent)
        assert text(found) == "abc\n"
        started, ended = found[-2].metadata["started"], found[-2].header["date"]
        assert started <= ended
        assert text(await socket.run(code)) == "None\n"


async def test_a_display_id_of_a_result_stays(served: Served, kernel: str) -> None:
    code = (
        "k = get_ipython().kernel\nk.session.send(k.iopub_socket, 'execute_result', {'data': {'text/plain': '9'}, "
        "'metadata': {}, 'transient': {'display_id': 'r'}, 'execution_count': 1}, parent=k.get_parent('shell'));"
    )
    async with channels(served, kernel) as ws:
        (result,) = (m for m in await Socket(ws).run(code) if m.msg_type == "execute_result")
    assert result.content["transient"] == {"display_id": "r"}


async def test_the_debugger_stops_a_cell_and_the_session_has_no_checkpoint_meanwhile(
    served: Served, kernel: str
) -> None:
    code = "def f(a):\n    return a + 1\n\nprint(f(41))"

    async def debug(socket: Socket, command: str, **arguments: Any) -> dict[str, Any]:
        content = {"type": "request", "seq": 1, "command": command, "arguments": arguments}
        return await socket.ask("debug_request", content, channel="control")

    async with channels(served, kernel) as ws, channels(served, kernel, client="other") as other_ws:
        socket, other = Socket(ws), Socket(other_ws)
        assert not (await debug(socket, "debugInfo"))["body"]["isStarted"]
        assert (await debug(socket, "initialize", clientID="test", adapterID=""))["success"]
        assert (await debug(socket, "attach"))["success"]
        path = (await debug(socket, "dumpCell", code=code))["body"]["sourcePath"]
        await debug(socket, "setBreakpoints", source={"path": path}, breakpoints=[{"line": 2}])
        cell = await socket.send("execute_request", {"code": code})
        while (event := await other.next()).content.get("event") != "stopped":  # all clients see it
            pass
        assert (event.channel, event.msg_type) == ("iopub", "debug_event")
        stack = await debug(other, "stackTrace", threadId=1)
        assert stack["body"]["stackFrames"][0]["name"] == "f"
        await debug(other, "continue", threadId=1)
        assert text(await socket.until_idle(cell)) == "42\n"
        session = f"/v1/sessions/{session_of_kernel(kernel)}"
        with pytest.raises(urllib.error.HTTPError) as refused:
            served.call("POST", f"{session}/branches", {})
        assert "Turn the debugger off" in refused.value.read().decode()
        await debug(socket, "disconnect")
        assert served.call("POST", f"{session}/branches", {})


def test_a_preflight_and_the_kernelspec_python(served: Served) -> None:
    assert served.call("OPTIONS", "/api/kernels") is None
    made = served.call("POST", "/api/kernels", {"name": "python"})
    assert made["name"] == "python3"
    served.call("DELETE", f"/api/kernels/{made['id']}")
    assert served.call("GET", "/api/kernelspecs/python3")["spec"]["metadata"]["debugger"] is True


async def test_stdin(served: Served, kernel: str) -> None:
    async with channels(served, kernel) as ws:
        socket = Socket(ws)
        cell = await socket.send("execute_request", {"code": "print(input('? '))", "allow_stdin": True})
        while (asked := await socket.next()).msg_type != "input_request":
            pass
        assert (asked.channel, asked.content["prompt"]) == ("stdin", "? ")
        await socket.send("input_reply", {"value": "there"}, channel="stdin")
        assert "there\n" in text(await socket.until_idle(cell))


async def test_input_is_refused_where_the_client_can_not_answer(served: Served, kernel: str) -> None:
    async with channels(served, kernel) as ws:
        found = await Socket(ws).run("input()", allow_stdin=False)
    assert found[-2].content["ename"] == "StdinNotImplementedError"


async def test_expressions_are_evaluated_after_the_cell(served: Served, kernel: str) -> None:
    async with channels(served, kernel) as ws:
        socket = Socket(ws)
        wanted = {"six": "n * 2", "bad": "nothing_of_that_name", "big": "'x' * 10**6"}
        found = (await socket.run("n = 3", user_expressions=wanted))[-2].content
        six, bad, big = (found["user_expressions"][name] for name in wanted)
        assert (six["status"], six["data"]["text/plain"]) == ("ok", "6")
        assert (bad["status"], bad["ename"]) == ("error", "NameError")
        assert (big["status"], big["ename"]) == ("error", "TooLarge")
        assert (await socket.run("n = 4", user_expressions={}))[-2].content["user_expressions"] == {}
        silent = await socket.run("n = 5", silent=True, user_expressions={"n": "n"})
        assert silent[-2].content["user_expressions"]["n"]["data"]["text/plain"] == "5"
        assert "execute_input" not in types(silent)
        failed = (await socket.run("1/0", user_expressions={"n": "n"}))[-2].content
        assert (failed["status"], failed["user_expressions"]) == ("error", {})
        assert (await socket.run("n", user_expressions={"n": 5}))[-2].content["ename"] == "bad_request"


async def test_a_cell_that_is_not_to_be_stored_stays_out_of_history(served: Served, kernel: str) -> None:
    async with channels(served, kernel) as ws:
        socket = Socket(ws)
        await socket.run("stored = 1")
        counts = [
            (await socket.run(code, **how))[-2].content["execution_count"]
            for code, how in (("a = 1", {}), ("b = 2", {"store_history": False}), ("a + b", {}))
        ]
        assert counts[2] == counts[0] + 1
        tail = {"hist_access_type": "tail", "n": 3, "output": False, "raw": True}
        kept = [entry[2] for entry in (await socket.ask("history_request", tail))["history"]]
        assert kept == ["stored = 1", "a = 1", "a + b"]


async def test_a_failed_cell_does_not_stop_those_that_were_to_go_on(served: Served, kernel: str) -> None:
    async with channels(served, kernel) as ws:
        socket = Socket(ws)
        code = "import time; from pathlib import Path\nwhile not Path('go').exists(): time.sleep(.01)\n1/0"
        failing = await socket.send("execute_request", {"code": code, "stop_on_error": False})
        second = await socket.send("execute_request", {"code": "print('on')"})
        served.call("PUT", f"/v1/sessions/{session_of_kernel(kernel)}/files/go", {})
        assert (await socket.until_idle(failing))[-2].content["ename"] == "ZeroDivisionError"
        assert text(await socket.until_idle(second)) == "on\n"


async def test_interrupt_and_shutdown_by_message(served: Served, kernel: str) -> None:
    async with channels(served, kernel) as ws:
        socket = Socket(ws)
        cell = await socket.send(
            "execute_request", {"code": "print('on', flush=True)\nmark = __import__('time'); mark.sleep(60)"}
        )
        while (await socket.next()).msg_type != "stream":
            pass
        await socket.send("interrupt_request", {}, channel="control")
        assert (await socket.until_idle(cell))[-2].content["ename"] == "KeyboardInterrupt"
        assert (await socket.ask("shutdown_request", {"restart": True}, "control"))["restart"]
        assert "NameError" in (await socket.run("mark"))[-2].content["ename"]
        await socket.send("shutdown_request", {"restart": False}, channel="control")
        with pytest.raises(ConnectionClosed):
            await socket.until_idle("nothing: until it is closed")


COMM = """
from comm import create_comm
from ipykernel.comm import Comm
c = Comm(target_name='t', data={'a': 1}, buffers=[b'\\x00\\xff'])
def heard(msg):
    print('heard', msg['content']['data'], [bytes(b) for b in msg['buffers']])
    c.send({'back': 2}, buffers=[b'\\xfe'])
c.on_msg(heard)
"""


@pytest.mark.parametrize("v1", [False, True])
async def test_comms_both_ways(served: Served, kernel: str, v1: bool) -> None:
    async with channels(served, kernel, v1=v1) as ws:
        socket = Socket(ws)
        (opened,) = (m for m in await socket.run(COMM) if m.msg_type == "comm_open")
        assert (opened.content["data"], opened.buffers) == ({"a": 1}, (b"\x00\xff",))
        sent = {"comm_id": opened.content["comm_id"], "data": {"x": 1}}
        found = await socket.until_idle(await socket.send("comm_msg", sent, buffers=(b"\x80",)))
        assert text(found) == "heard {'x': 1} [b'\\x80']\n"
        (back,) = (m for m in found if m.msg_type == "comm_msg")
        assert (back.content["data"], back.buffers) == ({"back": 2}, (b"\xfe",))


async def test_a_crash_is_told_and_the_variables_are_kept(served: Served, kernel: str) -> None:
    async with channels(served, kernel) as ws:
        socket = Socket(ws)
        await socket.run("kept = 7")
        died = await socket.run("import os; os.abort()")
        assert died[-2].content["status"] == "error"
        assert died[-2].content["ename"] == "KernelDied"
        assert "7\n" in text(await socket.run("print(kept)"))


async def test_what_can_t_be_read_is_answered(served: Served, kernel: str) -> None:
    async with channels(served, kernel) as ws:
        socket = Socket(ws)
        for bad in ("{", "[]", '{"header": 5}', "{}", b"\x00", b"\x00\x00\x00\xff"):
            await ws.send(bad)
            assert (await socket.next()).msg_type == "error"
        assert (await socket.run("1", silent="x"))[-2].content["status"] == "ok"
        (reply,) = (m for m in await socket.run(5) if m.channel == "shell")  # type: ignore[arg-type]
        assert reply.content["ename"] == "bad_request"
