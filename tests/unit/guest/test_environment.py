"""Environment and directory, changed and put back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kernelsvc.guest import environment as surroundings


def test_a_change_can_be_undone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KEPT", "before")
    monkeypatch.delenv("FRESH", raising=False)
    monkeypatch.chdir(tmp_path)
    reply = surroundings.change({"KEPT": "after", "FRESH": 'it\'s "new"\n'})
    assert (os.environ["KEPT"], os.environ["FRESH"]) == ("after", 'it\'s "new"\n')
    assert reply == {"status": "ok", "before": {"KEPT": "before", "FRESH": None}, "directory": str(tmp_path)}
    surroundings.change(reply["before"])
    assert os.environ["KEPT"] == "before"
    assert "FRESH" not in os.environ


def test_a_directory_that_is_not_there_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert surroundings.change({}, "here")["directory"] == str(tmp_path / "here")
    reply = surroundings.change({"NEVER": "x"}, "/nowhere")
    assert reply["status"] == "error"
    assert "No such file" in reply["evalue"]
    assert "NEVER" not in os.environ
