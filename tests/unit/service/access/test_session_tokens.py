"""Secrets that are derived from a token, each for one session."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

import pytest

from kernelsvc.errors import Forbidden, NotFound, Unauthenticated
from kernelsvc.model.tokens import TokenRecord, hash_token
from kernelsvc.service.access.session_tokens import SessionTokens

OWNERS = {"s_1": "alice", "s_2": "bob", "s_3": "carol"}
READ = TokenRecord(name="alice", sha256=hash_token("a"), scopes=frozenset({"read"}))
RUN = TokenRecord(name="alice", sha256=hash_token("b"), scopes=frozenset({"run"}))
OTHER = TokenRecord(name="alice", sha256=hash_token("d"), scopes=frozenset({"admin"}))
BOB = TokenRecord(name="bob", sha256=hash_token("c"))
TOKENS = [READ, RUN, OTHER, BOB]


class SignedWith:
    """A request that one secret has signed."""

    def __init__(self, secret: str) -> None:
        self.secret = secret

    def is_signed_with(self, secret: str) -> bool:
        return hmac.compare_digest(secret, self.secret)


class Owners:
    """A registry that knows the owners of three open sessions."""

    def owner(self, session: str) -> str | None:
        return OWNERS.get(session)

    def open_ids(self) -> list[str]:
        return [*OWNERS]


def over(tokens: Sequence[TokenRecord], key: bytes = b"k" * 32) -> SessionTokens:
    return SessionTokens(key, lambda: [record.principal() for record in tokens], Owners())


@pytest.fixture
def access() -> SessionTokens:
    return over(TOKENS)


def test_a_secret_of_something_else_than_a_session_needs_its_owner(access: SessionTokens) -> None:
    secret = access.secret(RUN.principal(), "vol-1", "volume")
    assert access.holder("vol-1", ("volume",), secret, owner="alice").name == "alice"
    with pytest.raises(Unauthenticated):
        access.holder("vol-1", ("volume",), secret, owner="bob")
    with pytest.raises(NotFound):
        access.holder("vol-1", ("volume",), secret)


def test_a_secret_is_the_same_after_a_restart_and_differs_for_every_input(access: SessionTokens) -> None:
    secret = access.secret(RUN.principal(), "s_1", "envd")
    assert secret == over([RUN]).secret(RUN.principal(), "s_1", "envd")
    others = {
        access.secret(RUN.principal(), "s_2", "envd"),
        access.secret(RUN.principal(), "s_1", "traffic"),
        access.secret(OTHER.principal(), "s_1", "envd"),
        over(TOKENS, b"x" * 32).secret(RUN.principal(), "s_1", "envd"),
    }
    assert len(others | {secret}) == 5


def test_its_holder_has_the_scopes_of_its_own_token_but_never_admin(access: SessionTokens) -> None:
    for token in (RUN, OTHER):
        alice = access.holder("s_1", ["envd"], access.secret(token.principal(), "s_1", "envd"))
        assert (alice.name, alice.scopes, alice.token_sha256) == ("alice", {"read", "run"}, token.sha256)
    bob = access.holder("s_2", ["x", "envd"], "", access.secret(BOB.principal(), "s_2", "envd"))
    assert (bob.name, bob.scopes) == ("bob", {"read", "run"})


def test_a_read_token_gets_none(access: SessionTokens) -> None:
    with pytest.raises(Forbidden, match="run"):
        access.secret(READ.principal(), "s_1", "envd")


@pytest.mark.parametrize(
    "after",
    [
        [READ, OTHER, BOB],  # the token was removed, others of that name were not
        [TokenRecord(name="alice", sha256=RUN.sha256, scopes=frozenset({"read"})), OTHER],  # its scopes were reduced
        [TokenRecord(name="alice", sha256=hash_token("new"), scopes=frozenset({"run"}))],  # it was replaced
        [TokenRecord(name="bob", sha256=RUN.sha256, scopes=frozenset({"run"}))],  # it names another principal
        [],
    ],
)
def test_a_secret_is_void_once_its_token_is_changed_or_gone(access: SessionTokens, after: list[TokenRecord]) -> None:
    secret = access.secret(RUN.principal(), "s_1", "envd")
    later = over(after)
    with pytest.raises(Unauthenticated):
        later.holder("s_1", ["envd"], secret)
    with pytest.raises(Unauthenticated):
        later.signer("s_1", "envd", SignedWith(secret))
    with pytest.raises(Unauthenticated):
        later.search("envd", SignedWith(secret))


@pytest.mark.parametrize("given", [[], [""], ["\udcff"], ["x" * 10_000], ["session"], ["purpose"], ["principal"]])
def test_nothing_else_is_accepted(access: SessionTokens, given: list[str]) -> None:
    wrong = {
        "session": access.secret(RUN.principal(), "s_2", "envd"),
        "purpose": access.secret(RUN.principal(), "s_1", "traffic"),
        "principal": access.secret(BOB.principal(), "s_1", "envd"),
    }
    with pytest.raises(Unauthenticated):
        access.holder("s_1", ["envd"], *(wrong.get(each, each) for each in given))


def test_without_a_secret_the_answer_does_not_depend_on_the_session(access: SessionTokens) -> None:
    secret = access.secret(RUN.principal(), "s_1", "envd")
    with pytest.raises(Unauthenticated):
        access.holder("s_9", ["envd"], secret)
    with pytest.raises(NotFound):
        access.holder("s_9", ["envd"], access.secret(RUN.principal(), "s_9", "envd"))


def test_a_session_is_found_by_what_its_secret_signed(access: SessionTokens) -> None:
    wanted = access.secret(BOB.principal(), "s_2", "envd")
    who, session = access.search("envd", SignedWith(wanted))
    assert (who.name, session, who.scopes) == ("bob", "s_2", {"read", "run"})
    assert access.signer("s_2", "envd", SignedWith(wanted)) == who
    with pytest.raises(Unauthenticated):
        access.search("traffic", SignedWith(wanted))
