"""The probe, on this machine, and in places where less works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernelsvc.sandbox.probe import probe

REPOSITORY = Path(__file__).parents[3]
_REPORT = (
    "import json; from kernelsvc.sandbox.probe import probe; "
    "print(json.dumps({n: [l.ok, l.why, l.fix] for n, l in probe().layers.items()}))"
)


def test_each_layer_is_tried_and_explained() -> None:
    found = probe()
    assert found.root is (os.getuid() == 0)
    assert {"mount namespace", "filesystem", "landlock", "seccomp", "capabilities", "no_new_privs"} <= set(found.layers)
    for layer in found.layers.values():
        assert layer.ok or (layer.why and layer.fix), layer
    assert found.works("no_new_privs")
    assert not found.works("a layer nobody knows")


def test_without_user_namespaces_an_ordinary_user_is_told_the_switch() -> None:
    """In a user namespace of its own, the switch can be turned off for all below it."""
    script = 'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --ambient-caps=-all --inh-caps=-all "$@"'
    into = ["unshare", "-U", "--map-user=1000", "--map-group=1000", "--keep-caps", "sh", "-c", script, "sh"]
    done = subprocess.run(
        [*into, sys.executable, "-c", _REPORT], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    if done.returncode != 0 and ("unshare" in done.stderr or "max_user_namespaces" in done.stderr):
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    layers = json.loads(done.stdout)
    assert layers["user namespace"][0] is False
    assert "max_user_namespaces" in layers["user namespace"][2]
    assert layers["mount namespace"][0] is layers["filesystem"][0] is False
    assert layers["seccomp"][0] is layers["landlock"][0] is True


def test_a_machine_we_have_no_table_for_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "sparc64")
    found = probe()
    assert not found.works("seccomp")
    assert "sparc64" in found.layers["seccomp"].why
