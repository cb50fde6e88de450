"""Calls that an earlier server left open, and how long they wait for their providers."""

from __future__ import annotations

import asyncio
from typing import Any

from kernelsvc.model.objects import SessionState
from kernelsvc.model.stimuli import CallFailed
from kernelsvc.model.tool_calls.ledger import OpenCall
from kernelsvc.service.offers import Offers
from kernelsvc.settings import Settings


class _OneSession:
    """A registry with one session, which keeps what is decided about its calls."""

    state = SessionState.BUSY

    def __init__(self, calls: list[OpenCall]) -> None:
        self.machine = self.calls = self
        self.open = {each.id: each for each in calls}
        self.failed: asyncio.Queue[CallFailed] = asyncio.Queue()

    def get(self, _: str) -> _OneSession:
        return self

    def handle(self, stimulus: CallFailed) -> None:
        self.failed.put_nowait(stimulus)


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
