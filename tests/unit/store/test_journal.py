import asyncio
import gc
import os
import stat

import pytest

from kernelsvc.errors import Conflict, CursorExpired, CursorUnknown, NotSupported, SessionClosed
from kernelsvc.model import events as ev
from kernelsvc.model import hash_chain
from kernelsvc.store.journal import BATCH_BYTES, BURST_SECONDS, FEW_LINES, LARGE_BYTES, METER, RING_BYTES, Journal


@pytest.fixture
def path(tmp_path):
    (tmp_path / "sess").mkdir()
    return tmp_path / "sess" / "journal.jsonl"


@pytest.fixture
def journal(path):
    made = Journal.create(path, "sess", clock=lambda: 1_700_000_000.0)
    yield made
    made.close()


def prints(n, text="x"):
    return [ev.Stream(cell="c", text=f"{text}{i}") for i in range(n)]


def texts(lines):
    return [ev.decode(line).text for line in lines]


# --- writing -----------------------------------------------------------------------


def test_append_stamps_and_writes_lines(journal, path):
    events = prints(3)
    journal.append(events)
    assert [(e.session, e.seq, e.at) for e in events] == [("sess", n, "2023-11-14T22:13:20.000000Z") for n in (1, 2, 3)]
    assert hash_chain.check(path.read_bytes().splitlines()).head == journal.head
    assert (journal.last_seq, journal.size) == (3, path.stat().st_size)


