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


async def test_a_node_that_fails_meanwhile_is_named_too(fleet: Fleet) -> None:
    """It reports, and does not answer."""
    here, _ = await fleet.on_each()
    node = fleet.front.members.get("000001")
    assert node is not None
    node.url = "unix:/nowhere/node.sock"
    await fleet.json("POST", "/api/kernels", {"kernel": {}}, status=201)
    listed = await fleet.fetch("GET", "/api/kernels")
    assert (listed.code, listed.headers["X-Kernelsvc-Unreachable"]) == (200, "000001")
    sessions = await fleet.json("GET", "/v1/sessions", status=200)
    assert sessions["unreachable"] == ["000001"]
    usage = await fleet.json("GET", f"/sandboxes/metrics?sandbox_ids={here['id']}", status=200)
    assert set(usage["sandboxes"]) == {here["id"]}
    # A second one of the same name is not made while the first may be there.
    named = "/t/alice-token/v1/spaces/default/sandboxes"
    for path, body in (("/v1/sessions", {"workspace": "w"}), (named, {"name": "n", "spec": {}})):
        assert (await fleet.fetch("POST", path, body)).code == 503
    fleet.front.members.get("000000").url = node.url  # type: ignore[union-attr]
    assert (await fleet.fetch("GET", "/api/kernels")).code == 503
