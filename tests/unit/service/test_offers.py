"""Calls that an earlier server left open, and how long they wait for their providers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import wait_until

from kernelsvc.errors import QuotaExceeded
from kernelsvc.model.objects import Principal, SessionState
from kernelsvc.model.stimuli import CallFailed
from kernelsvc.model.tool_calls import offers as offer_model
from kernelsvc.model.tool_calls.ledger import OpenCall
from kernelsvc.model.tool_calls.offers import Offer, ProviderId
from kernelsvc.service import offer_directory
from kernelsvc.service.offers import Offers
from kernelsvc.settings import Settings


class _OneSession:
    """A registry with one session, which keeps what is decided about its calls."""

    state = SessionState.BUSY

    id, principal, running = "s", "ann", ""
    spec = SimpleNamespace(parent=None, beside=None, permits_tool=lambda tool: True)

    def __init__(self, calls: list[OpenCall]) -> None:
        self.machine = self.calls = self.tool_calls = self
        self.open = {each.id: each for each in calls}
        self.failed: asyncio.Queue[CallFailed] = asyncio.Queue()

    def get(self, _: str) -> _OneSession:
        return self

    def handle(self, stimulus: CallFailed) -> None:
        self.failed.put_nowait(stimulus)

    def changed(self) -> None:
        pass

    def require_scope(self, *_: object) -> None:
        pass

    def find_open(self, *_: object) -> _OneSession:
        return self

    def permits(self, *_: object) -> bool:
        return True

    def open_sessions(self) -> list[_OneSession]:
        return [self]

    def try_record(self, _: object) -> None:
        pass

    @property
    def offered(self) -> dict[str, Any]:
        return {}


def _call(id: str, provider: str) -> OpenCall:
    return OpenCall(
        id, "f", "c1", 1, provider, pending=False, timeout_seconds=60.0, approval_seconds=0.0, called_at=0.0,
        sent_at=0.0, effects="write", idempotent=False, redacted=False, redact_result=False, approval="never",
    )  # fmt: skip


async def test_after_a_restart_a_call_waits_for_its_provider_or_for_any() -> None:
    calls = [_call("k.1", "p/1"), _call("k.2", "")]
    outcomes: dict[str, Any] = {}
    for grace, absent in ((0.01, 60.0), (60.0, 0.01)):
        registry = _OneSession(calls)
        offers = Offers(registry, Settings(tools_grace_seconds=grace, tools_absent_seconds=absent))  # type: ignore[arg-type]
        offers.resume("s", calls)
        async with asyncio.timeout(30):
            first = await registry.failed.get()
        outcomes[first.call] = first.status
        assert registry.failed.empty(), "the other call waits on"
    assert outcomes == {"k.1": "lost", "k.2": "unavailable"}


async def test_a_call_without_a_provider_ends_as_unavailable_after_its_time() -> None:
    call = _call("k.1", "")
    registry = _OneSession([call])
    offers = Offers(registry, Settings(tools_absent_seconds=0.01))  # type: ignore[arg-type]
    offers.dispatch("s", call, {})
    async with asyncio.timeout(30):
        failed = await registry.failed.get()
    assert (failed.status, "was not carried out" in failed.message) == ("unavailable", True)


class _Sent(list[str]):
    def notify(self, method: str, params: dict[str, Any]) -> None:
        self.append(params["call"])


@pytest.mark.parametrize("limit", [{"max_in_flight": 2}, {"per_second": 0.001}])
async def test_calls_over_a_limit_wait_in_a_queue(limit: dict[str, Any]) -> None:
    calls = [_call(f"k.{n}", "") for n in range(5)]
    registry, client = _OneSession(calls), _Sent()
    offers = Offers(registry, Settings())  # type: ignore[arg-type]
    provider = {
        "session": None,
        "provider": ProviderId(id="p", instance="1"),
        "holding": [],
        "replace": True,
        "client": client,
    }
    offers.offer(Principal(name="ann"), [Offer(name="f", **limit)], **provider)
    for call in calls:
        offers.dispatch("s", call, {})
    most = int(limit.get("max_in_flight", 1))
    assert client == [f"k.{n}" for n in range(most)]
    if "max_in_flight" in limit:
        for n in range(5):
            registry.open.pop(f"k.{n}")
            offers.ended(f"k.{n}")
        assert client == [f"k.{n}" for n in range(5)], "each in its order"


def _offering(offers: Offers, names: Sequence[str], provider: str, session: str | None = None, **fields: Any) -> Any:
    connection = SimpleNamespace(notify=lambda *_: None)
    return offers.offer(
        Principal(name="ann"),
        [Offer(name=name, **fields) for name in names],
        session=session,
        provider=ProviderId(id=provider, instance="1"),
        holding=[],
        replace=True,
        client=connection,
    )


async def test_all_clients_of_a_principal_share_one_number_of_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offer_directory, "MAX_IN_SCOPE", 3)
    offers = Offers(_OneSession([]), Settings())  # type: ignore[arg-type]
    _offering(offers, ["a", "b"], "one")
    _offering(offers, ["c"], "two")
    for provider, names in (("two", ["c", "d"]), ("three", ["e"])):
        with pytest.raises(QuotaExceeded, match="Withdraw some"):
            _offering(offers, names, provider)
    _offering(offers, ["a", "b", "e"], "one", session="s")
    monkeypatch.setattr(offer_directory, "MAX_OFFERED", 6)
    with pytest.raises(QuotaExceeded):
        _offering(offers, ["f"], "two", session="t")
    _offering(offers, ["b"], "one")
    _offering(offers, ["f"], "two", session="t")


async def test_different_offers_share_a_number_of_bytes_and_equal_ones_an_object(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(offer_directory, "MAX_OFFERED_BYTES", 3000)
    offers = Offers(_OneSession([]), Settings())  # type: ignore[arg-type]
    for number in range(20):
        _offering(offers, ["a"], f"p{number}", description="x" * 2000)
    providers = offers._directory.providers.values()
    assert len({id(each.offers[None]["a"].offer) for each in providers}) == 1
    with pytest.raises(QuotaExceeded, match="Shorten"):
        _offering(offers, ["b"], "other", description="y" * 2000)
    for number in range(20):
        _offering(offers, [], f"p{number}")
    _offering(offers, ["b"], "other", description="y" * 2000)


async def test_calls_of_names_that_do_not_exist_get_few_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    nearest = offer_model.nearest
    monkeypatch.setattr(offer_model, "nearest", lambda *given: compared.append(given[0]) or nearest(*given))
    registry = _OneSession([])
    registry.running = "c1"
    offers = Offers(registry, Settings())  # type: ignore[arg-type]
    _offering(offers, ["search"], "one")
    walked = offers._directory._all
    monkeypatch.setattr(offers._directory, "_all", lambda session: compared.append("walk") or walked(session))
    refused = [offers.resolve("s", f"serch{number}", ("c1", "c1")).refusal for number in range(100)]
    assert "Did you mean 'search'?" in refused[0]
    assert "Did you mean" not in refused[-1]
    assert len(compared) == offer_directory.MAX_HINTS + 1, "one walk over all offers"
    registry.running = "c2"
    assert "Did you mean" in offers.resolve("s", "serch", ("c2", "c2")).refusal


async def test_descriptions_are_given_in_turns() -> None:
    offers = Offers(_OneSession([]), Settings())  # type: ignore[arg-type]
    answered: list[dict[str, Any]] = []
    for _ in range(3):
        offers.describe("s", {}, answered.append)
    assert not answered
    await wait_until(lambda: len(answered) == 3, what="all answers")
