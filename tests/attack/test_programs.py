"""Programs beside the kernel of a server that is an ordinary user's: the same walls, by a user namespace."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.test_e2b_process import Box
from served import Served

from attack.unprivileged import UID, as_ordinary_user

FACTS = (
    "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp|Uid|Gid|Groups):' /proc/self/status; "
    "for n in mnt pid net ipc uts user; do readlink /proc/self/ns/$n; done; ls /"
)


class OrdinaryServed(Served):
    def command(self) -> list[str]:
        return as_ordinary_user(super().command())


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    if os.geteuid() != 0:
        pytest.skip("not root: then every other test is this one")
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as root:
        os.chown(root, UID, UID)
        served = OrdinaryServed(Path(root), env={"HOME": root}).start()
        yield Box(served)
        served.stop()


def test_programs_have_the_confinement_of_the_kernel(box: Box) -> None:
    said, end = box.run(FACTS)
    assert end["exitCode"] == 0
    code = f"import subprocess\nprint(subprocess.run(['sh', '-c', {FACTS!r}], capture_output=True, text=True).stdout)"
    cell = box.served.call("POST", f"/v1/sessions/{box.id}/cells", {"code": code})
    assert said.strip() == cell["text"].strip()
    assert "NoNewPrivs:\t1" in said
    assert "CapEff:\t0000000000000000" in said


def test_a_program_can_not_leave_its_confinement(box: Box) -> None:
    said, _ = box.run("unshare -U true; nsenter -t 1 -m true; ls /proc/1/root; cat /proc/1/environ; echo end 2>&1")
    assert said == "end\n"
