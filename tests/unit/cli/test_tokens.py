"""``kernelsvc token``: arguments that are not valid, and names that would change a terminal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kernelsvc.cli import main
from kernelsvc.store.token_file import TokenFile


@pytest.mark.parametrize(
    "args",
    [
        ["create", "x\x1b]0;title\x07"],
        ["create", "a\nb"],
        ["create", "\u202eevil"],
        ["create", os.fsdecode(b"\xff")],
        ["create", "x" * 129],
        ["create", "x", "--days", "1e300"],
        ["create", "x", "--days", "nan"],
        ["create", "x", "--days", "0"],
        ["create", "x", "--max-sessions", "-1"],
        ["create", "x", "--scopes", "run,root"],
        ["rotate", "kept", "--keep-hours", "1e300"],
        ["rotate", "kept", "--keep-hours", "inf"],
        ["rotate", "kept", "--keep-hours", "-1"],
    ],
)
def test_a_command_that_is_not_valid_says_so_and_changes_nothing(
    tmp_path: Path, args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = TokenFile(tmp_path / "keys")
    assert main(["token", "create", "kept", "--data-dir", str(tmp_path)]) == 0
    before = file.read()
    capsys.readouterr()
    assert main(["token", *args, "--data-dir", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("kernelsvc: ")
    assert err.removesuffix("\n").isprintable()
    assert file.read() == before
