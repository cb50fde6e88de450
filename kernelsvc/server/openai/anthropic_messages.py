"""Anthropic's ``/v1/messages`` with the tool ``code_execution``, over the same answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from kernelsvc.answers.answer_run import MAX_LOGS, AnswerRun
from kernelsvc.answers.answers import RunningAnswer, new_id
from kernelsvc.answers.event_log import EventLog
from kernelsvc.errors import KernelsvcError
from kernelsvc.model.answers.machine import AnswerEnded, Step
from kernelsvc.model.events import Reason
from kernelsvc.model.objects import CellInfo
from kernelsvc.model.outputs import text_of
from kernelsvc.protocol.anthropic import (
    CodeResult,
    MessageAnswer,
    container_file_id,
    error_json,
    read_messages_request,
)
from kernelsvc.protocol.openai.responses import ResponseHead, file_id
from kernelsvc.server.openai.handler import FaultError, OpenAiHandler
from kernelsvc.tools.result import shortened

#: Anthropic's clients ignore it.
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_ADVICE = "the notebook has all of it"


def code_result(cell: CellInfo, made: Sequence[str], container: str) -> CodeResult:
    """Return a cell's result. Its last value counts as output, its traceback as errors.

    Args:
        cell: The cell, which has ended.
        made: Paths of its new files.
        container: Id of the container.
    """
    errors = [each for each in cell.outputs if each.get("output_type") == "error" or each.get("name") == "stderr"]
    others = [each for each in cell.outputs if each not in errors]
    stderr = text_of(errors) + (f"{cell.message}\n" if cell.message else "")
    files = [container_file_id(container, file_id(each.encode("utf-8", "surrogateescape"))) for each in made]
    return CodeResult(
        stdout=shortened(text_of(others), MAX_LOGS, _ADVICE)[0],
        stderr=shortened(stderr, MAX_LOGS, _ADVICE)[0],
        failed=cell.reason is not Reason.OK,
        files=files,
    )


class MessageReader:
    """Writes the steps of an answer as events of a message."""

    def __init__(self, answer: MessageAnswer, log: EventLog, idle_seconds: float) -> None:
        self._answer, self._log, self._idle_seconds = answer, log, idle_seconds

    def begin(self, run: AnswerRun) -> None:
        """Write the first event."""
        self._log.add([self._answer.begin()])

    def step(self, step: Step, run: AnswerRun) -> None:
        """Write the events of a step."""
        self._log.add(self._answer.of(step, run.machine.items))
        if isinstance(step, AnswerEnded):
            self._log.add(self._answer.end(step, run.machine.usage, self.container(run)))
            self._log.close()

    def cell(self, item: str, cell: CellInfo, made: Sequence[str], container: str) -> None:
        """Note the result of a cell."""
        self._answer.results[item] = code_result(cell, made, container)

    def container(self, run: AnswerRun) -> dict[str, Any] | None:
        """Return the container of an answer. None if it has none."""
        if not run.container:
            return None
        expires = datetime.now(UTC) + timedelta(seconds=self._idle_seconds)
        return {"id": run.container, "expires_at": expires.isoformat(timespec="seconds").replace("+00:00", "Z")}

    async def flush(self) -> None:
        """Wait for a slow client."""
        await self._log.flush()


class MessagesHandler(OpenAiHandler):
    """Handler of ``POST /v1/messages``."""

    route = "/v1/messages"

    def error_body(self, status: int, error: KernelsvcError) -> dict[str, Any]:
        """Return an error in Anthropic's format."""
        return {"type": "error", "error": error_json(status, error.message)}

    async def post(self) -> None:
        """Answer."""
        self.auth_scope("run")
        request = read_messages_request(self.json_body(), new_id)
        head = ResponseHead(id=new_id("msg"), created=int(time.time()), request=request)
        _, model = self.answers.model(self.who, request.model)
        answer = MessageAnswer(head.id, request.model, hides_reasoning=model.reasoning_as == "none")
        log = EventLog(keep=False)
        reader = MessageReader(answer, log, self.context.settings.answers.idle_seconds)
        running = await self.while_connected(self.answers.launch(self.who, head, [], reader, log))
        try:
            if request.stream:
                await self.while_connected(self._stream(running))
            else:
                self.answer(await self.while_connected(self._whole(running, answer, reader)))
        finally:
            running.cancel()

    async def _whole(self, running: RunningAnswer, answer: MessageAnswer, reader: MessageReader) -> dict[str, Any]:
        async for _ in self.batches(running.log, 0):
            pass
        run = running.run
        ended = run.ended or AnswerEnded("failed")
        if ended.fault is not None:
            raise FaultError(ended.fault)
        return answer.whole(ended, run.machine.usage, reader.container(run))

    async def _stream(self, running: RunningAnswer) -> None:
        held = b""
        async for events in self.batches(running.log, 0):
            ended = running.run.ended
            begun = bool(running.run.machine.items)
            if not self._headers_written and ended is not None and ended.fault and not begun:
                raise FaultError(ended.fault)
            frames = b"".join(
                b"event: %b\ndata: %b\n\n" % (each["type"].encode(), msgspec.json.encode(each)) for each in events
            )
            if events and not begun and ended is None and not self._headers_written:
                # The first event says nothing yet. A fault that follows still has its HTTP status.
                held += frames
                continue
            await self.send_events(held + (frames or _PING))
            held = b""
