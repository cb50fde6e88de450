"""Tickets: once, for a minute, a limited number."""

from __future__ import annotations

import pytest

from kernelsvc.model.tokens import TokenRecord
from kernelsvc.server.console.sign_in import MAX_TICKETS, TICKET_SECONDS, Tickets
from kernelsvc.store.token_file import TokenFile


def test_a_ticket_gives_its_token_once():
    tickets = Tickets()
    one, other = tickets.issue("a", "ann", 0.0), tickets.issue("b", "bob", 0.0)
    assert one != other
    assert tickets.redeem(other, 1.0) == "b"
    assert tickets.redeem(other, 1.0) is None
    assert tickets.redeem(one, TICKET_SECONDS) == "a"


@pytest.mark.parametrize("ticket", ["", "x", "a" * 43])
def test_an_unknown_ticket_gives_nothing(ticket):
    assert Tickets().redeem(ticket, 0.0) is None


def test_a_ticket_expires_and_old_ones_make_way():
    tickets = Tickets()
    late = tickets.issue("a", "ann", 0.0)
    assert tickets.redeem(late, TICKET_SECONDS + 0.1) is None
    others, first = tickets.issue("a", "ann", 100.0), tickets.issue("b", "bob", 100.0)
    for _ in range(MAX_TICKETS):
        tickets.issue("b", "bob", 100.0)
    assert tickets.redeem(first, 100.0) is None
    assert tickets.redeem(others, 100.0) == "a", "one principal drops no ticket of another"
    kept = tickets.issue("c", "ann", 100.0 + TICKET_SECONDS + 1)
    assert list(tickets._tokens) == [kept]


async def test_a_ticket_over_http(http_server):
    answer = await http_server.json("POST", "/console/tickets", {}, status=201)
    body = {"ticket": answer["ticket"]}
    found = await http_server.fetch("POST", "/console/tickets/redeem", body, token=None)
    assert (found.code, found.body) == (200, b'{"token":"alice-token"}')
    again = await http_server.fetch("POST", "/console/tickets/redeem", body, token=None)
    assert again.code == 401
    assert b"kernelsvc console" in again.body
    assert (await http_server.fetch("POST", "/console/tickets", {}, token=None)).code == 401
    me = await http_server.json("GET", "/console/me", status=200)
    assert me == {"principal": "alice", "scopes": ["approve", "read", "run"], "console": "on", "scripts": True}


async def test_the_origin_of_another_page_gets_no_token(http_server):
    ticket = (await http_server.json("POST", "/console/tickets", {}, status=201))["ticket"]
    headers = {"Origin": "http://evil.example"}
    asked = await http_server.fetch("POST", "/console/tickets/redeem", {"ticket": ticket}, token=None, headers=headers)
    assert asked.code == 403


async def test_a_user_of_a_backend_gets_no_ticket_for_its_token(http_server):
    tokens = TokenFile(http_server.settings.data_path() / "keys")
    token, _ = tokens.create(lambda digest: TokenRecord(name="backend", sha256=digest, scopes=frozenset({"delegate"})))
    user = {"X-On-Behalf-Of": "user"}
    assert await http_server.refused("POST", "/console/tickets", {}, token=token, headers=user) == (403, "forbidden")
    await http_server.json("POST", "/console/tickets", {}, 201, token=token)
