"""Secrets that stand for one session."""

from __future__ import annotations

import hmac

import pytest

from kernelsvc.errors import NotFound, Unauthenticated
from kernelsvc.model.tokens import TokenRecord, hash_token
from kernelsvc.service.access import Access

OWNERS = {"s_1": "alice", "s_2": "bob", "s_3": "nobody"}
TOKENS = [
    TokenRecord(name="alice", sha256=hash_token("a"), scopes=frozenset({"read"})),
    TokenRecord(name="alice", sha256=hash_token("b"), scopes=frozenset({"run"})),
    TokenRecord(name="bob", sha256=hash_token("c")),
]


@pytest.fixture
def access() -> Access:
    return Access(b"k" * 32, TOKENS, OWNERS.get, lambda: list(OWNERS))


def test_a_secret_is_the_same_again_and_another_for_anything_else(access: Access) -> None:
    secret = access.secret("s_1", "envd")
    assert secret == access.secret("s_1", "envd")
    assert len({secret, access.secret("s_2", "envd"), access.secret("s_1", "traffic")}) == 3
    assert Access(b"x" * 32, TOKENS, OWNERS.get, list).secret("s_1", "envd") != secret


def test_its_holder_has_the_owners_rights_but_never_admin(access: Access) -> None:
    alice = access.holder("s_1", ["envd"], access.secret("s_1", "envd"))
    assert (alice.name, alice.scopes) == ("alice", {"read", "run"})
    assert access.holder("s_2", ["x", "envd"], "", access.secret("s_2", "envd")).scopes == {"read", "run"}


@pytest.mark.parametrize("given", [[], [""], ["\udcff"], ["x" * 10_000], ["other"], ["purpose"]])
def test_nothing_else_is_taken(access: Access, given: list[str]) -> None:
    wrong = {"other": access.secret("s_2", "envd"), "purpose": access.secret("s_1", "traffic")}
    with pytest.raises(Unauthenticated):
        access.holder("s_1", ["envd"], *(wrong.get(each, each) for each in given))


def test_without_a_secret_nobody_learns_whether_a_session_is_there(access: Access) -> None:
    with pytest.raises(Unauthenticated):
        access.holder("s_9", ["envd"], access.secret("s_1", "envd"))
    with pytest.raises(NotFound):
        access.holder("s_9", ["envd"], access.secret("s_9", "envd"))


def test_an_owner_without_a_token_has_no_rights(access: Access) -> None:
    with pytest.raises(Unauthenticated, match="no token"):
        access.holder("s_3", ["envd"], access.secret("s_3", "envd"))


def test_a_session_is_found_by_what_its_secret_signed(access: Access) -> None:
    wanted = access.secret("s_2", "envd")
    who, session = access.search("envd", lambda secret: hmac.compare_digest(secret, wanted))
    assert (who.name, session) == ("bob", "s_2")
    with pytest.raises(Unauthenticated):
        access.search("traffic", lambda secret: hmac.compare_digest(secret, wanted))
