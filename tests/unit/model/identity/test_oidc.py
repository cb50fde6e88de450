"""OpenID Connect: principals of claims, and settings that go together."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from kernelsvc.errors import Unauthenticated
from kernelsvc.model.identity.oidc import OidcSettings, check, is_jwt, principal_of
from kernelsvc.model.tokens import hash_token

SETTINGS = OidcSettings(
    issuer="https://id.example",
    audience="kernelsvc",
    scopes=["run"],
    scopes_claim="realm.groups",
    grants={"ops": ["operate"], "auditors": ["audit"]},
    max_sessions=3,
)


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({}, {"read", "run"}),
        ({"realm": {"groups": ["auditors", "others"]}}, {"read", "run", "audit"}),
        ({"realm": {"groups": "auditors others"}}, {"read", "run", "audit"}),
        ({"realm.groups": ["ops"]}, {"read", "run", "approve", "audit", "operate"}),
        ({"realm": "ops"}, {"read", "run"}),
        ({"realm": {"groups": {"ops": True}}}, {"read", "run"}),
        ({"realm": {"groups": [["ops"], None, 7]}}, {"read", "run"}),
    ],
)
def test_groups_give_scopes(claims: dict[str, Any], scopes: set[str]) -> None:
    who = principal_of({"sub": "ada"} | claims, SETTINGS, "token")
    assert (who.name, set(who.scopes), who.max_sessions) == ("oidc/ada", scopes, 3)
    assert who.token_sha256 == hash_token("token")


@pytest.mark.parametrize("name", [None, "", 7, ["ada"], "a b", "a\n", "é", "x" * 121, {"sub": "ada"}])
def test_a_name_that_is_none_is_refused(name: Any) -> None:
    with pytest.raises(Unauthenticated, match="principal_claim"):
        principal_of({"sub": name}, SETTINGS, "token")


@pytest.mark.parametrize(
    ("token", "is_one"),
    [
        ("eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln", True),
        ("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.", True),
        ("eyJ.a.b\n", False),
        ("a-token-of-this-server", False),
        ("eyJ." + "a" * 17_000 + ".b", False),
        (None, False),
    ],
)
def test_the_form_of_a_token(token: str | None, is_one: bool) -> None:
    assert is_jwt(token) is is_one


@pytest.mark.parametrize(
    ("issuer", "valid"),
    [
        ("https://id.example", True),
        ("https://id.example:8443/realms/a", True),
        ("http://127.0.0.1:8080", True),
        ("http://id.example", False),
        ("http://127.0.0.1.example", False),
        ("http://localhost@id.example", False),
        ("https://id.example?a=b", False),
        ("id.example", False),
    ],
)
def test_an_issuer_is_reached_over_tls_or_loopback(issuer: str, valid: bool) -> None:
    with contextlib.nullcontext() if valid else pytest.raises(ValueError, match="https address"):
        check(OidcSettings(issuer=issuer, audience="a"))


def test_an_issuer_needs_an_audience() -> None:
    with pytest.raises(ValueError, match="audience"):
        check(OidcSettings(issuer="https://id.example"))
    check(OidcSettings())
