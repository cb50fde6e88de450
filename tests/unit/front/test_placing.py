"""Where a front makes sessions."""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec
import pytest
from fleet import Fleet

from kernelsvc.errors import QuotaExceeded
from kernelsvc.front import placing as placing_module
from kernelsvc.front.placing import Placing
from kernelsvc.front.routes import Wanted
from kernelsvc.model.cluster import ids
from kernelsvc.model.objects import Principal


async def test_creations_are_spread_and_a_key_makes_one_session(fleet: Fleet) -> None:
    made = [await fleet.json("POST", "/v1/sessions", {}, status=201) for _ in range(6)]
    assert {ids.node_of(each["id"]) for each in made} == {"000000", "000001"}
    keyed = [await fleet.json("POST", "/v1/sessions", {"idempotency_key": "k"}, status=201) for _ in range(3)]
    assert len({each["id"] for each in keyed}) == 1
    by_header = await fleet.json("POST", "/v1/sessions", {}, status=201, headers={"Idempotency-Key": "k"})
    assert by_header["id"] == keyed[0]["id"]


async def test_two_fronts_make_one_session_for_a_key(fleet: Fleet) -> None:
    other = Fleet(fleet.root / "other")
    await other.start(nodes=0)
    try:
        for node in fleet.nodes:
            joined = node.joined
            await node.join(other.url)
            assert joined is not None
        await other.joined(2)
        for number in range(6):
            body = {"idempotency_key": f"k{number}"}
            first = await fleet.json("POST", "/v1/sessions", body, status=201)
            again = await other.json("POST", "/v1/sessions", body, status=201)
            assert first["id"] == again["id"]
    finally:
        await other.stop()


async def test_a_full_node_is_followed_by_another(fleet: Fleet) -> None:
    await fleet.add("00000a", max_sessions=1)
    await fleet.joined(3)
    made = [await fleet.json("POST", "/v1/sessions", {}, status=201) for _ in range(12)]
    assert sum(ids.node_of(each["id"]) == "00000a" for each in made) <= 1


async def test_a_principals_quota_counts_all_nodes(fleet: Fleet) -> None:
    for _ in range(3):
        await fleet.json("POST", "/v1/sessions", {}, status=201, token="carol-token")
    # Each node would take it.
    assert await fleet.refused("POST", "/v1/sessions", {}, token="carol-token") == (429, "quota_exceeded")
    await fleet.json("POST", "/v1/sessions", {}, status=201, token="bob-token")


async def test_branches_and_sidecars_stay_on_their_node(fleet: Fleet) -> None:
    for session in await fleet.on_each():
        (branch,) = await fleet.json("POST", f"/v1/sessions/{session['id']}/branches", {}, status=201)
        assert ids.node_of(branch["id"]) == ids.node_of(session["id"])
        beside = await fleet.json("POST", "/v1/sessions", {"sidecar_of": session["id"]}, status=201)
        assert ids.node_of(beside["id"]) == ids.node_of(session["id"])


async def test_snapshots_are_found_by_name(fleet: Fleet) -> None:
    made = [await fleet.json("POST", "/sandboxes", {"templateID": "base"}, status=201) for _ in range(4)]
    other = {ids.node_of(ids.session_of(each["sandboxID"]) or ""): each["sandboxID"] for each in made}
    for number, sandbox in enumerate(other.values()):
        taken = await fleet.json("POST", f"/sandboxes/{sandbox}/snapshots", {"name": f"snap{number}"}, status=201)
        again = await fleet.json("POST", "/sandboxes", {"templateID": f"snap{number}"}, status=201)
        assert ids.node_of(ids.session_of(again["sandboxID"]) or "") == ids.node_of(ids.session_of(sandbox) or "")
        listed = await fleet.json("GET", "/snapshots", status=200)
        assert taken["snapshotID"] in {each["snapshotID"] for each in listed}
        assert (await fleet.fetch("DELETE", f"/templates/snap{number}")).code == 204


