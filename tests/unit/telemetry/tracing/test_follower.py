"""What is new in journals, read from disk."""

from __future__ import annotations

import os
import shutil

import pytest

from kernelsvc.model import events as ev
from kernelsvc.store.journal import Journal
from kernelsvc.telemetry.tracing import follower as module
from kernelsvc.telemetry.tracing.cursor import COMPLETE, Cursor
from kernelsvc.telemetry.tracing.follower import JournalFollower


def journal_of(sessions, name="s1"):
    (sessions / name).mkdir(parents=True)
    journal = Journal.create(sessions / name / "journal.jsonl", name)
    journal.append([ev.SessionStarted()])
    return journal


def run(journal, *cells):
    for cell in cells:
        journal.append([ev.CellQueued(cell=cell)])
        journal.append([ev.Stream(cell=cell, text="x" * 10)])
        journal.append([ev.CellFinished(cell=cell)])


def cells_of(batch):
    return [span.attributes["gen_ai.tool.call.id"] for span in batch.spans] if batch else []


def drain(follower):
    """Look twice, because entries are taken at the look after the one that finds them, and take everything."""
    follower.look()
    follower.look()
    found = []
    while (batch := follower.take()) is not None:
        found += cells_of(batch)
        follower.sent(batch.moves)
    return found


def test_each_span_is_taken_once_and_later_entries_follow(tmp_path):
    journal = journal_of(tmp_path)
    run(journal, "c1", "c2")
    follower = JournalFollower(tmp_path, {})
    follower.look()
    assert follower.take() is None, "an entry that no look had found before was read"
    assert drain(follower) == ["c1", "c2"]
    assert drain(follower) == []
    journal.append([ev.CellQueued(cell="c3")])
    assert drain(follower) == []
    other = journal_of(tmp_path, "s2")
    run(other, "d1")
    journal.append([ev.CellFinished(cell="c3")])
    assert sorted(drain(follower)) == ["c3", "d1"]


def test_a_restart_goes_on_from_the_position_and_knows_what_came_before(tmp_path):
    journal = journal_of(tmp_path)
    run(journal, "c1")
    journal.append([ev.CellQueued(cell="c2")])
    first = JournalFollower(tmp_path, {})
    first.look(), first.look()
    batch = first.take()
    journal.append([ev.CellFinished(cell="c2")])
    assert drain(JournalFollower(tmp_path, batch.moves)) == ["c2"]
    assert drain(JournalFollower(tmp_path, {})) == ["c1", "c2"], "without a note everything is sent again"


@pytest.mark.parametrize("sessions", [1, 3])
def test_a_restart_sends_nothing_again_that_was_sent(tmp_path, sessions):
    journals = [journal_of(tmp_path, f"s{n}") for n in range(sessions)]
    for number, journal in enumerate(journals):
        run(journal, f"a{number}")
    first, positions = JournalFollower(tmp_path, {}), {}
    first.look(), first.look()
    while (batch := first.take()) is not None:
        positions |= batch.moves
        first.sent(batch.moves)
    second = JournalFollower(tmp_path, positions)
    second.look()
    assert cells_of(second.take()) == [], "spans were sent again at the first look"
    run(journals[0], "b0")
    assert drain(second) == ["b0"]


def test_a_journal_that_lost_its_end_while_no_exporter_ran_is_sent_again(tmp_path):
    journal = journal_of(tmp_path)
    run(journal, "c1")
    assert drain(JournalFollower(tmp_path, {"s1": journal.size + 100})) == ["c1"]


