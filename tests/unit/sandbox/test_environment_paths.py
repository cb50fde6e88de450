"""The paths of a Python environment in its sessions."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelsvc.sandbox.environment_paths import EnvironmentPaths, environment_paths
from kernelsvc.sandbox.rootfs_paths import find_paths


def made(top: Path, *, home: str | None = None, name: str = "env") -> str:
    """Make the files of an environment, and return its interpreter."""
    (top / name / "bin").mkdir(parents=True)
    if home is not None:
        (top / name / "pyvenv.cfg").write_text(f"home = {home}\nversion = 3.13.0\ncommand = {top}/x -m venv\n")
    (top / name / "bin" / "python").touch()
    return str(top / name / "bin" / "python")


def chosen(python: str, tmp_path: Path) -> EnvironmentPaths | None:
    return environment_paths(python, "/run/guest", tmp_path / "new.cfg")


def test_a_virtual_environment_and_its_base_have_new_paths(tmp_path: Path) -> None:
    base = Path(made(tmp_path, name="base")).parent
    found = chosen(made(tmp_path, home=str(base)), tmp_path)
    assert found is not None
    assert found.python == "/opt/environment/bin/python"
    assert found.binds == {
        f"{tmp_path}/env": "/opt/environment",
        f"{tmp_path}/base": "/opt/python",
        f"{tmp_path}/new.cfg": "/opt/environment/pyvenv.cfg",
        "/run/guest": "/opt/guest",
    }
    assert (tmp_path / "new.cfg").read_text().split("\n")[:2] == ["home = /opt/python/bin", "version = 3.13.0"]
    assert str(tmp_path) not in (tmp_path / "new.cfg").read_text()


def test_over_the_systems_python_only_the_environment_has_a_new_path(tmp_path: Path) -> None:
    found = chosen(made(tmp_path, home="/usr/bin"), tmp_path)
    assert found is not None
    assert found.binds == {f"{tmp_path}/env": "/opt/environment", "/run/guest": "/opt/guest"}
    assert not (tmp_path / "new.cfg").exists()


def test_pip_runs_in_the_interpreter_with_the_new_path(tmp_path: Path) -> None:
    python = made(tmp_path, home="/usr/bin")
    pip = Path(python).with_name("pip")
    pip.write_text(f"#!{python}\nimport sys\n")
    pip.with_name("pip3").symlink_to("pip")
    found = chosen(python, tmp_path)
    assert found is not None
    (moved,) = [Path(source) for source, target in found.binds.items() if target == "/opt/environment/bin/pip"]
    assert moved.read_text() == "#!/opt/environment/bin/python\nimport sys\n"
    assert moved.stat().st_mode & 0o777 == 0o755
    assert len(found.binds) == 3


def test_an_installation_is_the_python(tmp_path: Path) -> None:
    found = chosen(made(tmp_path), tmp_path)
    assert found is not None
    assert (found.python, found.binds[f"{tmp_path}/env"]) == ("/opt/python/bin/python", "/opt/python")


@pytest.mark.parametrize("python", ["/usr/bin/python3", "/usr/local/bin/python3", "/opt/python/3.13/bin/python"])
def test_a_python_keeps_paths_that_say_nothing_or_would_be_covered(python: str, tmp_path: Path) -> None:
    assert chosen(python, tmp_path) is None


def test_the_machines_paths_are_links_where_no_session_can_replace_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = made(tmp_path)
    moves = {f"{tmp_path}/env": "/opt/python"}
    for writable, link in ((("/nowhere/",), True), (("/",), False)):
        monkeypatch.setattr("kernelsvc.sandbox.rootfs_paths._WRITABLE", writable)
        found = find_paths(python, moves=moves)
        assert (f"{tmp_path}/env", "/opt/python") in found.readonly
        assert ((f"{tmp_path}/env", f"{tmp_path}/env") in found.readonly) is not link
        assert found.links.get(f"{tmp_path}/env", "").endswith("../opt/python") is link
        assert found.path.startswith("/opt/python/bin:")
