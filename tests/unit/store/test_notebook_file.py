import asyncio
import json
import os
import threading
import time

import nbformat
import pytest
from waiting import wait_until

from kernelsvc.errors import TooLarge
from kernelsvc.model import events as ev
from kernelsvc.model.events import Reason
from kernelsvc.model.notebook import fold
from kernelsvc.store import notebook_file, write_limiter
from kernelsvc.store.journal import Journal
from kernelsvc.store.notebook_file import NotebookFile, cells_of, write_inherited
from kernelsvc.store.write_limiter import WriteLimiter


@pytest.fixture
def session(tmp_path):
    path = tmp_path / "s"
    path.mkdir()
    journal = Journal.create(path / "journal.jsonl", "s")
    journal.append([ev.SessionStarted(template="t")])
    yield journal
    journal.close()


def run(cell, *inside, reason=Reason.OK):
    for event in inside:
        event.cell = cell
    start = [ev.CellQueued(cell=cell, code=f"# {cell}"), ev.CellStarted(cell=cell, execution_count=1)]
    return [*start, *inside, ev.CellFinished(cell=cell, reason=reason)]


def go(journal, file, *events):
    journal.append(list(events))
    file.feed(list(events))


def read(file):
    nb = json.loads(file.path.read_bytes())
    nbformat.validate(nbformat.from_dict(nb), relax_add_props=False)
    return nb


def expected(journal):
    return json.loads(json.dumps(fold(ev.decode(line) for line in journal.lines())))


async def test_the_file_is_the_fold_after_every_cell(session, monkeypatch):
    monkeypatch.setattr(write_limiter, "CREDIT", 60)
    monkeypatch.setattr(write_limiter, "BURST", 60)
    file = NotebookFile(session.path.with_name("notebook.ipynb"), session)
    file.feed([ev.decode(line) for line in session.lines()])
    for n in range(30):
        show = ev.Display(data={"text/plain": str(n)}, display_id="d" if n == 3 else None)
        go(session, file, *run(f"c{n}", ev.Stream(text="x" * 2000), show))
        if n == 20:
            go(session, file, *run("u", ev.DisplayUpdated(data={"text/plain": "new"}, display_id="d")))
            go(session, file, ev.RolledBack(to="k", undone=["c18", "c19"]))
        assert read(file) == expected(session)
    assert (file.path.stat().st_mode & 0o777) == 0o600
    assert sorted(os.listdir(file.path.parent)) == ["journal.jsonl", "notebook.ipynb"]
    file.close()


async def test_the_client_goes_first_and_an_export_does_not_wait_for_the_file(session):
    file = NotebookFile(session.path.with_name("notebook.ipynb"), session, linger=0.02)
    file.feed([ev.decode(line) for line in session.lines()])
    go(session, file, *run("c1", ev.Display(data={"text/plain": "old"}, display_id="d")))
    assert not file.path.exists()
    async with asyncio.timeout(5):
        while not file.path.exists():
            await asyncio.sleep(0.001)
    assert read(file) == expected(session)
    go(session, file, *run("u", ev.DisplayUpdated(data={"text/plain": "new"}, display_id="d")))
    exported = json.loads(await file.export())
    assert exported["cells"] == expected(session)["cells"]
    assert read(file) != expected(session)
    file.close()


async def test_a_stream_of_cells_is_folded_when_the_file_is_due(session, monkeypatch):
    monkeypatch.setattr(write_limiter, "BURST", 2.0)
    monkeypatch.setattr(write_limiter, "PER_SECOND", 20.0)
    file = NotebookFile(session.path.with_name("notebook.ipynb"), session, linger=0.001)
    file.feed([ev.decode(line) for line in session.lines()])
    for n in range(3):
        go(session, file, *run(f"c{n}"))
        await wait_until(lambda: file._timer or not file._unfolded)
    for n in range(3, 50):
        go(session, file, *run(f"c{n}", ev.Stream(text="x")))
    assert len(file._unfolded) >= 47 * 4
    assert file.last_seq == session.last_seq
    await wait_until(lambda: read(file) == expected(session))
    assert not file._unfolded
    go(session, file, *run("last"))
    assert json.loads(await file.export()) == expected(session)
    file.close()


