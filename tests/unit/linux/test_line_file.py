import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.linux.line_file import SparseIndex, read_lines, walk
from kernelsvc.store.recovery import count


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    fd = os.open(tmp_path_factory.mktemp("f") / "lines", os.O_RDWR | os.O_CREAT, 0o600)
    yield fd
    os.close(fd)


def fill(fd, data):
    os.ftruncate(fd, 0)
    os.pwrite(fd, data, 0)
    return len(data)


lines_of = st.lists(st.binary(max_size=40).filter(lambda b: b"\n" not in b), max_size=30)


@given(lines=lines_of, tail=st.sampled_from([b"", b"torn"]), size=st.integers(1, 100))
def test_walking_gives_each_whole_line_once(file, lines, tail, size):
    end = fill(file, b"".join(line + b"\n" for line in lines) + tail)
    assert list(walk(file, 0, end, size)) == lines


@given(lines=lines_of.filter(bool), size=st.integers(1, 50))
def test_reading_stays_near_the_wanted_size(file, lines, size):
    end = fill(file, b"".join(line + b"\n" for line in lines))
    got = read_lines(file, 0, end, size)
    assert got == lines[: len(got)]
    assert len(got) >= 1
    assert sum(len(line) + 1 for line in got) <= 4 * max(size, max(map(len, lines)) + 1)


def test_any_line_is_found_through_the_index(file):
    lines = [b"x" * (n * 7919 % 3000) for n in range(1000)]
    end = fill(file, b"".join(line + b"\n" for line in lines))
    index, offset = SparseIndex(), 0
    for seq, line in enumerate(lines, 1):
        index.add(seq, offset)
        offset += len(line) + 1
    portions, offset = SparseIndex(), 0
    for at in range(0, len(lines), 7):
        some = lines[at : at + 7]
        size = sum(map(len, some)) + len(some)
        portions.add_all(at + 1, offset, some)
        offset += size
    counted, total, where = count(file, end)
    assert (total, where) == (1000, end)
    for seq in (1, 2, 63, 64, 65, 500, 999, 1000):
        for one in (index, portions, counted):
            assert read_lines(file, one.find(file, seq, end), end, 1)[0] == lines[seq - 1]


def test_an_index_is_small():
    index = SparseIndex()
    for n in range(10_000):
        index.add(n + 1, n * 200)
    assert index.nbytes <= 2560


def test_a_line_that_is_not_there(file):
    end = fill(file, b"a\nb\n")
    index = SparseIndex()
    index.add(1, 0)
    with pytest.raises(EOFError):
        index.find(file, 5, end)
