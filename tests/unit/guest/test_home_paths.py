"""The paths that modules, classes and IPython hold below a home directory."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from traitlets import HasTraits, Instance, Unicode, observe

from kernelsvc.guest.home_paths import HomePaths


class Profile(HasTraits):  # type: ignore[misc]
    location = Unicode()

    @observe("location")  # type: ignore[untyped-decorator]
    def make(self, change: Any) -> None:
        raise AssertionError("an observer makes a directory")


class Shell(HasTraits):  # type: ignore[misc]
    ipython_dir = Unicode()
    profile_dir = Instance(Profile, ())
    db: Any = types.SimpleNamespace(root=None)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that has computed paths at its import."""
    module: Any = types.ModuleType("a_library")
    module.text, module.path, module.home = "/old/home/.cache", Path("/old/home/x"), "/old/home"
    module.several, module.pair = ["/old/home/a", 1], ("/old/home/b", "/etc")
    module.named, module.other = {"userbase": "/old/home/.local", "n": 1}, "/old/homely"
    module.Tex = type("Tex", (), {"cache": Path("/old/home/tex"), "__module__": "a_library"})
    monkeypatch.setitem(sys.modules, "a_library", module)
    monkeypatch.setenv("HOME", "/old/home")
    return module


def test_every_kind_of_place_moves(library: Any) -> None:
    paths = HomePaths(Shell())
    paths.move("/new")
    assert (library.text, library.path, library.home) == ("/new/.cache", Path("/new/x"), "/new")
    assert (library.several, library.pair) == (["/new/a", 1], ("/new/b", "/etc"))
    assert library.named == {"userbase": "/new/.local", "n": 1}
    assert library.Tex.cache == Path("/new/tex")
    assert library.other == "/old/homely"


def test_a_second_move_leaves_alone_a_path_that_user_code_has_set(library: Any) -> None:
    paths = HomePaths(Shell())
    paths.move("/new")
    library.text = "/data/cache"
    paths.move("/branch")
    assert (library.text, library.home) == ("/data/cache", "/branch")


def test_ipythons_directories_move_and_none_is_made(library: Any) -> None:
    shell = Shell(ipython_dir="/old/home/.ipython")
    shell.profile_dir.unobserve_all()
    shell.profile_dir.location = "/old/home/.ipython/profile_default"
    HomePaths(shell).move("/new")
    assert shell.ipython_dir == "/new/.ipython"
    assert shell.profile_dir.location == "/new/.ipython/profile_default"
    assert shell.db.root == Path("/new/.ipython/profile_default/db")
