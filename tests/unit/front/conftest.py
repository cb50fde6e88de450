"""Fixtures of the tests of a front."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from fleet import Fleet
from http_server import TOKENS

from kernelsvc.model.tokens import TokenRecord, hash_token

#: A principal with a quota.
CAROL = TokenRecord(name="carol", sha256=hash_token("carol-token"), max_sessions=3)
BOSS = TokenRecord(name="boss", sha256=hash_token("boss-token"), scopes=frozenset({"read", "audit", "operate"}))


@pytest_asyncio.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    """A front with two nodes."""
    made = Fleet(tmp_path, tokens=[*TOKENS, CAROL, BOSS])
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
