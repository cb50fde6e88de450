"""Nodes that join a front, and what clients get when one fails."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
import websockets
from fleet import KEY, Fleet
from http_server import Rpc
from waiting import wait_until

from kernelsvc import __version__
from kernelsvc.front.members import ask, reachable_url
from kernelsvc.model.cluster import reports
from kernelsvc.model.cluster.reports import Hello, NodeMessage, NodeReport
from kernelsvc.model.tokens import TokenRecord, hash_token
from kernelsvc.server.joining import Membership

NAME = "abcdef"


def joining(fleet: Fleet, key: str = KEY) -> Any:
    url = fleet.url.replace("http", "ws") + "/v1/cluster/join"
    return websockets.connect(url, additional_headers={"Authorization": f"Bearer {key}"})


def hello(**more: Any) -> bytes:
    fields: dict[str, Any] = {
        "protocol": reports.PROTOCOL, "node": NAME, "instance": "i", "url": "http://127.0.0.1:1", "version": "1",
    }  # fmt: skip
    return msgspec.json.encode(NodeMessage(hello=Hello(**{**fields, **more})))


REPORT = msgspec.json.encode(NodeMessage(report=NodeReport(max_sessions=10, ready=True)))


async def nodes(fleet: Fleet) -> dict[str, Any]:
    found = await fleet.json("GET", "/v1/nodes", status=200, token="boss-token")
    return {**found, "nodes": {each["node"]: each for each in found["nodes"]}}


async def test_nodes_are_listed_with_their_state(fleet: Fleet) -> None:
    await fleet.on_each()

    async def two() -> bool:
        return sum(each["sessions"] for each in (await nodes(fleet))["nodes"].values()) == 2

    await wait_until(two)
    found = await nodes(fleet)
    assert {each["state"] for each in found["nodes"].values()} == {"ready"}
    assert found["nodes"]["000000"]["url"] == fleet.nodes[0].url
    assert found["nodes"]["000000"]["version"] == __version__
    assert found["refused"] == []
    assert await fleet.refused("GET", "/v1/nodes") == (403, "forbidden")


async def test_a_wrong_key_is_refused_and_the_node_says_what_to_do(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        await joining(fleet, "another key").__aenter__()
    assert refused.value.response.status_code == 401
    state = fleet.nodes[0].service.node_state()
    membership = Membership([fleet.url], "another key", NAME, fleet.url, "", state, lambda: None)
    task = asyncio.create_task(membership.run())

    async def logged() -> bool:
        return "another cluster key" in caplog.text

    await wait_until(logged)
    task.cancel()
    assert NAME not in (await nodes(fleet))["nodes"]
    assert "Refused a wrong cluster key from 127.0.0.1" in caplog.text


async def test_the_limits_of_unauthenticated_connections_do_not_cut_nodes(fleet: Fleet) -> None:
    limiter = fleet.server._http.connections
    assert limiter is not None
    joined = {each.ws_connection.stream.connection for node in fleet.front.members.known() for each in node.connections}
    assert len(joined) == 2
    for each in joined:
        assert each.overdue(limiter.now() + 3600, 3600) is None
        assert limiter._victim() is not each


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"protocol": 99}, "version 99 of the cluster's protocol"),
        ({"node": "000000", "instance": "other"}, "Two servers use copies of one data directory"),
        ({"url": "ftp://x"}, "is no address of a server"),
        ({"node": "../x"}, "can't read the node's message"),
    ],
    ids=["protocol", "one data directory", "address", "name"],
)
async def test_a_node_that_does_not_fit_is_told_why(fleet: Fleet, wrong: dict[str, Any], why: str) -> None:
    fields: dict[str, Any] = {
        "protocol": reports.PROTOCOL, "node": NAME, "instance": "i", "url": "http://127.0.0.1:1", "version": "1",
    }  # fmt: skip
    wanted = {**fields, **wrong}
    async with joining(fleet) as socket:
        await socket.send(msgspec.json.encode({"hello": wanted}))
        assert why in await socket.recv()
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
    shown = await nodes(fleet)
    assert set(shown["nodes"]) == {"000000", "000001"}
    named = f"the node {wanted['node']} at {wanted['url']}: "
    assert wrong == {"node": "../x"} or any(each.startswith(named) and why in each for each in shown["refused"])


async def test_a_node_that_is_refused_again_is_logged_once(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        async with joining(fleet) as socket:
            await socket.send(hello(protocol=99))
            await socket.recv()
    assert caplog.text.count(f"Refused the node {NAME}") == 1


async def test_a_question_to_a_node_that_goes_has_no_answer(fleet: Fleet) -> None:
    """The request that asks goes on. It is not cancelled."""
    async with joining(fleet) as socket:
        await socket.send(hello())
        await socket.send(REPORT)
        await fleet.joined(3)
        member = fleet.front.members.get(NAME)
        assert member is not None
        question = asyncio.ensure_future(ask(member, key=("alice", "k")))
        assert b'"key"' in await socket.recv(decode=False)
    async with asyncio.timeout(10):
        assert await question is None


async def test_another_release_is_taken_and_shown(fleet: Fleet) -> None:
    async with joining(fleet) as socket:
        await socket.send(hello(version="0.0.1"))
        await socket.send(REPORT)
        await fleet.joined(3)
        assert "it has kernelsvc 0.0.1" in (await nodes(fleet))["nodes"][NAME]["warnings"][0]


async def test_other_tokens_are_shown(fleet: Fleet) -> None:
    await fleet.add(NAME, tokens=[*fleet.settings.tokens, TokenRecord(name="eve", sha256=hash_token("eve"))])
    await fleet.joined(3)
    found = (await nodes(fleet))["nodes"]
    assert "its tokens are others" in found[NAME]["warnings"][0]
    assert found["000000"]["warnings"] == []


async def test_a_silent_node_is_noticed_held_and_then_refused(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "SILENT_SECONDS", 0.3)
    fleet.front.members.hold_seconds = 0.3
    session = f"s_{NAME}0123456789abcdef"
    async with joining(fleet) as socket:
        await socket.send(hello())
        await socket.send(REPORT)

        async def silent() -> bool:
            return (await nodes(fleet))["nodes"].get(NAME, {}).get("state") == "unreachable"

        await wait_until(silent)
        await socket.send(REPORT)

        async def again() -> bool:
            return (await nodes(fleet))["nodes"][NAME]["state"] == "ready"

        # Its connection was not cut: it may only have been slow.
        await wait_until(again)
        await wait_until(silent)
        monkeypatch.setattr(reports, "CUT_SECONDS", 0.3)
        await socket.wait_closed()
    response = await fleet.fetch("GET", f"/v1/sessions/{session}")
    assert (response.code, response.headers["Retry-After"]) == (503, "1")
    assert b'"node_unreachable"' in response.body
    async with fleet.socket() as socket:
        error = await Rpc(socket).refused("session.get", session=session)
        assert (error["code"], error["retryable"], error["details"]["node"]) == ("node_unreachable", True, NAME)
    sandbox = await fleet.json("GET", f"/sandboxes/{session}", status=503)
    assert set(sandbox) == {"code", "message"}


async def test_a_request_waits_for_a_node_that_comes_back(fleet: Fleet) -> None:
    _, session = await fleet.on_each()
    await fleet.nodes[1].leave()
    await fleet.joined(1)
    held = asyncio.ensure_future(
        fleet.json("POST", f"/v1/sessions/{session['id']}/cells", {"code": "print(1)"}, status=200)
    )
    await fleet.json("GET", "/v1/sessions", status=200)
    assert not held.done()
    await fleet.nodes[1].join(fleet.url)
    assert (await held)["reason"] == "ok"


@pytest.mark.parametrize("joined", [True, False], ids=["lost", "never joined"])
async def test_a_request_for_a_node_that_is_away_for_long_is_not_held(fleet: Fleet, joined: bool) -> None:
    _, session = await fleet.on_each()
    members, path = fleet.front.members, f"/v1/sessions/{session['id']}"
    await fleet.nodes[1].leave()
    await fleet.joined(1)
    members.hold_seconds = 300.0
    lost = members.get("000001")
    assert lost is not None
    assert lost.lost_at is not None
    lost.lost_at -= 301.0
    members._started -= 301.0
    if not joined:
        del members._all["000001"]
    async with asyncio.timeout(60):
        response = await fleet.fetch("GET", path)
        assert (response.code, response.headers["Retry-After"]) == (503, "1")
        assert b"Start its server again, it is away for 301 s" in response.body
        # Its server starts: requests wait until it is ready.
        async with joining(fleet) as socket:
            await socket.send(hello(node="000001"))
            await wait_until(lambda: (found := members.get("000001")) is not None and found.lost_at is None)
            held = asyncio.ensure_future(fleet.json("GET", path, status=200))
            await fleet.json("GET", "/v1/sessions", status=200)
            assert not held.done()
        await fleet.nodes[1].join(fleet.url)
        assert (await held)["id"] == session["id"]


async def test_a_session_of_a_node_that_stays_away_is_lost(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    await fleet.start(1, hold_seconds=0.05, lost_seconds=0.1)
    try:
        path = f"/v1/sessions/s_{NAME}0123456789abcdef"

        async def lost() -> bool:
            return await fleet.refused("GET", path) == (410, "session_lost")

        await wait_until(lost)
        assert await fleet.refused("GET", "/v1/sessions/s_0123456789abcdef") == (404, "not_found")
    finally:
        await fleet.stop()


async def test_a_front_without_nodes_answers_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet(tmp_path)
    await fleet.start(0, hold_seconds=0.05)
    try:
        assert (await fleet.fetch("GET", "/healthz", token=None)).code == 200
        assert (await fleet.fetch("GET", "/readyz", token=None)).code == 503
        assert "refused GET" not in caplog.text, "a probe that asks each second fills no log"
        assert await fleet.refused("POST", "/v1/sessions", {}) == (503, "at_capacity")
        assert await fleet.refused("GET", f"/v1/sessions/s_{NAME}0123456789abcdef") == (503, "node_unreachable")
        assert (await fleet.json("GET", "/v1/sessions", status=200))["sessions"] == []
        async with fleet.socket() as socket:
            assert (await Rpc(socket).refused("session.create"))["code"] == "at_capacity"
    finally:
        await fleet.stop()


@pytest.mark.parametrize("move", [False, True])
async def test_a_node_is_asked_to_drain(fleet: Fleet, move: bool) -> None:
    asked: list[dict[str, str]] = []
    node = fleet.nodes[0]
    await node.leave()
    state = node.service.node_state()
    membership = Membership([fleet.url], KEY, "000000", node.url, "", state, asked.append)
    node.joined = asyncio.create_task(membership.run())
    await fleet.joined(2)
    assert await fleet.refused("POST", "/v1/nodes/000000/drain") == (403, "forbidden")
    assert await fleet.refused("POST", "/v1/nodes/000000/drain?move=now", token="boss-token") == (400, "bad_request")
    query = "?move=true" if move else ""
    answer = await fleet.json("POST", f"/v1/nodes/000000/drain{query}", status=202, token="boss-token")
    assert answer == {"node": "000000", "state": "draining"}
    await wait_until(lambda: asked)
    assert asked == [{"000001": fleet.nodes[1].url} if move else {}]
    assert await fleet.refused("POST", "/v1/nodes/ffffff/drain", token="boss-token") == (404, "not_found")
    await node.leave()
    await wait_until(lambda: fleet.front.members.unreachable())
    assert await fleet.refused("POST", "/v1/nodes/000000/drain", token="boss-token") == (503, "node_unreachable")


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://0.0.0.0:8888", "http://10.0.0.7:8888"),
        ("http://[::]:8888", "http://10.0.0.7:8888"),
        ("http://10.1.1.1:80", "http://10.1.1.1:80"),
        ("unix:/run/node.sock", "unix:/run/node.sock"),
    ],
)
def test_a_node_on_all_addresses_has_the_one_that_it_calls_from(url: str, found: str) -> None:
    assert reachable_url(url, "10.0.0.7") == found
