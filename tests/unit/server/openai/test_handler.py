"""The handler of OpenAI's API: it sends the events of an answer in batches."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from kernelsvc.answers.event_log import EventLog
from kernelsvc.server.openai.handler import OpenAiHandler


async def test_a_silence_yields_empty_lists_until_the_next_event() -> None:
    settings = SimpleNamespace(keepalive_seconds=0.01)
    handler = cast("Any", SimpleNamespace(context=SimpleNamespace(settings=settings)))
    log = EventLog(keep=True)
    log.add([{"n": 0}])
    found = []
    async with asyncio.timeout(10):
        async for each in OpenAiHandler.batches(handler, log, 0):
            found.append(each)
            if len(found) == 3:
                log.add([{"n": 1}])
                log.close()
    assert found == [[{"n": 0}], [], [], [{"n": 1}]]
