"""What of the machine a session may see."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from kernelsvc.sandbox.rootfs_paths import (
    find_paths,
    is_beneath,
    is_reachable,
    outermost,
    paths_inside,
    private_files,
    python_prefixes,
)


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
    for secret in (
        "/etc/shadow",
        "/etc/pip.conf",
        "/root/.ssh",
        "/usr/src/x",
        "/usr/local/etc/x",
        "/usr/etc/x",
        "/home/someone",
        "/var/lib",
        "/run",
        "/proc",
        "/tmp/x",
    ):
        assert not any(is_beneath(secret, root) for root in shown)
    assert places.path.split(":")[0] == os.path.dirname(os.path.abspath(sys.executable))


@pytest.mark.parametrize("prefix", ["/usr", "/usr/local"])
def test_a_python_of_the_system_shows_no_more(prefix: str) -> None:
    shown = [source for source, _ in find_paths(f"{prefix}/bin/python3").readonly]
    assert not {"/usr", "/usr/local"} & set(shown)
    assert "/usr/lib" in shown


def test_settings_of_programs_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "kernelsvc.sandbox.rootfs_paths.glob.glob",
        # files that exist everywhere
        lambda pattern: {"/etc/java*": ["/etc/hostname"], "/etc/manpath.config": ["/etc/passwd"]}.get(pattern, []),
    )
    shown = [source for source, _ in find_paths().readonly]
    assert {"/etc/hostname", "/etc/passwd"} <= set(shown)


def test_files_of_the_user_alone_are_found(tmp_path: Path) -> None:
    for name, mode in (("secret", 0o600), ("shared", 0o640), ("d/secret", 0o400)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    found = [str(tmp_path / name) for name in ("d/secret", "secret")]
    assert private_files([str(tmp_path), str(tmp_path / "absent")]) == found
    assert private_files([str(tmp_path)], maximum=0) == []


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


def test_private_files_are_found_at_each_path_that_sessions_see(tmp_path: Path) -> None:
    env = tmp_path / "env"
    (env / "etc").mkdir(parents=True)
    (tmp_path / "link").symlink_to(env)
    private = [str(env / "etc/kernelsvc.toml"), str(env), str(tmp_path), "/srv/data"]
    shown = [(str(env), "/opt/env"), (str(tmp_path / "link"), "/srv/env"), ("/usr", "/usr")]
    found = paths_inside(private, shown)
    assert found == ["/opt/env", "/opt/env/etc/kernelsvc.toml", "/srv/env", "/srv/env/etc/kernelsvc.toml"]
