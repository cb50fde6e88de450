"""The native WebSocket at a front."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import pytest
import pytest_asyncio
import websockets
from fleet import KEY, Fleet
from http_server import Rpc
from waiting import wait_until

from kernelsvc.front import socket as front_socket
from kernelsvc.model.cluster import ids
from kernelsvc.model.cluster.reports import PROTOCOL, Hello, NodeMessage, NodeReport
from kernelsvc.server import connections
from kernelsvc.server.ws.socket_stream import SocketStream

MIB = 1 << 20


@pytest_asyncio.fixture
async def rpc(fleet: Fleet) -> AsyncIterator[Rpc]:
    async with fleet.socket() as socket:
        yield Rpc(socket)


async def test_sessions_of_two_nodes_share_a_socket_in_order(fleet: Fleet, rpc: Rpc) -> None:
    made = [await rpc.call("session.create") for _ in range(4)]
    assert {ids.node_of(each["id"]) for each in made} == {"000000", "000001"}
    numbers = [
        (each["id"], n, await rpc.send("session.execute", {"session": each["id"], "code": f"print({n})"}))
        for n in range(10)
        for each in made
    ]
    for session, n, number in numbers:
        cell = (await rpc.answer(number))["result"]
        assert (cell["session"], cell["reason"], cell["execution_count"]) == (session, "ok", n + 1)
    for each in made:
        events = rpc.events(each["id"])
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert sum(event["type"] == "cell_finished" for event in events) == 10
        await rpc.call("session.detach", session=each["id"])


async def test_creation_answers_before_the_first_event(rpc: Rpc) -> None:
    made = await rpc.call("session.create")
    await rpc.call("session.execute", session=made["id"], code="1")
    first = next(n for n, one in enumerate(rpc.heard) if one.get("result", {}).get("id") == made["id"])
    assert not any("method" in one for one in rpc.heard[:first])
    quiet = await rpc.call("session.create", attach=False)
    await rpc.call("session.execute", session=quiet["id"], code="1")
    assert rpc.events(quiet["id"]) == []


async def test_requests_without_a_session(fleet: Fleet, rpc: Rpc) -> None:
    made = await rpc.call("session.create", idempotency_key="k")
    assert (await rpc.call("session.create", idempotency_key="k"))["id"] == made["id"]
    assert [each["id"] for each in (await rpc.call("session.list"))["sessions"]] == [made["id"]]
    assert (await rpc.call("info"))["nodes"] == 2
    assert (await rpc.call("templates"))[0]["name"] == "python3"
    assert (await rpc.call("call", code="1 + 1"))["reason"] == "ok"
    assert (await rpc.call("workspace.set", name="w"))["workspace"] == "alice/w"
    assert [each["workspace"] for each in await rpc.call("workspace.list")] == ["alice/w"]
    assert (await rpc.call("workspace.get", name="w"))["workspace"] == "alice/w"


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("session.get", {"session": "s_0000000000000000"}, "not_found"),
        ("session.get", {"session": "s_0000010000000000000000"}, "not_found"),
        ("session.get", {"session": 7}, "bad_request"),
        ("session.get", {"session": "nonsense"}, "not_found"),
        ("session.none", {"session": "s_0000010000000000000000"}, "not_found"),
        ("session.create", {"template": "none"}, "not_found"),
        ("session.create", {"surprise": 1}, "bad_request"),
        ("session.list", {"page": "x"}, "bad_request"),
    ],
    ids=str,
)
async def test_errors_are_those_of_a_server(rpc: Rpc, method: str, params: dict[str, object], code: str) -> None:
    assert (await rpc.refused(method, **params))["code"] == code


@pytest.mark.parametrize("frame", ["no json", "[]", '{"jsonrpc":"2.0","id":1,"method":5}'])
async def test_a_frame_that_is_no_request_gets_an_error(rpc: Rpc, frame: str) -> None:
    await rpc.socket.send(frame)
    assert "error" in await rpc.hear()


async def test_a_node_that_goes_cuts_the_socket_and_the_session_goes_on(fleet: Fleet) -> None:
    here, there = await fleet.on_each()
    async with fleet.socket() as socket:
        rpc = Rpc(socket)
        await rpc.call("session.attach", session=there["id"])
        await fleet.nodes[1].leave()
        await rpc.socket.wait_closed()
    async with fleet.socket() as socket:
        rpc = Rpc(socket)
        held = await rpc.send("session.get", {"session": there["id"]})
        # The other node's session is served meanwhile.
        assert (await rpc.call("session.get", session=here["id"]))["id"] == here["id"]
        assert not any(one.get("id") == held for one in rpc.heard)
        await fleet.nodes[1].join(fleet.url)
        assert (await rpc.answer(held))["result"]["id"] == there["id"]


async def test_offers_for_all_sessions_reach_all_nodes_also_later_ones(fleet: Fleet, rpc: Rpc) -> None:
    offer = {"name": "shout", "description": "d", "parameters": {"type": "object", "properties": {}}}
    answer = await rpc.call("tools.offer", offers=[offer], provider={"id": "p", "instance": "i"})
    assert [each["name"] for each in answer["offered"]] == ["shout"]
    await fleet.add("00000a")
    await fleet.joined(3)
    for session in await fleet.on_each():

        async def offered(name: str = session["id"]) -> bool:
            return bool((await rpc.call("session.tools", session=name))["tools"])

        await wait_until(offered)
    await rpc.call("tools.withdraw")
    for session in await fleet.on_each():
        assert (await rpc.call("session.tools", session=session["id"]))["tools"] == []


@asynccontextmanager
async def dead_node(fleet: Fleet) -> AsyncIterator[None]:
    """A node that reports, and accepts no connections."""
    fleet.front.members.hold_seconds = 0.3
    url = fleet.url.replace("http", "ws") + "/v1/cluster/join"
    async with websockets.connect(url, additional_headers={"Authorization": f"Bearer {KEY}"}) as socket:
        hello = Hello(protocol=PROTOCOL, node="abcdef", instance="i", url="unix:/nowhere/node.sock", version="1")
        for message in (NodeMessage(hello=hello), NodeMessage(report=NodeReport(max_sessions=9, ready=True))):
            await socket.send(msgspec.json.encode(message))
        await wait_until(lambda: fleet.front.members.get("abcdef") is not None)
        yield


async def test_the_fronts_own_requests_end_with_their_node(fleet: Fleet, rpc: Rpc) -> None:
    async with dead_node(fleet), asyncio.timeout(20):
        offer = {"name": "shout", "description": "d", "parameters": {"type": "object", "properties": {}}}
        answer = await rpc.call("tools.offer", offers=[offer], provider={"id": "p", "instance": "i"})
        assert [each["name"] for each in answer["offered"]] == ["shout"]
        for node in fleet.nodes:
            await node.leave()
        await fleet.joined(1)
    # A socket that was joined with a node is cut with it.
    async with dead_node(fleet), fleet.socket() as socket, asyncio.timeout(20):
        other = Rpc(socket)
        assert (await other.refused("templates"))["code"] == "node_unreachable"
        assert (await other.refused("workspace.get", name="w"))["code"] == "node_unreachable"
    assert all(isinstance(one.get("id", 0), int) for one in [*rpc.heard, *other.heard])


async def test_a_client_that_makes_up_nodes_has_room_for_few_requests(
    fleet: Fleet, rpc: Rpc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_socket, "MAX_FRAMES", 3)
    fleet.front.members.hold_seconds = 1.0
    for _ in range(2):  # the room is free again when the requests have ended
        fleet.front.members._started = asyncio.get_running_loop().time()  # later, no request waits for such a node
        sent = [await rpc.send("session.get", {"session": f"s_{n:06x}{'0' * 16}"}) for n in range(0xA0, 0xA5)]
        codes = [(await rpc.answer(each))["error"]["data"]["code"] for each in sent]
        assert codes == ["node_unreachable"] * 3 + ["quota_exceeded"] * 2


async def test_requests_of_all_clients_that_wait_have_one_bound(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each client alone may have 64 MiB."""
    monkeypatch.setattr(connections, "MAX_HELD", 3 * MIB)
    limiter = fleet.server._http.connections
    assert limiter is not None
    fleet.front.members.hold_seconds = 30.0
    await fleet.nodes[1].leave()
    await fleet.joined(1)
    session, code = "s_000001" + "0" * 16, "x" * MIB
    request = json.dumps(
        {"jsonrpc": "2.0", "id": 1, "method": "session.execute", "params": {"session": session, "code": code}}
    )
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(fleet.socket()) for _ in range(6)]
        for each in sockets:
            await each.send(request)
        await wait_until(
            lambda: sum(each.close_code is not None for each in sockets) >= 3, what="the largest are closed"
        )
        assert limiter._held <= 3 * MIB
        await fleet.nodes[1].join(fleet.url)
        await wait_until(lambda: limiter._held == 0, what="the node has read the others")


