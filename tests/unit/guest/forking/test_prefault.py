"""Pages that are written after a fork: seen, and taken before they are needed."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import typing
from collections.abc import Iterator

import pytest

from kernelsvc.guest.forking import prefault
from kernelsvc.guest.forking.proc_maps import ProcMaps

PAGE = mmap.PAGESIZE
OURS, SHARED, FILE, ABSENT = 0x81, 0x80, 0xA1, 0x00


def entries(*kinds: int) -> bytes:
    return b"".join(bytes(7) + bytes([kind]) for kind in kinds)


def test_short_runs_of_our_own_pages_are_found() -> None:
    kinds = [SHARED, OURS, OURS, SHARED, OURS, SHARED, SHARED, FILE, OURS, ABSENT]
    assert list(prefault.runs(entries(*kinds))) == [(1, 2), (4, 1), (8, 1)]
    assert list(prefault.runs(entries(*[OURS] * prefault.MOST_RUN))) == [(0, prefault.MOST_RUN)]
    assert list(prefault.runs(entries(*[OURS] * (prefault.MOST_RUN + 1)))) == [], "that is data"
    assert list(prefault.runs(b"")) == []


@pytest.fixture
def pages() -> Iterator[tuple[mmap.mmap, int]]:
    """Sixteen pages between others that are not to be touched, and where they are."""
    memory = mmap.mmap(-1, 16 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    view = (ctypes.c_char * len(memory)).from_buffer(memory)
    address = ctypes.addressof(view)
    del view
    yield memory, address
    memory.close()


def write(memory: mmap.mmap) -> None:
    for at in range(0, len(memory), PAGE):
        memory[at] = 1


def _maps() -> ProcMaps:
    mapped = ProcMaps()
    mapped.read()
    return mapped


def ours(address: int) -> bool:
    return any(begin <= address < begin + length for begin, length in prefault.written(_maps()))


class Sleeper:
    """A child that holds on to every page, as a parked copy does."""

    def __enter__(self) -> None:
        ready, self._go = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._go)
            os.read(ready, 1)
            os._exit(0)
        os.close(ready)

    def __exit__(self, *_: object) -> None:
        os.close(self._go)
        os.waitpid(self._pid, 0)


def test_what_is_taken_after_a_fork_faults_no_more(pages: tuple[mmap.mmap, int]) -> None:
    memory, address = pages
    write(memory)
    before = prefault.written(_maps())
    mine = [(begin, length) for begin, length in before if begin <= address < begin + length]
    if not mine:
        pytest.skip("this Linux does not tell which pages are a process's alone")
    with Sleeper():
        assert not ours(address)
        prefault.populate(mine)
        assert ours(address)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        write(memory)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 16
        assert memory[5 * PAGE] == 1


def test_what_is_gone_meanwhile_is_passed_over(pages: tuple[mmap.mmap, int]) -> None:
    prefault.populate([(1 << 46, PAGE), (pages[1], PAGE)])


def test_it_looks_after_a_fork_that_took_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    taken: list[list[prefault.Range]] = []
    monkeypatch.setattr(prefault, "written", lambda mapped: looks.append(mapped) or [(0, PAGE)])
    monkeypatch.setattr(prefault, "populate", taken.append)
    one = prefault.PagePrefault()
    for number in range(prefault.FORKS_PER_MEASURE + 5):
        one.forking(typing.cast("ProcMaps", str(number)))
        one.forked()
    assert looks == ["1", "2", str(prefault.FORKS_PER_MEASURE + 3), str(prefault.FORKS_PER_MEASURE + 4)]
    assert len(taken) == prefault.FORKS_PER_MEASURE + 1


def test_only_what_is_written_each_time_is_taken() -> None:
    one = [(0, 3 * PAGE), (10 * PAGE, PAGE), (20 * PAGE, 4 * PAGE), (40 * PAGE, PAGE)]
    other = [(PAGE, PAGE), (11 * PAGE, PAGE), (19 * PAGE, 2 * PAGE), (23 * PAGE, 9 * PAGE)]
    both = [(PAGE, PAGE), (20 * PAGE, PAGE), (23 * PAGE, PAGE)]
    assert prefault.common(one, other) == prefault.common(other, one) == both
    assert prefault.common(one, []) == []
