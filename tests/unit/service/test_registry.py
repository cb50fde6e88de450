"""Which sessions are found, who may have more, and what an idempotency key names."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kernelsvc.errors import AtCapacity, Forbidden, NotFound, QuotaExceeded, SessionClosed
from kernelsvc.model.limits import Limits
from kernelsvc.model.objects import CellRequest, Principal, SessionState
from kernelsvc.model.tokens import TokenRecord
from kernelsvc.service import registry as registries
from kernelsvc.service.loading.background_loading import BackgroundLoads
from kernelsvc.service.loading.closed_sessions import ClosedSessions
from kernelsvc.service.registry import IdempotencyKeys, SessionRegistry
from kernelsvc.service.session_factory import SessionFactory
from kernelsvc.session import SessionSpec
from kernelsvc.settings import Settings
from kernelsvc.store.sessions import SessionDirectories

ALICE, BOB = Principal(name="alice"), Principal(name="bob")
MIB = 1 << 20


def spec(id: str, principal: str = "alice", sidecar_of: str | None = None) -> SessionSpec:
    return SessionSpec(
        id=id, principal=principal, template="t", workdir="", kernel=f"k_{id}", created_at="",
        limits=Limits(memory_bytes=100 * MIB), beside=sidecar_of,
    )  # fmt: skip


def session(id: str, principal: str = "alice", sidecar_of: str | None = None) -> Any:
    made = spec(id, principal, sidecar_of)
    return SimpleNamespace(
        id=id, spec=made, principal=principal, limits=made.limits, state=SessionState.IDLE, unreadable=""
    )


def registry(path: Path, **changes: Any) -> SessionRegistry:
    loads = BackgroundLoads(1.0)
    settings = Settings(limits=Limits(memory_bytes=100 * MIB), **changes)
    return SessionRegistry(
        settings, ClosedSessions(SessionDirectories(path), cast("SessionFactory", None), loads), loads
    )


@pytest.mark.parametrize(
    ("granted", "asked", "error"),
    [
        ("audit", "read", None),
        ("audit", "run", Forbidden),
        ("operate", "read", None),
        ("operate", "run", None),
        ("admin", "run", None),
        ("run", "read", NotFound),
        ("run", "run", NotFound),
    ],
)
async def test_a_scope_opens_the_sessions_of_others(tmp_path: Path, granted: Any, asked: Any, error: Any) -> None:
    found = registry(tmp_path)
    one = session("s_1")
    found.add(one)
    carol = TokenRecord(name="carol", sha256="0" * 64, scopes=frozenset({granted})).principal()
    if error is None:
        assert found.find(carol, "s_1", asked) is one
    else:
        with pytest.raises(error):
            found.find(carol, "s_1", asked)


async def test_only_the_owner_finds_a_session_and_only_with_the_scope(tmp_path: Path) -> None:
    found = registry(tmp_path)
    one = session("s_1")
    found.add(one)
    assert found.find(ALICE, "s_1", "run") is one
    with pytest.raises(NotFound):
        found.find(BOB, "s_1")
    with pytest.raises(NotFound):
        found.find(ALICE, "s_2")
    with pytest.raises(Forbidden):
        found.find(Principal(name="alice", scopes=frozenset({"read"})), "s_1", "run")


async def test_a_session_that_has_ended_is_found_and_not_open(tmp_path: Path) -> None:
    found = registry(tmp_path)
    one = session("s_1")
    found.add(one)
    one.state = SessionState.CLOSED
    found.close(one)
    assert found.open_sessions() == []
    assert found.find(ALICE, "s_1") is one
    assert found.owner("s_1") == "alice"
    with pytest.raises(SessionClosed):
        found.find_open(ALICE, "s_1")


async def test_sidecars_are_those_of_the_session(tmp_path: Path) -> None:
    found = registry(tmp_path)
    for one in (session("s_1"), session("s_2", sidecar_of="s_1"), session("s_3", sidecar_of="s_9")):
        found.add(one)
    assert [each.id for each in found.sidecars("s_1")] == ["s_2"]


async def test_sessions_in_creation_count_until_they_are_released(tmp_path: Path) -> None:
    found = registry(tmp_path, max_sessions_per_principal=2)
    found.add(session("s_1"))
    with found.reserved([spec("s_2")]):
        with pytest.raises(QuotaExceeded):
            found.admit(ALICE, Limits())
        assert not found.has_room(0)
    found.admit(ALICE, Limits())
    assert found.has_room(0)


async def test_members_of_the_warm_pool_count_with_the_servers_limits(tmp_path: Path) -> None:
    found = registry(tmp_path, max_total_memory_bytes=300 * MIB)
    found.add(session("s_1"))
    found.admit(ALICE, Limits(memory_bytes=100 * MIB), warm=1)
    with pytest.raises(AtCapacity):
        found.admit(ALICE, Limits(memory_bytes=100 * MIB), warm=2)
    assert found.has_room(1)
    assert not found.has_room(2)


async def test_a_key_names_the_session_or_its_creation_and_is_forgotten_when_that_fails() -> None:
    keys, creation, failing = IdempotencyKeys(), asyncio.Future[str](), asyncio.Future[str]()
    keys.put_future(ALICE, "k", creation)
    keys.put_future(ALICE, "f", failing)
    assert keys.get("alice", "k") is creation
    creation.set_result("s_1")
    failing.set_exception(AtCapacity())
    await asyncio.sleep(0)
    assert keys.get("alice", "k") == "s_1"
    assert keys.get("alice", "f") is None
    assert keys.get("bob", "k") is None


def test_the_oldest_key_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "MAX_KEYS", 2)
    keys = IdempotencyKeys()
    for number in range(3):
        keys.put("alice", str(number), f"s_{number}")
    assert [keys.get("alice", str(number)) for number in range(3)] == [None, "s_1", "s_2"]


def test_no_principal_evicts_the_keys_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "MAX_KEYS", 4)
    monkeypatch.setattr(registries, "MAX_ALL_KEYS", 6)
    keys = IdempotencyKeys()
    keys.put("alice", "k", "s_alice")
    for number in range(50):
        keys.put("mallory", str(number), "s_mallory")
    assert (keys.get("alice", "k"), keys.get("mallory", "45"), keys.get("mallory", "46")) == (
        "s_alice", None, "s_mallory"
    )  # fmt: skip


async def test_the_users_of_a_backend_share_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "MAX_KEYS", 2)
    keys = IdempotencyKeys()
    for number in range(3):
        creation = asyncio.Future[str]()
        keys.put_future(Principal(name=f"web/{number}", backend="web"), "k", creation)
        creation.set_result(f"s_{number}")
    await asyncio.sleep(0)
    assert [keys.get(f"web/{number}", "k") for number in range(3)] == [None, "s_1", "s_2"]


def test_what_waits_in_all_sessions_of_a_principal_has_one_bound(tmp_path: Path) -> None:
    found = registry(tmp_path)
    users = Principal(name="alice/u1", backend="alice")
    names = ("alice", "alice", "bob", "alice/u1")
    made = [session(f"s{number}", name) for number, name in enumerate(names)]
    for each in made:
        each.machine = SimpleNamespace(cells={})
        each.waiting_bytes = 0
        found.add(each)
    made[0].waiting_bytes = registries.MAX_WAITING_BYTES - 100 * 1024
    small, large = CellRequest(code="x" * 1024), CellRequest(code="x" * 101 * 1024)
    found.check_cells(ALICE, made[1], [small] * 64)  # nothing waits in this session
    with pytest.raises(QuotaExceeded, match="in all of your sessions"):
        found.check_cells(ALICE, made[1], [large])
    made[1].waiting_bytes = 50 * 1024
    with pytest.raises(QuotaExceeded):
        found.check_cells(ALICE, made[1], [small] * 64)
    found.check_cells(BOB, made[2], [large])
    found.check_cells(users, made[3], [small])
    with pytest.raises(QuotaExceeded):  # the users of a backend share its bound
        found.check_cells(users, made[3], [large])
    made[1].machine.cells["c"] = "known"
    found.check_cells(ALICE, made[1], [CellRequest(cell="c", code=large.code)])
