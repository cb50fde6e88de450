"""Tickets of signed addresses."""

from __future__ import annotations

import msgspec
import pytest

from kernelsvc.model.network.ports import Ticket, TicketSignature, parse_ticket, ticket_mac

TICKET = Ticket(session="s_0123456789abcdef", port=3000, expires=2_000_000_000, mac="")
SIGNED = msgspec.structs.replace(TICKET, mac=ticket_mac("secret", 3000, 2_000_000_000, 1))


def test_a_ticket_survives_its_text() -> None:
    assert parse_ticket(SIGNED.text()) == SIGNED
    assert TicketSignature(SIGNED, 1).is_signed_with("secret")


@pytest.mark.parametrize("change", [{"port": 3001}, {"expires": 2_000_000_001}, {"mac": "0" * 64}])
def test_a_changed_ticket_is_void(change: dict[str, object]) -> None:
    assert not TicketSignature(msgspec.structs.replace(SIGNED, **change), 1).is_signed_with("secret")


def test_a_closed_port_or_another_secret_makes_a_ticket_void() -> None:
    assert not TicketSignature(SIGNED, 2).is_signed_with("secret")
    assert not TicketSignature(SIGNED, 1).is_signed_with("other")


@pytest.mark.parametrize("text", ["", "a.b", SIGNED.text() + "0", SIGNED.text().replace("3000", "٣٠٠٠"), "x" * 5000])
def test_other_texts_are_no_tickets(text: str) -> None:
    assert parse_ticket(text) is None
