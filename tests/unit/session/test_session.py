"""A session over a scripted kernel and a real journal."""

import asyncio
import errno
import json
import logging
import os
import resource
import signal

import msgspec
import pytest
from waiting import wait_until

from kernelsvc.errors import AtCapacity, CellExists, Conflict, NotFound, QuotaExceeded, SessionClosed
from kernelsvc.kernels.fake import FakeKernel, FakeLauncher
from kernelsvc.kernels.port import KernelMessage, StreamText
from kernelsvc.model import events as ev
from kernelsvc.model.checkpoint_policy import COST, CheckpointBudget
from kernelsvc.model.events import Reason
from kernelsvc.model.limits import Limits, Usage
from kernelsvc.model.objects import CellRequest, CellState, SessionState
from kernelsvc.model.state import Policy
from kernelsvc.session import Session, SessionSpec, cell_views
from kernelsvc.session.checkpoints import Checkpoints
from kernelsvc.session.spec import start_request_of
from kernelsvc.store.journal import Journal

DEADLINE = 5.0


class Bench:
    """Makes sessions in one directory and ends them."""

    def __init__(self, path):
        self.path, self.launcher, self.sessions = path, FakeLauncher(), []

    def about(self, **changes):
        fields = {"id": "s_1", "principal": "p", "template": "t", "workdir": str(self.path), "kernel": "k_1"}
        return SessionSpec(
            **{**fields, "created_at": "2026-01-01T00:00:00Z", "limits": Limits(output_bytes=1000), **changes}
        )

    def session(self, journal, checkpoints=0, account=None, **policy):
        policy = Policy(output_bytes=1000, **policy)
        made = Session(
            self.about(),
            journal,
            self.launcher,
            policy,
            checkpoints=checkpoints,
            account=account,
            saved=self.path / "variables.pickle",
        )
        self.sessions.append(made)
        return made

    async def start(self, **policy):
        made = self.session(Journal.create(self.path / "journal.jsonl", "s_1"), **policy)
        await made.start()
        return made

    def again(self):
        """What a restarted server does."""
        journal = Journal.open(self.path / "journal.jsonl", "s_1")
        made = self.session(journal)
        made.rebuild(ev.decode(line) for line in journal.lines())
        return made


@pytest.fixture
async def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    for session in made.sessions:
        if not session.closed.is_set() and session.kernel is not None:
            await session.close("test over")
    made.launcher.close()


async def run(session, code, **options):
    (cell,) = session.submit([CellRequest(code=code, **options)])
    async with asyncio.timeout(DEADLINE):
        await session.wait(cell)
    return session.cell(cell)


def types(session):
    return [json.loads(line)["type"] for line in session.log.lines(1, session.log.last_seq)]


async def until(condition):
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.002)


async def test_a_full_log_drops_output_and_refuses_cells(bench):
    session = await bench.start(max_log_bytes=20_000)
    first = await run(session, "print " + "x" * 15_000)
    lines = [json.loads(line) for line in session.log.lines(1, session.log.last_seq)]
    printed = "".join(line["text"] for line in lines if line["type"] == "stream")
    assert printed.strip() == "x" * 15_000  # nothing that was accepted is lost
    with pytest.raises(QuotaExceeded, match="max_log_bytes"):
        session.submit([CellRequest(code="result 1")])
    assert session.submit([CellRequest(code=first.code, cell=first.id)]) == [first.id]  # a retry, not a new cell


async def test_a_full_log_interrupts_the_running_cell(bench):
    session = await bench.start(max_log_bytes=20_000)
    (cell,) = session.submit([CellRequest(code="wait")])
    await until(lambda: session.machine.running and session.machine.running.began)
    for text in ("x" * 30_000, "dropped", "dropped"):
        session.deliver([StreamText(parent=cell, name="stdout", text=text)])
    async with asyncio.timeout(DEADLINE):
        await session.wait(cell)
    end = session.cell(cell)
    assert (end.reason, "dropped\n" in end.text) == (Reason.INTERRUPTED, False)
    assert "max_log_bytes: 20000 bytes of log reached" in end.message
    assert types(session).count("limit_reached") == 1


