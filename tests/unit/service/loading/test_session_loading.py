"""A session's directory read back."""

import itertools
import random

import pytest

from kernelsvc.model import events as ev
from kernelsvc.model.machine import Machine
from kernelsvc.model.state import Policy
from kernelsvc.service.loading.session_loading import LARGE_BYTES, machine_events, reader_for
from kernelsvc.store.journal import Journal
from kernelsvc.store.recovery import end_of


@pytest.fixture
def journal(tmp_path):
    journal = Journal.create(tmp_path / "journal.jsonl", "s")
    yield journal
    journal.close()


def put_out(chance, cells, frame):
    """Something that a cell, an earlier one or none of them puts out."""
    event = chance.choice(
        [
            ev.Stream(text="x" * chance.randint(0, 30)),
            ev.Stream(text='"cell":"c1"'),
            ev.Display(data={"application/json": {"cell": "c2"}}),
            ev.Result(data={"text/plain": "1"}, execution_count=1),
            ev.Error(ename="E", evalue="", traceback=[]),
        ]
    )
    cell = chance.choice([*cells[-3:], None])
    if cell is not None:
        event.cell = cell
    event.frame = frame
    return event


@pytest.mark.parametrize("seed", range(30))
def test_without_its_bulk_a_journal_rebuilds_the_same_machine(journal, seed):
    chance = random.Random(seed)
    cells, frames = [], itertools.count(1)
    journal.append([ev.SessionStarted(kernel=ev.KernelInfo(pid=1, id="k"))])
    for n in range(chance.randint(1, 6)):
        cell = f"c{n}"
        cells.append(cell)
        journal.append([ev.CellQueued(cell=cell, code="1"), ev.CellStarted(cell=cell, execution_count=n)])
        for _ in range(chance.randint(0, 12)):
            journal.append([put_out(chance, cells, next(frames))])
        if chance.random() < 0.8 or n < 2:
            journal.append([ev.CellFinished(cell=cell, execution_count=n, frame=next(frames))])
        else:
            break
    whole, brief = Machine(Policy(output_bytes=40), 0.0), Machine(Policy(output_bytes=40), 0.0)
    for line in journal.lines():
        whole.evolve(ev.decode(line), 0.0)
    for event in machine_events(journal):
        brief.evolve(event, 0.0)
    assert brief.running == whole.running
    assert brief.cells == whole.cells
    assert (brief.state, brief.execution_count, brief.queue) == (whole.state, whole.execution_count, whole.queue)
    assert brief.running is None or brief.frame == whole.frame


def test_bulk_is_skipped(journal):
    journal.append([ev.SessionStarted(), ev.CellQueued(cell="c", code="1"), ev.CellStarted(cell="c")])
    journal.append([ev.Stream(cell="c", text="x") for _ in range(1000)])
    journal.append([ev.CellFinished(cell="c")])
    assert len([*machine_events(journal)]) == 4


async def test_a_large_one_is_read_in_a_thread(tmp_path):
    import threading

    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"")
    large.write_bytes(b"x" * (LARGE_BYTES + 1))
    assert await reader_for(small)(threading.current_thread) is threading.main_thread()
    assert await reader_for(large)(threading.current_thread) is not threading.main_thread()


@pytest.mark.parametrize("text", [0, 100, 300_000, 3_000_000])
def test_the_end_is_read_alone(journal, text):
    journal.append([ev.SessionStarted(), ev.Stream(cell="c", text="x" * text)])
    assert end_of(journal.path).seq == 2
    with journal.path.open("ab") as file:
        file.write(b"\0" * 100)
    assert end_of(journal.path) is None


@pytest.mark.parametrize("data", [b"", b"\n", b"{}\n", b"no\n", b"\0" * 5000, b"\xff\n"])
def test_no_entry_at_the_end(tmp_path, data):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(data)
    assert end_of(path) is None