def test_the_file_is_private_and_made_once(journal, path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        Journal.create(path, "sess")


def test_nothing_appended_writes_nothing(journal):
    journal.append([])
    assert journal.size == 0


def test_a_closed_journal_takes_nothing(journal):
    journal.append(prints(1))
    journal.close()
    journal.close()
    with pytest.raises(SessionClosed):
        journal.append(prints(1))
    assert journal.last_seq == 1


def test_one_writer_at_a_time(journal, path):
    with pytest.raises(Conflict, match="Another process"):
        Journal.open(path)


def test_numbers_go_on_after_opening_again(journal, path):
    journal.append(prints(2))
    journal.sync()
    journal.close()
    again = Journal.open(path)
    assert (again.session, again.recovery.message, again.unsynced) == ("sess", "", 0)
    again.append(prints(1))
    assert hash_chain.check(again.lines()).head == again.head
    assert again.last_seq == 3
    again.close()


def test_what_is_not_synced_stays_bounded(journal):
    for _ in range(20):
        journal.append([ev.Stream(text="x" * 1_000_000)])
        assert journal.unsynced <= 8 << 20


def test_lines_by_number(journal):
    journal.append(prints(500))
    assert texts(journal.lines(3, 5)) == ["x2", "x3", "x4"]
    assert texts(journal.lines(499)) == ["x498", "x499"]
    assert list(journal.lines(501)) == []
    assert list(journal.lines(5, 4)) == []
    assert len(list(journal.lines())) == 500


def test_lines_do_not_see_what_comes_later(journal):
    journal.append(prints(3))
    lines = journal.lines()
    next(lines)
    journal.append(prints(3))
    assert len(list(lines)) == 2


# --- readers ---------------------------------------------------------------------------


async def test_a_reader_gets_everything_once_old_and_new(journal):
    journal.append(prints(5, "old"))
    reader = journal.reader()
    got = await reader.next()
    waiting = asyncio.ensure_future(reader.next())
    await asyncio.sleep(0)
    assert not waiting.done()
    journal.append(prints(2, "new"))
    got += await waiting
    assert texts(got) == ["old0", "old1", "old2", "old3", "old4", "new0", "new1"]
    assert reader.last_seq == 7


async def test_readers_anywhere_see_the_same(journal):
    journal.append(prints(3000, "y" * 50))
    for after in (0, 1, 63, 64, 65, 1500, 2500, 2998, 2999):
        reader, got = journal.reader(after), []
        while reader.last_seq < journal.last_seq:
            got += await reader.next()
        assert [ev.decode(line).seq for line in got] == list(range(after + 1, 3001))


async def test_a_batch_is_bounded_but_for_one_long_line(journal):
    journal.append([ev.Stream(text="x" * 100_000) for _ in range(10)])
    journal.append([ev.Stream(text="y" * 1_000_000)])
    reader, sizes = journal.reader(), []
    while reader.last_seq < journal.last_seq:
        sizes.append([len(line) for line in await reader.next()])
    assert all(sum(s) <= BATCH_BYTES or len(s) == 1 for s in sizes)


async def test_cancelling_skips_nothing(journal):
    reader = journal.reader()
    for round_ in range(20):
        waiting = asyncio.ensure_future(reader.next())
        await asyncio.sleep(0)
        if round_ % 2:
            journal.append(prints(1))
            waiting.cancel()
        else:
            waiting.cancel()
            journal.append(prints(1))
        try:
            got = await waiting
        except asyncio.CancelledError:
            got = await reader.next()
        assert [ev.decode(line).seq for line in got] == [round_ + 1]
    assert not journal._waiting


async def test_a_closed_journal_is_read_to_its_end_and_then_gives_nothing(journal):
    journal.append(prints(2000, "z" * 300))
    reader, total = journal.reader(), 0
    total += len(await reader.next())
    journal.close()
    while got := await reader.next():
        total += len(got)
    assert total == 2000
    assert await reader.next() == []
    reader.close()


async def test_closing_wakes_who_waits(journal):
    waiting = asyncio.ensure_future(journal.reader().next())
    await asyncio.sleep(0)
    journal.close()
    assert await waiting == []


async def test_cursors_that_do_not_fit(journal, path):
    journal.append(prints(3))
    with pytest.raises(CursorUnknown):
        journal.reader(4)
    with pytest.raises(CursorUnknown):
        journal.reader(-1)
    journal.close()
    path.unlink()
    with pytest.raises(CursorExpired):
        await journal.reader(0).next()


async def test_readers_that_do_not_read_cost_nothing(journal):
    readers = [journal.reader() for _ in range(1000)]
    gc.collect()
    journal.append(prints(20_000, "w" * 100))
    assert journal._ring_bytes <= RING_BYTES
    assert not journal._waiting
    assert all(r.last_seq == 0 for r in readers)


async def test_a_reader_that_was_closed_gives_nothing_more(journal):
    journal.append(prints(1))
    reader = journal.reader()
    reader.close()
    assert await reader.next() == []


async def test_reading_only_takes_no_lock_and_changes_nothing(journal, path):
    journal.append(prints(70))
    with path.open("ab") as file:
        file.write(b'{"torn')
    before = path.read_bytes()
    other = Journal.open(path, read_only=True)
    assert (other.last_seq, other.head, other.closed) == (70, journal.head, True)
    assert len(await other.reader(0).next()) == 70
    assert len(list(other.lines())) == 70
    assert path.read_bytes() == before


# --- opening what a crash left ----------------------------------------------------------


def test_a_journal_cut_at_any_byte_of_its_last_entries(journal, path):
    journal.append(prints(6))
    journal.close()
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for size in range(ends[2], len(whole) + 1):
        path.write_bytes(whole[:size])
        entries = sum(1 for e in ends if e <= size)
        opened = Journal.open(path)
        assert (opened.last_seq, opened.size) == (entries, ends[entries - 1])
        assert opened.recovery.cut_bytes == size - ends[entries - 1]
        assert bool(opened.recovery.message) == (size not in ends)
        assert opened.recovery.kept_as is None
        opened.append(prints(1))
        opened.close()
        found = hash_chain.check(path.read_bytes().splitlines())
        assert (found.fault, found.head.seq) == (None, entries + 1)


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"\n", b"{", b'{"type":"stream"}\n'])
def test_an_empty_or_blank_file_is_a_journal_with_nothing_in_it(path, content):
    path.write_bytes(content)
    opened = Journal.open(path)
    assert (opened.last_seq, opened.size, path.stat().st_size) == (0, 0, 0)
    opened.append(prints(1))
    opened.close()
    assert Journal.open(path, read_only=True).last_seq == 1


@pytest.mark.parametrize("hole", [b"\0" * 512, b"garbage\n"])
def test_rubbish_before_good_lines_is_cut_with_them_and_kept_aside(journal, path, hole):
    journal.append(prints(10))
    journal.close()
    lines = path.read_bytes().splitlines(keepends=True)
    tail = hole + b"".join(lines[6:])
    path.write_bytes(b"".join(lines[:6]) + tail)
    opened = Journal.open(path)
    assert opened.last_seq == 6
    assert opened.recovery.kept_as == "journal.jsonl.cut-1"
    assert (path.parent / "journal.jsonl.cut-1").read_bytes() == tail
    opened.close()


def test_a_long_journal_is_checked_at_its_end_only(journal, path, monkeypatch):
    journal.append(prints(5000))
    journal.close()
    monkeypatch.setattr("kernelsvc.store.recovery.DOUBT_BYTES", 20_000)
    with path.open("ab") as file:
        file.write(b'{"torn')
    opened = Journal.open(path)
    assert (opened.last_seq, opened.head, opened.recovery.cut_bytes) == (5000, journal.head, 6)
    assert texts(opened.lines(2, 3)) == ["x1", "x2"]
    opened.close()