async def test_a_second_reply_to_a_cell_is_marked_once(bench):
    session = await bench.start()
    cell = await run(session, "result 42")
    for parent in (cell.id, cell.id, "c_none"):
        reply = KernelMessage(channel="shell", msg_type="execute_reply", parent=parent, content={"status": "ok"})
        session.deliver([reply])
    assert types(session).count("reply_repeated") == 1


@pytest.mark.parametrize("content", [{"status": "ok"}, {"status": "aborted"}, {"status": "error"}, {}])
async def test_a_reply_that_code_forged_is_marked_when_the_kernels_own_comes(bench, content):
    """The cell ends early, also as one that did not run. It runs on, and its output stays its own."""
    session = await bench.start()
    (cell,) = session.submit([CellRequest(code="wait gate\nprint late")])
    await until(lambda: session.machine.running and session.machine.running.began)
    for channel, kind, found in (
        ("shell", "execute_reply", content),
        ("iopub", "status", {"execution_state": "idle"}),
    ):
        session.deliver([KernelMessage(channel=channel, msg_type=kind, parent=cell, content=found)])
    await session.wait(cell)
    assert "reply_repeated" not in types(session)
    bench.launcher.release("gate")
    await until(lambda: "reply_repeated" in types(session))
    late = [json.loads(line) for line in session.log.lines(1, session.log.last_seq)][-2]
    assert (late["type"], late["cell"], late["text"]) == ("stream", cell, "late\n")


async def test_a_cell_from_end_to_end(bench):
    session = await bench.start()
    cell = await run(session, "print hello\nresult 42")
    assert (cell.state, cell.reason, cell.execution_count) == (CellState.FINISHED, Reason.OK, 1)
    assert "hello" in cell.text
    assert "42" in cell.text
    assert types(session) == ["session_started", "cell_queued", "cell_started", "stream", "result", "cell_finished"]
    assert session.state is SessionState.IDLE
    view = session.view(Usage())
    assert (view.execution_count, view.last_seq, view.queued, view.running) == (1, 6, 0, None)


async def test_code_is_journaled_before_it_runs_and_an_end_before_its_report(bench):
    session = await bench.start()
    (cell,) = session.submit([CellRequest(code="wait gate")])
    assert types(session)[-2:] == ["cell_queued", "cell_started"]
    waiting = asyncio.ensure_future(session.wait(cell))
    bench.launcher.release("gate")
    async with asyncio.timeout(DEADLINE):
        await waiting
    assert types(session)[-1] == "cell_finished"
    assert session.log.unsynced == 0


async def test_the_same_cell_id_runs_once(bench):
    session = await bench.start()
    await run(session, "set x 1", cell="c1")
    again = await run(session, "set x 1", cell="c1")
    assert again.seq.first == 2
    assert types(session).count("cell_queued") == 1
    with pytest.raises(CellExists):
        session.submit([CellRequest(code="set x 2", cell="c1")])


async def test_an_error_cancels_queued_cells_and_the_next_submission_runs(bench):
    session = await bench.start()
    ids = session.submit([CellRequest(code="error ValueError no"), CellRequest(code="print never")])
    async with asyncio.timeout(DEADLINE):
        await session.wait(ids[1])
    assert [session.cell(c).reason for c in ids] == [Reason.ERROR, Reason.CANCELLED]
    assert session.cell(ids[0]).error.ename == "ValueError"
    assert (await run(session, "print yes")).reason is Reason.OK


async def test_the_time_limit_with_a_cell_that_obeys(bench):
    session = await bench.start(cell_seconds=0.05)
    cell = await run(session, "wait for-ever")
    assert cell.reason is Reason.TIMEOUT
    assert cell.variables_kept is True
    assert "0.05 s" in cell.message


async def test_the_time_limit_with_a_cell_that_does_not(bench):
    session = await bench.start(cell_seconds=0.05, grace_seconds=0.05)
    await run(session, "set x 1")
    cell = await run(session, "hang")
    assert cell.reason is Reason.TIMEOUT
    assert cell.variables_kept is False
    assert (await run(session, "print back")).reason is Reason.OK
    assert "kernel_restarted" in types(session)


@pytest.mark.parametrize(
    ("code", "reason"), [("die 11", Reason.KERNEL_DIED), ("oom", Reason.MEMORY), ("exit 3", Reason.KERNEL_DIED)]
)
async def test_death_in_a_cell(bench, code, reason):
    session = await bench.start()
    cell = await run(session, "print before\n" + code)
    assert cell.reason is reason
    assert cell.variables_kept is False
    assert "before" in cell.text
    assert (await run(session, "print after")).reason is Reason.OK


