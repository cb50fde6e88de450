"""``/v1/chat/completions``: an answer with its code and results as content, for any chat program."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from kernelsvc.answers.answer_run import VIRTUAL, AnswerRun
from kernelsvc.answers.answers import RunningAnswer, new_id
from kernelsvc.answers.event_log import EventLog
from kernelsvc.errors import BadRequest
from kernelsvc.model.answers.machine import AnswerEnded, Step
from kernelsvc.model.answers.values import ReasoningItem
from kernelsvc.model.objects import CellInfo
from kernelsvc.protocol.openai.chat_answers import ChatAnswer, read_chat_request
from kernelsvc.protocol.openai.responses import ResponseHead
from kernelsvc.server.openai.handler import KEEPALIVE, FaultError, OpenAiHandler

#: Headers that name the conversation. Open WebUI sends the first one if it is set to.
CONVERSATION = ("X-OpenWebUI-Chat-Id", "X-Conversation-Id")


class ChatReader:
    """Writes the steps of an answer as chunks of a chat completion."""

    def __init__(self, answer: ChatAnswer, log: EventLog, *, hides_reasoning: bool) -> None:
        self._answer, self._log, self._hides = answer, log, hides_reasoning

    def begin(self, run: AnswerRun) -> None:
        """Write the first chunk."""
        self._log.add([self._answer.begin()])

    def step(self, step: Step, run: AnswerRun) -> None:
        """Write the chunks of a step."""
        index = getattr(step, "index", None)
        items = run.machine.items
        if not (self._hides and index is not None and isinstance(items[index], ReasoningItem)):
            self._log.add(self._answer.of(step, items))
        if isinstance(step, AnswerEnded):
            self._log.add(self._answer.end(step, run.machine.usage))
            self._log.close()

    def cell(self, item: str, cell: CellInfo, made: Sequence[str], container: str) -> None:
        """Do nothing: the content has the result that the model reads."""

    async def flush(self) -> None:
        """Wait for a slow client."""
        await self._log.flush()


class ChatCompletionsHandler(OpenAiHandler):
    """Handler of ``POST /v1/chat/completions``."""

    route = "/v1/chat/completions"

    async def post(self) -> None:
        """Answer. The code interpreter is a tool of the request, or ``+python`` at the end of the model's name."""
        self.auth_scope("run")
        body = self.json_body()
        named = body.get("model") if isinstance(body, dict) else None
        request = read_chat_request(body, new_id, code=isinstance(named, str) and named.endswith(VIRTUAL))
        options = body.get("stream_options")
        if options is not None and not isinstance(options, dict):
            raise BadRequest("'stream_options' is not valid: it is an object.", param="stream_options")
        wants_usage = bool(options and options.get("include_usage"))
        head = ResponseHead(id=new_id("chatcmpl").replace("_", "-"), created=int(time.time()), request=request)
        answer, log = ChatAnswer(head.id, head.created, request.model), EventLog(keep=False)
        _, model = self.answers.model(self.who, request.model)
        reader = ChatReader(answer, log, hides_reasoning=model.reasoning_as == "none")
        starting = self.answers.launch(self.who, head, [], reader, log, key=self._conversation())
        running = await self.while_connected(starting)
        try:
            if request.stream:
                await self.while_connected(self._stream(running, wants_usage=wants_usage))
            else:
                self.answer(await self.while_connected(self._whole(running, answer)))
        finally:
            running.cancel()

    def _conversation(self) -> str | None:
        """Return the key of the conversation's container. Without a name each request has a container of its own."""
        named = next((value for name in CONVERSATION if (value := self.request.headers.get(name))), None)
        return None if named is None else "chat-" + hashlib.sha256(named.encode()).hexdigest()

    async def _whole(self, running: RunningAnswer, answer: ChatAnswer) -> dict[str, Any]:
        async for _ in self.batches(running.log, 0):
            pass
        ended = running.run.ended or AnswerEnded("failed")
        if ended.fault is not None:
            raise FaultError(ended.fault)
        return answer.whole(ended, running.run.machine.usage)

    async def _stream(self, running: RunningAnswer, *, wants_usage: bool) -> None:
        held = b""
        async for chunks in self.batches(running.log, 0):
            ended = running.run.ended
            if not self._headers_written and ended is not None and ended.fault and not running.run.machine.items:
                raise FaultError(ended.fault)
            shown = [each for each in chunks if wants_usage or "usage" not in each]
            frames = b"".join(b"data: %b\n\n" % msgspec.json.encode(each) for each in shown) or KEEPALIVE
            if chunks and not running.run.machine.items and not ended and not self._headers_written:
                # The first chunk says nothing yet. A fault that follows still has its HTTP status.
                held += frames
                continue
            await self.send_events(held + frames)
            held = b""
        await self.send_events(held + b"data: [DONE]\n\n")
