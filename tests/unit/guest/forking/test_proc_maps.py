"""What is mapped into this process, read without a trace."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import pytest

from kernelsvc.guest.forking import fork_safety
from kernelsvc.guest.forking.proc_maps import ProcMaps


@pytest.mark.parametrize("room", [mmap.PAGESIZE, 1 << 20], ids=["too small at first", "ample"])
def test_it_says_what_proc_says(room: int) -> None:
    mapped = ProcMaps(room)
    mapped.read()
    lines = Path("/proc/self/maps").read_text().splitlines(keepends=True)
    assert mapped.lines(b".so") == "".join(line for line in lines if ".so" in line)
    assert len(list(mapped.search(re.compile(rb"^[0-9a-f]+-", re.MULTILINE)))) >= len(lines) - 3
    assert mapped.lines(b"no such thing") == ""


def test_a_mapping_that_is_shared_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(bytes(mmap.PAGESIZE))
    mapped = ProcMaps()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), mmap.PAGESIZE):
        mapped.read()
        assert str(path) in mapped.lines(*fork_safety.MAPPINGS_OF_INTEREST)
    mapped.read()
    assert str(path) not in mapped.lines(*fork_safety.MAPPINGS_OF_INTEREST)


def test_it_leaves_no_page_behind() -> None:
    mapped = ProcMaps()

    def resident() -> int:
        # Linux may have joined the mapping with its neighbour, so the address can lie within a larger one.
        smaps, address = Path("/proc/self/smaps").read_text(), _address(mapped._room)
        for begin, end, size in re.findall(
            r"^([0-9a-f]+)-([0-9a-f]+) .*?^Rss: +(\d+)", smaps, re.MULTILINE | re.DOTALL
        ):
            if int(begin, 16) <= address < int(end, 16):
                return int(size)
        raise AssertionError("the mapping is not there")

    mapped.read()
    assert mapped.lines(b"libc")
    full = resident()
    mapped.drop()
    assert full > 0
    assert full - resident() >= 4
    assert mapped.lines(b"libc") == ""


def _address(room: mmap.mmap) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(room))