@pytest.mark.parametrize(("few", "threads"), [(32, 0), (0, 2)])
async def test_output_over_the_limit_is_reported_and_can_be_read_in_pages(bench, monkeypatch, few, threads):
    started, real = [], asyncio.to_thread

    def to_thread(*given):
        started.append(given)
        return real(*given)

    monkeypatch.setattr(cell_views, "FEW_ENTRIES", few)
    monkeypatch.setattr(asyncio, "to_thread", to_thread)
    session = await bench.start()
    cell = await run(session, "big 5000")
    assert "output_truncated" in types(session)
    assert len(cell.text) < 2500
    first = await session.output(cell.id, "stdout", 0, 3000)
    second = await session.output(cell.id, "stdout", first["next_offset"], 3000)
    assert len(first["text"]) == 3000
    assert len(first["text"] + second["text"]) == second["total"] >= 5000
    assert second["next_offset"] is None
    assert len(started) == threads


async def test_large_cells_that_have_ended_leave_memory_and_can_be_read(bench, monkeypatch):
    monkeypatch.setattr(cell_views, "KEPT_SECONDS", 0.01)
    monkeypatch.setattr(cell_views, "KEPT_BYTES", 10_000)
    session = await bench.start()
    large = [await run(session, f"print {number} " + "x" * 6000) for number in range(3)]
    folds = session.views._folds
    await wait_until(lambda: len(folds) == 1, what="the older cells' end in memory")
    assert [session.cell(each.id).code for each in large] == [each.code for each in large]
    assert len(folds) == 1, "a large one is not kept again"
    small = [await run(session, f"print {number}") for number in range(3)]
    assert {each.id for each in small} < folds.keys()


async def test_input_is_asked_and_given(bench):
    session = await bench.start()
    (cell,) = session.submit([CellRequest(code="input name?", allow_stdin=True)])
    with pytest.raises(Conflict):
        session.give_input("other", "x")
    await until(lambda: "input_requested" in types(session))
    session.give_input(cell, "ada")
    async with asyncio.timeout(DEADLINE):
        await session.wait(cell)
    assert "ada" in session.cell(cell).text


@pytest.mark.parametrize("word", ["input", "password"])
async def test_a_cell_that_waits_for_input_is_answered_by_the_next_server(bench, word):
    session = await bench.start()
    (cell,) = session.submit([CellRequest(code=f"{word} name?", allow_stdin=True)])
    await until(lambda: "input_requested" in types(session))
    session.detach()
    again = bench.again()
    with pytest.raises(Conflict, match="not connected"):
        again.give_input(cell, "too early")
    await again.adopt()
    again.give_input(cell, "ada")
    async with asyncio.timeout(DEADLINE):
        await again.wait(cell)
    assert "ada" in again.cell(cell).text
    with pytest.raises(Conflict, match="does not wait"):
        again.give_input(cell, "late")


def answers(session, monkeypatch, *, lost):
    """Count the answers that the kernel gets, and lose those that this server sends if ``lost``."""
    kernel, sent = type(session.kernel), []
    send = kernel.send

    def counting(self, request):
        if request.msg_type == "input_reply":
            sent.append(request.msg_id)
            if lost and self is session_kernel:
                return
        send(self, request)

    session_kernel = session.kernel
    monkeypatch.setattr(kernel, "send", counting)
    return sent


@pytest.mark.parametrize("word", ["input", "password"])
async def test_an_answer_that_the_earlier_server_did_not_send_is_sent_by_the_next(bench, word, monkeypatch):
    session = await bench.start()
    sent = answers(session, monkeypatch, lost=True)
    (cell,) = session.submit([CellRequest(code=f"{word} name?", allow_stdin=True)])
    await until(lambda: "input_requested" in types(session))
    session.give_input(cell, "ada")
    assert "input_given" in types(session)
    session.detach()
    again = bench.again()
    await again.adopt()
    if word == "password":  # it is in no journal, so the client must give it again
        assert again.machine.waiting_for is not None
        again.give_input(cell, "ada")
    async with asyncio.timeout(DEADLINE):
        await again.wait(cell)
    assert "ada" in again.cell(cell).text
    assert len(sent) == 2
    assert len(set(sent)) == 1, "the kernel can recognise the repeated answer"