async def test_builds_and_templates_of_a_principal_are_on_one_node(fleet: Fleet) -> None:
    asked = await fleet.json("POST", "/v3/templates", {"name": "shop"}, status=202)
    for _ in range(4):
        status = await fleet.json("GET", f"/templates/shop/builds/{asked['buildID']}/status", status=200)
        assert status["status"] == "waiting"
    there = await fleet.json("GET", f"/templates/shop/files/{'0' * 64}", status=201)
    upload = urlsplit(there["url"])
    node = upload.path.rpartition("/")[2].partition("-")[0]
    sent = await fleet.fetch("PUT", f"{upload.path}?{upload.query}", b"archive", token=None)
    assert sent.code == 200, sent.body
    assert (await fleet.fetch("GET", "/templates/aliases/shop")).code == 404
    # The record makes the template. It has no files here, because the kernels are fakes.
    record = "/v1/workspaces/alice/e2b-templates/files/shop/template.json"
    assert (await fleet.fetch("PUT", record, b"{}")).code in (200, 201)
    assert (await fleet.fetch("GET", "/templates/aliases/shop")).code == 200
    for _ in range(4):
        made = await fleet.json("POST", "/sandboxes", {"templateID": "shop"}, status=201)
        assert ids.node_of(ids.session_of(made["sandboxID"]) or "") == node
    assert (await fleet.fetch("DELETE", "/templates/shop")).code == 204
    assert (await fleet.fetch("POST", "/sandboxes", b'{"templateID": "shop"}')).code == 404


async def test_a_known_key_passes_a_full_quota(fleet: Fleet) -> None:
    """A repeat makes nothing, so the quota does not refuse it."""
    placing: Placing = fleet.front._parts["placing"]  # type: ignore[assignment]
    who = Principal(name="carol", max_sessions=1)
    (first, *_) = await placing.choose(who, "carol-token", Wanted(key="k"))
    first.candidate.note_sent("carol")
    assert (await placing.choose(who, "carol-token", Wanted(key="k")))[0] is first
    with pytest.raises(QuotaExceeded):
        await placing.choose(who, "carol-token", Wanted(key="other"))


async def test_no_principal_evicts_the_keys_of_another(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing_module, "MAX_KEYS", 2)
    placing = Placing(fleet.front._parts["cluster"], 100)  # type: ignore[arg-type]
    who = Principal(name="carol", max_sessions=1)
    (first, *_) = await placing.choose(who, "carol-token", Wanted(key="k"))
    for number in range(5):
        await placing.choose(Principal(name="bob"), "bob-token", Wanted(key=f"b{number}"))
    first.candidate.note_sent("carol")
    assert (await placing.choose(who, "carol-token", Wanted(key="k")))[0] is first


async def test_a_key_is_remembered_for_the_node_that_answered(fleet: Fleet) -> None:
    """Another node may have been the first choice, and had no room."""
    placing: Placing = fleet.front._parts["placing"]  # type: ignore[assignment]
    for number in range(8):
        body = {"idempotency_key": f"k{number}"}
        chosen = (await placing.choose(Principal(name="alice"), "alice-token", Wanted(key=f"k{number}")))[0]
        full = next(each for each in fleet.nodes if each.settings.node == chosen.name)
        full.service._registry._settings = msgspec.structs.replace(full.settings, max_sessions=0)
        first = await fleet.json("POST", "/v1/sessions", body, status=201)
        assert ids.node_of(first["id"]) != chosen.name
        full.service._registry._settings = full.settings
        assert (await fleet.json("POST", "/v1/sessions", body, status=201))["id"] == first["id"]


async def test_requests_that_make_nothing_do_not_count_for_the_quota(fleet: Fleet) -> None:
    for _ in range(3):
        await fleet.json("POST", "/v1/sessions", {}, status=201, token="carol-token")
    assert await fleet.refused("POST", "/v1/sessions", {}, token="carol-token") == (429, "quota_exceeded")
    assert await fleet.refused("POST", "/v1/sessions", {"workspace": "w"}, token="carol-token") == (
        429, "quota_exceeded"
    )  # fmt: skip
    for _ in range(3):
        await fleet.json("POST", "/v1/workspaces", {"name": "w"}, status=200, token="carol-token")
    assert sum(each.sent_for["carol"] for each in fleet.front.members.candidates()) <= 3
