"""Lists over the nodes of a front."""

from __future__ import annotations

from fleet import Fleet
from http_server import Rpc


async def test_pages_hold_all_sessions_newest_first(fleet: Fleet) -> None:
    made = [await fleet.json("POST", "/v1/sessions", {"labels": {"n": str(n)}}, status=201) for n in range(7)]
    shown: list[str] = []
    page = ""
    while True:
        found = await fleet.json("GET", f"/v1/sessions?limit=3{page}", status=200)
        assert "unreachable" not in found
        shown += [each["id"] for each in found["sessions"]]
        if found["next_page"] is None:
            break
        page = f"&page={found['next_page']}"
    assert shown == [each["id"] for each in made][::-1]
    labelled = await fleet.json("GET", "/v1/sessions?label=n=3", status=200)
    assert [each["id"] for each in labelled["sessions"]] == [made[3]["id"]]


async def test_errors_of_nodes_are_the_lists(fleet: Fleet) -> None:
    assert await fleet.refused("GET", "/v1/sessions?limit=0") == (400, "bad_request")
    assert await fleet.refused("GET", "/v1/sessions?page=x") == (400, "bad_request")
    assert await fleet.refused("GET", "/v1/sessions?principal=bob", token="reader-token") == (403, "forbidden")


async def test_absent_nodes_are_named(fleet: Fleet) -> None:
    here, _ = await fleet.on_each()
    await fleet.nodes[1].leave()
    await fleet.joined(1)
    found = await fleet.json("GET", "/v1/sessions", status=200)
    assert [each["id"] for each in found["sessions"]] == [here["id"]]
    assert found["unreachable"] == ["000001"]
    response = await fleet.fetch("GET", "/api/kernels")
    assert response.headers["X-Kernelsvc-Unreachable"] == "000001"
    async with fleet.socket() as socket:
        assert (await Rpc(socket).call("session.list"))["unreachable"] == ["000001"]
