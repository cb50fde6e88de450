"""What of the machine a session may see."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from kernelsvc.sandbox.rootfs_paths import find_paths, is_beneath, is_reachable, outermost, python_prefixes


def test_only_outermost_paths_are_bound() -> None:
    assert outermost(["/usr/lib/python3", "/usr", "/opt/env", "/usrlocal"]) == ["/opt/env", "/usr", "/usrlocal"]
    assert not is_beneath("/usrlocal", "/usr")


def test_this_interpreters_prefixes_are_found_without_running_it() -> None:
    found = python_prefixes(sys.executable)
    assert {os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix)} <= {os.path.realpath(p) for p in found}


def test_places_hold_python_and_no_secrets() -> None:
    places = find_paths(sys.executable)
    shown = [source for source, _ in places.readonly]
    for needed in (sys.prefix, sys.base_prefix, os.__file__):
        assert any(is_beneath(os.path.realpath(needed), root) for root in shown), needed
    for secret in ("/etc/shadow", "/root/.ssh", "/home/someone", "/var/lib", "/run", "/proc", "/tmp/x"):
        assert not any(is_beneath(secret, root) for root in shown)
    assert places.path.split(":")[0] == os.path.dirname(os.path.abspath(sys.executable))


def test_a_module_path_that_would_show_everything_is_left_out() -> None:
    checkout = str(Path(__file__).parents[3])
    shown = [source for source, _ in find_paths(sys.executable, prefixes=["/home", checkout]).readonly]
    assert not {"/home", checkout} & set(shown)
    assert f"{checkout}/kernelsvc/guest" in shown


def test_an_interpreter_whose_prefix_shows_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="virtual environment"):
        find_paths("/home/bin/python")


def test_a_closed_directory_above_is_noticed(tmp_path: Path) -> None:
    inner = tmp_path / "closed" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    assert not is_reachable([str(inner)])
    assert is_reachable(["/usr/bin"])
