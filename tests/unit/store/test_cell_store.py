import os

import pytest

from kernelsvc.store import cell_store as cells_module
from kernelsvc.store.cell_store import CellStore, encode


def cell(n, size=10):
    return {"id": f"c{n}", "text": "x" * size}


@pytest.fixture
def store(tmp_path):
    made = CellStore(tmp_path)
    yield made
    made.close()


def copied(store, path):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with store.snapshot() as snapshot:
        snapshot.copy(fd)
    os.close(fd)
    return path.read_bytes()


@pytest.mark.parametrize("size", [10, 5000, 3_000_000])
def test_cells_come_out_as_they_went_in(store, tmp_path, size):
    for n in range(9):
        store.add([cell(n, size)])
    store.add([])
    store.change("c4", lambda c: c.update(text="changed"))
    store.change("nobody", lambda c: c.update(text="changed"))
    expected = [cell(n, size) for n in range(9)]
    expected[4]["text"] = "changed"
    assert list(store) == expected
    data = copied(store, tmp_path / "out")
    assert data == b"".join(encode(c) + b",\n" for c in expected)
    assert store.nbytes == len(data)


def test_nothing_is_left_in_the_directory(store, tmp_path):
    store.add([cell(n, 50_000) for n in range(3)])
    assert os.listdir(tmp_path) == []


def test_without_nameless_files(store, tmp_path, monkeypatch):
    real = os.open

    def refuses(path, flags, *rest):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "not supported")
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuses)
    store.add([cell(n, 50_000) for n in range(3)])
    assert len(list(store)) == 3
    assert os.listdir(tmp_path) == []


def test_waste_is_packed_while_a_snapshot_still_reads(store, tmp_path, monkeypatch):
    monkeypatch.setattr(cells_module, "_COPY", 1000)
    store.add([cell(n, 40_000) for n in range(3)])
    before = store.snapshot()
    for n in range(20):
        store.change("c1", lambda c, n=n: c.update(text=str(n) * 40_000))
    assert store._end < 10 * 40_000
    with before:
        assert b"".join(before.pieces()) == b"".join(encode(cell(n, 40_000)) + b",\n" for n in range(3))
    assert [c["text"][:2] for c in store] == ["xx", "19", "xx"]


def test_what_json_can_not_carry():
    assert encode({"a": "\ud800"}) == b'{"a":"?"}'