async def test_an_answer_that_the_kernel_has_is_not_sent_again(bench, monkeypatch):
    session = await bench.start()
    sent = answers(session, monkeypatch, lost=False)
    (cell,) = session.submit([CellRequest(code="input name?\nwait gate\ninput more?", allow_stdin=True)])
    await until(lambda: "input_requested" in types(session))
    session.give_input(cell, "ada")
    await until(lambda: "ada" in session.cell(cell).text)
    session.detach()
    again = bench.again()
    await again.adopt()
    bench.launcher.release("gate")
    await until(lambda: again.machine.waiting_for is not None)
    again.give_input(cell, "bob")
    async with asyncio.timeout(DEADLINE):
        await again.wait(cell)
    assert "bob" in again.cell(cell).text
    assert len(sent) == len(set(sent)) == 2


async def test_a_password_is_not_recorded(bench):
    session = await bench.start()
    (cell,) = session.submit([CellRequest(code="password pin?", allow_stdin=True)])
    await until(lambda: "input_requested" in types(session))
    session.give_input(cell, "hunter2")
    await until(lambda: "input_given" in types(session))
    given = [json.loads(x) for x in session.log.lines(1, session.log.last_seq) if b"input_given" in x]
    assert given[0]["text"] is None


async def test_close_ends_kernel_and_cells_and_journals_it(bench):
    session = await bench.start()
    (cell,) = session.submit([CellRequest(code="hang")])
    await session.close("done")
    assert session.cell(cell).reason is Reason.SESSION_CLOSED
    assert bench.launcher.alive() == []
    with pytest.raises(SessionClosed):
        session.submit([CellRequest(code="print no")])
    assert session.log.closed


async def test_a_close_during_a_restore_signs_the_journal_once(bench, monkeypatch, caplog):
    session = await bench.start(checkpoints=1)
    await run(session, "set x 41")
    await copied(session)
    signed, gate, reached, restrict = [], asyncio.Event(), asyncio.Event(), Checkpoints.restrict_writes
    session._sign = lambda: signed.append(1) or ev.JournalSigned(head="h", signature="s", key="k")

    async def late(self, *args, **options):
        reached.set()
        await gate.wait()
        return await restrict(self, *args, **options)

    monkeypatch.setattr(Checkpoints, "restrict_writes", late)
    session.submit([CellRequest(code="die 11")])
    await reached.wait()
    closing = asyncio.ensure_future(session.close("done"))
    await until(lambda: session.machine.state is SessionState.CLOSED)
    gate.set()
    await closing
    await until(lambda: not session._tasks)
    assert (signed, bench.launcher.alive()) == ([1], [])
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


async def test_unknown_cells_are_not_found(bench):
    session = await bench.start()
    with pytest.raises(NotFound):
        session.cell("nope")
    with pytest.raises(NotFound):
        await session.wait("nope")


class Client:
    """A connection."""


async def test_a_disconnect_interrupts_the_cells_that_requested_it(bench):
    session = await bench.start()
    client = Client()
    (cell,) = session.submit([CellRequest(code="wait x", on_disconnect="interrupt")], client=client)
    await until(lambda: "cell_started" in types(session))
    session.client_disconnected(client)
    async with asyncio.timeout(DEADLINE):
        await session.wait(cell)
    assert session.cell(cell).reason is Reason.INTERRUPTED


async def test_a_disconnect_cancels_queued_cells(bench):
    session, client = await bench.start(), Client()
    (first,) = session.submit([CellRequest(code="wait gate")])
    (left,) = session.submit([CellRequest(code="print no", on_disconnect="interrupt")], client=client)
    (after,) = session.submit([CellRequest(code="print yes")])
    session.client_disconnected(client)
    async with asyncio.timeout(DEADLINE):
        await session.wait(left)
    cell = session.cell(left)
    assert (cell.reason, cell.text) == (Reason.CANCELLED, "[cancelled] Its client left before it began.\n")
    bench.launcher.release("gate")
    async with asyncio.timeout(DEADLINE):
        await session.wait(after)
    assert session.cell(first).reason is Reason.OK
    assert "yes" in session.cell(after).text


