"""The systemd units: they parse, they name each other, and their exposure stays as low as the docs say."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
README = (UNITS / "README.md").read_text(encoding="utf-8")


def read(name: str) -> dict[str, list[str]]:
    """A unit's settings; a key may come again."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", "[", ";")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize(
    ("unit", "most"),
    [
        ("kernelsvc.service", 2.0),
        ("kernelsvc-kernels.service", 4.0),
        ("kernelsvc-egress.service", 2.0),
        ("kernelsvc-front.service", 2.0),
        ("kernelsvc-node@.service", 2.0),
        ("kernelsvc-kernels@.service", 4.0),
    ],
)
def test_exposure(unit: str, most: float) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(
        [tool, "security", "--offline=true", str(UNITS / unit)], capture_output=True, text=True, check=False
    )
    told = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    if told is None:
        pytest.skip(f"systemd-analyze can't score offline here: {done.stderr.strip()[:200]}")
    assert float(told[1]) <= most
    assert f"`{unit}`" in README
    row = next(line for line in README.splitlines() if line.startswith(f"| `{unit}`"))
    assert row.split("|")[3].strip() == told[1], "the score in systemd/README.md"


def test_the_server_and_the_kernel_host_share_their_directories() -> None:
    server, host = read("kernelsvc.service"), read("kernelsvc-kernels.service")
    for key in ("User", "StateDirectory", "RuntimeDirectory", "RuntimeDirectoryPreserve", "UMask"):
        assert server[key] == host[key], key


def test_a_restart_of_the_server_can_not_end_the_kernel_host() -> None:
    server, host = read("kernelsvc.service"), read("kernelsvc-kernels.service")
    for key in ("PartOf", "BindsTo", "Requires"):
        assert "kernelsvc-kernels.service" not in " ".join(server.get(key, []))
        assert "kernelsvc.service" not in " ".join(host.get(key, []))


def test_the_unit_of_a_node_is_confined_as_the_servers() -> None:
    """A setting that is added to a unit is added to its template."""
    own = {"Description", "Documentation", "Before", "After", "Wants", "Requires", "WantedBy", "Also", "Environment"}
    own |= {"EnvironmentFile", "StateDirectory", "RuntimeDirectory", "Restart"}
    for unit in ("kernelsvc.service", "kernelsvc-kernels.service"):
        template = unit.replace(".service", "@.service").replace("kernelsvc@", "kernelsvc-node@")
        plain, of_node = read(unit), read(template)
        assert {key: value for key, value in plain.items() if key not in own} == {
            key: value for key, value in of_node.items() if key not in own
        }
    node, host = read("kernelsvc-node@.service"), read("kernelsvc-kernels@.service")
    for key in ("User", "StateDirectory", "RuntimeDirectory", "RuntimeDirectoryPreserve", "UMask"):
        assert node[key] == host[key], key


@pytest.mark.parametrize("unit", ["kernelsvc.service", "kernelsvc-node@.service", "kernelsvc-front.service"])
def test_what_linux_would_end_last_has_a_limit_of_memory(unit: str) -> None:
    """A session once made the server take the machine's memory, and Linux ended other programs for it."""
    found = read(unit)
    assert found["OOMScoreAdjust"] == ["-500"]
    assert found["MemoryMax"]
    assert found["Restart"]


def test_the_kernel_host_may_do_what_confinement_needs() -> None:
    host = read("kernelsvc-kernels.service")
    assert set(host["RestrictNamespaces"][0].split()) == {"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"}
    assert set(host["Delegate"][0].split()) == {"memory", "pids", "cpu"}
    # Each of these covers parts of /proc, after which a user namespace can't mount its own.
    for key in ("ProtectKernelTunables", "ProtectKernelLogs", "ProtectProc", "ProcSubset", "ProtectControlGroups"):
        assert key not in host
    assert host["CapabilityBoundingSet"] == [""]


@pytest.mark.parametrize("unit", sorted(path.name for path in UNITS.iterdir() if path.suffix in (".service", ".slice")))
def test_units_are_well_formed(unit: str) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((UNITS / unit).read_text(encoding="utf-8"))
    assert "Unit" in parser.sections()