def test_a_batch_that_was_not_sent_is_taken_again(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH_SPANS", 3)
    journals = [journal_of(tmp_path, name) for name in ("s1", "s2")]
    for journal in journals:
        run(journal, "c0", "c1")
    journals[0].append([ev.CellQueued(cell="c2")])
    follower = JournalFollower(tmp_path, {})
    follower.look(), follower.look()
    lost = cells_of(follower.take())
    assert len(lost) == 3
    journals[0].append([ev.CellFinished(cell="c2")])
    assert sorted(drain(follower)) == ["c0", "c0", "c1", "c1", "c2"]


def test_a_batch_is_bounded_and_the_rest_follows(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH_SPANS", 3)
    journal = journal_of(tmp_path)
    run(journal, *(f"c{n}" for n in range(8)))
    follower = JournalFollower(tmp_path, {})
    follower.look(), follower.look()
    sizes, found, positions = [], [], {}
    while (batch := follower.take()) is not None:
        sizes.append(len(batch.spans))
        found += cells_of(batch)
        positions |= batch.moves
        follower.sent(batch.moves)
        if len(sizes) == 2:  # A process that begins again in the middle of a journal.
            follower = JournalFollower(tmp_path, positions)
            follower.look(), follower.look()
    assert (sizes, found) == ([3, 3, 2], [f"c{n}" for n in range(8)])


def test_a_line_that_is_not_whole_yet_is_waited_for(tmp_path):
    journal = journal_of(tmp_path)
    run(journal, "c1")
    whole = (tmp_path / "s1" / "journal.jsonl").read_bytes()
    (tmp_path / "s1" / "journal.jsonl").write_bytes(whole[:-5])
    follower = JournalFollower(tmp_path, {})
    assert drain(follower) == []
    assert drain(follower) == []
    (tmp_path / "s1" / "journal.jsonl").write_bytes(whole)
    assert drain(follower) == ["c1"]


def test_a_journal_that_lost_its_end_is_sent_again(tmp_path):
    journal = journal_of(tmp_path)
    run(journal, "c1")
    size = journal.size
    run(journal, "c2")
    follower = JournalFollower(tmp_path, {})
    assert drain(follower) == ["c1", "c2"]
    os.truncate(tmp_path / "s1" / "journal.jsonl", size)
    assert drain(follower) == ["c1"]


def test_a_complete_journal_is_not_looked_at_any_more(tmp_path):
    journal = journal_of(tmp_path)
    run(journal, "c1")
    journal.append([ev.SessionClosed(), ev.JournalSigned()])
    follower = JournalFollower(tmp_path, {})
    follower.look(), follower.look()
    batch = follower.take()
    assert batch.moves == {"s1": COMPLETE}
    follower.sent(batch.moves)
    again = JournalFollower(tmp_path, batch.moves)
    for each in (follower, again):
        assert drain(each) == []
        assert not each._sizes


def test_a_removed_session_is_forgotten_and_a_warning_says_what_was_not_sent(tmp_path, caplog):
    run(journal_of(tmp_path, "s1"), "c1")
    run(journal_of(tmp_path, "s2"), "d1")
    follower = JournalFollower(tmp_path, {})
    assert sorted(drain(follower)) == ["c1", "d1"]
    run_more = journal_of(tmp_path, "s3")
    run(run_more, "e1")
    follower.look()
    shutil.rmtree(tmp_path / "s2")
    shutil.rmtree(tmp_path / "s3")
    assert drain(follower) == []
    assert sorted(follower.take_gone()) == ["s2", "s3"]
    assert [record.args[0] for record in caplog.records] == ["s3"]


def test_a_first_start_sends_nothing_of_the_past(tmp_path):
    journal = journal_of(tmp_path)
    run(journal, "c1")
    closed = journal_of(tmp_path, "s2")
    closed.append([ev.SessionClosed(), ev.JournalSigned(signature="x" * 88)])
    journal.append([ev.CellQueued(cell="c2")])
    follower = JournalFollower(tmp_path, {})
    assert follower.skip_all() == {"s1": journal.size, "s2": COMPLETE}
    journal.append([ev.CellFinished(cell="c2")])
    assert drain(follower) == ["c2"]


def test_a_link_in_the_place_of_a_journal_is_not_followed(tmp_path):
    outside = journal_of(tmp_path / "outside")
    run(outside, "c1")
    (tmp_path / "sessions" / "s1").mkdir(parents=True)
    (tmp_path / "sessions" / "s1" / "journal.jsonl").symlink_to(tmp_path / "outside" / "s1" / "journal.jsonl")
    assert drain(JournalFollower(tmp_path / "sessions", {})) == []


def test_little_memory_for_many_journals(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_FOLDS", 2)
    journals = [journal_of(tmp_path, f"s{n}") for n in range(5)]
    follower = JournalFollower(tmp_path, {})
    for number, journal in enumerate(journals):
        run(journal, f"a{number}")
    assert sorted(drain(follower)) == [f"a{n}" for n in range(5)]
    for number, journal in enumerate(journals):
        run(journal, f"b{number}")
    assert sorted(drain(follower)) == [f"b{n}" for n in range(5)]
    assert len(follower._followed) == 2


@pytest.mark.parametrize("moves", [{"s1": 5, "s2": COMPLETE}, {}])
def test_positions_and_counts_are_kept(tmp_path, moves):
    cursor = Cursor(tmp_path / "c.sqlite")
    assert cursor.fresh
    cursor.advance({"s1": 1, "s3": 1}, {"sent": 2})
    cursor.advance(moves, {"sent": 3, "rejected": 0})
    cursor.forget(["s3"])
    cursor.close()
    again = Cursor(tmp_path / "c.sqlite")
    assert not again.fresh
    assert again.positions() == {"s1": 1} | moves
    assert again.counts() == {"sent": 5}
    assert (tmp_path / "c.sqlite").stat().st_mode & 0o777 == 0o600
    again.close()