async def test_the_next_server_sends_a_journaled_cell_that_the_kernel_never_received(bench):
    session = await bench.start()
    process = session.kernel.process
    process.request, deliver = lambda *_: None, process.request  # the server dies between its log and the socket
    (cell,) = session.submit([CellRequest(code="print once")])
    assert types(session)[-1] == "cell_started"
    session.detach()
    process.request = deliver
    again = bench.again()
    await again.adopt()
    async with asyncio.timeout(DEADLINE):
        await again.wait(cell)
    assert again.cell(cell).text == "once\n"
    assert [types(again).count(kind) for kind in ("cell_started", "cell_finished")] == [1, 1]


async def test_output_and_end_in_one_batch_at_the_limit_are_separate_events(bench):
    session = await bench.start()
    view = await run(session, "big 600\nbig 600")
    assert types(session)[-2:] == ["output_truncated", "cell_finished"]
    assert view.usage.output_bytes == 1200


async def test_a_restarted_server_continues_the_session(bench):
    session = await bench.start()
    await run(session, "set x 7")
    running, queued = session.submit([CellRequest(code="print one\nwait gate\nprint two"), CellRequest(code="get x")])
    await until(lambda: "stream" in types(session))
    session.detach()
    bench.launcher.release("gate")
    again = bench.again()
    await again.adopt()
    async with asyncio.timeout(DEADLINE):
        await again.wait(queued)
    assert again.cell(running).text.split() == ["one", "two"]
    assert "7" in again.cell(queued).text
    kinds = types(again)
    assert kinds.count("cell_finished") == 3
    assert kinds.count("session_adopted") == 1


async def test_a_kernel_that_died_without_a_server_is_replaced(bench):
    session = await bench.start()
    (cell,) = session.submit([CellRequest(code="hang")])
    await until(lambda: "cell_started" in types(session))
    session.detach()
    bench.launcher.close()
    bench.launcher = FakeLauncher()
    again = bench.again()
    await again.adopt()
    async with asyncio.timeout(DEADLINE):
        await again.wait(cell)
    assert again.cell(cell).reason is Reason.KERNEL_DIED
    assert (await run(again, "print ok")).reason is Reason.OK


async def test_a_full_disk_pauses_the_session_until_there_is_space(bench, monkeypatch):
    """RLIMIT_FSIZE makes the write fail for real (EFBIG), as a full disk does (ENOSPC)."""
    monkeypatch.setattr("kernelsvc.session.journal_writer.RECOVER_SECONDS", 0.02)
    session = await bench.start()
    await run(session, "print before")
    old, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    (cell,) = session.submit([CellRequest(code="wait gate\nlines 5")])
    await until(lambda: types(session)[-1] == "cell_started")
    size = os.path.getsize(bench.path / "journal.jsonl")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
        bench.launcher.release("gate")
        await until(lambda: session.journal.fault is not None)
        with pytest.raises(AtCapacity):
            session.submit([CellRequest(code="print no")])
        assert os.path.getsize(bench.path / "journal.jsonl") == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (old, hard))
        signal.signal(signal.SIGXFSZ, handler)
    async with asyncio.timeout(DEADLINE):
        await session.wait(cell)
    lines = [json.loads(x) for x in session.log.lines(1, session.log.last_seq)]
    text = "".join(e["text"] for e in lines if e["type"] == "stream" and e["cell"] == cell)
    assert len(text.split("\n")) == 6, "each line once"
    assert [e["seq"] for e in lines] == list(range(1, len(lines) + 1))


# --- checkpoints ------------------------------------------------------------------------


async def copied(session, count=1):
    await until(lambda: types(session).count("checkpoint_made") >= count)


@pytest.mark.parametrize("death", ["die 11", "oom", "exit 1"])
async def test_a_crash_costs_one_cell(bench, death):
    session = await bench.start(checkpoints=1)
    await run(session, "set x 41")
    crashed = await run(session, "set x 0\n" + death)
    assert crashed.variables_kept is True
    assert "41" in (await run(session, "get x")).text
    restored = [json.loads(x) for x in session.log.lines(1, session.log.last_seq) if b"kernel_restored" in x]
    assert len(restored) == 1
    assert session.machine.cells[crashed.id].undone


