"""What a branch is to be, what is refused before anything is forked, and how copying is told of."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from kernelsvc import AsyncClient
from kernelsvc.errors import AtCapacity, BadRequest, TooLarge
from kernelsvc.model import events as ev
from kernelsvc.model.limits import Limits
from kernelsvc.model.objects import MAX_LABELS
from kernelsvc.service import branching
from kernelsvc.session import SessionSpec
from kernelsvc.testing import InProcessServer

MIB = 1 << 20


def about(**fields: Any) -> SessionSpec:
    given = {"id": "s_b", "principal": "p", "template": "t", "workdir": "", "kernel": "k", "created_at": ""}
    return SessionSpec(**{"limits": Limits(), **given, **fields})


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "data").write_bytes(bytes(range(256)) * 4096 * 3)
    return tmp_path / "user"


def test_what_fits_is_measured(files: Path) -> None:
    assert 3 * MIB <= branching._must_fit(files, [about()]) < 4 * MIB


def test_more_than_a_branch_may_have_is_refused(files: Path) -> None:
    with pytest.raises(TooLarge, match="Delete some files") as refused:
        branching._must_fit(files, [about(limits=Limits(disk_bytes=MIB))])
    assert refused.value.details["allowed"] == MIB
    branching._must_fit(files, [about(limits=Limits(disk_bytes=None))])


def test_more_than_the_disk_holds_is_refused(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branching, "free_bytes", lambda _: 10 * MIB)
    monkeypatch.setattr(branching, "_shares_blocks", lambda _: False)
    branching._must_fit(files, [about()] * 2)
    with pytest.raises(AtCapacity, match="do not fit on the disk"):
        branching._must_fit(files, [about()] * 4)
    monkeypatch.setattr(branching, "_shares_blocks", lambda _: True)
    branching._must_fit(files, [about()] * 4)


async def test_how_far_copying_is_is_told(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[ev.Event] = []

    class Parent:
        try_record = told.append

    monkeypatch.setattr(branching, "REPORT_SECONDS", 0.01)
    parent: Any = Parent
    telling = asyncio.ensure_future(
        branching._report_copying(parent, [about(id="user"), about(id="other")], files.parent, 99)
    )
    await wait_until(lambda: told)
    telling.cancel()
    first = told[0]
    assert isinstance(first, ev.Branching)
    assert (first.sessions, first.total_bytes) == (["user", "other"], 99)
    assert first.copied_bytes >= 3 * MIB


async def test_the_number_of_labels_is_bounded_also_along_branches() -> None:
    many = {f"k{number}": "v" for number in range(MAX_LABELS)}
    async with InProcessServer() as server, AsyncClient(server.url, server.token) as client:
        with pytest.raises(BadRequest, match="<= 100"):
            await client.create_session(labels=many | {"one": "more"})
        session = await client.create_session(labels=many)
        with pytest.raises(BadRequest, match="101 labels"):
            await session.branch(labels={"one": "more"})
        assert len((await session.branch(labels={"k0": "w"}))[0].details.labels) == MAX_LABELS
