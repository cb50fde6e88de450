"""Tokens name principals; only their hashes are kept."""

from __future__ import annotations

import msgspec
import pytest

from kernelsvc.errors import Unauthenticated
from kernelsvc.model.tokens import TokenRecord, authenticate, hash_token, present_name, record_for


def test_a_token_names_its_principal():
    records = [record_for("one", "a"), record_for("two", "b")]
    assert authenticate(records, "two").name == "b"
    assert authenticate(records, "two").scopes == {"run", "read", "approve", "delegate", "audit", "operate", "admin"}


@pytest.mark.parametrize("token", [None, "", "three", "on", "one ", "x" * 5000, "\udcff"])
def test_others_are_refused_without_saying_them(token):
    with pytest.raises(Unauthenticated) as caught:
        authenticate([record_for("one", "a")], token)
    assert "three" not in caught.value.message


def test_scopes_include_smaller_ones():
    def scopes(*given):
        return TokenRecord(name="a", sha256=hash_token("t"), scopes=frozenset(given)).principal().scopes

    assert scopes("read") == {"read"}
    assert scopes("run") == {"read", "run"}
    assert scopes("audit") == {"read", "audit"}
    assert scopes("approve") == {"read", "approve"}
    assert scopes("operate") == {"read", "run", "approve", "audit", "operate"}
    assert scopes("admin") == {"read", "run", "approve", "delegate", "audit", "operate", "admin"}


def test_a_record_without_scopes_reaches_no_session_of_others():
    assert TokenRecord(name="a", sha256=hash_token("t")).principal().scopes == {"read", "run", "approve"}


def test_another_token_without_a_name_is_the_same_principal():
    assert record_for("one").name == record_for("two").name == "local"


@pytest.mark.parametrize(
    ("name", "present"),
    [("token-0123456789ab", "local"), ("token-0123456789AB", None), ("token-of-ana", None), ("ana", None)],
)
def test_a_principal_named_after_a_hash_has_another_name_now(name, present):
    assert present_name(name, []) == (present or name)
    assert present_name(name, [record_for("t", name)]) == name


@pytest.mark.parametrize("bad", [{"name": ""}, {"sha256": "x"}, {"scopes": ["all"]}, {"more": 1}, {"max_sessions": -1}])
def test_bad_records_are_refused(bad):
    good = {"name": "a", "sha256": hash_token("t")}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**good, **bad}, TokenRecord)