def test_opening_does_not_follow_a_link(path, tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        Journal.open(path)


def test_no_descriptor_is_left(path):
    before = len(os.listdir("/proc/self/fd"))
    journal = Journal.create(path, "sess")
    journal.append(prints(100))
    list(journal.lines())
    journal.close()
    Journal.open(path, read_only=True)
    again = Journal.open(path)
    again.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("read_only", [True, False])
def test_a_journal_of_a_later_version_is_refused(journal, path, read_only):
    journal.append([ev.SessionStarted(schema=ev.SCHEMA + 1)])
    journal.close()
    with pytest.raises(NotSupported, match="Upgrade"):
        Journal.open(path, read_only=read_only)


def test_what_journals_cost_is_counted(tmp_path):
    METER.take()
    journal = Journal.create(tmp_path / "journal.jsonl", "s")
    journal.append([ev.CellQueued(cell="c", code="1")])
    journal.sync()
    journal.sync()  # there is nothing to do
    spent = METER.take()
    assert (spent.bytes, len(spent.syncs)) == (journal.size, 1)
    assert spent.append_seconds > 0
    assert METER.take().bytes == 0
    journal.close()


@pytest.mark.parametrize("behind", [1, 3, 2500])
async def test_a_reader_that_begins_behind_waits_for_the_bytes_that_follow(journal, behind):
    """A stream of a cell begins behind. If it counted the whole log, it would take turns like a large one."""
    for _ in range(30):
        journal.append(prints(100))
    reader = journal.reader(journal.last_seq - behind)
    expected = list(journal.lines())[-behind:]
    assert await reader.wait() == sum(len(line) + 1 for line in expected)
    found = []
    while lines := reader.next_nowait():
        found += lines
    assert found == expected
    journal.append(prints(1))
    assert await reader.wait() == len(list(journal.lines())[-1]) + 1
    reader.close()


# --- long lines --------------------------------------------------------------------


async def test_a_long_line_is_handed_to_those_who_listen_as_it_is_and_is_let_go_soon(journal):
    reader, late = journal.reader(), journal.reader()
    told = []
    reader.on_lines(told.append)
    journal.append(prints(1))  # not read yet
    journal.append([*prints(1), ev.Result(cell="c", data={"text/html": "é" * BATCH_BYTES})])
    journal.append(prints(1))  # the end of a cell, in the same turn
    lines = reader.next_nowait() + reader.next_nowait() + reader.next_nowait()
    assert (lines[-2], lines[-1]) == (told[1], told[2])
    assert lines[-2] is told[1]
    await asyncio.sleep(2 * BURST_SECONDS)
    assert not any(told[0] is kept for kept in journal._ring)
    assert late.next_nowait() + late.next_nowait() + late.next_nowait() == lines == list(journal.lines())
    reader.close()


async def test_long_lines_for_somebody_who_does_not_read_are_kept_one_append_at_a_time(journal):
    reader = journal.reader()
    reader.on_lines(lambda _line: None)
    for n in range(20):
        journal.append(prints(2, f"{n}:" + "x" * RING_BYTES))
        assert sum(map(len, journal._ring)) <= 4 * RING_BYTES
    assert [text.partition(":")[0] for text in texts(journal.lines())] == [str(n) for n in range(20) for _ in (1, 2)]
    got = []
    while lines := reader.next_nowait():
        got += lines
    assert got == list(journal.lines())
    reader.close()


@pytest.mark.parametrize("lines", [1, FEW_LINES, FEW_LINES + 1])
def test_much_in_one_append_is_whole_whatever_the_disk_takes_at_once(path, lines, monkeypatch):
    """The disk takes a part of what is written at once, as one that fills up does (write(2), writev(2))."""
    whole, pieces = os.write, os.writev
    monkeypatch.setattr(os, "writev", lambda fd, parts: pieces(fd, parts[:1]))
    monkeypatch.setattr(os, "write", lambda fd, data: whole(fd, data[:100_000]))
    journal = Journal.create(path, "sess")
    journal.append(prints(3))
    journal.append(prints(lines, "x" * LARGE_BYTES))
    journal.append(prints(3))
    assert hash_chain.check(path.read_bytes().splitlines()).head == journal.head
    assert path.stat().st_size == journal.size
    journal.close()