async def test_notebooks_of_a_crowd_are_written_in_turn_and_none_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr("kernelsvc.store.write_limiter.SLACK", 0.0)
    written, write = [], NotebookFile.write
    monkeypatch.setattr(NotebookFile, "write", lambda file: (written.append(file), write(file)))
    limiter, files = WriteLimiter(time.monotonic()), []
    for name in "abcdef":
        (tmp_path / name).mkdir()
        journal = Journal.create(tmp_path / name / "journal.jsonl", name)
        files.append(
            (journal, NotebookFile(tmp_path / name / "notebook.ipynb", journal, linger=0.001, limiter=limiter))
        )
        go(*files[-1], ev.SessionStarted(template="t"))
    for n in range(5):
        for journal, file in files:
            go(journal, file, *run(f"c{n}"))
        await asyncio.sleep(0)
    await wait_until(lambda: all(file.path.exists() and read(file) == expected(journal) for journal, file in files))
    assert [file for _, file in files] == written[: len(files)]
    assert len(written) <= 2 * len(files)
    for journal, file in files:
        file.close()
        journal.close()


async def test_what_waits_to_be_folded_is_bounded(session):
    file = NotebookFile(session.path.with_name("notebook.ipynb"), session, linger=60.0)
    file.feed([ev.decode(line) for line in session.lines()])
    most = 0
    for n in range(200):
        go(session, file, *run(f"c{n}", ev.Stream(text="x" * 5000)))
        most = max(most, sum(len(event.text) for event in file._unfolded if isinstance(event, ev.Stream)))
    assert 30_000 < most <= notebook_file.UNFOLDED_BYTES
    await file.finish()
    assert read(file) == expected(session)


async def test_entries_that_were_taken_back_before_they_were_folded_are_not_in_it(session):
    file = NotebookFile(session.path.with_name("notebook.ipynb"), session, linger=60.0)
    file.feed([ev.decode(line) for line in session.lines()])
    lost = [ev.CellQueued(cell="lost", code="", seq=2), ev.CellFinished(cell="lost", seq=3)]
    file.feed(lost)
    go(session, file, *run("kept"))
    await file.finish()
    assert [cell["id"] for cell in read(file)["cells"]] == ["kept"]


async def test_it_catches_up_with_what_it_did_not_see(session):
    session.append([e for n in range(300) for e in run(f"c{n}", ev.Stream(text="x" * 300))])
    file = NotebookFile(session.path.with_name("notebook.ipynb"), session)
    last = run("last")
    session.append(last)
    file.feed(last)
    session.append(run("later"))
    assert json.loads(await file.export()) == expected(session)
    file.write()
    assert read(file) == expected(session)
    file.close()


async def test_it_is_made_again_when_entries_were_taken_back(session):
    file = NotebookFile(session.path.with_name("notebook.ipynb"), session)
    gone = run("gone")
    for n, event in enumerate(gone, 2):
        event.seq = n
    file.feed([ev.decode(line) for line in session.lines()])
    file.feed(gone)
    go(session, file, *run("a"))
    assert json.loads(await file.export()) == expected(session)
    file.close()


async def test_a_notebook_that_would_fill_memory_is_not_exported(session, monkeypatch):
    """A session may print a MiB in each of a thousand cells, and the server had all of it in memory three times."""
    monkeypatch.setattr(notebook_file, "EXPORT_BYTES", 50_000)
    file = NotebookFile(session.path.with_name("notebook.ipynb"), session)
    file.feed([ev.decode(line) for line in session.lines()])
    assert json.loads(await file.export()) == expected(session)
    for n in range(30):
        go(session, file, *run(f"c{n}", ev.Stream(text="x" * 2000)))
    with pytest.raises(TooLarge, match=r"or the log now: kernelsvc export ID -o FILE\.jsonl"):
        await file.export()
    await file.finish()
    assert read(file) == expected(session), "the file on disk has all of it"


async def test_a_long_notebook_is_written_less_often_and_never_lost(session, monkeypatch):
    monkeypatch.setattr(notebook_file, "INLINE_BYTES", 50_000)
    file = NotebookFile(session.path.with_name("notebook.ipynb"), session)
    file.feed([ev.decode(line) for line in session.lines()])
    for n in range(100):
        go(session, file, *run(f"c{n}", ev.Stream(text="x" * 2000)))
        await asyncio.sleep(0)
    await file.finish()
    assert read(file) == expected(session)


