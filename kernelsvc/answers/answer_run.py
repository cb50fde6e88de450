"""One answer: the effects of the state machine's steps, and the events for readers."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from kernelsvc.answers.answers_share import AnswersShare, HeldText, LoopTurn
from kernelsvc.answers.containers import AnswerContainer
from kernelsvc.answers.upstream import ChatUpstream, UpstreamError
from kernelsvc.errors import KernelsvcError, QuotaExceeded, TooLarge
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model.answers.machine import (
    AnswerEnded,
    AnswerMachine,
    AskModel,
    CloseModel,
    InterruptCells,
    ItemAdded,
    ItemDone,
    RunCell,
    Step,
)
from kernelsvc.model.answers.model_settings import ModelSettings
from kernelsvc.model.answers.values import (
    CellOutcome,
    CodeItem,
    Entry,
    MessageItem,
    ModelFault,
    ModelPiece,
    ServerNote,
)
from kernelsvc.model.events import ModelAnswered, Reason
from kernelsvc.model.objects import CellInfo, CellRequest, Principal
from kernelsvc.protocol.openai.chat_stream import ChatTurn, as_fault, learned_reasoning
from kernelsvc.protocol.openai.messages import TOOL, Dialect, to_messages
from kernelsvc.protocol.openai.requests import AnswerRequest
from kernelsvc.service.api import ServiceApi
from kernelsvc.tools.result import shortened

log = logging.getLogger(__name__)

#: The model's name with this suffix runs code without the tool in the request.
VIRTUAL = "+python"
#: Most characters of a cell's text in its item, and of the model's turns together, but for the last one.
MAX_LOGS, MAX_ANSWER = 1024 * 1024, 32 * 1024 * 1024
#: Most pictures of one cell, and characters of them together as data URIs.
MAX_PICTURES, MAX_PICTURE_BYTES = 8, 4 * 1024 * 1024
PICTURES = ("image/png", "image/jpeg", "image/webp", "image/gif")
#: RFC 4648, section 4. The kernel may send anything as a picture.
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
#: For the model, in place of a result that neither the client nor the session's log has.
UNKNOWN = "[The result of this call is not known: the server stopped before it was there.]"
_ADVICE = "print less, or write it to a file"
_CAUSES = {
    Reason.KERNEL_DIED: "The Python process ended.",
    Reason.INTERRUPTED: "The cell was interrupted.",
    Reason.TIMEOUT: "The cell exceeded its time limit.",
    Reason.MEMORY: "The cell reached the memory limit.",
}


class AnswerReader(Protocol):
    """Receives the steps of an answer and writes them in a format. Its methods must not raise."""

    def begin(self, run: AnswerRun) -> None:
        """The answer starts."""

    def step(self, step: Step, run: AnswerRun) -> None:
        """A step was taken. Its effect has been done or has been started."""

    def cell(self, item: str, cell: CellInfo, made: Sequence[str], container: str) -> None:
        """The cell of an item has ended, and has made files. Its ``ItemDone`` follows."""

    async def flush(self) -> None:
        """Wait while the client has too much to read. The steps of one read are complete. Safe to cancel."""


class AnswerRun:
    """One answer from its start to its end.

    Args:
        service: The sessions.
        who: The principal.
        answer: Id of the answer.
        request: The request.
        earlier: The conversation before the answer, its input included.
        model: The settings of the model.
        upstream: The model's server.
        container: The container, or None if the model may not run code.
        machine: The state machine.
        pictures: Data URIs of the pictures of earlier cells, by the id of the item.
        share: The share of the answer's principal.
        held: The characters that this answer holds.

    Attributes:
        outputs: The outputs of each cell, by the id of its item.
        pictures: Data URIs of each cell's pictures, by the id of its item.
        ended: How the answer ended, or None.
        elided: Number of results omitted from the model's context.
    """

    def __init__(
        self,
        service: ServiceApi,
        who: Principal,
        answer: str,
        request: AnswerRequest,
        earlier: Sequence[Entry],
        model: ModelSettings,
        upstream: ChatUpstream,
        container: AnswerContainer | None,
        machine: AnswerMachine,
        pictures: Mapping[str, list[str]],
        share: AnswersShare,
        held: HeldText,
    ) -> None:
        self.id, self.request, self.machine, self.share, self.held = answer, request, machine, share, held
        self.outputs: dict[str, list[dict[str, Any]]] = {}
        self.pictures: dict[str, list[str]] = dict(pictures)
        self.ended: AnswerEnded | None = None
        self.elided = 0
        self._service, self._who, self._earlier = service, who, list(earlier)
        self._model, self._upstream, self._container = model, upstream, container
        self._inbox: asyncio.Queue[Any] = asyncio.Queue(64)
        self._tasks = OwnedTasks()
        self._reader: AnswerReader | None = None
        self._asking: asyncio.Task[None] | None = None
        self._made: list[str] = []
        # Characters of all turns that have ended, and those of them that are counted.
        self._size = self._counted = 0
        # Whether the present turn has sent a piece, and whether old results are left out earlier than the setting says.
        self._begun = self._shrunk = False
        # Whether ``run`` waits for its inbox, and has done the effects of all earlier steps.
        self._idle = False
        self._began = time.monotonic()

    @property
    def container(self) -> str:
        """Id of the container, or "" if it is not open."""
        return self._container.id if self._container is not None else ""

    async def run(self, reader: AnswerReader, note: str, resumed: Sequence[Step] | None = None) -> None:
        """Answer. Cancelling it closes the model's connection and interrupts the cells.

        Args:
            reader: Gets the steps.
            note: For the model, or "".
            resumed: The first steps of an answer that a kill of the server has cut. None begins.
        """
        if note:
            self.machine.transcript.append(ServerNote(text=note))
        self._reader = reader
        reader.begin(self)
        try:
            await self._take(self.machine.begin() if resumed is None else list(resumed), reader)
            async with asyncio.timeout(self._model.max_seconds):
                while not self.machine.ended:
                    self._idle = True
                    what = await self._inbox.get()
                    self._idle = False
                    turn = LoopTurn(self.share)
                    await turn.begin()
                    steps = self._decide(what)
                    turn.end()
                    await self._take(steps, reader)
        except TimeoutError:
            await self._take(self.machine.on_timeout(), reader)
        except asyncio.CancelledError:
            await self._take(self.machine.on_cancel(), reader)
            raise
        finally:
            self._close_model()
            if not self.machine.ended:
                self._service.client_gone(self)

    def cancel(self) -> None:
        """End the answer. Its status becomes ``cancelled``."""
        self._inbox_put("cancel")

    def _inbox_put(self, what: Any) -> None:
        # Beyond the limit for pieces: an order must not wait for a reader that is slow.
        self._tasks.start(self._inbox.put(what))

    def _decide(self, what: Any) -> list[Step]:
        match what:
            case list():
                return [step for piece in what for step in self.machine.on_piece(piece)]
            case ChatTurn():
                steps = [step for piece in what.end() for step in self.machine.on_piece(piece)]
                return steps + self.machine.on_turn_ended(what.usage, cut=what.cut)
            case ModelFault():
                return self.machine.on_fault(what)
            case (int() as index, CellOutcome() as outcome):
                return self.machine.on_cell_ended(index, outcome)
            case _:
                return self.machine.on_cancel()

    async def _take(self, steps: list[Step], reader: AnswerReader) -> None:
        """Do the effects of steps, and pass the steps on."""
        waiting = list(steps)
        while waiting:
            step = waiting.pop(0)
            try:
                await self._effect(step)
            except KernelsvcError as error:
                waiting = self.machine.on_fault(as_fault(error))
                continue
            began = time.monotonic()
            reader.step(step, self)
            self.share.charge(time.monotonic() - began)
        await reader.flush()

    async def _pass(self, pieces: list[ModelPiece], turn: LoopTurn) -> None:
        """Pass the model's output to the machine, and end the turn of its read. Safe to cancel."""
        reader = self._reader
        if reader is None or not self._idle or not self._inbox.empty() or not all(map(self.machine.grows, pieces)):
            turn.end()
            await self._inbox.put(pieces)
            return
        # Nearly every token. Its steps have no effect, so that the task of the answer need not wake for them.
        for step in self._decide(pieces):
            reader.step(step, self)
        turn.end()
        await reader.flush()

    async def _effect(self, step: Step) -> None:
        match step:
            case ItemAdded():
                item = self.machine.items[step.index]
                if isinstance(item, CodeItem) and self._container is not None:
                    if self._reader is not None:
                        await self._reader.flush()  # the client may read the steps before this one
                    # The code arrives meanwhile: the connection's buffer holds it.
                    item.container = await self._container.open()
            case ItemDone():
                item = self.machine.items[step.index]
                if isinstance(item, MessageItem) and self._container is not None and self.container:
                    self._cite(item)
            case AskModel():
                self._asking = self._tasks.start(self._ask(step))
            case RunCell():
                self._tasks.start(self._run_cell(step.index))
            case CloseModel():
                self._close_model()
            case InterruptCells():
                self._service.client_gone(self)
            case AnswerEnded():
                self.ended = step
                self._log(step)
                self._record(step)
            case _:
                pass

    def _cite(self, item: MessageItem) -> None:
        assert self._container is not None
        item.citations = self._container.cite(item, self._made)
        self._made = []

    def _close_model(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

    # --- the model -----------------------------------------------------------------------

    async def _ask(self, ask: AskModel) -> None:
        """One turn: read the model's server, and pass its pieces to the machine."""
        end: Any
        try:
            end = await self._read_turn(ask)
            if isinstance(end, ModelFault) and not self._begun and self._adapted(end):
                end = await self._read_turn(ask)
            if isinstance(end, ChatTurn) and end.broken:
                used, end = end.usage, await self._read_turn(ask, whole=True)
                if isinstance(end, ChatTurn):
                    end.usage = end.usage.plus(used)
                if isinstance(end, ChatTurn) and end.broken:
                    end = ModelFault(code="model_error", message="The model's server sent a call without a name.")
        except KernelsvcError as error:
            end = as_fault(error)
        except Exception:
            log.exception("answer %s: turn %d failed", self.id, ask.turn)
            end = ModelFault(code="server_error", message="The answer failed. The server's log has the reason.")
        await self._inbox.put(end)

    async def _read_turn(self, ask: AskModel, *, whole: bool = False) -> ChatTurn | ModelFault:
        """Ask the model once.

        Args:
            ask: The turn.
            whole: Whether the answer comes as one object, after a stream with a broken call.

        Raises:
            KernelsvcError: The model's answer exceeds a limit.
        """
        if self._size > MAX_ANSWER:
            raise TooLarge(f"The model's turns exceed {MAX_ANSWER} characters together.")
        self.held.add(self._size - self._counted)
        self._counted = self._size
        loop_turn = LoopTurn(self.share)
        turn = ChatTurn(
            ask.turn,
            [each["function"]["name"] for each in self.request.functions],
            code=self._container is not None,
            fences=self._model.tools == "fence",
            calls_only=whole and self._begun,
        )
        self._begun = whole and self._begun
        try:
            found = self._upstream.events(self._body(ask), whole=whole, turn=loop_turn)
            async with contextlib.aclosing(found) as events:
                async for read in events:
                    # One message to the answer for each read of the connection, and so one write to the client.
                    if pieces := [piece for data in read for piece in turn.feed(data)]:
                        self._begun = True
                        await self._pass(pieces, loop_turn)
                    if turn.fault is not None:
                        return turn.fault
                    if turn.fenced:
                        break
        except UpstreamError as error:
            return error.fault
        finally:
            self._size += turn.size
        return turn

    def _adapted(self, fault: ModelFault) -> bool:
        """Adapt the next request to the server's refusal. Return whether it may succeed now."""
        if fault.code == "context_length_exceeded" and self.request.elide and not self._shrunk:
            # The setting may be larger than the server's context.
            before, self._shrunk = self.elided, True
            self._messages()
            return self.elided > before
        learned = learned_reasoning(self._upstream.reasoning or self._model.reasoning, fault.message)
        if fault.http_status == 400 and learned is not None:
            self._upstream.reasoning = learned
            return True
        return False

    def _messages(self) -> list[dict[str, Any]]:
        model, request = self._model, self.request
        room = model.context_tokens if request.elide else 1_000_000_000
        dialect = Dialect(
            fences=model.tools == "fence",
            vision=model.vision,
            reasoning=self._upstream.reasoning or model.reasoning,
            context_tokens=room // 4 if self._shrunk else room,
            code=self._container is not None,
        )
        messages, self.elided = to_messages(
            self._earlier, self.machine.transcript, request.instructions, dialect, self.pictures
        )
        return messages

    def _body(self, ask: AskModel) -> dict[str, Any]:
        model, request = self._model, self.request
        body: dict[str, Any] = {
            "model": model.model or request.model.removesuffix(VIRTUAL),
            "messages": self._messages(),
            **request.passed,
        }
        if ask.max_tokens is not None:
            body["max_tokens"] = ask.max_tokens
        tools = self._tools(ask.force)
        if tools:
            body["tools"] = tools
            if not ask.tools:
                # The definitions stay, because a template writes them first: the prefix cache of the server holds.
                body["tool_choice"] = "none"
            elif ask.force is not None:
                body["tool_choice"] = "required"
            if not request.parallel:
                body["parallel_tool_calls"] = False
        return body

    def _tools(self, force: str | None) -> list[dict[str, Any]]:
        native = self._container is not None and self._model.tools == "native"
        tools = ([TOOL] if native else []) + self.request.functions
        allowed = self.request.allowed
        if allowed is not None:
            tools = [each for each in tools if each["function"]["name"] in allowed]
        if force not in (None, "required"):
            # Servers ignore the object form of tool_choice. With only one tool, "required" says the same.
            tools = [each for each in tools if each["function"]["name"] == force]
        return tools

    # --- cells ---------------------------------------------------------------------------

    async def _run_cell(self, index: int) -> None:
        item = self.machine.items[index]
        assert isinstance(item, CodeItem)
        assert self._container is not None
        try:
            outcome = await self._execute(item, self._container)
        except KernelsvcError as error:
            outcome = CellOutcome(status="failed", text=f"Not run: {error.message}", ran=False)
        except Exception:
            log.exception("answer %s: cell %s failed", self.id, item.id)
            outcome = CellOutcome(status="failed", text="The cell's result can't be read.", ran=False)
        await self._inbox.put((index, outcome))

    async def _execute(self, item: CodeItem, container: AnswerContainer) -> CellOutcome:
        if item.container != await container.open():
            # A kill of the server has cut the answer, and its container has ended meanwhile.
            return CellOutcome(status="incomplete", text=UNKNOWN)
        about = {"id": self.id, "item": item.id, "turn": item.turn, "model": self.request.model}
        # The cell has the item's id. The same id again gives the same cell, so that its code runs at most once.
        request = CellRequest(
            code=item.code, cell=item.id, on_error="continue", on_disconnect="interrupt", metadata={"response": about}
        )
        cell = await self._service.execute(self._who, container.session, request, client=self)
        made = await container.changes()
        container.renew()
        self._made += [path for path in made if path not in self._made]
        self._hold(item, cell)
        if self._reader is not None:
            self._reader.cell(item.id, cell, made, container.id)
        text = result_text(cell, self._model.max_tool_text, made, vision=self._model.vision)
        if container.notice:
            text, container.notice = f"[{container.notice}]\n{text}", ""
        died = cell.reason in (Reason.KERNEL_DIED, Reason.MEMORY)
        return CellOutcome(status="failed" if died else "completed", text=text, pictures=len(self.pictures[item.id]))

    def _hold(self, item: CodeItem, cell: CellInfo) -> None:
        """Keep the outputs of a cell for clients, and its pictures for the model, if there is room for them."""
        outputs = outputs_of(cell)
        urls = [each["url"] for each in outputs if each["type"] == "image"]
        try:
            self.held.add(sum(len(text) for each in outputs for text in each.values()))
        except QuotaExceeded as error:
            outputs, urls = [{"type": "logs", "logs": f"[Not shown, but in the notebook: {error.message}]\n"}], []
        self.outputs[item.id], self.pictures[item.id] = outputs, urls

    def _record(self, ended: AnswerEnded) -> None:
        """Record the end in the container's log: digests in place of texts, because a log can't lose a line."""
        if self._container is None or not self._container.session:
            return
        answered = ModelAnswered(
            response=self.id,
            model=self.request.model,
            status=ended.status,
            turns=self.machine.turn,
            calls=self._cells,
            input_tokens=self.machine.usage.input,
            output_tokens=self.machine.usage.output,
            seconds=round(time.monotonic() - self._began, 3),
            input_sha256=_digest(self.request.input),
            output_sha256=_digest(self.machine.items),
        )
        with contextlib.suppress(KernelsvcError):  # a purged session has no log
            self._service.record_answer(self._who, self._container.session, answered)

    @property
    def _cells(self) -> int:
        return sum(isinstance(each, CodeItem) for each in self.machine.items)

    def _log(self, ended: AnswerEnded) -> None:
        usage = self.machine.usage
        log.info(
            "answer %s ended: %s after %d turns, %d cells, %d and %d tokens",
            self.id,
            ended.status,
            self.machine.turn,
            self._cells,
            usage.input,
            usage.output,
            extra={"action": "answer_ended", "status": ended.status, "seconds": time.monotonic() - self._began},
        )


def _digest(items: Sequence[Entry]) -> str:
    return hashlib.sha256(msgspec.json.encode(items)).hexdigest()


def picture_urls(cell: CellInfo) -> list[str]:
    """Return the pictures of a cell as data URIs, one for each output, at most 8 and 4 MiB together."""
    found: list[str] = []
    room = MAX_PICTURE_BYTES
    for output in cell.outputs:
        bundle = output.get("data")
        data = bundle if isinstance(bundle, dict) else {}
        for mime in PICTURES:
            value = data.get(mime)
            text = "".join(map(str, value)) if isinstance(value, list) else value
            url = f"data:{mime};base64,{''.join(text.split())}" if isinstance(text, str) else ""
            if _BASE64.fullmatch(url.rpartition(",")[2]):
                if len(found) < MAX_PICTURES and len(url) <= room:
                    found.append(url)
                    room -= len(url)
                break
    return found


def outputs_of(cell: CellInfo) -> list[dict[str, Any]]:
    """Return a cell's outputs for clients: what was printed, the value and the traceback, then the pictures."""
    text = shortened(cell.text, MAX_LOGS, "the notebook has all of it")[0]
    if cell.message and cell.message not in text:
        text += f"{cell.message}\n"
    logs = [{"type": "logs", "logs": text}] if text else []
    return [*logs, *({"type": "image", "url": url} for url in picture_urls(cell))]


def result_text(cell: CellInfo, limit: int, made: Sequence[str], *, vision: bool) -> str:
    """Return a cell's result for the model.

    Args:
        cell: The cell, which has ended.
        limit: Most characters of its text.
        made: Files that are new or changed.
        vision: Whether the model gets the pictures themselves.
    """
    lines = [shortened(cell.text.rstrip("\n"), limit, _ADVICE)[0]]
    if cell.reason in _CAUSES:
        kept = {True: " The variables from before it are kept.", False: " The variables are lost.", None: ""}
        said = "" if "variables" in (cell.message or "") else kept[cell.variables_kept]
        lines.append(f"[{_CAUSES[cell.reason]}{said} {cell.message or ''}".rstrip() + "]")
    pictures = picture_urls(cell)
    if pictures and not vision:
        lines.append(f"[{len(pictures)} pictures, which the user sees]")
    if made:
        lines.append(f"[new files: {', '.join(made)}]")
    return "\n".join(line for line in lines if line) or "[no output]"
