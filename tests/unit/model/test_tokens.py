"""Tokens name principals; only their hashes are kept."""

from __future__ import annotations

import msgspec
import pytest

from kernelsvc.errors import Unauthenticated
from kernelsvc.model.tokens import TokenRecord, authenticate, hash_token, record_for


def test_a_token_names_its_principal():
    records = [record_for("one", "a"), record_for("two", "b")]
    assert authenticate(records, "two").name == "b"
    assert authenticate(records, "two").scopes == {"run", "read", "admin"}


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
    assert scopes("admin") == {"read", "run", "admin"}


def test_an_unnamed_token_keeps_its_name_over_restarts():
    assert record_for("one").name == record_for("one").name
    assert "one" not in record_for("one").name


@pytest.mark.parametrize("bad", [{"name": ""}, {"sha256": "x"}, {"scopes": ["all"]}, {"more": 1}, {"max_sessions": -1}])
def test_bad_records_are_refused(bad):
    good = {"name": "a", "sha256": hash_token("t")}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**good, **bad}, TokenRecord)
