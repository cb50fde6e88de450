"""The export to receivers that work, and to receivers that do not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import tracemalloc

import pytest
from otlp_receiver import answer, drip, receiving
from waiting import wait_until

from kernelsvc.model import events as ev
from kernelsvc.model.tracing.target import SpanTarget
from kernelsvc.store.journal import Journal
from kernelsvc.telemetry.tracing import exporter as module
from kernelsvc.telemetry.tracing.cursor import Cursor
from kernelsvc.telemetry.tracing.exporter import Exporter, SpanSender
from kernelsvc.telemetry.tracing.follower import JournalFollower


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(module, "LAST_SECONDS", 0.3)


@pytest.fixture
def receiver():
    with receiving() as running:
        yield running


class Data:
    """A data directory with one session."""

    def __init__(self, path):
        self.path = path
        (path / "sessions" / "s1").mkdir(parents=True)
        # The cursor exists already, so that the entries count as new.
        cursor = Cursor(path / "traces.sqlite")
        cursor.close()
        self.journal = Journal.create(path / "sessions" / "s1" / "journal.jsonl", "s1")
        self.journal.append([ev.SessionStarted()])

    def run(self, *cells):
        for cell in cells:
            self.journal.append([ev.CellQueued(cell=cell), ev.CellFinished(cell=cell)])

    @contextlib.asynccontextmanager
    async def exporting(self, url, seconds=5.0, content="off", **more):
        cursor = Cursor(self.path / "traces.sqlite")
        follower = JournalFollower(self.path / "sessions", cursor.positions(), content=content)
        sender = SpanSender(SpanTarget(url=f"{url}/v1/traces", seconds=seconds, **more))
        stopping = asyncio.Event()
        exporter = Exporter(follower, cursor, sender, self.path / "traces.json")
        task = asyncio.create_task(exporter.run(stopping))
        try:
            yield exporter
        finally:
            stopping.set()
            await asyncio.wait([task], timeout=5)
            sender.close()
            cursor.close()
            await task

    def status(self):
        return json.loads((self.path / "traces.json").read_text())


@pytest.fixture
def data(tmp_path):
    return Data(tmp_path)


def cells(receiver):
    return [
        next(a.value.string_value for a in span.attributes if a.key == "gen_ai.tool.call.id") for span in receiver.spans
    ]


async def test_spans_arrive_with_headers_resource_and_compression(data, receiver):
    data.run("c1", "c2")
    async with data.exporting(receiver.url, headers={"api-key": "k"}, resource={"service.name": "x"}):
        await wait_until(lambda: len(receiver.spans) == 2)
        data.run("c3")
        await wait_until(lambda: len(receiver.spans) == 3)
    assert cells(receiver) == ["c1", "c2", "c3"]
    assert (receiver.headers["Api-Key"], receiver.headers["Content-Encoding"]) == ("k", "gzip")
    assert receiver.resource == {"service.name": "x"}
    assert data.status()["counts"] == {"sent": 3}


async def test_what_is_new_at_the_end_is_sent_before_the_process_ends(data, receiver):
    async with data.exporting(receiver.url):
        await wait_until(lambda: data.path.joinpath("traces.json").exists())
        data.run("c1")
    assert cells(receiver) == ["c1"]


async def test_a_process_that_is_killed_after_a_request_sends_again_and_nothing_is_left_out(
    data, receiver, monkeypatch
):
    data.run("c1")
    with monkeypatch.context() as patch:
        patch.setattr(Cursor, "advance", lambda *_: asyncio.current_task().cancel())
        with contextlib.suppress(asyncio.CancelledError):
            async with data.exporting(receiver.url):
                await wait_until(lambda: receiver.spans)
    data.run("c2")
    async with data.exporting(receiver.url):
        await wait_until(lambda: "c2" in cells(receiver))
    assert cells(receiver)[-2:] == ["c1", "c2"]
    assert len(receiver.by_id()) == 2


def waits(caplog):
    return "spans wait, because the receiver does not take them" in caplog.text


def page(handler, _):
    return answer(handler, 200, b"<html>Sign in</html>", "text/html")


def garbage(handler, _):
    handler.wfile.write(b"\0\0\0 what\r\n\r\n")
    return False


def huge(handler, _):
    with contextlib.suppress(OSError):
        answer(handler, 200, b"x" * 10_000_000, "application/x-protobuf")
    return False


def silent(handler, _):
    return False


FAULTS = {
    "429": lambda handler, _: answer(handler, 429, Retry_After="0"),
    "503": lambda handler, _: answer(handler, 503),
    "401": lambda handler, _: answer(handler, 401),
    "redirect": lambda handler, _: answer(handler, 302, Location="/elsewhere"),
    "page": page,
    "garbage": garbage,
    "huge": huge,
    "silent": silent,
    "drip": drip,
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_receiver_that_fails_gets_all_spans_when_it_works_again(data, receiver, fault, caplog):
    caplog.set_level(logging.WARNING)
    receiver.respond = FAULTS[fault]
    data.run("c1")
    async with data.exporting(receiver.url, seconds=0.3):
        await wait_until(lambda: receiver.requests >= 3)
        data.run("c2", "c3")
        assert waits(caplog)
        receiver.respond = None
        await wait_until(lambda: len(receiver.by_id()) == 3)
        await wait_until(lambda: "takes spans again" in caplog.text)
    assert data.status()["counts"] == {"sent": 3}
    own = [record.getMessage() for record in caplog.records if record.name.startswith("kernelsvc")]
    assert len(own) == 2, own  # One line for the failure however long it lasts, and one for its end.


@pytest.mark.parametrize("fault", ["503", "silent", "page"])
async def test_while_a_receiver_fails_the_memory_is_that_of_one_batch(data, receiver, fault):
    receiver.respond = FAULTS[fault]
    code = "x" * 3_000

    def more():
        for number in range(1200):
            data.journal.append([ev.CellQueued(cell=f"c{number}", code=code), ev.CellFinished(cell=f"c{number}")])

    tracemalloc.start()
    try:
        async with data.exporting(receiver.url, content="all"):
            more()
            await wait_until(lambda: receiver.requests >= 2, deadline=60)
            more()
            seen = receiver.requests
            await wait_until(lambda: receiver.requests > seen, deadline=60)
            _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert data.journal.path.stat().st_size > 7_000_000
    assert most < 4_000_000


async def test_nothing_listens_and_then_something_does(data, caplog):
    with receiving() as closed:
        pass
    data.run("c1")
    async with data.exporting(closed.url):
        await wait_until(lambda: waits(caplog))
    assert not data.status()["counts"]
    with receiving() as receiver:
        async with data.exporting(receiver.url):
            await wait_until(lambda: receiver.spans)


async def test_a_span_that_is_refused_for_good_is_found_dropped_and_counted(data, receiver):
    def refuse(handler, request):
        names = [str(span) for span in request.resource_spans[0].scope_spans[0].spans]
        return not any("bad" in name for name in names) or answer(handler, 400)

    receiver.respond = refuse
    data.run("c1", "c2", "bad", "c4", "c5")
    async with data.exporting(receiver.url):
        await wait_until(lambda: data.path.joinpath("traces.json").exists() and data.status()["counts"])
    assert sorted(cells(receiver)) == ["c1", "c2", "c4", "c5"]
    assert data.status()["counts"] == {"sent": 4, "rejected": 1}


async def test_a_receiver_that_refuses_everything_costs_few_spans(data, receiver, caplog):
    receiver.respond = lambda handler, _: answer(handler, 400)
    data.run(*(f"c{n}" for n in range(module.MAX_REFUSED + 30)))
    async with data.exporting(receiver.url):
        await wait_until(lambda: waits(caplog))
        receiver.respond = None
        await wait_until(lambda: data.status()["counts"])
    assert data.status()["counts"] == {"rejected": module.MAX_REFUSED, "sent": 30}


async def test_a_first_start_sends_what_comes_after_it(data, receiver):
    (data.path / "traces.sqlite").unlink()
    data.run("c1")
    async with data.exporting(receiver.url):
        await wait_until(lambda: data.path.joinpath("traces.json").exists())
        data.run("c2")
        await wait_until(lambda: receiver.spans)
    assert cells(receiver) == ["c2"]