async def test_a_checkpoint_that_waited_long_for_a_processor_does_not_make_the_next_one_dear(bench, monkeypatch):
    fork = FakeKernel.fork

    async def slow(*args, **kwargs):
        return msgspec.structs.replace(await fork(*args, **kwargs), cost_ms=1e6)

    monkeypatch.setattr(FakeKernel, "fork", slow)
    session = await bench.start(checkpoints=1)
    await run(session, "set x 1")
    await copied(session)
    await run(session, "set x 2")
    await copied(session, 2)


async def test_crash_after_crash(bench):
    session = await bench.start(checkpoints=1)
    await run(session, "set x 1")
    for _ in range(3):
        await run(session, "die 9")
    assert "1" in (await run(session, "get x")).text


async def test_rollback_undoes_one_cell_and_marks_it(bench):
    session = await bench.start(checkpoints=1)
    await run(session, "set x 1")
    await copied(session)
    second = await run(session, "set x 2")
    await copied(session, 2)
    await session.lifecycle.rollback()
    assert "1" in (await run(session, "get x")).text
    assert session.machine.cells[second.id].undone
    assert types(session).count("rolled_back") == 1


async def test_rollback_to_a_name_again_and_again(bench):
    session = await bench.start(checkpoints=1)
    await run(session, "set x 1")
    await session.checkpoints.make("start")
    for value in (5, 6):
        await run(session, f"set x {value}")
        await session.lifecycle.rollback("start")
        assert "1" in (await run(session, "get x")).text
    await session.checkpoints.make("other")
    await session.checkpoints.drop("start")
    with pytest.raises(NotFound, match=r"'start'.*other"):
        await session.lifecycle.rollback("start")


async def test_rollback_to_a_dropped_checkpoint_changes_nothing(bench):
    session = await bench.start(checkpoints=1)
    await run(session, "set x 7")
    first = await run(session, "set x 1")
    for value in range(4):
        await run(session, f"set x {value}")
        await copied(session, value + 3)
    with pytest.raises(NotFound, match="replay"):
        await session.lifecycle.rollback(first.id, replay=False)
    assert session.state is SessionState.IDLE
    await session.lifecycle.rollback(first.id)
    assert "7" in (await run(session, "get x")).text


def waking_meanwhile(bench, session, meanwhile):
    """From now on, between the waking of a copy and its taking over, ``meanwhile`` happens."""
    wake = bench.launcher.resume_copy

    async def slowly(request, sink):
        kernel = await wake(request, sink)
        await meanwhile()
        return kernel

    bench.launcher.resume_copy = slowly


async def test_a_checkpoint_that_resumes_is_not_dropped_for_a_newer_one(bench):
    session = await bench.start(checkpoints=1)
    await run(session, "set x 1")
    await copied(session)
    second = await run(session, "set x 2")
    await copied(session, 2)
    go, fork = asyncio.Event(), session.kernel.fork

    async def late(copy, **options):
        await go.wait()
        return await fork(copy, **options)

    async def finished():
        go.set()
        await copied(session, 3)

    session.kernel.fork = late
    waking_meanwhile(bench, session, finished)
    await run(session, "set x 3")
    assert session.checkpoints.busy
    await session.lifecycle.rollback(second.id)
    newest = session.checkpoints.newest()
    assert newest is not None
    assert newest.after_cell == session.machine.variables_after
    assert "1" in (await run(session, "get x")).text


async def test_a_checkpoint_dropped_during_its_resume_becomes_the_kernel(bench):
    session = await bench.start(checkpoints=1)
    await run(session, "set x 1")
    await session.checkpoints.make("start")
    await run(session, "set x 2")
    waking_meanwhile(bench, session, lambda: session.checkpoints.drop("start"))
    await session.lifecycle.rollback("start")
    assert "1" in (await run(session, "get x")).text
    assert session.checkpoints.named("start") is None


async def test_rollback_while_a_cell_runs_is_refused(bench):
    session = await bench.start(checkpoints=1)
    await run(session, "set x 1")
    await copied(session)
    session.submit([CellRequest(code="wait gate")])
    with pytest.raises(Conflict):
        await session.lifecycle.rollback(session.checkpoints.newest().id)
    bench.launcher.release("gate")


