"""The import policy: a sign that names what to use instead."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernelsvc.guest import import_policy, kept_builtins
from kernelsvc.guest.import_policy import ImportNotAllowed, refusal


@pytest.fixture(autouse=True)
def _plain_import() -> Iterator[None]:
    plain = builtins.__import__
    yield
    kept_builtins.replace("__import__", plain)


def cell(code: str) -> None:
    exec(code, {"__name__": "__main__", "__builtins__": builtins})


@pytest.mark.parametrize(
    ("module", "allow", "deny", "refused"),
    [
        ("numpy", None, [], False),
        ("subprocess", None, ["subprocess"], True),
        ("subprocess2", None, ["subprocess"], False),
        ("xml.etree", None, ["xml"], True),
        ("numpy.linalg", ["numpy"], [], False),
        ("pandas", ["numpy"], [], True),
        ("__future__", ["numpy"], [], False),
        ("os.path", ["os.path"], ["os"], False),
        ("os", ["os"], ["os"], True),
        ("numpy", [], [], True),
    ],
)
def test_what_is_refused(module: str, allow: list[str] | None, deny: list[str], refused: bool) -> None:
    assert (refusal(module, allow, deny) is not None) is refused


def test_the_refusal_names_what_to_use() -> None:
    assert "no network" in (refusal("requests", None, ["requests"]) or "")
    assert "numpy, pandas" in (refusal("scipy", ["pandas", "numpy"], []) or "")
    assert "and 5 more" in (refusal("scipy", [f"m{i}" for i in range(25)], []) or "")
    assert "standard library" in (refusal("zzz", None, ["zzz"]) or "")


def test_a_cell_meets_the_sign_even_when_the_module_is_loaded() -> None:
    import_policy.install(None, ["subprocess"])
    with pytest.raises(ImportNotAllowed, match="pathlib") as met:
        cell("import subprocess")
    assert met.value.name == "subprocess"
    with pytest.raises(ImportNotAllowed):
        cell("from subprocess import run")
    with pytest.raises(ImportNotAllowed):
        cell("def f():\n    import subprocess\nf()")


def test_libraries_import_what_they_like() -> None:
    import_policy.install(None, ["subprocess"])
    exec("import subprocess", {"__name__": "pandas.io", "__builtins__": builtins})
    cell("import platform")


def test_a_submodule_can_be_denied_on_its_own() -> None:
    import_policy.install(None, ["os.path"])
    cell("import os")
    with pytest.raises(ImportNotAllowed):
        cell("from os import path")


def test_the_sessions_own_modules_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_kernelsvc.py").write_text("x = 1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import_policy.install(["numpy"], [])
    cell("import mine_kernelsvc")
    with pytest.raises(ImportNotAllowed):
        cell("import json")


def test_with_nothing_to_say_nothing_is_changed() -> None:
    plain = builtins.__import__
    import_policy.install(None, [])
    assert builtins.__import__ is plain
