"""The generated documents: complete, and true to the answers."""

from __future__ import annotations

import json

import jsonschema
import pytest

from kernelsvc.protocol import methods
from kernelsvc.server.native import openapi as documents
from kernelsvc.server.native import routes


@pytest.fixture(scope="module")
def openapi():
    return documents.openapi("1")


def references(value):
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_every_route_and_method_is_documented(openapi):
    operations = {operation["operationId"] for path in openapi["paths"].values() for operation in path.values()}
    assert operations == {route.id for route in routes.ROUTES}
    assert {method["name"] for method in documents.openrpc("1")["methods"]} == set(methods.METHODS)


def test_every_native_method_that_makes_sense_without_a_connection_has_a_route():
    reached = {route.method for route in routes.ROUTES} | {route.id for route in routes.ROUTES}
    of_connections = {"session.attach", "session.detach", "tools.offer", "tools.withdraw"}
    assert set(methods.METHODS) - reached == {*of_connections, "session.batch"}


@pytest.mark.parametrize("make", [documents.openapi, documents.openrpc])
def test_every_reference_leads_somewhere(make):
    document = make("1")
    for reference in references(document):
        assert reference.rpartition("/")[2] in document["components"]["schemas"], reference


def test_paths_have_their_parameters_and_bodies_do_not(openapi):
    operation = openapi["paths"]["/v1/sessions/{session}/cells"]["post"]
    assert [p["name"] for p in operation["parameters"] if p["in"] == "path"] == ["session"]
    for form in operation["requestBody"]["content"]["application/json"]["schema"]["oneOf"]:
        assert "session" not in form["properties"]
        assert form["additionalProperties"] is False


def test_only_the_open_routes_ask_for_no_token(openapi):
    open_routes = {path for path, verbs in openapi["paths"].items() for op in verbs.values() if not op["security"]}
    assert open_routes == {"/healthz", "/readyz", "/metrics", "/v1/openapi.json", "/v1/openrpc.json"}


def schema_for(openapi, path, verb, status):
    content = openapi["paths"][path][verb]["responses"][status]["content"]["application/json"]["schema"]
    return {**content, "components": openapi["components"]}


async def test_real_answers_fit_the_document(http_server, openapi):
    session = await http_server.json("POST", "/v1/sessions", {})
    base = f"/v1/sessions/{session['id']}"
    cell = await http_server.json("POST", f"{base}/cells", {"code": "1/0", "cell": "c"})
    await http_server.fetch("PUT", f"{base}/files/f", b"1")
    answers = [
        ("/v1/sessions", "post", "201", session),
        ("/v1/sessions/{session}/cells", "post", "200", cell),
        ("/v1/sessions/{session}/cells", "get", "200", await http_server.json("GET", f"{base}/cells")),
        ("/v1/sessions", "get", "200", await http_server.json("GET", "/v1/sessions")),
        ("/v1/sessions/{session}/events", "get", "200", await http_server.json("GET", f"{base}/events")),
        ("/v1/sessions/{session}/files/", "get", "200", await http_server.json("GET", f"{base}/files/")),
        (
            "/v1/sessions",
            "get",
            "default",
            json.loads((await http_server.fetch("GET", "/v1/sessions", token=None)).body),
        ),
    ]
    for path, verb, status, answer in answers:
        jsonschema.validate(answer, schema_for(openapi, path, verb, status))


async def test_events_fit_the_document(http_server):
    openrpc = documents.openrpc("1")
    schema = {**openrpc["x-notifications"][0]["schema"], "components": openrpc["components"]}
    session = await http_server.json("POST", "/v1/sessions", {})
    await http_server.json("POST", f"/v1/sessions/{session['id']}/cells", {"code": "print(1)\n1/0"})
    for event in (await http_server.json("GET", f"/v1/sessions/{session['id']}/events"))["events"]:
        jsonschema.validate(event, schema)


def test_the_reference_table_has_every_route():
    text = routes.markdown()
    assert text.count("\n") == len(routes.ROUTES) + 2
    assert all(f"`{route.verb} {route.path}`" in text for route in routes.ROUTES)


def test_openrpc_says_which_methods_may_be_sent_twice() -> None:
    rows = {row["name"]: row["x-repeatable"] for row in documents.openrpc("1")["methods"]}
    assert rows["session.execute"]
    assert rows["session.create"]
    assert rows["session.get"]
    # A second interrupt would hit the next cell, and an attachment belongs to one connection.
    assert not any(rows[name] for name in ("session.interrupt", "session.input", "call", "session.attach"))
