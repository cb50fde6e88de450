"""What a cold kernel has on disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from kernelsvc.errors import Internal
from kernelsvc.kernels.read_budget import ReadBudgets
from kernelsvc.kernels.zmq.runtime_files import OPEN_BYTES, KernelRuntimeDir, StdioFifos, ZmqKernelRecord, addresses_of

RECORD = ZmqKernelRecord(
    kernel="k1",
    key="secret",
    scheme="hmac-sha256",
    ports={"shell": 1, "iopub": 2, "stdin": 3, "control": 4},
    identity="me",
    interrupt_mode="signal",
    language="python",
)


@pytest.fixture
def place(short_tmp: Path) -> Iterator[KernelRuntimeDir]:
    made = KernelRuntimeDir(short_tmp, "k1")
    made.make()
    yield made
    made.remove()


def test_a_place_is_private_and_found_again_by_the_kernel_s_id(place: KernelRuntimeDir, short_tmp: Path) -> None:
    assert place.root.stat().st_mode & 0o777 == 0o700
    assert KernelRuntimeDir(short_tmp, "k1").root == place.root
    assert KernelRuntimeDir(short_tmp, "k2").root != place.root
    assert KernelRuntimeDir(short_tmp, "../../etc").root.parent == short_tmp


def test_the_record_is_kept(place: KernelRuntimeDir, short_tmp: Path) -> None:
    assert place.read_record() is None
    place.write_record(RECORD)
    assert KernelRuntimeDir(short_tmp, "k1").read_record() == RECORD
    connection, key = addresses_of(place, RECORD, 7)
    assert connection.url("iopub") == f"ipc://{place.socket_prefix}-2"
    assert len(key.sign([b"x"])) == 64


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"kernel": 3}'])
def test_a_broken_record_is_none(place: KernelRuntimeDir, content: bytes) -> None:
    (place.root / "kernel.json").write_bytes(content)
    assert place.read_record() is None


def test_open_requests_are_kept_in_place(place: KernelRuntimeDir, short_tmp: Path) -> None:
    assert place.read_open() == []
    place.write_open(["a", "b"])
    place.write_open(["b"])
    assert KernelRuntimeDir(short_tmp, "k1").read_open() == ["b"]
    place.write_open([])
    assert place.read_open() == []


def test_too_many_open_requests_forget_the_oldest(place: KernelRuntimeDir) -> None:
    place.write_open([f"{i}-{'x' * 100}" for i in range(200)])
    kept = place.read_open()
    assert kept[-1].startswith("199-")
    assert len((place.root / "open").read_bytes()) == OPEN_BYTES


def test_a_place_left_by_a_crash_is_made_anew(place: KernelRuntimeDir, short_tmp: Path) -> None:
    (place.share / "old").touch()
    again = KernelRuntimeDir(short_tmp, "k1")
    again.make()
    assert not (again.share / "old").exists()


def test_a_long_path_is_refused_with_the_way_out(short_tmp: Path) -> None:
    with pytest.raises(Internal, match="shorter"):
        KernelRuntimeDir(short_tmp / ("x" * 90), "k").make()


def test_a_directory_that_can_t_be_made(short_tmp: Path) -> None:
    (short_tmp / "file").touch()
    with pytest.raises(Internal, match="Making files in the runtime directory failed"):
        KernelRuntimeDir(short_tmp / "file", "k").make()


async def test_raw_output_waits_while_nobody_reads_and_is_decoded_across_reads(place: KernelRuntimeDir) -> None:
    kernel = place.kernel_fd("stdout")
    os.write(kernel, "früh ".encode())
    heard: list[tuple[str, str]] = []
    raw = StdioFifos(place, lambda name, text: heard.append((name, text)), ReadBudgets().open("k"))
    try:
        await wait_until(lambda: heard)
        os.write(kernel, b"\xc3")
        os.write(kernel, b"\xa4\xff")
        await wait_until(lambda: "".join(text for _, text in heard) == "früh ä\ufffd")
        assert {name for name, _ in heard} == {"stdout"}
    finally:
        raw.close()
        os.close(kernel)


async def test_paused_raw_output_blocks_the_writer(place: KernelRuntimeDir) -> None:
    kernel = place.kernel_fd("stderr")
    os.set_blocking(kernel, False)
    heard: list[str] = []
    raw = StdioFifos(place, lambda name, text: heard.append(text), ReadBudgets().open("k"))
    try:
        raw.pause()
        written = 0
        with contextlib.suppress(BlockingIOError):
            while written < 1 << 20:
                written += os.write(kernel, b"x" * 4096)
        assert written < 1 << 20
        await asyncio.sleep(0)
        assert not heard
        raw.resume()
        await wait_until(lambda: sum(map(len, heard)) == written)
    finally:
        raw.close()
        os.close(kernel)


async def test_the_rest_is_given_and_the_end_of_all_writers_is_quiet(place: KernelRuntimeDir) -> None:
    kernel = place.kernel_fd("stdout")
    heard: list[str] = []
    raw = StdioFifos(place, lambda name, text: heard.append(text), ReadBudgets().open("k"))
    os.write(kernel, b"last")
    os.close(kernel)
    assert raw.read_rest() == [("stdout", "last")]
    assert raw.read_rest() == []
    raw.close()
    raw.close()
    assert raw.read_rest() == []
    assert not heard
