"""The record of journals' heads: a server signs nothing that it did not write."""

import os

import pytest

from kernelsvc.model import events as ev
from kernelsvc.model import hash_chain
from kernelsvc.model.hash_chain import Head
from kernelsvc.store import heads as heads_module
from kernelsvc.store.heads import SLOT, HeadFile
from kernelsvc.store.journal import Journal

KEY = bytes(range(32))


class Disk:
    """A data directory with one session's journal of seven entries."""

    def __init__(self, path):
        self.path = path
        (path / "s").mkdir()
        self.journal = path / "s" / "journal.jsonl"
        self.heads = HeadFile(path / "heads", KEY)
        self.open = Journal.create(self.journal, "s", heads=self.heads)
        self.open.append([ev.SessionStarted(template="t")])
        for n in range(2):
            self.open.append([ev.CellQueued(cell=f"c{n}", code="pay mallory"), ev.CellStarted(cell=f"c{n}")])
            self.open.sync()
            self.open.append([ev.CellFinished(cell=f"c{n}")])

    def stop(self):
        self.open.close()
        self.heads.close()

    def kill(self):
        """Leave the files as they are: the page cache survives a process."""
        os.close(self.open._fd)
        self.open._closed = True
        self.heads.close()

    def lines(self):
        return self.journal.read_bytes().splitlines()

    def rewrite(self, events):
        """What anyone can do who can write to the directory: a correct chain over other entries."""
        lines, _ = hash_chain.stamp(events, "s", Head(), "2026-01-01T00:00:00.000000Z")
        self.journal.write_bytes(b"".join(line + b"\n" for line in lines))

    def judged(self, key=KEY):
        self.heads = HeadFile(self.path / "heads", key)
        self.open = Journal.open(self.journal, "s", heads=self.heads)
        return self.open.judgement


@pytest.fixture
def disk(tmp_path):
    return Disk(tmp_path)


@pytest.mark.parametrize("end", [Disk.stop, Disk.kill])
def test_a_journal_that_nobody_touched(disk, end):
    for _ in range(3):
        end(disk)
        assert disk.judged().kind == "watched"
        disk.open.append([ev.CellQueued(cell="d"), ev.CellStarted(cell="d")])


def edit_in_place(disk):
    disk.journal.write_bytes(disk.journal.read_bytes().replace(b"mallory", b"charity", 1))


def compute_anew(disk):
    events = [ev.decode(line) for line in disk.lines()]
    events[1].code = "pay charity"
    disk.rewrite(events)


def leave_a_cell_out(disk):
    disk.rewrite([ev.decode(line) for line in disk.lines()][:4])


def cut(disk, entries=1):
    disk.journal.write_bytes(b"".join(line + b"\n" for line in disk.lines()[:-entries]))


def cut_two_appends(disk):
    cut(disk, 2)


def append(disk):
    disk.rewrite([*(ev.decode(line) for line in disk.lines()), ev.SessionClosed()])


def remove_record(disk):
    (disk.path / "heads").unlink()


def change_record(disk):
    data = bytearray((disk.path / "heads").read_bytes())
    data[60] ^= 1
    (disk.path / "heads").write_bytes(data)


ACTS = [edit_in_place, compute_anew, leave_a_cell_out, cut_two_appends, append, remove_record, change_record]


@pytest.mark.parametrize("end", [Disk.stop, Disk.kill])
@pytest.mark.parametrize("act", ACTS)
def test_what_was_done_to_a_stopped_journal_is_found_and_stays_on_record(disk, act, end):
    end(disk)
    act(disk)
    judged = disk.judged()
    assert (judged.kind, disk.open.refused) == ("mismatch", True)
    assert judged.first > 0
    assert judged.message
    disk.open.append([ev.CellQueued(cell="d")])
    disk.stop()
    again = disk.judged()
    assert (again.kind, again.first) == ("mismatch", 0)


def test_a_record_of_another_key_is_none(disk):
    disk.stop()
    assert disk.judged(bytes(32)).kind == "mismatch"


def test_a_record_that_was_written_before_a_crash_of_the_append(disk):
    """The record comes first. A crash between the two, or in the middle of the append, is no forgery."""
    before = disk.open.head
    disk.open._write = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        disk.open.append([ev.CellQueued(cell="d"), ev.CellStarted(cell="d")])
    disk.kill()
    assert disk.judged().kind == "watched"
    assert disk.open.head == before


def test_a_crash_may_take_the_last_append(disk):
    disk.kill()
    cut(disk)
    assert disk.judged().kind == "watched"


def test_half_an_append_is_named(disk):
    disk.open.append([ev.CellQueued(cell="d"), ev.CellStarted(cell="d")])
    disk.kill()
    cut(disk)
    judged = disk.judged()
    assert (judged.kind, judged.first, disk.open.refused) == ("tail", 8, False)


@pytest.fixture
def power_loss(monkeypatch):
    """Linux starts again: another boot id."""
    return lambda: monkeypatch.setattr(heads_module, "_boot_id", lambda: b"x" * 16)


def test_after_a_power_loss_unsynced_entries_may_be_missing(disk, power_loss):
    disk.kill()
    cut(disk)
    power_loss()
    assert disk.judged().kind == "watched"  # It ends with the last durable entry.


def test_after_a_power_loss_an_older_record_is_accepted_with_a_mark(disk, power_loss, tmp_path):
    old = (tmp_path / "heads").read_bytes()
    disk.open.append([ev.CellQueued(cell="d")])
    disk.open.append([ev.CellStarted(cell="d")])
    disk.kill()
    (tmp_path / "heads").write_bytes(old)
    power_loss()
    judged = disk.judged()
    assert (judged.kind, judged.first) == ("tail", 7)


@pytest.mark.parametrize("act", [edit_in_place, compute_anew, leave_a_cell_out])
def test_a_power_loss_excuses_no_other_change(disk, act, power_loss):
    disk.kill()
    act(disk)
    power_loss()
    assert disk.judged().kind == "mismatch"


def test_a_clean_end_is_exact_over_a_power_loss(disk, power_loss):
    disk.stop()
    cut(disk)
    power_loss()
    assert disk.judged().kind == "mismatch"


def test_slots_are_used_again(tmp_path):
    heads = HeadFile(tmp_path / "heads", KEY)
    for name in "abc":
        heads.slot(name).settle(Head(1, "0" * 64))
    heads.forget("b")
    heads.slot("d").settle(Head(2, "1" * 64))
    assert (tmp_path / "heads").stat().st_size == 3 * SLOT
    heads.close()
    heads = HeadFile(tmp_path / "heads", KEY)
    assert heads.find("b") is None
    assert heads.find("d").after == Head(2, "1" * 64)
    assert heads.find("a").exact


def test_a_slot_of_another_session_is_none(tmp_path):
    """Slots can't change places: the name is under the MAC."""
    heads = HeadFile(tmp_path / "heads", KEY)
    for name in "ab":
        heads.slot(name).settle(Head(ord(name), "0" * 64))
    heads.close()
    data = (tmp_path / "heads").read_bytes()
    (tmp_path / "heads").write_bytes(data[SLOT:] + data[:SLOT])
    heads = HeadFile(tmp_path / "heads", KEY)
    assert heads.find("a").after.seq == ord("a")
