"""Offers for all sessions, as a front keeps them."""

from __future__ import annotations

import pytest

from kernelsvc.errors import QuotaExceeded
from kernelsvc.model.cluster import known_offers
from kernelsvc.model.cluster.known_offers import KnownOffers
from kernelsvc.model.tool_calls.offers import Offer, ProviderId


def offer(
    known: KnownOffers, *names: str, provider: str = "p", instance: str = "i", replace: bool = True
) -> KnownOffers:
    made = [Offer(name=name, description="d" * 100) for name in names]
    return known.offer(ProviderId(id=provider, instance=instance), made, [], replace=replace)


def names(known: KnownOffers) -> dict[str, list[str]]:
    return {name: sorted(each.offers) for name, each in known.providers.items()}


def test_offers_of_a_provider_are_replaced_or_added_to() -> None:
    known = offer(offer(KnownOffers(), "a", "b"), "c", provider="q")
    known = offer(known, "d", replace=False)
    assert names(known) == {"p": ["a", "b", "d"], "q": ["c"]}
    assert names(offer(known, "e")) == {"p": ["e"], "q": ["c"]}
    assert names(offer(known)) == {"q": ["c"]}
    assert names(offer(known, "f", instance="j", replace=False)) == {"p": ["f"], "q": ["c"]}


def test_withdrawn_offers_are_forgotten_and_need_no_room() -> None:
    known = KnownOffers()
    for number in range(3 * known_offers.MAX_KNOWN):
        known = offer(known, f"n{number}", replace=False).withdraw([f"n{number}"])
    assert names(known) == {}
    known = offer(offer(known, "a", "b"), "a", provider="q").withdraw(["a", "x"])
    assert names(known) == {"p": ["b"]}
    assert names(known.withdraw(None)) == {}


@pytest.mark.parametrize(("limit", "most"), [("MAX_KNOWN", 2), ("MAX_BYTES", 800)])
def test_too_many_are_refused(monkeypatch: pytest.MonkeyPatch, limit: str, most: int) -> None:
    monkeypatch.setattr(known_offers, limit, most)
    known = offer(KnownOffers(), "a")
    with pytest.raises(QuotaExceeded):
        offer(known, "b", "c", replace=False)
