"""Private copies of standard modules."""

from __future__ import annotations

import os
import tempfile

import pytest

from kernelsvc.guest import private_modules


def test_a_copy_keeps_what_user_code_takes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = os.getpid
    monkeypatch.setattr(os, "getpid", None)
    assert private_modules.os.getpid is kept
    assert private_modules.os.environ is os.environ


def test_a_removed_working_directory_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.chdir(directory)
        assert private_modules.current_directory() == os.path.realpath(directory)
    assert private_modules.current_directory() == ""
