"""Judging is pure; reading is tried on real processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import wait_for

from kernelsvc.model.limits import Limits, MiB
from kernelsvc.sandbox import watchdog
from kernelsvc.sandbox.disk_use import DiskUse
from kernelsvc.sandbox.plan import SPARE_TASKS
from kernelsvc.sandbox.watchdog import (
    ProcessStat,
    SessionUse,
    Watchdog,
    Watched,
    check_limits,
    group,
    may_exceed_memory,
    socket_charge,
    walk,
)

NONE = Limits(memory_bytes=None, processes=None, disk_bytes=None, files=None)


def test_nothing_is_judged_without_a_cap_or_a_figure() -> None:
    assert (
        check_limits(NONE, SessionUse(memory_bytes=1 << 50, tasks=10**6, disk=DiskUse(bytes=1 << 50, files=1 << 30)))
        == []
    )
    assert check_limits(Limits(), SessionUse()) == []


def test_a_breach_says_the_figures() -> None:
    (breach,) = check_limits(Limits(memory_bytes=512 * MiB), SessionUse(memory_bytes=600 * MiB))
    assert (breach.limit, breach.value, breach.maximum) == ("memory_bytes", 600 * MiB, 512 * MiB)
    assert breach.message == "memory: 512 MiB reached, 600 MiB used"


def test_what_linux_holds_is_left_to_linux() -> None:
    use = SessionUse(memory_bytes=600 * MiB, disk=DiskUse(bytes=600 * MiB))
    limits = Limits(memory_bytes=512 * MiB, disk_bytes=512 * MiB)
    assert [b.limit for b in check_limits(limits, use, hard={"memory_bytes"})] == ["disk_bytes"]
    assert watchdog.hard_limits({"memory_bytes": "hard", "disk_bytes": "supervised"}) == {"memory_bytes"}


def test_the_init_and_checkpoints_are_not_counted_against_a_session() -> None:
    limits = Limits(processes=4)
    assert check_limits(limits, SessionUse(tasks=4 + SPARE_TASKS)) == []
    assert check_limits(limits, SessionUse(tasks=5 + SPARE_TASKS))


def test_resident_memory_makes_a_suspect_only() -> None:
    limits = Limits(memory_bytes=100)
    assert may_exceed_memory(limits, SessionUse(resident_bytes=101))
    assert not may_exceed_memory(limits, SessionUse(resident_bytes=100))
    assert check_limits(limits, SessionUse(resident_bytes=101)) == []
    assert not may_exceed_memory(NONE, SessionUse(resident_bytes=1 << 50))


@given(st.lists(st.integers(1, 30), unique=True), st.data())
def test_every_process_below_a_root_is_counted_once(pids: list[int], data: st.DataObject) -> None:
    processes = [
        ProcessStat(pid, data.draw(st.sampled_from([0, *[p for p in pids if p < pid]])), 10, 0.5, 1) for pid in pids
    ]
    roots = data.draw(st.lists(st.sampled_from(pids), unique=True) if pids else st.just([]))
    roots += [process.pid for process in processes if process.parent == 0 and process.pid not in roots]
    uses = group(processes, roots)
    counted = [pid for use in uses.values() for pid in use.pids]
    assert sorted(counted) == sorted(pids)
    assert sum(use.resident_bytes for use in uses.values()) == 10 * len(pids)


def test_daemons_and_branches_are_charged_to_whom_they_belong() -> None:
    init, kernel, branch = 100, 101, 110
    processes = [
        ProcessStat(50, 1, 1, 0.0, 1),  # the kernel host
        ProcessStat(init, 50, 1, 0.0, 1),
        ProcessStat(kernel, init, 1, 0.0, 1),
        ProcessStat(102, kernel, 1, 0.0, 1),  # its child
        ProcessStat(103, init, 1, 0.0, 1),  # a daemon
        ProcessStat(104, 103, 1, 0.0, 1),
        ProcessStat(branch, kernel, 1, 0.0, 1),
        ProcessStat(111, branch, 1, 0.0, 1),
        ProcessStat(200, 50, 1, 0.0, 1),  # another session's init
        ProcessStat(201, 200, 1, 0.0, 1),
    ]
    uses = group(processes, [kernel, branch, 201])
    assert {root: set(use.pids) for root, use in uses.items()} == {
        kernel: {kernel, 102, 103, 104},
        branch: {branch, 111},
        201: {201},
    }
    assert 103 not in group(processes, [kernel], own=init)[kernel].pids, "our other children are none of a kernel's"


def test_programs_are_charged_by_their_namespace() -> None:
    host, kernel, branch, shim = 50, 101, 110, 60
    parents = {host: 1, 100: host, kernel: 100, branch: kernel, shim: host, 61: shim, 62: 61, 201: host, 301: 1}
    spaces = {kernel: 7, branch: 7, 100: 7, 61: 7, 62: 7, 301: 8}
    processes = [ProcessStat(pid, parent, 1, 0.0, 1) for pid, parent in parents.items()]
    uses = group(processes, [kernel, branch], own=host, namespace=lambda pid: spaces.get(pid, 1))
    assert {root: set(use.pids) for root, use in uses.items()} == {kernel: {kernel, 61, 62}, branch: {branch}}
    uses = group(processes, [kernel], own=host, namespace=lambda pid: 1)
    assert set(uses[kernel].pids) == {kernel, branch}, "without a namespace of their own, they are not known"


def test_sockets_above_a_few_are_charged() -> None:
    assert socket_charge(64, MiB) == 0
    assert socket_charge(164, 200_000) == 100 * 400_000
    assert socket_charge(164, 4 * MiB) == 100 * MiB, "nobody fills all of them"
    assert may_exceed_memory(Limits(memory_bytes=100), SessionUse(resident_bytes=60, charged_bytes=60))


def test_sockets_of_a_process_are_counted() -> None:
    before = watchdog.open_sockets(os.getpid())
    made = [socket.socketpair() for _ in range(50)]
    assert watchdog.open_sockets(os.getpid()) >= before + 100 - 50  # other tests close some of theirs
    for pair in made:
        for one in pair:
            one.close()
    assert watchdog.open_sockets(-1) == 0


def test_a_process_that_refuses_is_counted_by_its_resident_memory(
    family: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(process: psutil.Process) -> None:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "memory_full_info", refuse)
    child = psutil.Process(family.pid).children()[0]
    assert watchdog.proportional_memory([child.pid]) > 60 * MiB
    child.kill()
    wait_for(lambda: watchdog.proportional_memory([child.pid]) < MiB, what="its end")


def test_the_largest_session_is_ended_before_the_machine_has_no_memory_left(
    family: subprocess.Popen[str], tmp_path: Path
) -> None:
    large = Watched(root=family.pid, limits=Limits(), workdir=str(tmp_path))
    held = msgspec.structs.replace(large, hard=frozenset({"memory_bytes"}))
    with subprocess.Popen(["sleep", "100"]) as sleeper:
        small = Watched(root=sleeper.pid, limits=Limits(), workdir=str(tmp_path))
        sessions = {"small": small, "large": large}
        dog = Watchdog(available_bytes=lambda: 100 * MiB, least_available=200 * MiB)
        breaches = dog.poll(sessions)[1]
        assert list(breaches) == ["large"]
        assert breaches["large"][0].limit == "memory_bytes"
        assert breaches["large"][0].message.startswith("memory: the machine has 100 MiB left; ")
        assert dog.poll(sessions)[1] == {}, "its end takes a moment"
        assert Watchdog(available_bytes=lambda: 300 * MiB, least_available=200 * MiB).poll(sessions)[1] == {}
        dog = Watchdog(available_bytes=lambda: 100 * MiB, least_available=200 * MiB)
        assert dog.poll({"small": small, "held": held})[1] == {}, "its end would win nothing"
        sleeper.kill()


def test_a_root_that_is_gone_uses_nothing() -> None:
    assert group([], [7]) == {7: SessionUse()}


@pytest.fixture
def family() -> Iterator[subprocess.Popen[str]]:
    """A process with a child that has 64 MiB of its own; it says when they are touched."""
    code = (
        "import os, sys\n"
        "r, w = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    b = bytearray(64 << 20); os.write(w, b'x'); sys.stdin.read(); os._exit(0)\n"
        "os.read(r, 1); print('ready', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    yield process
    for child in psutil.Process(process.pid).children():
        child.kill()
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_the_walk_sees_what_psutil_sees(family: subprocess.Popen[str]) -> None:
    use = group(walk(), [family.pid], own=os.getpid())[family.pid]
    child = psutil.Process(family.pid).children()[0]
    assert use.pids == (family.pid, child.pid)
    assert use.tasks == 2
    seen = sum(psutil.Process(pid).memory_info().rss for pid in use.pids)
    assert abs(use.resident_bytes - seen) < 2 * MiB
    assert 60 * MiB < watchdog.proportional_memory(use.pids) <= use.resident_bytes + MiB


def test_the_fallback_sees_the_same(family: subprocess.Popen[str]) -> None:
    use = group(watchdog._walk_psutil(), [family.pid], own=os.getpid())[family.pid]
    assert use.tasks == 2
    assert use.resident_bytes > 60 * MiB


def test_a_pass_strikes_who_took_too_much_and_nobody_else(family: subprocess.Popen[str], tmp_path: Path) -> None:
    greedy = Watched(root=family.pid, limits=Limits(memory_bytes=32 * MiB), workdir=str(tmp_path))
    modest = Watched(root=family.pid, limits=Limits(memory_bytes=1024 * MiB), workdir=str(tmp_path))
    held = Watched(root=family.pid, limits=greedy.limits, workdir=str(tmp_path), hard=frozenset({"memory_bytes"}))
    uses, breaches = Watchdog().poll({"greedy": greedy, "modest": modest, "held": held})
    assert list(breaches) == ["greedy"]
    assert breaches["greedy"][0].limit == "memory_bytes"
    assert uses["modest"].memory_bytes is None, "nobody's fair share is read without suspicion"


def test_shared_pages_are_shown_once(tmp_path: Path) -> None:
    """A kernel and its checkpoints share their pages. The sum of their resident memory is a multiple of them."""
    code = (
        "import os, sys\n"
        "b = bytearray(64 << 20)\n"
        "r, w = os.pipe()\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        os.write(w, b'x'); sys.stdin.read(); os._exit(0)\n"
        "for _ in range(3): os.read(r, 1)\n"
        "print('ready', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        one = Watched(root=process.pid, limits=NONE, workdir=str(tmp_path))
        uses, _ = Watchdog().poll({"one": one})
        process.communicate("")
    assert uses["one"].resident_bytes > 250 * MiB
    assert 60 * MiB < (uses["one"].shown_bytes or 0) < 120 * MiB


def test_memory_is_read_in_turn_and_once_more_after_a_cell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read: list[int] = []
    monkeypatch.setattr(watchdog, "_shown_memory", lambda watched, use: read.append(watched.root) or len(read))
    spent = dict.fromkeys((1, 2), 0.0)
    monkeypatch.setattr(watchdog, "walk", lambda: [ProcessStat(pid, 0, 0, cpu, 1) for pid, cpu in spent.items()])
    sessions = {str(pid): Watched(root=pid, limits=NONE, workdir=str(tmp_path)) for pid in spent}
    patient, hurried = Watchdog(), Watchdog(memory_seconds=0.0)
    patient.poll(sessions)
    assert sorted(read) == [1, 2]
    uses, _ = patient.poll(sessions)
    assert (len(read), uses["1"].shown_bytes) == (2, 1), "the last figure is shown"
    spent[2] += 1.0
    for _ in range(3):
        patient.poll(sessions)
    assert read[2:] == [2, 2]
    read.clear()
    hurried.poll(sessions)
    hurried.poll(sessions)
    assert read == [1, 2]


def test_disks_are_walked_in_turn(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_bytes(b"x" * 100_000)
    limits = Limits(memory_bytes=None, disk_bytes=1000)
    with subprocess.Popen(["sleep", "100"]) as sleeper:
        sessions = {name: Watched(root=sleeper.pid, limits=limits, workdir=str(tmp_path / name)) for name in "abc"}
        dog = Watchdog(disks_per_pass=2)
        assert sorted(dog.poll(sessions)[1]) == ["a", "b"]
        assert sorted(dog.poll(sessions)[1]) == ["a", "b", "c"]
        del sessions["b"]
        assert sorted(dog.poll(sessions)[1]) == ["a", "c"]
        sleeper.kill()


def test_the_disk_of_whoever_computes_is_walked_at_every_pass(tmp_path: Path) -> None:
    limits = Limits(memory_bytes=None, disk_bytes=1000)
    with subprocess.Popen(["sleep", "100"]) as sleeper:
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as writer:
            sessions = {}
            for number in range(10):
                place = tmp_path / f"s{number}"
                place.mkdir()
                sessions[place.name] = Watched(root=sleeper.pid, limits=limits, workdir=str(place))
            place = tmp_path / "busy"
            place.mkdir()
            sessions["busy"] = Watched(root=writer.pid, limits=limits, workdir=str(place))
            dog = Watchdog(disks_per_pass=1)
            dog.poll(sessions)
            (place / "f").write_bytes(b"x" * 100_000)
            wait_for(lambda: "busy" in dog.poll(sessions)[1], what="a look at it")
            assert sum(use.disk is not None for use in dog.poll(sessions)[0].values()) < 11
            writer.kill()
        sleeper.kill()


def test_a_number_of_files_is_a_limit_beside_their_size() -> None:
    use = SessionUse(disk=DiskUse(bytes=0, files=60_000))
    (breach,) = check_limits(Limits(files=50_000), use)
    assert (breach.limit, breach.message) == ("files", "files: 50000 reached, 60000 used")
    assert check_limits(Limits(files=60_000), use) == []


def test_what_cannot_be_measured_is_a_breach_of_whoever_may_be_writing() -> None:
    use = SessionUse(disk=DiskUse(bytes=1, unseen="a directory can't be read"), busy=True)
    (breach,) = check_limits(Limits(disk_bytes=100 * MiB), use)
    assert (breach.limit, breach.unseen) == ("disk_bytes", True)
    assert breach.message == "disk: the use can't be compared with 100 MiB: a directory can't be read"
    assert check_limits(Limits(), msgspec.structs.replace(use, busy=False)) == [], "an idle session writes nothing"
    assert check_limits(Limits(), use, hard={"disk_bytes"}) == []
    assert check_limits(NONE, use) == []


def test_files_beside_the_directory_count_unless_they_are_a_branch_s(tmp_path: Path) -> None:
    (tmp_path / "user").mkdir()
    for name in ("branch", "hidden"):
        (tmp_path / "user.d" / name).mkdir(parents=True)
        (tmp_path / "user.d" / name / "f").write_bytes(b"x" * 100_000)
    watched = Watched(root=os.getpid(), limits=Limits(memory_bytes=None), workdir=str(tmp_path / "user"))
    dog = Watchdog(is_workdir=lambda path: path == str(tmp_path / "user.d" / "branch"))
    disk = dog.poll({"s": watched})[0]["s"].disk
    assert disk is not None
    assert 100_000 <= disk.bytes < 200_000