async def test_a_client_that_does_not_read_holds_its_node_up(fleet: Fleet) -> None:
    """The front keeps little of what a client does not take."""
    _, session = await fleet.on_each()
    async with fleet.socket() as socket:
        rpc = Rpc(socket)
        await rpc.call("session.attach", session=session["id"])
        code = "for _ in range(200): print('x' * 100_000)"
        number = await rpc.send("session.execute", {"session": session["id"], "code": code})
        (client,) = fleet.front._context.sockets - {
            c for member in fleet.front.members.known() for c in member.connections
        }
        most = 0

        def ended() -> bool:
            nonlocal most
            most = max(most, client._send_queue.backlog)
            return fleet.state(session["id"]) == "idle"

        await wait_until(ended, deadline=30)
        assert most < 8 * 1024 * 1024
        assert (await rpc.answer(number))["result"]["reason"] == "ok"


async def test_a_socket_needs_a_token(fleet: Fleet) -> None:
    with pytest.raises(websockets.InvalidStatus):
        await fleet.socket(token="wrong").__aenter__()


async def test_requests_that_come_together_leave_in_one_write_to_each_node(
    fleet: Fleet, rpc: Rpc, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [*await fleet.on_each()]
    for each in made:
        await rpc.call("session.get", session=each["id"])
    requests: list[int] = []
    send = SocketStream._send

    def counted(self: SocketStream, data: bytes) -> int:
        if count := data.count(b"session.get"):
            requests.append(count)
        return send(self, data)

    monkeypatch.setattr(SocketStream, "_send", counted)
    socket = rpc.socket
    for number in range(20):
        session = made[number % 2]["id"]
        message = {"jsonrpc": "2.0", "id": f"n{number}", "method": "session.get", "params": {"session": session}}
        socket.protocol.send_text(msgspec.json.encode(message))
    socket.transport.write(b"".join(socket.protocol.data_to_send()))
    for number in range(20):
        assert (await rpc.answer(f"n{number}"))["result"]["id"] == made[number % 2]["id"]
    assert requests == [10, 10]
