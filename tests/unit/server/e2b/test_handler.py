"""How the E2B API admits: secrets, tokens, signatures, and what is said of a sandbox that is not there."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import quote

import pytest
from http_server import HttpServer

from kernelsvc.model.objects import Principal
from kernelsvc.protocol import connect, e2b
from kernelsvc.server.e2b import handler as api
from kernelsvc.server.e2b import process

ENVD, TRAFFIC = {"E2b-Sandbox-Port": "49983"}, {"E2b-Sandbox-Port": "49999"}


@pytest.fixture
async def sandbox(http_server: HttpServer) -> str:
    return (await http_server.json("POST", "/v1/sessions", {}, 201))["id"]


def alice(http_server: HttpServer) -> Principal:
    """The owner of ``sandbox``, as its token names it."""
    return http_server.service.authenticate("alice-token")


async def health(http_server: HttpServer, headers: dict[str, str], **more: Any) -> tuple[int, Any]:
    response = await http_server.fetch("GET", "/health", token=more.pop("token", None), headers=headers, **more)
    body = response.body.decode()
    return response.code, json.loads(body) if body.startswith("{") else body


async def test_the_sandboxs_secrets_open_it(http_server: HttpServer, sandbox: str) -> None:
    access, where = http_server.service.access, {"E2b-Sandbox-Id": sandbox}
    envd = {"X-Access-Token": access.secret(alice(http_server), sandbox, e2b.ENVD)}
    traffic = {"E2B-Traffic-Access-Token": access.secret(alice(http_server), sandbox, e2b.TRAFFIC)}
    assert await health(http_server, where | ENVD | envd) == (204, "")
    assert await health(http_server, where | TRAFFIC | traffic) == (200, "OK")
    assert await health(http_server, where | TRAFFIC | {"X-API-KEY": "alice-token"}) == (200, "OK")
    assert await health(http_server, where | ENVD, token="alice-token") == (204, "")


@pytest.mark.parametrize("headers", [{}, {"X-Access-Token": "x"}, {"X-API-KEY": "x"}, {"Authorization": "Basic dTo="}])
async def test_without_one_it_is_closed(http_server: HttpServer, sandbox: str, headers: dict[str, str]) -> None:
    for where in ({"E2b-Sandbox-Id": sandbox}, {"E2b-Sandbox-Id": "s_none"}, {}):
        status, said = await health(http_server, where | ENVD | headers)
        assert (status, said["code"]) == (401, 401)
        assert said["message"]


async def test_another_ones_sandbox_is_not_found(http_server: HttpServer, sandbox: str) -> None:
    status, said = await health(http_server, {"E2b-Sandbox-Id": sandbox, **ENVD}, token="bob-token")
    assert (status, said["message"]) == (502, "The sandbox was not found")
    theirs = {"X-Access-Token": http_server.service.access.secret(alice(http_server), "s_other", e2b.ENVD)}
    assert (await health(http_server, {"E2b-Sandbox-Id": sandbox, **ENVD, **theirs}))[0] == 401


async def test_a_sandbox_that_has_ended_is_not_found(http_server: HttpServer, sandbox: str) -> None:
    await http_server.fetch("DELETE", f"/v1/sessions/{sandbox}")
    secret = {"X-Access-Token": http_server.service.access.secret(alice(http_server), sandbox, e2b.ENVD)}
    status, said = await health(http_server, {"E2b-Sandbox-Id": sandbox, **ENVD, **secret})
    assert (status, said) == (
        502,
        {"sandboxId": e2b.shown_id(sandbox), "message": "The sandbox was not found", "code": 502},
    )


async def test_a_port_that_nobody_listens_on_is_not_open(http_server: HttpServer, sandbox: str) -> None:
    where = {"E2b-Sandbox-Id": sandbox, "E2b-Sandbox-Port": "8080"}
    status, said = await health(http_server, where, token="alice-token")
    assert status == 502
    assert "port is not open" in said["message"]


async def test_only_the_first_message_of_a_calls_body_is_read(
    http_server: HttpServer, sandbox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bytes] = []
    monkeypatch.setattr(connect, "_message", lambda data: read.append(data) or {"path": "."})
    kind = {"E2b-Sandbox-Id": sandbox, **ENVD, "Content-Type": connect.STREAM}
    body = bytes(5) * 100_000
    await http_server.fetch("POST", "/filesystem.Filesystem/Stat", body, headers=kind, token="alice-token")
    assert read == [b""]


async def test_long_input_of_a_principals_programs_is_read_in_turn(http_server: HttpServer, sandbox: str) -> None:
    kind = {"E2b-Sandbox-Id": sandbox, **ENVD, "Content-Type": connect.STREAM}

    async def send(size: int) -> int:
        path, body = "/process.Process/StreamInput", bytes(5) * (size // 5)
        return (await http_server.fetch("POST", path, body, headers=kind, token="alice-token")).code

    async with http_server.app.settings["context"].turn_of(alice(http_server), "input"):
        long = asyncio.ensure_future(send(2 * process.MAX_TYPED))
        assert await send(100) == 200
        assert not long.done()
    assert await long == 200


async def test_a_signed_address_opens_what_it_was_signed_for(
    http_server: HttpServer, sandbox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.SandboxHandler, "signed", {"GET": "read"})
    secret = http_server.service.access.secret(alice(http_server), sandbox, e2b.ENVD)

    async def fetch(path: str, signed: str, where: dict[str, str], **more: Any) -> int:
        signature = e2b.signature(signed, "read", "", secret, more.get("signature_expiration"))
        query = "&".join(f"{k}={quote(str(v))}" for k, v in {"path": path, "signature": signature, **more}.items())
        return (await http_server.fetch("GET", f"/health?{query}", token=None, headers=where)).code

    for where in ({"E2b-Sandbox-Id": sandbox}, {}):
        assert await fetch("a b", "a b", where) == 204
        assert await fetch("a b", "a b", where, signature_expiration=2**32) == 204
        assert await fetch("a b", "a c", where) == 401
        assert await fetch("a b", "a b", where, signature_expiration=1) == 401
        assert await fetch("a b", "a b", where, username="root") == 401
    await http_server.fetch("DELETE", f"/v1/sessions/{sandbox}")
    assert await fetch("a b", "a b", {}) == 401
    assert await fetch("a b", "a b", {"E2b-Sandbox-Id": sandbox}) == 502


def test_an_error_that_connect_reads_has_a_word() -> None:
    assert [api.connect_code(status) for status in (404, 502, 500, 418)] == [
        "not_found", "unavailable", "internal", "internal",
    ]  # fmt: skip


async def test_a_page_of_a_configured_origin_may_send_e2bs_headers(open_http_server: Any) -> None:
    http_server = await open_http_server(origins=["https://app.example"])
    asking = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    answer = await http_server.fetch("OPTIONS", "/sandboxes/s_1", token=None, headers=asking)
    assert answer.code == 204
    assert "E2b-Sandbox-Id" in answer.headers["Access-Control-Allow-Headers"]
    assert (
        await http_server.fetch("OPTIONS", "/execute", token=None, headers={"Origin": "https://x.example"})
    ).code == 403
