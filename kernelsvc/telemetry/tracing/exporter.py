"""Sends the spans of all journals to a receiver, and repeats until the receiver has them.

A request that fails for now is repeated with growing pauses, and nothing further is read meanwhile. So a receiver that
is away, slow, or sends nonsense costs a batch of memory here and nothing elsewhere. A request that the receiver refuses
for good is split, until the spans that it can't take are alone. They are dropped and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import os
import random
import time
from collections import Counter
from pathlib import Path

import msgspec
from tornado.httpclient import AsyncHTTPClient, HTTPError, HTTPRequest
from tornado.simple_httpclient import HTTPStreamClosedError

from kernelsvc import __version__
from kernelsvc.linux import atomic_file
from kernelsvc.model.tracing.spans import Span
from kernelsvc.model.tracing.target import SpanTarget
from kernelsvc.protocol import otlp
from kernelsvc.protocol.otlp import Fate
from kernelsvc.telemetry.tracing.cursor import Cursor
from kernelsvc.telemetry.tracing.follower import JournalFollower
from kernelsvc.telemetry.tracing.status import ExportStatus

log = logging.getLogger(__name__)

#: Seconds between two looks at the journals.
LOOK_SECONDS = 1.0
#: Seconds of the first and the longest pause after a failure.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
#: Largest answer of a receiver that is read, in bytes.
MAX_ANSWER = 64 * 1024
#: Spans that may be refused for good in a row, before all further ones wait: then the receiver is wrong, not the spans.
MAX_REFUSED = 20
#: Seconds for the last spans when the process ends. Others are sent by the next one.
LAST_SECONDS = 2.0


class SpanSender:
    """Sends requests to one receiver."""

    def __init__(self, target: SpanTarget) -> None:
        self._target = target
        self._client = AsyncHTTPClient(force_instance=True, max_body_size=MAX_ANSWER, max_header_size=MAX_ANSWER)

    async def send(self, spans: list[Span]) -> Fate:
        """Send spans and return their fate. Never raises for a receiver's fault. Safe to cancel."""
        target = self._target
        body = otlp.encode(spans, target.resource, __version__)
        headers = {**target.headers, "Content-Type": otlp.CONTENT_TYPE, "User-Agent": f"kernelsvc/{__version__}"}
        if target.compress:
            body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
        request = HTTPRequest(
            target.url,
            method="POST",
            headers=headers,
            body=body,
            connect_timeout=target.seconds,
            # For the whole request: a receiver that sends its answer byte by byte does not hold it open.
            request_timeout=target.seconds,
            follow_redirects=False,
        )
        try:
            response = await self._client.fetch(request, raise_error=False)
        except (HTTPError, HTTPStreamClosedError, OSError, ValueError) as error:
            return Fate(kind="later", message=f"the request failed: {str(error)[:200]}")
        if response.code == 599 or (response.error is not None and not response.code):
            return Fate(kind="later", message=f"the request failed: {str(response.error)[:200]}")
        return otlp.judge(response.code, response.headers, response.body)

    def close(self) -> None:
        """Close connections."""
        self._client.close()


class Exporter:
    """Follows the journals of a data directory and exports their spans.

    Args:
        follower: reads the journals.
        cursor: keeps the positions.
        sender: sends spans.
        status_file: the file that the server reads for its metrics.
    """

    def __init__(self, follower: JournalFollower, cursor: Cursor, sender: SpanSender, status_file: Path) -> None:
        self._follower, self._cursor, self._sender, self._status_file = follower, cursor, sender, status_file
        self._status = ExportStatus(clear_at=time.time(), counts=cursor.counts())
        self._refused = 0
        self._failing = False

    async def run(self, stopping: asyncio.Event) -> None:
        """Export until ``stopping`` is set, and then what is left, for a moment."""
        if self._cursor.fresh:
            self._cursor.advance(self._follower.skip_all(), {})
        while not stopping.is_set():
            await self._round(stopping)
            await _wait(stopping, LOOK_SECONDS)
        try:
            async with asyncio.timeout(LAST_SECONDS):
                self._follower.look()
                self._follower.settle()
                await self._send_all(asyncio.Event())
        except TimeoutError:
            pass
        self._write_status()

    async def _round(self, stopping: asyncio.Event) -> None:
        looked = time.time()
        self._follower.look()
        await self._send_all(stopping)
        if not stopping.is_set():
            # Entries are read at the look after the one that finds them.
            self._status = msgspec.structs.replace(self._status, clear_at=looked - LOOK_SECONDS)
        if gone := self._follower.take_gone():
            self._cursor.forget(gone)
        self._write_status()

    async def _send_all(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set() and (batch := self._follower.take()) is not None:
            counts: Counter[str] = Counter()
            if batch.spans and not await self._deliver(batch.spans, counts, stopping):
                return
            self._cursor.advance(batch.moves, counts)
            self._follower.sent(batch.moves)
            self._status = msgspec.structs.replace(self._status, counts=self._cursor.counts())
            await asyncio.sleep(0)

    async def _deliver(self, spans: list[Span], counts: Counter[str], stopping: asyncio.Event) -> bool:
        """Send spans until they have a fate. Return whether they have one, and count it."""
        fate = await self._until_judged(spans, stopping)
        if fate is None:
            return False
        if fate.kind == "accepted":
            self._refused = 0
            rejected = min(fate.rejected, len(spans))
            counts["sent"] += len(spans) - rejected
            counts["rejected"] += rejected
            if fate.message:
                log.warning("the receiver of spans rejects %d: %s", rejected, fate.message)
        elif len(spans) == 1:
            self._refused += 1
            counts["rejected"] += 1
            log.warning("the receiver refuses the span %s for good: %s", spans[0].span_id.hex(), fate.message)
        else:
            middle = len(spans) // 2
            for part in (spans[:middle], spans[middle:]):
                if not await self._deliver(part, counts, stopping):
                    return False
        return True

    async def _until_judged(self, spans: list[Span], stopping: asyncio.Event) -> Fate | None:
        """Repeat a request until the receiver accepts or refuses it. None: the process ends before."""
        pause = FIRST_PAUSE
        while not stopping.is_set():
            fate = await self._sender.send(spans)
            if fate.kind == "refused" and self._refused >= MAX_REFUSED:
                fate = Fate(kind="later", message=f"{fate.message} (the last {MAX_REFUSED} were refused, too)")
            if fate.kind != "later":
                if self._failing:
                    log.warning("the receiver of spans takes spans again")
                self._failing = False
                return fate
            if not self._failing:  # Once, because it may last for days.
                log.warning("spans wait, because the receiver does not take them: %s", fate.message)
            self._failing = True
            # At random, so that many servers do not come back at one moment.
            await _wait(stopping, max(fate.after, pause * random.uniform(0.5, 1.0)))
            pause = min(LONGEST_PAUSE, pause * 2)
        return None

    def _write_status(self) -> None:
        try:
            atomic_file.replace_bytes(self._status_file, msgspec.json.encode(self._status))
        except OSError as error:
            log.warning("the status of the export can't be written: %s", error)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


def lower_priority() -> None:
    """Leave the CPU to the server and its kernels (nice(2)), where that is allowed."""
    # The filter @resources of a systemd unit (systemd.exec(5)) refuses it.
    with contextlib.suppress(OSError):
        os.nice(10)