async def test_a_failed_checkpoint_is_skipped_and_reported_once(bench):
    session = await bench.start(checkpoints=1)
    await run(session, "set thread 1")
    await until(lambda: "checkpoint_skipped" in types(session))
    await run(session, "set y 1")
    await run(session, "set y 2")
    assert types(session).count("checkpoint_skipped") == 1


async def test_checkpoints_end_with_their_session(bench):
    session = await bench.start(checkpoints=2)
    for value in range(4):
        await run(session, f"set x {value}")
        await copied(session, value + 1)
    assert len(session.machine.checkpoints) == 3
    await session.close("done")
    assert bench.launcher.alive() == []


async def test_a_restart_drops_the_checkpoints(bench):
    session = await bench.start(checkpoints=1)
    await run(session, "set x 1")
    await copied(session)
    session.restart()
    await session.settled()
    assert len(bench.launcher.alive()) == 1
    assert (await run(session, "print ok")).reason is Reason.OK


async def test_checkpoints_do_not_delay_a_stream_of_cells(bench):
    session = await bench.start(checkpoints=1)
    for value in range(60):
        await run(session, f"set x {value}")
    await until(lambda: session.checkpoints.newest().after_cell == session.machine.variables_after)
    assert types(session).count("checkpoint_made") < 60


async def test_checkpoints_wait_when_the_server_has_used_its_share(bench):
    now = asyncio.get_running_loop().time()
    account = CheckpointBudget(2, now)
    account.reserve(now, account.credit(now) + 0.1)  # others have taken the next 0.2 seconds
    session = await bench.start(checkpoints=1, account=account)
    await run(session, "set x 1")
    assert session.checkpoints.newest() is None
    await run(session, "set x 2")
    await copied(session)
    assert types(session).count("checkpoint_made") == 1
    assert session.checkpoints.newest().after_cell == session.machine.variables_after
    assert account.credit(asyncio.get_running_loop().time()) >= -COST, "the turn of the first cell was given back"


# --- sleep --------------------------------------------------------------------------------


async def test_a_session_hibernates_and_the_next_cell_resumes_it(bench):
    session = await bench.start(checkpoints=1)
    await run(session, "set x 41")
    await copied(session)
    await session.lifecycle.hibernate()
    assert bench.launcher.alive() == []
    assert session.state is SessionState.HIBERNATED
    cell = await run(session, "get x")
    assert "41" in cell.text
    assert cell.execution_count == 3
    assert [t for t in types(session) if t in ("hibernated", "woken")] == ["hibernated", "woken"]


async def test_an_idle_session_hibernates(bench):
    session = await bench.start(hibernate_seconds=0.05)
    await run(session, "set x 1")
    await until(lambda: "hibernated" in types(session))
    assert "1" in (await run(session, "get x")).text


async def test_a_busy_session_does_not_hibernate(bench):
    session = await bench.start()
    session.submit([CellRequest(code="wait gate")])
    with pytest.raises(Conflict):
        await session.lifecycle.hibernate()
    bench.launcher.release("gate")


async def test_a_hibernated_session_survives_a_restart_of_the_server(bench):
    session = await bench.start()
    await run(session, "set x 7")
    await session.lifecycle.hibernate()
    session.detach()
    again = bench.again()
    await again.adopt()
    assert bench.launcher.alive() == []
    assert "7" in (await run(again, "get x")).text


async def test_variables_survive_a_server_that_is_killed_while_the_kernel_ends(bench, monkeypatch):
    session = await bench.start(checkpoints=1)
    await run(session, "set x 7")
    await copied(session)
    end, ended = session.kernel.end, asyncio.Event()

    async def end_and_hang():
        await end()
        ended.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(session.kernel, "end", end_and_hang)
    saving = asyncio.create_task(session.lifecycle.hibernate())
    async with asyncio.timeout(DEADLINE):
        await ended.wait()
    session.detach()
    saving.cancel()
    again = bench.again()
    assert again.state is SessionState.HIBERNATED
    assert again.kernels() == set(), "a process that is left over is ended"
    await again.adopt()
    assert "7" in (await run(again, "get x")).text


