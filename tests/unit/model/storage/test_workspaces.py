"""Names of workspaces, and who may use one."""

from __future__ import annotations

import pytest

from kernelsvc.errors import BadRequest
from kernelsvc.model.storage.workspaces import WorkspaceRecord, may_use, parse_address


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
