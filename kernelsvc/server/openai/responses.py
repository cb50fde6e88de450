"""``/v1/responses``: create, stream, retrieve, cancel and delete answers."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from kernelsvc.answers.answer_run import VIRTUAL
from kernelsvc.answers.answers import RunningAnswer, new_id
from kernelsvc.answers.event_log import EventLog
from kernelsvc.errors import BadRequest, NotFound
from kernelsvc.protocol.openai.requests import OUTPUTS, CodeTool, read_request
from kernelsvc.server.openai.handler import KEEPALIVE, FaultError, OpenAiHandler

#: Events that say nothing yet: the status of the response is not sent before the next one.
_OPENING = {"response.created", "response.queued", "response.in_progress"}
#: Largest number of an event that a request may name.
MAX_NUMBER = 10**9
#: Seconds for which a stream waits for its first event, so that an early fault still has its HTTP status.
OPENING_SECONDS = 2.0


def frame(event: dict[str, Any]) -> bytes:
    """Encode an event."""
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))


class CreateResponseHandler(OpenAiHandler):
    """Handler of ``POST /v1/responses``."""

    async def post(self) -> None:
        """Answer."""
        self.auth_scope("run")
        request = read_request(self.json_body(), new_id)
        if request.code is None and request.model.endswith(VIRTUAL):
            request = msgspec.structs.replace(request, code=CodeTool())
        running = await self.while_connected(self.answers.start(self.who, request))
        if request.stream:
            await self._foreground(running, self._stream(running))
        elif request.background:
            self.answer(await self.answers.response(self.who, running.id, outputs=request.outputs))
        else:
            self.answer(await self._foreground(running, self._whole(running)))

    async def _foreground(self, running: RunningAnswer, work: Any) -> Any:
        """Wait for an answer. Without its client it ends, unless it is a background answer."""
        try:
            return await self.while_connected(work)
        finally:
            if not running.run.request.background:
                running.cancel()

    async def _whole(self, running: RunningAnswer) -> dict[str, Any]:
        last: dict[str, Any] = {}
        async for events in self.batches(running.log, 0):
            last = events[-1] if events else last
        _raise_early_fault(running)
        found: dict[str, Any] = last["response"]
        return found

    async def _stream(self, running: RunningAnswer) -> None:
        held = b""
        opening = asyncio.get_running_loop().time() + OPENING_SECONDS
        async for events in self.batches(running.log, 0):
            frames = b"".join(map(frame, events)) or KEEPALIVE
            if not self._headers_written:
                now = asyncio.get_running_loop().time()
                if now < opening and all(each["type"] in _OPENING for each in events):
                    held += frames
                    continue
                _raise_early_fault(running)
                frames, held = held + frames, b""
            await self.send_events(frames)
        await self.send_events(held + b"data: [DONE]\n\n")


def _raise_early_fault(running: RunningAnswer) -> None:
    ended = running.run.ended
    if ended is not None and ended.fault is not None and not running.run.machine.items:
        raise FaultError(ended.fault)


class ResponseHandler(OpenAiHandler):
    """Handler of ``/v1/responses/{id}``."""

    async def get(self, response: str) -> None:
        """Retrieve a response, or the events of a background response from a position on."""
        self.auth_scope("read")
        if not self.flag("stream"):
            include = [*self.get_query_arguments("include"), *self.get_query_arguments("include[]")]
            if any(each != OUTPUTS for each in include):
                raise BadRequest(f"'include' can be {OUTPUTS!r}.", param="include")
            async with self.context.turn_of(self.who):
                self.answer(await self.answers.response(self.who, response, outputs=bool(include)))
            return
        first = self.get_query_argument("starting_after", None) is None
        number = 0 if first else self.number("starting_after", "", MAX_NUMBER) + 1
        await self.while_connected(self._replay(self.answers.events(self.who, response, number), number))

    async def _replay(self, log: EventLog, after: int) -> None:
        async for events in self.batches(log, after):
            await self.send_events(b"".join(map(frame, events)) or KEEPALIVE)
        await self.send_events(b"data: [DONE]\n\n")

    async def post(self, response: str) -> None:
        """Refuse ``compact`` and ``input_tokens``, which this server does not have. Open Responses: status 404."""
        self.auth_scope("run")
        raise NotFound(f"This server does not have POST /v1/responses/{response}.")

    async def delete(self, response: str) -> None:
        """Erase a response."""
        self.auth_scope("run")
        self.answers.remove(self.who, response)
        self.answer({"id": response, "object": "response", "deleted": True})


class CancelResponseHandler(OpenAiHandler):
    """Handler of ``/v1/responses/{id}/cancel``."""

    async def post(self, response: str) -> None:
        """Cancel a background response."""
        self.auth_scope("run")
        await self.answers.cancel(self.who, response)
        self.answer(await self.answers.response(self.who, response, outputs=False))


class InputItemsHandler(OpenAiHandler):
    """Handler of ``/v1/responses/{id}/input_items``."""

    async def get(self, response: str) -> None:
        """List the input of a response."""
        self.auth_scope("read")
        async with self.context.turn_of(self.who):
            await self.answer_page(await self.answers.input_items(self.who, response, self.asked_page()))
