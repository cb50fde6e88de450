"""Calls that an earlier server left open, and how long they wait for their providers."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from kernelsvc.model.objects import Principal, SessionState
from kernelsvc.model.stimuli import CallFailed
from kernelsvc.model.tool_calls.ledger import OpenCall
from kernelsvc.model.tool_calls.offers import Offer, ProviderId
from kernelsvc.service.offers import Offers
from kernelsvc.settings import Settings


class _OneSession:
    """A registry with one session, which keeps what is decided about its calls."""

    state = SessionState.BUSY

    id, principal, spec = "s", "ann", SimpleNamespace(parent=None, beside=None)

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
