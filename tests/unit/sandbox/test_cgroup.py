"""Cgroups: parsing on texts, the rest on this machine's own where it has any for us."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from kernelsvc.model.limits import MiB
from kernelsvc.sandbox.cgroup import Cgroup, CgroupManager, open_cgroups, parse_mounts, parse_own, parse_pairs


def test_own_paths_of_both_versions() -> None:
    text = "9:name=systemd:/\n4:memory:/a/b\n1:cpu,cpuacct:/c\n0::/user.slice/x.scope\n"
    assert parse_own(text) == {
        "name=systemd": "/",
        "memory": "/a/b",
        "cpu": "/c",
        "cpuacct": "/c",
        "": "/user.slice/x.scope",
    }


def test_mounts_of_both_versions() -> None:
    text = (
        "30 1 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "31 1 0:27 /docker/x /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "32 1 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
        "33 1 0:29 / /proc rw - proc proc rw\n"
    )
    assert parse_mounts(text) == {
        "memory": ("/sys/fs/cgroup/memory", "/"),
        "cpu": ("/sys/fs/cgroup/cpu,cpuacct", "/docker/x"),
        "cpuacct": ("/sys/fs/cgroup/cpu,cpuacct", "/docker/x"),
        "": ("/sys/fs/cgroup/unified", "/"),
    }


def test_pairs_skip_what_is_no_number() -> None:
    assert parse_pairs("oom 3\noom_kill 2\nmax\nhigh x\n") == {"oom": 3, "oom_kill": 2}


@pytest.fixture
def maker() -> Iterator[CgroupManager]:
    made = open_cgroups(f"test{os.getpid()}")
    if {layer.name for layer in made.layers if layer.ok} != {"memory cgroup", "pids cgroup", "cpu cgroup"}:
        made.close()
        pytest.skip("; ".join(layer.why for layer in made.layers if not layer.ok))
    yield made
    for group in made.leftovers():
        group.kill()
        eventually(group.remove)
    made.close()


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def run_in(group: Cgroup, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code as a member of the group."""
    joined = "".join(f"open({path!r}, 'w').write('0')\n" for path in group.join_files)
    return subprocess.run(
        [sys.executable, "-S", "-c", joined + code], capture_output=True, text=True, check=False, timeout=30
    )


@pytest.mark.needs_cgroup
def test_memory_above_the_cap_is_killed_and_told(maker: CgroupManager) -> None:
    group = maker.make("memory")
    assert group
    group.limit(memory_bytes=64 * MiB, tasks=None)
    done = run_in(group, "b = bytearray(256 << 20)\nprint('NOT LIMITED')")
    assert done.returncode == -9
    assert done.stdout == ""
    sample = group.sample()
    assert sample.oom_kills == 1
    assert sample.peak_bytes
    assert sample.peak_bytes <= 64 * MiB
    eventually(group.remove)
    assert group.remove(), "removing twice is no error"


@pytest.mark.needs_cgroup
def test_tasks_above_the_cap_are_refused_and_counted(maker: CgroupManager) -> None:
    group = maker.make("tasks")
    assert group
    group.limit(memory_bytes=None, tasks=5)
    code = (
        "import os, sys, time\nn = 0\ntry:\n    while True:\n"
        "        if os.fork() == 0: time.sleep(30); os._exit(0)\n        n += 1\n"
        "except OSError: print(n, flush=True)\nos._exit(0)"
    )
    joined = "".join(f"open({path!r}, 'w').write('0')\n" for path in group.join_files)
    process = subprocess.Popen([sys.executable, "-S", "-c", joined + code], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "4\n"
    process.wait()
    assert group.sample().refused_forks >= 1
    assert len(group.members()) == 4
    group.kill()
    process.stdout.close()
    eventually(lambda: group.sample().tasks == 0)
    eventually(group.remove)


@pytest.mark.needs_cgroup
def test_a_share_of_the_processor_holds(maker: CgroupManager) -> None:
    group = maker.make("cpu")
    assert group
    group.limit_cpu(0.2)
    group.limit_cpu(None)
    code = (
        "import time\nt = time.monotonic(); c = time.process_time()\n"
        "while time.monotonic() - t < 1.0: pass\nprint((time.process_time() - c) / (time.monotonic() - t))"
    )
    assert float(run_in(group, code).stdout) < 0.35
    used = group.sample().cpu_seconds
    assert used is not None
    assert used > 0.05


@pytest.mark.needs_cgroup
def test_another_hosts_groups_are_not_ours(maker: CgroupManager) -> None:
    other = open_cgroups(f"other{os.getpid()}")
    try:
        group = maker.make("mine")
        assert group
        assert [g.name for g in maker.leftovers()] == ["mine"]
        assert list(other.leftovers()) == []
        assert group.controllers == {"memory", "pids", "cpu"}
    finally:
        other.close()


@pytest.mark.needs_cgroup
def test_nothing_stays_when_the_last_group_is_gone(maker: CgroupManager) -> None:
    if maker.version != 1:
        pytest.skip("version 2 keeps its parents")
    group = maker.make("last")
    assert group
    parents = {os.path.dirname(directory) for directory in group.directories.values()}
    maker.trim()
    assert all(os.path.isdir(parent) for parent in parents)
    assert group.remove()
    maker.trim()
    assert not any(os.path.exists(parent) for parent in parents)
    again = maker.make("again")
    assert again
    again.limit(memory_bytes=64 * MiB, tasks=5)
    assert again.remove()


@pytest.mark.needs_cgroup
def test_what_a_killed_host_left_is_cleared_when_it_is_old_and_empty(maker: CgroupManager) -> None:
    killed = open_cgroups(f"killed{os.getpid()}")
    group = killed.make("left")
    assert group
    maker.clear_abandoned()
    assert all(os.path.isdir(directory) for directory in group.directories.values()), "it may be about to be used"
    for directory in group.directories.values():
        for path in (directory, os.path.dirname(directory)):
            os.utime(path, (0, 0))
    maker.clear_abandoned()
    assert not any(os.path.exists(os.path.dirname(directory)) for directory in group.directories.values())


def test_looking_changes_nothing() -> None:
    made = open_cgroups("dry", dry=True)
    assert made.make("x") is None
    assert {layer.name for layer in made.layers} == {"memory cgroup", "pids cgroup", "cpu cgroup"}
    assert list(made.leftovers()) == []
