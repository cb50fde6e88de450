"""Finding the node of what a request names."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import msgspec
from fleet import Fleet
from http_server import Rpc

from kernelsvc.front.locating import Cluster
from kernelsvc.model.cluster import ids
from kernelsvc.protocol import e2b

NAME = "abcdef"


async def test_sandboxai_names_are_found_on_any_node(fleet: Fleet) -> None:
    prefix = "/t/alice-token/v1/spaces/default/sandboxes"
    for name in ("one", "two", "three"):
        body = {"name": name, "spec": {}}
        assert (await fleet.fetch("POST", prefix, body, token=None)).code in (200, 201)
        assert (await fleet.fetch("POST", prefix, body, token=None)).code == 409
        assert (await fleet.json("GET", f"{prefix}/{name}", status=200, token=None))["name"] == name
        run = await fleet.json(
            "POST", f"{prefix}/{name}/tools:run_ipython_cell", {"code": "print(1)"}, status=200, token=None
        )
        assert "1" in run["output"]
        assert (await fleet.fetch("DELETE", f"{prefix}/{name}", token=None)).code == 204
    assert (await fleet.fetch("GET", f"{prefix}/none", token=None)).code == 404


async def test_workspaces_are_found_on_their_node(fleet: Fleet) -> None:
    for name in ("a", "b", "c"):
        made = await fleet.json("POST", "/v1/workspaces", {"name": name}, status=200)
        assert made["workspace"] == f"alice/{name}"
        assert (await fleet.fetch("PUT", f"/v1/workspaces/alice/{name}/files/f", b"x")).code == 201
        assert (await fleet.fetch("GET", f"/v1/workspaces/alice/{name}/files/f")).body == b"x"
    listed = await fleet.json("GET", "/v1/workspaces", status=200)
    assert {each["workspace"] for each in listed} == {"alice/a", "alice/b", "alice/c"}


async def test_volumes_of_e2b_are_found_on_their_node(fleet: Fleet) -> None:
    made = [await fleet.json("POST", "/volumes", {"name": name}, status=201) for name in ("u", "v", "w")]
    listed = await fleet.json("GET", "/volumes", status=200)
    assert {each["name"] for each in listed} >= {"u", "v", "w"}
    for each in made:
        path, key = f"/volumecontent/{each['volumeID']}", {"Authorization": f"Bearer {each['token']}"}
        sent = await fleet.fetch("PUT", f"{path}/file?path=/f", b"x", token=None, headers=key)
        assert sent.code == 201
        assert (await fleet.fetch("GET", f"{path}/file?path=/f", token=None, headers=key)).body == b"x"
        assert (await fleet.fetch("DELETE", f"/volumes/{each['volumeID']}")).code == 204


async def test_each_way_to_name_a_workspace_finds_one_node(fleet: Fleet) -> None:
    """Bob's workspaces of the same names are shared with Alice, and are others."""
    for name in ("a", "b", "c", "d"):
        share = {"name": name, "shared_with": ["alice"]}
        await fleet.json("POST", "/v1/workspaces", share, status=200, token="bob-token")
        nodes = set()
        for body in ({"workspace": name}, {"workspace": f"alice/{name}"}):
            session = await fleet.json("POST", "/v1/sessions", body, status=201)
            assert session["workspace"] == f"alice/{name}"
            nodes.add(ids.node_of(session["id"]))
        assert len(nodes) == 1
        async with fleet.socket() as socket:
            session = await Rpc(socket).call("session.create", workspace=f"bob/{name}")
            assert (await Rpc(socket).call("workspace.set", name=name))["sessions"] == 2
        assert (await fleet.json("POST", "/v1/workspaces", {"name": name}, status=200))["sessions"] == 2
    shown = [each["workspace"] for each in await fleet.json("GET", "/v1/workspaces", status=200)]
    assert sorted(shown) == [f"{owner}/{name}" for owner in ("alice", "bob") for name in "abcd"]
    assert await fleet.refused("POST", "/v1/sessions", {"workspace": "a b"}) == (400, "bad_request")


async def test_signed_addresses_without_a_sandbox_find_their_node(fleet: Fleet) -> None:
    made = [await fleet.json("POST", "/sandboxes", {"templateID": "base"}, status=201) for _ in range(3)]
    for each in made:
        path = f"/home/user/{each['sandboxID']}.txt"
        given = e2b.signature(path, "write", "user", each["envdAccessToken"])
        query = urlencode({"path": path, "username": "user", "signature": given})
        body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nhello\r\n--b--\r\n'
        form = {"Content-Type": "multipart/form-data; boundary=b"}
        assert (await fleet.fetch("POST", f"/files?{query}", body, token=None, headers=form)).code == 200
        given = e2b.signature(path, "read", "user", each["envdAccessToken"])
        query = urlencode({"path": path, "username": "user", "signature": given})
        read = await fleet.fetch("GET", f"/files?{query}", token=None)
        assert (read.code, read.body) == (200, b"hello")
    wrong = "v1_" + "a" * 43
    assert (await fleet.fetch("GET", f"/files?path=/x&signature={wrong}", token=None)).code == 401


async def test_ids_of_an_older_data_directory_are_found(fleet: Fleet) -> None:
    """A server that joins keeps the sessions that it made before, whose ids do not name it."""
    node = await fleet.add(NAME)
    await fleet.joined(3)
    old = await _session_without_node(node)
    path = f"/v1/sessions/{old}"
    assert (await fleet.json("GET", path, status=200))["id"] == old
    async with fleet.socket() as socket:
        assert (await Rpc(socket).call("session.get", session=old))["id"] == old
    await fleet.json("DELETE", path, status=200)
    assert (await fleet.json("GET", path, status=200))["state"] == "closed"
    cluster: Cluster = fleet.front._parts["cluster"]  # type: ignore[assignment]
    assert (await cluster.node_of(old, "alice-token")).name == NAME


async def _session_without_node(node: Any) -> str:
    creator = node.service._creator
    before, creator._settings = creator._settings, msgspec.structs.replace(creator._settings, node="")
    try:
        return (await node.json("POST", "/v1/sessions", {}, status=201))["id"]
    finally:
        creator._settings = before
