"""What a sandbox's cgroups have counted is told once, and not what a kernel's own end tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelsvc.host.cgroup_events import CgroupEvents
from kernelsvc.sandbox.cgroup import Cgroup


@pytest.fixture
def group(tmp_path: Path) -> Cgroup:
    count(tmp_path, 0, 0)
    return Cgroup(version=2, directories={"memory": str(tmp_path), "pids": str(tmp_path)})


def count(directory: Path, kills: int, refused: int) -> None:
    (directory / "memory.events").write_text(f"low 0\noom {kills}\noom_kill {kills}\n")
    (directory / "pids.events").write_text(f"max {refused}\n")


def test_refused_forks_are_told_when_there_are_more(tmp_path: Path, group: Cgroup) -> None:
    tally = CgroupEvents()
    assert tally.poll("", group, 0) == ([], 0)
    count(tmp_path, 0, 3)
    assert tally.poll("", group, 0) == (["processes"], 0)
    assert tally.poll("", group, 0) == ([], 0)
    count(tmp_path, 0, 4)
    assert tally.poll("", group, 0) == (["processes"], 0)


def test_an_oom_kill_waits_a_turn_for_a_kernels_end_that_may_explain_it(tmp_path: Path, group: Cgroup) -> None:
    tally = CgroupEvents()
    count(tmp_path, 1, 0)
    assert tally.poll("", group, 0) == ([], 0)
    assert tally.poll("", group, 0) == (["memory_bytes"], 1)
    count(tmp_path, 2, 0)
    assert tally.poll("", group, 1) == ([], 1)
    assert tally.poll("", group, 2) == ([], 2), "a kernel's end took it meanwhile"


def test_what_an_earlier_host_saw_is_not_told_again(tmp_path: Path, group: Cgroup) -> None:
    tally = CgroupEvents()
    count(tmp_path, 0, 7)
    tally.set_baseline("", group)
    assert tally.poll("", group, 0) == ([], 0)


def test_cgroups_are_counted_apart(tmp_path: Path, group: Cgroup) -> None:
    tally = CgroupEvents()
    count(tmp_path, 0, 1)
    assert tally.poll("a", group, 0) == (["processes"], 0)
    assert tally.poll("b", group, 0) == (["processes"], 0)


def test_a_group_that_is_gone_has_counted_nothing(tmp_path: Path) -> None:
    gone = Cgroup(version=1, directories={"memory": str(tmp_path / "gone")})
    assert CgroupEvents().poll("", gone, 0) == ([], 0)
