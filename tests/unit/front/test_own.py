"""The routes that a front answers itself."""

from __future__ import annotations

import json

import pytest
from fleet import Fleet

from kernelsvc.front import own
from kernelsvc.model.cluster import ids


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v1/openapi.json", "/console/x"])
async def test_open_routes_need_no_token(fleet: Fleet, path: str) -> None:
    assert (await fleet.fetch("GET", path, token=None)).code in (200, 404)


async def test_a_browsers_preflight_needs_no_token(fleet: Fleet) -> None:
    asks = {"Origin": fleet.url, "Access-Control-Request-Method": "GET"}
    own = ["/v1/info", "/v1/nodes", "/v1/nodes/000000/drain", "/mcp", "/v2/sandboxes", "/snapshots", "/healthz"]
    for path in [*own, "/v1/sessions", "/sandboxes/metrics"]:
        response = await fleet.fetch("OPTIONS", path, headers=asks, token=None)
        assert (response.code, response.headers["Access-Control-Allow-Origin"]) == (204, fleet.url), path


async def test_a_body_without_a_reader_is_no_error(fleet: Fleet) -> None:
    for path in ["/v1/info", "/v2/sandboxes", "/snapshots", "/v1/sessions", "/sandboxes/metrics"]:
        assert (await fleet.fetch("GET", path, b"{}")).code == 200, path
    assert not fleet.front._context.requests


async def test_metrics_and_info_describe_the_cluster(fleet: Fleet) -> None:
    (session, _) = await fleet.on_each()
    await fleet.json("POST", f"/v1/sessions/{session['id']}/cells", {"code": "print(1)"}, status=200)
    text = (await fleet.fetch("GET", "/metrics", token=None)).body.decode()
    assert 'kernelsvc_cells_total{node="000000",reason="ok"} 1.0' in text
    assert text.count("# TYPE kernelsvc_sessions ") == 1
    assert all(f'kernelsvc_sessions{{kind="idle",node="{node}"}} 1.0' in text for node in ("000000", "000001"))
    assert 'kernelsvc_front_nodes{kind="ready"} 2' in text
    info = await fleet.json("GET", "/v1/info", status=200)
    assert info["nodes"] == 2
    assert set(info["public_keys"]) == {"000000", "000001"}


async def test_the_tools_of_mcp_find_sessions_on_all_nodes(fleet: Fleet) -> None:
    made = await fleet.on_each()
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}

    async def call(number: int, method: str, params: dict[str, object]) -> dict[str, object]:
        body = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        response = await fleet.fetch("POST", "/mcp", body, headers=headers)
        assert response.code == 200, response.body
        if "Mcp-Session-Id" in response.headers:
            headers["Mcp-Session-Id"] = response.headers["Mcp-Session-Id"]
        text = response.body.decode()
        lines = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
        return json.loads(lines[-1] if lines else text)["result"]

    client = {"name": "test", "version": "1"}
    await call(1, "initialize", {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client})
    for number, session in enumerate(made, 2):
        arguments = {"session": session["id"], "code": "print(6 * 7)"}
        answer = await call(number, "tools/call", {"name": "run_code", "arguments": arguments})
        assert "42" in json.dumps(answer), answer
    assert len({ids.node_of(each["id"]) for each in made}) == 2


async def test_the_tokens_of_callers_are_remembered_up_to_a_bound(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "MAX_TOKENS", 1)
    service = fleet.front._service
    alice = service.authenticate("alice-token")
    assert service.token_of(alice) == "alice-token"
    service.authenticate("bob-token")
    assert service.token_of(alice) == ""


async def test_clients_for_the_tools_of_callers_are_kept_up_to_a_bound(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "MAX_TOKENS", 2)
    backends = own.ToolBackends(fleet.front._service, fleet.url)
    for token in ("alice-token", "bob-token", "carol-token", "boss-token"):
        backends.of(fleet.front._service.authenticate(token))
    assert len(backends._clients) == 2
    await backends.stop()


async def test_no_request_for_a_backends_user_reaches_the_backends_own_sessions(fleet: Fleet) -> None:
    made = await fleet.on_each()
    paths = ["/v1/sessions", "/api/sessions", "/mcp"]
    for path in paths + [f"/v1/sessions/{each['id']}{below}" for each in made for below in ("", "/cells")]:
        verb, body = ("POST", {}) if path == "/mcp" else ("GET", None)
        answer = await fleet.fetch(verb, path, body, headers={"X-On-Behalf-Of": "user"})
        assert answer.code in (403, 404, 501), answer.body
