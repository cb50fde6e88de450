"""What a process holds, found without a kernel; what each finding means for a fork is in test_kernel_fork."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import sys
import types
import weakref
from pathlib import Path

import pytest

from kernelsvc.guest.forking import fork_safety


def test_descriptors_leave_out_the_standard_three_and_the_own(tmp_path: Path) -> None:
    with open(tmp_path / "f", "w") as file:
        found = {d.fd: d for d in fork_safety.descriptors(set())}
        assert found[file.fileno()].regular
        assert found[file.fileno()].writable
        assert found[file.fileno()].target == str(tmp_path / "f")
        assert not {0, 1, 2} & set(found)
        assert file.fileno() not in {d.fd for d in fork_safety.descriptors({file.fileno()})}


class Lazy:
    """As lazy objects of libraries: asked for its class, it runs code."""

    @property
    def __class__(self) -> type:
        raise RuntimeError("it is not ready")


async def test_objects_that_answer_for_others_hide_no_database(tmp_path: Path) -> None:
    gone = Lazy()
    dead = weakref.proxy(gone)
    lazy = [Lazy(), dead]
    del gone
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as database:
        database.execute("create table t(a)")
        found = fork_safety.survey(asyncio.get_running_loop(), set(), [], "")
        assert [said for said in found.obstacles if "SQLite" in said and "a.db" in said], found
    assert lazy


async def test_many_findings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [asyncio.create_task(asyncio.sleep(10)) for _ in range(30)]
    found = fork_safety.survey(asyncio.get_running_loop(), set(), [], "")
    assert len(found.warnings) == fork_safety.MAX_NAMED + 1
    assert found.warnings[-1].startswith("and ")
    for task in tasks:
        task.cancel()


@pytest.mark.parametrize(
    ("name", "module", "said"),
    [
        ("torch", types.SimpleNamespace(cuda=types.SimpleNamespace(is_initialized=lambda: True)), "CUDA"),
        ("jax._src.xla_bridge", types.SimpleNamespace(_backends={"cpu": 1}), "jax"),
        ("tensorflow", types.SimpleNamespace(), "tensorflow"),
        ("grpc", types.SimpleNamespace(), "grpc"),
        ("numba.np.ufunc.parallel", types.SimpleNamespace(_is_initialized=True, _threading_layer="omp"), "OpenMP"),
    ],
)
async def test_libraries_that_can_not_be_forked_are_named(
    monkeypatch: pytest.MonkeyPatch, name: str, module: object, said: str
) -> None:
    monkeypatch.setitem(sys.modules, name, module)
    found = fork_safety.survey(asyncio.get_running_loop(), set(), [], "")
    assert any(said in obstacle for obstacle in found.obstacles)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("torch", types.SimpleNamespace(cuda=types.SimpleNamespace(is_initialized=lambda: False))),
        ("torch", types.SimpleNamespace()),
        ("jax._src.xla_bridge", types.SimpleNamespace(_backends={})),
        ("polars", types.SimpleNamespace()),
        ("numba.np.ufunc.parallel", types.SimpleNamespace(_is_initialized=True, _threading_layer="workqueue")),
    ],
)
async def test_libraries_at_rest_or_of_unknown_insides_are_no_obstacle(
    monkeypatch: pytest.MonkeyPatch, name: str, module: object
) -> None:
    monkeypatch.setitem(sys.modules, name, module)
    found = fork_safety.survey(asyncio.get_running_loop(), set(), [], "")
    assert not any(name.split(".")[0] in obstacle for obstacle in found.obstacles)


def test_a_writable_duckdb_file_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "a.duckdb"
    path.write_bytes(b"\0" * 8 + b"DUCK" + b"\0" * 100)
    fd = os.open(path, os.O_RDWR)
    try:
        found = (
            fork_safety.survey(asyncio.new_event_loop(), set(), [], "")
            if False
            else list(fork_safety._databases([d for d in fork_safety.descriptors(set()) if d.fd == fd]))
        )
    finally:
        os.close(fd)
    assert found == [f"A DuckDB connection to {path} can write. Close it, or open it read-only."]


def test_mapped_files_are_found_in_the_text_of_proc() -> None:
    text = (
        "7f00-7f01 r-xp 00000000 fe:00 12 /opt/x y/libgomp-24e.so.1.0\n"
        "7f01-7f02 rw-p 00000000 fe:00 12 /opt/x y/libgomp-24e.so.1.0\n"
        "7f02-7f03 rw-s 00000000 fe:00 13 /home/user/m.bin\n"
        "7f03-7f04 rw-s 00000000 00:01 14 /dev/zero (deleted)\n"
        "7f04-7f05 rw-p 00000000 00:00 0\n"
    )
    assert fork_safety.openmp(text) == ["/opt/x y/libgomp-24e.so.1.0"]
    assert [w.split(" is shared")[0] for w in fork_safety._shared_memory(text)] == [
        "The memory-mapped file /home/user/m.bin"
    ]
    assert fork_safety.openmp("") == []