async def test_a_disk_without_room_is_logged_and_made_good(session, monkeypatch, caplog):
    monkeypatch.setattr(notebook_file, "RETRY", 0.01)
    file = NotebookFile(session.path.with_name("notebook.ipynb"), session)
    file.feed([ev.decode(line) for line in session.lines()])
    go(session, file, *run("a"))

    def refuses(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(notebook_file, "replace", refuses)
        go(session, file, *run("b"))
        assert len(read(file)["cells"]) == 1
    with monkeypatch.context() as patch:
        patch.setattr(file._cells, "add", refuses)
        go(session, file, *run("c"))
    assert "No space" in caplog.text
    async with asyncio.timeout(5):
        while read(file) != expected(session):
            await asyncio.sleep(0.01)
    file.close()


async def test_cancelling_an_export_leaves_it_usable(session):
    session.append([e for n in range(2000) for e in run(f"c{n}")])
    file = NotebookFile(session.path.with_name("notebook.ipynb"), session)
    task = asyncio.ensure_future(file.export())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert json.loads(await file.export()) == expected(session)
    file.close()


async def test_an_entry_that_can_not_be_read_is_left_out(session, caplog):
    session.append(run("a"))
    path = session.path
    data = path.read_bytes().replace(b'"cell_started"', b'"cell_tampers"')
    session.close()
    path.write_bytes(data)
    journal = Journal.open(path, read_only=True)
    file = NotebookFile(path.with_name("notebook.ipynb"), journal)
    assert len(json.loads(await file.export())["cells"]) == 1
    assert "entry 3 of a journal can't be decoded" in caplog.text
    file.close()


async def test_an_empty_session_has_a_notebook(session):
    file = NotebookFile(session.path.with_name("notebook.ipynb"), session)
    await file.finish()
    assert read(file)["cells"] == []


async def test_a_branch_begins_with_its_parents_cells_as_they_were(session, tmp_path):
    session.append(run("a", ev.Stream(text="A")))
    at = session.last_seq
    session.append(run("b"))
    (tmp_path / "t").mkdir()
    write_inherited(tmp_path / "t" / "parent.cells", "s", cells_of(session, at))
    child = Journal.create(tmp_path / "t" / "journal.jsonl", "t")
    child.append([ev.SessionStarted(parent={"session": "s", "seq": at}), *run("a", ev.Stream(text="B"))])
    file = NotebookFile(tmp_path / "t" / "notebook.ipynb", child, parent=tmp_path / "t" / "parent.cells")
    await file.catch_up()
    file.write()
    cells = read(file)["cells"]
    assert [c["outputs"][0]["text"] for c in cells] == ["A", "B"]
    assert cells[0]["metadata"]["kernelsvc"]["parent"] == "s"
    (tmp_path / "u").mkdir()
    write_inherited(
        tmp_path / "u" / "parent.cells", "t", cells_of(child, child.last_seq), tmp_path / "t" / "parent.cells"
    )
    grandchild = Journal.create(tmp_path / "u" / "journal.jsonl", "u")
    late = NotebookFile(tmp_path / "u" / "notebook.ipynb", grandchild, parent=tmp_path / "u" / "parent.cells")
    late.write()
    assert [c["metadata"]["kernelsvc"]["parent"] for c in read(late)["cells"]] == ["s", "t"]
    for each in (file, late, child, grandchild):
        each.close()


async def test_while_the_last_version_is_written_the_timer_writes_nothing(session, monkeypatch, caplog):
    """``replace`` is for one writer at a time: two would share a temporary file."""
    monkeypatch.setattr(write_limiter, "CREDIT", 60)
    monkeypatch.setattr(write_limiter, "BURST", 60)
    file = NotebookFile(session.path.with_name("notebook.ipynb"), session, linger=0.001)
    file.feed([ev.decode(line) for line in session.lines()])
    go(session, file, *run("c"))  # the timer is set
    loop, inside, release = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    real = os.fsync

    def slow(fd):
        loop.call_soon_threadsafe(inside.set)
        release.wait(5)
        real(fd)

    monkeypatch.setattr(os, "fsync", slow)
    finishing = asyncio.ensure_future(file.finish())
    await inside.wait()
    due = asyncio.Event()
    loop.call_later(0.01, due.set)  # later than the timer
    await due.wait()
    release.set()
    await finishing
    assert not caplog.records
    assert read(file) == expected(session)