async def test_a_session_whose_hibernation_cant_be_recorded_keeps_its_kernel(bench, monkeypatch):
    session = await bench.start()
    await run(session, "set x 7")
    monkeypatch.setattr("kernelsvc.session.journal_writer.RECOVER_SECONDS", 0.02)

    def full(events):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(session.log, "append", full)
        with pytest.raises(AtCapacity):
            await session.lifecycle.hibernate()
    await until(lambda: session.journal.fault is None)
    assert not (bench.path / "variables.pickle").exists()
    assert "7" in (await run(session, "get x")).text


async def test_a_cell_that_arrives_while_the_kernel_ends_runs_after_it(bench, monkeypatch):
    session = await bench.start()
    await run(session, "set x 7")
    end, goes_on, order = session.kernel.end, asyncio.Event(), []

    async def end_late():
        await goes_on.wait()
        await end()
        order.append("ended")

    start = bench.launcher.start

    async def started(*args):
        order.append("started")
        return await start(*args)

    monkeypatch.setattr(session.kernel, "end", end_late)
    monkeypatch.setattr(bench.launcher, "start", started)
    saving = asyncio.create_task(session.lifecycle.hibernate())
    await until(lambda: session.hibernated)
    (cell,) = session.submit([CellRequest(code="get x")])
    await until(lambda: session.state is SessionState.RESTORING)
    goes_on.set()
    async with asyncio.timeout(DEADLINE):
        await session.wait(cell)
        await saving
    assert (order, "7" in session.cell(cell).text) == (["ended", "started"], True)


async def test_a_cell_that_a_hibernated_session_took_just_before_the_server_died_runs_after_it(bench, monkeypatch):
    session = await bench.start()
    await run(session, "set x 7")
    await session.lifecycle.hibernate()
    monkeypatch.setattr(session, "spawn", lambda work: work.close())  # the server dies before it can resume
    (cell,) = session.submit([CellRequest(code="get x")])
    session.detach()
    again = bench.again()
    assert again.state is SessionState.HIBERNATED
    await again.adopt()
    async with asyncio.timeout(DEADLINE):
        await again.wait(cell)
    assert "7" in again.cell(cell).text


async def test_missing_saved_variables_start_an_empty_kernel_and_an_event(bench):
    session = await bench.start()
    await run(session, "set x 7")
    await session.lifecycle.hibernate()
    (bench.path / "variables.pickle").unlink()
    assert "NameError" in (await run(session, "get x")).text
    restarted = [json.loads(x) for x in session.log.lines(1, session.log.last_seq) if b"kernel_restarted" in x]
    assert "could not be loaded" in restarted[0]["why"]


async def test_a_hibernated_session_can_be_closed_and_restarted(bench):
    session = await bench.start()
    await run(session, "set x 7")
    await session.lifecycle.hibernate()
    session.restart()
    await session.settled()
    assert "NameError" in (await run(session, "get x")).text
    await session.lifecycle.hibernate()
    await session.close("done")


# --- the order of operations ------------------------------------------------------------


async def checkpointed(bench, session, number):
    made = await session.make_checkpoint(f"c{number}")
    return session.machine.kernel_of(made.id)


async def branched(bench, session, number):
    request = msgspec.structs.replace(start_request_of(session.spec), kernel=f"k_branch{number}")
    await session.fork_branches([request], [], at=None, force=False)
    return request.kernel


@pytest.mark.parametrize("first", [checkpointed, branched])
@pytest.mark.parametrize("second", [checkpointed, branched])
async def test_a_fork_has_the_state_before_the_cells_that_were_sent_after_it(bench, first, second):
    session = await bench.start()
    await run(session, "set x 1")
    forks = [asyncio.create_task(fork(bench, session, number)) for number, fork in enumerate((first, second))]
    await asyncio.sleep(0)  # both were requested, and neither exists
    session.submit([CellRequest(code="set x 2")])
    async with asyncio.timeout(DEADLINE):
        kernels = await asyncio.gather(*forks)
    assert [bench.launcher.processes[kernel].variables["x"] for kernel in kernels] == ["1", "1"]


async def test_two_checkpoints_that_are_made_at_the_same_time_have_different_names(bench):
    session = await bench.start()
    made = await asyncio.gather(*(session.make_checkpoint("one") for _ in range(2)), return_exceptions=True)
    assert [type(each).__name__ for each in made] == ["Checkpoint", "Conflict"]
