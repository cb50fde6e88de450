"""Callers: the tokens of the settings and those of the token file."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from kernelsvc import AsyncClient
from kernelsvc.errors import BadRequest, Forbidden, NotFound, QuotaExceeded, Unauthenticated
from kernelsvc.model.events import CellQueued, SessionStarted
from kernelsvc.model.tokens import TokenRecord, hash_token, on_behalf_of, record_for
from kernelsvc.service.access.principals import Principals
from kernelsvc.service.access.session_tokens import SessionTokens
from kernelsvc.settings import Settings
from kernelsvc.store.token_file import NAME, TokenFile
from kernelsvc.testing import InProcessServer


def alice(digest: str) -> TokenRecord:
    return TokenRecord(name="alice", sha256=digest)


def test_a_token_is_valid_from_its_creation_to_its_end(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    principals = Principals([record_for("configured-token")], file)
    token, kept = file.create(alice)
    assert principals.authenticate(token).name == "alice"
    assert [who.name for who in principals.callers()] == ["local", "alice"]
    principals.write_uses()
    assert list(file.last_uses()) == [kept.id]
    new, _ = file.rotate("alice", keep=timedelta(0))
    with pytest.raises(Unauthenticated):
        principals.authenticate(token)
    both = frozenset(map(hash_token, (token, new)))
    assert principals.void(both) == {hash_token(token)}
    assert principals.authenticate(new).name == "alice"
    file.revoke("alice")
    assert [who.name for who in principals.callers()] == ["local"]
    assert principals.void(both | {hash_token("configured-token")}) == both
    assert principals.authenticate("configured-token").name == "local"


def test_the_end_of_a_token_follows_the_clock_in_both_directions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = TokenFile(tmp_path)
    token, _ = file.create(alice, lifetime=timedelta(days=1))
    principals = Principals([], file)
    clock = MagicMock(wraps=datetime)
    monkeypatch.setattr("kernelsvc.service.access.principals.datetime", clock)
    for days, valid in ((0, True), (2, False), (0, True)):
        clock.now.side_effect = lambda zone, days=days: datetime.now(zone) + timedelta(days=days)
        assert [who.name for who in principals.callers()] == ["alice"] * valid
        assert principals.void(frozenset({hash_token(token)})) == frozenset({hash_token(token)} if not valid else ())


def test_a_damaged_file_changes_nothing_until_it_is_repaired(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    token, _ = file.create(alice)
    principals = Principals([], file)
    content = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(b"{")
    assert principals.authenticate(token).name == "alice"
    (tmp_path / NAME).write_bytes(content)
    file.revoke("alice")
    with pytest.raises(Unauthenticated):
        principals.authenticate(token)


def backend_settings(**more):
    records = [
        TokenRecord(name="app", sha256=hash_token("app"), scopes=frozenset({"delegate"}), max_sessions=2),
        TokenRecord(name="app/named", sha256=hash_token("named"), scopes=frozenset({"run"})),
        TokenRecord(name="other", sha256=hash_token("other"), scopes=frozenset({"run"})),
    ]
    return Settings(port=0, journal_sync="off", tokens=records, **more)


async def test_a_backend_acts_for_its_users_and_none_sees_anothers_sessions():
    async with InProcessServer(backend_settings()) as server:
        sessions = {}
        for user in ("u1", "u2"):
            async with AsyncClient(server.url, "app", on_behalf_of=user) as client:
                session = sessions[user] = await client.create_session(keep=True)
                await session.run("1")
                assert (await session.info()).principal == f"app/{user}"
                async with session.events(follow=False) as events:
                    named = [
                        event.principal async for event in events if isinstance(event, SessionStarted | CellQueued)
                    ]
                assert named == [f"app/{user}"] * 2
                assert [each.id for each in await client.sessions()] == [session.id]
                assert await session.upload(b"x", "a") == "a"  # over HTTP
        for token, user in (("app", "u2"), ("app", None), ("other", None)):
            async with AsyncClient(server.url, token, on_behalf_of=user) as client:
                with pytest.raises(NotFound):
                    await client.session(sessions["u1"].id)
        # The quota of the backend counts the sessions of all its users.
        async with AsyncClient(server.url, "app", on_behalf_of="u3") as client:
            with pytest.raises(QuotaExceeded):
                await client.create_session()


@pytest.mark.parametrize(
    ("token", "user", "error"),
    [
        ("other", "u1", Forbidden),
        ("app", "named", Forbidden),
        ("app", "a b", BadRequest),
        ("app", "x" * 129, BadRequest),
        ("wrong", "u1", Unauthenticated),
    ],
)
async def test_a_user_that_a_backend_may_not_name_is_refused(token, user, error):
    async with InProcessServer(backend_settings()) as server:
        with pytest.raises(error):
            async with AsyncClient(server.url, token, on_behalf_of=user, connect_seconds=0.5) as client:
                await client.sessions()


def test_a_user_of_another_backend_is_not_a_user_of_the_one_whose_name_it_begins_with():
    own = TokenRecord(name="app", sha256=hash_token("app"), scopes=frozenset({"delegate"}))
    below = TokenRecord(name="app/staff", sha256=hash_token("below"), scopes=frozenset({"admin"}))
    user = on_behalf_of(below.principal(), "u1", [own, below])
    assert user.name == "app/staff/u1"
    with pytest.raises(Forbidden):
        on_behalf_of(own.principal(), "staff/u1", [own, below])
    plain = TokenRecord(name="app/plain", sha256=hash_token("plain"))
    assert on_behalf_of(own.principal(), "plain/u1", [own, plain]).name == "app/plain/u1"


def test_a_user_has_no_scope_that_reaches_others():
    who = on_behalf_of(record_for("token").principal(), "u1", [])
    assert (who.name, who.account, sorted(who.scopes)) == ("local/u1", "local", ["approve", "read", "run"])


def test_a_secret_of_a_users_session_is_the_users(tmp_path):
    callers = [record.principal() for record in backend_settings().tokens]
    tokens = SessionTokens(b"key", lambda: callers, Owners({"s_1": "app/u1", "s_2": "application"}))
    who = on_behalf_of(callers[0], "u1", [])
    held = tokens.holder("s_1", ["envd"], tokens.secret(who, "s_1", "envd"))
    assert (held.name, held.account, "delegate" in held.scopes) == ("app/u1", "app", False)
    with pytest.raises(Unauthenticated):  # The name only begins like the backend's.
        tokens.holder("s_2", ["envd"], tokens.secret(who, "s_2", "envd"))


class Owners(dict):
    """The owners of sessions, all open."""

    def owner(self, session):
        return self.get(session)

    def open_ids(self):
        return list(self)
