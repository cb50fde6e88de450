"""Look-ups and connections of the egress proxy."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from kernelsvc.egress.upstream import LOOKUPS, Upstream
from kernelsvc.model.network.policy import NetworkPolicy, Refused
from kernelsvc.model.network.rules import NetworkRules

#: More sessions than asyncio's default pool of threads could serve: it has 32 threads at most.
SESSIONS = 32 // LOOKUPS + 1


def upstream() -> Upstream:
    return Upstream(NetworkPolicy(NetworkRules(allow=("*.example.com",))), {})


async def test_names_whose_servers_do_not_answer_delay_no_other_session(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()

    def look_up(host: str, port: int, *more: Any, **options: Any) -> list[Any]:
        if host.startswith("slow"):
            answers.wait(60)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    hostile = [upstream() for _ in range(SESSIONS)]
    waiting = [asyncio.create_task(one.connect("slow.example.com", 80)) for one in hostile for _ in range(LOOKUPS)]
    other = upstream()
    try:
        async with asyncio.timeout(8):
            with pytest.raises(Refused, match="not a public address"):
                await other.connect("quick.example.com", 80)
    finally:
        answers.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        for one in (*hostile, other):
            one.close()
