"""Uploads have the room of their directory together, also where the watchdog does not look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from kernelsvc import AsyncClient
from kernelsvc.errors import TooLarge
from kernelsvc.model.limits import Usage
from kernelsvc.model.objects import Principal
from kernelsvc.testing import InProcessServer

KIB = 1024
SCOPES = frozenset({"read", "run"})


@pytest_asyncio.fixture
async def server() -> AsyncIterator[InProcessServer]:
    async with InProcessServer() as made:
        yield made


@pytest_asyncio.fixture(params=["unknown", "stale", "workspace"])
async def place(server: InProcessServer, request: pytest.FixtureRequest) -> AsyncIterator[tuple[Any, Principal, str]]:
    """The files of a session or a workspace that may have 100 KiB."""
    service = server.service
    async with AsyncClient(server.url, server.token) as client:
        session = await client.create_session(limits={"disk_bytes": 100 * KIB})
        who = Principal(name=service._registry.get(session.id).principal, scopes=SCOPES)  # type: ignore[union-attr]
        if request.param == "stale":  # as of a session that was hibernated since
            service._registry.usage[session.id] = Usage(disk_bytes=0)
        if request.param == "workspace":
            service.workspaces.set(who, "w", max_bytes=100 * KIB)
            yield service.workspaces.files, who, f"{who.name}/w"
        else:
            yield service.files, who, session.id


async def test_uploads_one_after_the_other(place: tuple[Any, Principal, str]) -> None:
    files, who, name = place
    await files.put(who, name, b"a", bytes(60 * KIB))
    with pytest.raises(TooLarge):
        await files.put(who, name, b"b", bytes(60 * KIB))
    writer = await files.write(who, name, b"c")
    with pytest.raises(TooLarge):
        await writer.write(bytes(60 * KIB))
    writer.close()
    await files.put(who, name, b"small", bytes(4 * KIB))
    await files.remove(who, name, b"a")
    await files.put(who, name, b"b", bytes(60 * KIB))


async def test_uploads_at_the_same_time(place: tuple[Any, Principal, str]) -> None:
    files, who, name = place
    writers = await asyncio.gather(*(files.write(who, name, f"{n}".encode()) for n in range(5)))
    results = await asyncio.gather(*(each.write(bytes(30 * KIB)) for each in writers), return_exceptions=True)
    assert sorted(type(each).__name__ for each in results) == ["NoneType"] * 3 + ["TooLarge"] * 2
    for each in writers:
        each.close()
        each.close()
    await files.put(who, name, b"all", bytes(90 * KIB))  # what was not completed takes no room


async def test_a_session_that_has_ended_is_forgotten(server: InProcessServer) -> None:
    service = server.service
    async with AsyncClient(server.url, server.token) as client:
        for _ in range(3):
            session = await client.create_session()
            service._registry.usage[session.id] = Usage(disk_bytes=0)
            who = Principal(name=service._registry.get(session.id).principal, scopes=SCOPES)  # type: ignore[union-attr]
            await service.files.put(who, session.id, b"a", b"x")
            await session.close()
    assert len(service.files._rooms._rooms) == 1
