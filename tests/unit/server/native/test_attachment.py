"""An attachment's order and its end, over a log and a connection that the test holds in its hands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence

from kernelsvc.errors import NotFound
from kernelsvc.protocol import jsonrpc
from kernelsvc.server.native.attachment import LINGER, Attachment
from kernelsvc.server.ws.send_queue import FrameSource


class Log:
    """A ``Subscription`` whose lines the test adds."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.last_seq = 0
        self.exhausted = self.closed = False
        self.failure: Exception | None = None
        self.news: Callable[[bytes], None] = lambda line: None

    def add(self, type: str) -> None:
        self.lines.append(b'{"type":"%b"}' % type.encode())
        self.news(self.lines[-1])

    def on_lines(self, news: Callable[[bytes], None]) -> None:
        self.news = news

    async def next(self) -> list[bytes]:
        return self.next_nowait()

    def next_nowait(self) -> list[bytes]:
        if self.failure is not None:
            raise self.failure
        lines, self.lines = self.lines, []
        self.last_seq += len(lines)
        return lines

    def close(self) -> None:
        self.closed = True


class Connection:
    """An ``EventConnection`` that sends when the test says so."""

    def __init__(self) -> None:
        self.scheduled: list[tuple[FrameSource, float]] = []
        self.sent: list[bytes] = []
        self.pending_reply = False

    def schedule(self, source: FrameSource, linger: float = 0.0) -> None:
        self.scheduled.append((source, linger))

    def collect(self) -> None:
        for source, _ in self.scheduled:
            self.send(source.take())
            source.on_queued()
        self.scheduled.clear()

    def send(self, pieces: Sequence[bytes]) -> None:
        self.sent += pieces

    def has_pending_reply(self, session: str) -> bool:
        return self.pending_reply


def attach(after: int = 0) -> tuple[Attachment, Log, Connection]:
    log, connection = Log(), Connection()
    return Attachment("s_1", log, after, connection), log, connection


def test_nothing_is_scheduled_before_the_answer_that_announces_the_events() -> None:
    attachment, log, connection = attach()
    log.add("stream")
    assert not connection.scheduled
    attachment.start()
    connection.collect()
    assert connection.sent == [jsonrpc.event_frame(b'{"type":"stream"}')]


def test_an_answer_waits_for_the_events_before_it() -> None:
    attachment, log, connection = attach()
    attachment.start()
    order: list[str] = []
    attachment.when_sent(2, lambda: order.append("answer"))
    log.add("stream")
    connection.collect()
    assert not order
    log.add("cell_finished")
    connection.collect()
    assert order == ["answer"]
    attachment.when_sent(2, lambda: order.append("next"))
    assert order == ["answer", "next"]


async def test_a_stop_releases_those_who_wait() -> None:
    attachment, log, _ = attach()
    waiting = asyncio.ensure_future(attachment.reached(5))
    await asyncio.sleep(0)
    attachment.stop()
    await waiting
    assert log.closed
    assert not attachment.take()


def test_news_of_a_beginning_lingers_and_output_does_not() -> None:
    attachment, log, connection = attach()
    attachment.start()
    connection.scheduled.clear()
    for type, pending in (("cell_queued", False), ("stream", False), ("cell_finished", False), ("cell_finished", True)):
        connection.pending_reply = pending
        log.add(type)
    assert [linger for _, linger in connection.scheduled] == [LINGER, 0.0, 0.0, LINGER]


def test_a_log_that_fails_ends_the_attachment_with_its_error() -> None:
    attachment, log, connection = attach()
    attachment.start()
    log.failure = NotFound("The log is gone.")
    connection.collect()
    (frame,) = connection.sent
    detached = json.loads(frame[frame.index(b"{") :])
    assert (detached["method"], detached["params"]["error"]["code"]) == ("detached", "not_found")
    assert attachment.ended
