"""Reasoning that a client keeps and can't read."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from kernelsvc.answers.sealed import ReasoningSeal


def test_only_the_same_server_opens_it_for_the_same_principal(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "reasoning.key"
    sealed = ReasoningSeal(path).seal("alice", "first é")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "first" not in sealed
    assert ReasoningSeal(path).open("alice", sealed) == "first é"
    assert ReasoningSeal(path).seal("alice", "first é") != sealed
    other = ReasoningSeal(tmp_path / "other.key")
    refusals = "encrypted|base64|ASCII|[Nn]once|padded|[Tt]ag"
    for seal, principal, given in (
        (ReasoningSeal(path), "bob", sealed),
        (other, "alice", sealed),
        (other, "alice", sealed[:-4] + "AAA="),
        (other, "alice", "é"),
        (other, "alice", ""),
        (other, "alice", "AAAA"),
    ):
        with pytest.raises(ValueError, match=refusals):
            seal.open(principal, given)
