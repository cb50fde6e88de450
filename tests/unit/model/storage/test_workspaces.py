"""Names of workspaces, and who may use one."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.errors import BadRequest
from kernelsvc.model.storage.workspaces import MAX_WILDCARDS, WorkspaceRecord, check_shares, may_use, parse_address


@pytest.mark.parametrize(
    ("address", "parts"),
    [("report", ("ann", "report")), ("team-a/report", ("team-a", "report")), ("a/b/report", ("a/b", "report"))],
)
def test_a_name_without_an_owner_is_the_callers_own(address: str, parts: tuple[str, str]) -> None:
    assert parse_address(address, "ann") == parts


@pytest.mark.parametrize("address", ["", "/report", "a/", "..", "a/..", "a b", "x" * 101, "x\n"])
def test_other_forms_are_refused(address: str) -> None:
    with pytest.raises(BadRequest, match="no name of a workspace"):
        parse_address(address, "ann")


def test_the_owner_and_its_list_may_use_it() -> None:
    record = WorkspaceRecord(owner="ann", name="report", created_at="", shared_with=["bob", "team-*"])
    assert [who for who in ("ann", "bob", "team-7", "bobby", "eve") if may_use(record, who)] == ["ann", "bob", "team-7"]


@given(st.text("ab", max_size=8), st.text("ab*", min_size=1, max_size=8))
def test_a_star_stands_for_any_characters(name: str, pattern: str) -> None:
    record = WorkspaceRecord(owner="ann", name="report", created_at="", shared_with=[pattern])
    assert may_use(record, name) == fnmatch.fnmatchcase(name, pattern)


def test_few_patterns_have_a_star() -> None:
    check_shares(["bob"] * 1000 + ["team-*"] * MAX_WILDCARDS)
    with pytest.raises(BadRequest, match="may have 50"):
        check_shares([f"*-{n}" for n in range(MAX_WILDCARDS + 1)])
