"""All answers of the server: who may ask which model, how many run, what came before, and what is kept."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import functools
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from kernelsvc.answers.answer_run import UNKNOWN, VIRTUAL, AnswerReader, AnswerRun, outputs_of, picture_urls
from kernelsvc.answers.answers_share import AnswersShare, HeldText
from kernelsvc.answers.containers import AnswerContainer, Containers
from kernelsvc.answers.conversations import MAX_BYTES, Conversations, copied
from kernelsvc.answers.event_log import EventLog
from kernelsvc.answers.kept import AnswerStore, KeptResponse, renumber
from kernelsvc.answers.sealed import ReasoningSeal
from kernelsvc.answers.upstream import ChatUpstream
from kernelsvc.errors import BadRequest, KernelsvcError, NotFound, QuotaExceeded
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model.answers.machine import AnswerEnded, AnswerLimits, AnswerMachine, InputComplete, ItemDone, Step
from kernelsvc.model.answers.model_settings import ModelSettings
from kernelsvc.model.answers.values import (
    CodeItem,
    Entry,
    FunctionItem,
    FunctionResult,
    InputMessage,
    ItemReference,
    ModelFault,
    OutputItem,
    ReasoningItem,
    is_shown,
)
from kernelsvc.model.objects import CellInfo, Principal
from kernelsvc.protocol.openai.lists import page_of
from kernelsvc.protocol.openai.requests import AnswerRequest, CodeTool, refused
from kernelsvc.protocol.openai.responses import ResponseEvents, ResponseHead, item_json, response_json, session_id
from kernelsvc.service.api import ServiceApi
from kernelsvc.settings import Settings

log = logging.getLogger(__name__)

#: Most answers that one conversation goes back, and bytes of them together.
MAX_CHAIN, MAX_HISTORY = 1000, MAX_BYTES
#: Most references to items in one request.
MAX_REFERENCES = 1000
#: How often a background answer continues after a kill of the server. It may be the cause of the kills.
MAX_RESUMES = 3
_LOST = ModelFault(code="server_error", message="The server stopped before the end of the answer. Ask again.")
_RUNS = "[The server stopped while this code ran. It may still run.]"


def new_id(prefix: str, node: str = "") -> str:
    """Return a random id in the form of OpenAI's: 32 hexadecimal digits. On a node of a cluster, its name is first."""
    return f"{prefix}_{node}{os.urandom(16).hex()[len(node) :]}"


def item_id(response: str, prefix: str) -> str:
    """Return a random id for an item. It has half of the response's digits, by which the store finds the item."""
    return f"{prefix}_{response[-32:][:16]}{os.urandom(8).hex()}"


def read_keys(models: Mapping[str, ModelSettings], env: dict[str, str] | os._Environ[str]) -> dict[str, str]:
    """Return the keys of models' servers by the name of the model.

    Each variable with a key is removed, so that no process that the server starts inherits it.

    Args:
        models: The settings of the models.
        env: The environment.

    Raises:
        BadRequest: A variable is not set, or a file can't be read.
    """
    found: dict[str, str] = {}
    for name, model in models.items():
        if model.key_file:
            try:
                found[name] = Path(model.key_file).read_text("utf-8").strip()
            except (OSError, ValueError) as error:
                raise BadRequest(f"Setting models.{name}.key_file: can't read {model.key_file}: {error}.") from None
        elif model.key_env:
            if not env.get(model.key_env):
                raise BadRequest(f"Setting models.{name}.key_env: the variable {model.key_env} is not set.")
            found[name] = env[model.key_env]
    for name in {model.key_env for model in models.values() if model.key_env}:
        env.pop(name, None)
    for name, key in found.items():
        if not key.isascii() or not key.isprintable():
            raise BadRequest(f"The key of the model {name} has characters that an HTTP header can't have.")
    return found


class RunningAnswer:
    """An answer that runs, or whose client still reads it.

    Attributes:
        id: Its id.
        who: Its principal.
        run: The answer.
        log: Its events.
        task: Its task.
        resumed: How often a server has continued it after a kill.
    """

    def __init__(self, who: Principal, head: ResponseHead, run: AnswerRun, log: EventLog, resumed: int = 0) -> None:
        self.id, self.who, self.head, self.run, self.log, self.resumed = head.id, who, head, run, log, resumed
        self.task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """End it, because its client has gone."""
        if self.task is not None:
            self.task.cancel()


class ResponseReader:
    """Writes the steps of an answer as the Responses API's events.

    Args:
        events: Makes the events.
        log: Gets them.
        answers: Keep the answer.
        kept: The answer as it was stored before a kill of the server, or None.
    """

    def __init__(
        self, events: ResponseEvents, log: EventLog, answers: Answers, kept: KeptResponse | None = None
    ) -> None:
        self._events, self._log, self._answers, self._kept = events, log, answers, kept
        # The answer, if it has items that are not stored.
        self._unkept: AnswerRun | None = None

    def begin(self, run: AnswerRun) -> None:
        """Write the first events."""
        self._log.add(self._events.begin())
        if self._kept is not None:
            outputs = run.outputs if run.request.outputs else None
            items = run.machine.items
            self._log.add(self._events.restored(items, outputs, self._kept.container, self._kept.emitted))

    def step(self, step: Step, run: AnswerRun) -> None:
        """Write the events of a step."""
        outputs: list[dict[str, Any]] | None = None
        if isinstance(step, ItemDone):
            item = run.machine.items[step.index]
            if run.request.outputs:
                outputs = run.outputs.get(item.id, [])
            if run.request.sealed and isinstance(item, ReasoningItem):
                item.sealed = self._answers.sealed(run, item.text)
        self._log.add(self._events.of(step, run.machine.items, outputs, run.container))
        if isinstance(step, ItemDone | InputComplete):
            self._unkept = run
        if isinstance(step, AnswerEnded):
            self._log.add(self._events.end(self._answers.describe(run), step))
            # Kept before the client reads the last event: its next request may name this response.
            self._answers.settle(run)
            self._log.close()

    def cell(self, item: str, cell: CellInfo, made: Sequence[str], container: str) -> None:
        """Do nothing: the response takes outputs from the answer."""

    async def flush(self) -> None:
        """Store the items, then wait for a slow client.

        No task that sends an event has run since the step: an item that a client has seen survives a kill of the
        server. A read may complete hundreds of items, and all of them are stored each time.
        """
        if self._unkept is not None:
            self._answers.keep(self._unkept)
            self._unkept = None
        await self._log.flush()


class Answers:
    """All answers.

    Args:
        service: The sessions.
        settings: The models and the rules.
        keys: The keys of the models' servers, by the name of the model.
    """

    def __init__(self, service: ServiceApi, settings: Settings, keys: Mapping[str, str]) -> None:
        self._service, self._settings = service, settings
        self._models, self._rules = settings.models, settings.answers
        self.containers = Containers(service, self._rules.idle_seconds, pauses=settings.hibernate_seconds is not None)
        self.store = AnswerStore(settings.data_path() / "responses", self._rules.store_days)
        self._seal = ReasoningSeal(settings.data_path() / "keys" / "reasoning.key")
        self._upstreams = {name: ChatUpstream(model, keys.get(name, "")) for name, model in self._models.items()}
        self._running: dict[str, RunningAnswer] = {}
        self.conversations = Conversations(self.store, self._running)
        self._reserved: Counter[str] = Counter()
        self._shares: WeakValueDictionary[str, AnswersShare] = WeakValueDictionary()
        self._tasks = OwnedTasks()
        #: Principals of the background answers that are to be continued, by their ids.
        self._cut: dict[str, Principal] = {}

    def new_id(self, prefix: str) -> str:
        """Return an id for an object that clients ask for later."""
        return new_id(prefix, self._settings.node)

    def resume(self) -> None:
        """Continue the background answers that a kill of the server has cut. Called once, when sessions can run."""
        self._cut = self.store.marked()
        for response, who in list(self._cut.items()):
            self._tasks.start(self._resume(who, response), name=f"resume {response}")

    async def _resume(self, who: Principal, response: str) -> None:
        try:
            kept = self.store.response(who.name, response)
            if kept.ended is None and kept.resumed < MAX_RESUMES:
                earlier = self._history(who, kept.request.previous)
                if kept.request.conversation is not None:
                    conversation = self.store.conversation(who.name, kept.request.conversation)
                    if conversation.pending != response:
                        raise NotFound("The conversation has continued without this response.")
                    earlier = conversation.entries
                head = ResponseHead(id=response, created=kept.created, request=kept.request)
                log.info("answer %s continues: a kill of the server has cut it", response)
                running = await self._start(who, head, earlier, kept)
                running.resumed = kept.resumed + 1
                self._keep(running)
                return
        except (KernelsvcError, OSError, msgspec.DecodeError) as error:
            log.warning("answer %s can't be continued: %s", response, error)
        finally:
            self._cut.pop(response, None)
        self.store.unmark(response)

    async def stop(self) -> None:
        """End all answers, and wait until the store has them."""
        for running in list(self._running.values()):
            running.cancel()
        await self._tasks.wait(5.0)

    # --- models --------------------------------------------------------------------------

    def models(self, who: Principal) -> list[str]:
        """Return the names of the models that a principal may use."""
        names = [name for name, each in self._models.items() if name != "*" and _may_use(who, each)]
        return [variant for name in sorted(names) for variant in (name, name + VIRTUAL)]

    def model(self, who: Principal, name: str) -> tuple[str, ModelSettings]:
        """Return the name and the settings of a model.

        Raises:
            NotFound: There is none, or the principal may not use it.
        """
        base = name.removesuffix(VIRTUAL)
        key = base if base in self._models and base != "*" else "*"
        found = self._models.get(key)
        if found is None or not _may_use(who, found):
            raise NotFound(
                f"There is no model {name[:100]!r}. GET /v1/models lists them.", openai_code="model_not_found",
                param="model",
            )  # fmt: skip
        return key, found

    # --- answers -------------------------------------------------------------------------

    async def start(self, who: Principal, request: AnswerRequest) -> RunningAnswer:
        """Start an answer in the form of the Responses API.

        Raises:
            KernelsvcError: The request names an object that does not exist, or a limit is reached.
        """
        request = self._resolved(who, request)
        if request.store or request.conversation is not None:
            self.store.check_room(who.name)
        self._unseal(who, request.input)
        head = ResponseHead(id=self.new_id("resp"), created=int(time.time()), request=request)
        earlier = self._history(who, request.previous)
        if request.conversation is not None:
            earlier = self.conversations.begin(who.name, request.conversation, head.id)
            try:
                return await self._start(who, head, earlier)
            except BaseException:
                self.conversations.end(who.name, KeptResponse(id=head.id, created=0, request=request), keep=False)
                raise
        return await self._start(who, head, earlier)

    async def _start(
        self, who: Principal, head: ResponseHead, earlier: list[Entry], kept: KeptResponse | None = None
    ) -> RunningAnswer:
        request = head.request
        log = EventLog(keep=request.background)
        self.model(who, request.model)
        reader = ResponseReader(ResponseEvents(head, self._as(request)), log, self, kept)
        running = await self.launch(who, head, earlier, reader, log, kept=kept)
        if request.store and kept is None:
            self._keep(running)
        if request.background and kept is None:
            with contextlib.suppress(OSError):  # without the mark it ends with the server
                self.store.mark(who, head.id)
        return running

    async def launch(
        self,
        who: Principal,
        head: ResponseHead,
        earlier: list[Entry],
        reader: AnswerReader,
        log: EventLog,
        *,
        key: str | None = None,
        kept: KeptResponse | None = None,
    ) -> RunningAnswer:
        """Start an answer, whose steps a reader gets.

        Args:
            who: The principal.
            head: Id and request.
            earlier: The conversation before the request.
            reader: Gets the steps.
            log: The events that the reader writes.
            key: Names a container that later requests find again, or None.
            kept: The answer as it was stored before a kill of the server, or None.

        Raises:
            KernelsvcError: The request names an object that does not exist, or a limit is reached.
        """
        request = head.request
        transcript = kept.transcript if kept is not None else []
        name, model = self.model(who, request.model)
        self._admit(who)
        entries = [*earlier, *request.input]
        _check_results(entries)
        if model.vision is False and any(isinstance(e, InputMessage) and e.pictures for e in request.input):
            raise refused(f"The model {request.model!r} does not read pictures.", "input")
        share = self._shares.setdefault(who.account, AnswersShare())
        held = HeldText(share)
        # Reserved before the first wait, so that two requests can't both take the last place.
        self._reserved[who.name] += 1
        try:
            # The entries, and the request to the model's server, until that has read it.
            held.add(2 * len(msgspec.json.encode([entries, request.functions, request.repeated, transcript])))
            # A container that has run code of this answer has its files, which the code may have changed.
            again = any(isinstance(each, CodeItem) and each.container for each in transcript)
            asked = msgspec.structs.replace(request, code=_without_files(request.code)) if again else request
            container, note = await self._container(who, asked, [*entries, *transcript], key)
            pictures = await self._complete(who, entries, held, vision=model.vision)
            pictures |= await self._complete(who, _ended(transcript), held, vision=model.vision)
            outputs = {each.id: await self._outputs(who, each) or [] for each in _ended(transcript)}
        except BaseException:
            held.release()
            raise
        finally:
            self._reserved[who.name] -= 1
        machine = AnswerMachine(_limits(request, model), functools.partial(item_id, head.id))
        run = AnswerRun(
            self._service, who, head.id, request, entries, model, self._upstreams[name], container, machine, pictures,
            share, held,
        )  # fmt: skip
        run.outputs = outputs
        steps = None if kept is None else machine.resume(transcript, kept.usage)
        running = self._running[head.id] = RunningAnswer(who, head, run, log)
        running.task = self._tasks.start(self._watch(running, run, reader, note, steps), name=f"answer {head.id}")
        return running

    async def _watch(
        self, running: RunningAnswer, run: AnswerRun, reader: AnswerReader, note: str, steps: list[Step] | None
    ) -> None:
        try:
            await run.run(reader, note, steps)
        except asyncio.CancelledError:
            pass  # it has become a cancelled answer
        except Exception:
            log.exception("answer %s failed", run.id)
            if run.ended is None:
                run.ended = AnswerEnded("failed", fault=_LOST)
        finally:
            run.held.release()
            try:
                self.settle(run)
            finally:
                running.log.close()  # its readers wait for it without a limit

    def _admit(self, who: Principal) -> None:
        rules = self._rules
        own = sum(each.who.name == who.name for each in self._running.values()) + self._reserved[who.name]
        if len(self._running) + self._reserved.total() >= rules.max_running or own >= rules.max_running_per_principal:
            raise QuotaExceeded("Too many answers are running. Wait until one has ended.")

    async def _container(
        self, who: Principal, request: AnswerRequest, entries: list[Entry], key: str | None
    ) -> tuple[AnswerContainer | None, str]:
        tool = request.code
        if tool is None or not request.may_call:
            return None, ""
        uploads = {}
        for each in self.store.named(who.name, tool.file_ids):
            uploads[each.filename] = functools.partial(self.store.content, who.name, each.id)
        earlier = next(
            (each.container for each in reversed(entries) if isinstance(each, CodeItem) and each.container), ""
        )
        container = AnswerContainer(self.containers, who, tool, earlier, uploads, key)
        return container, await container.check(new=self._rules.expired == "new")

    async def _complete(
        self, who: Principal, entries: Sequence[Entry], held: HeldText, *, vision: bool
    ) -> dict[str, list[str]]:
        """Read from the log what a client left out of its items: results of cells, and pictures.

        Raises:
            QuotaExceeded: They are too long.
        """
        pictures: dict[str, list[str]] = {}
        for each in entries:
            if isinstance(each, CodeItem) and (not each.result or (vision and each.pictures)):
                try:
                    session = session_id(each.container)
                    await self._service.ensure_loaded(session)
                    cell = self._service.cell(who, session, each.id)
                except KernelsvcError:
                    each.result = each.result or UNKNOWN
                    continue
                each.result = each.result or cell.text or ("[no output]" if cell.reason else _RUNS)
                pictures[each.id] = picture_urls(cell)
                held.add(len(each.result) + sum(map(len, pictures[each.id])))
        return pictures

    def sealed(self, run: AnswerRun, text: str) -> str:
        """Return reasoning encrypted for the principal of an answer. "" if the key's file can't be used."""
        try:
            return self._seal.seal(self._running[run.id].who.name, text)
        except (KeyError, OSError) as error:
            log.error("Can't encrypt the reasoning of %s: %s", run.id, error)
            return ""

    def _unseal(self, who: Principal, entries: list[Entry]) -> None:
        for each in entries:
            if isinstance(each, ReasoningItem) and each.sealed:
                try:
                    each.text = self._seal.open(who.name, each.sealed)
                except (ValueError, OSError):
                    raise refused(
                        "The encrypted content of a reasoning item could not be verified. Leave the item out.", "input",
                        "invalid_encrypted_content",
                    ) from None  # fmt: skip

    def _resolved(self, who: Principal, request: AnswerRequest) -> AnswerRequest:
        """Replace references in the input by the items of earlier responses.

        Raises:
            NotFound: A reference names no item of the principal.
        """
        if not any(isinstance(each, ItemReference) for each in request.input):
            return request
        if sum(isinstance(each, ItemReference) for each in request.input) > MAX_REFERENCES:
            raise BadRequest(f"A request has at most {MAX_REFERENCES} references to items.", param="input")
        numbers: dict[str, int] = {}
        entries: list[Entry] = []
        size = 0
        for each in request.input:
            if isinstance(each, ItemReference):
                response, item = self.store.item(who.name, each.id)
                size += self.store.size(who.name, response.id)
                _check_history(size, "input")
                renumber([item], numbers.setdefault(response.id, len(numbers) + 1))
                entries.append(item)
            else:
                entries.append(each)
        return msgspec.structs.replace(request, input=entries)

    def _history(self, who: Principal, previous: str | None) -> list[Entry]:
        chain: list[KeptResponse] = []
        size = 0
        while previous is not None and len(chain) < MAX_CHAIN:
            try:
                size += self.store.size(who.name, previous)
                _check_history(size, "previous_response_id")
                found = self.store.response(who.name, previous)
            except NotFound:
                raise NotFound(
                    f"Previous response with id '{previous[:100]}' not found.", param="previous_response_id",
                    openai_code="previous_response_not_found",
                ) from None  # fmt: skip
            if previous in self._running:
                raise BadRequest("The previous response has not ended yet.", param="previous_response_id")
            chain.append(found)
            previous = found.request.previous
        entries: list[Entry] = []
        for number, kept in enumerate(reversed(chain), 1):
            renumber(kept.transcript, number)
            entries += [*kept.request.input, *kept.transcript]
        return entries

    # --- kept responses --------------------------------------------------------------------

    def describe(self, run: AnswerRun) -> dict[str, Any]:
        """Return the response object of an answer that runs or has just ended."""
        shown = self._as(run.request)
        items = []
        for each in run.machine.items:
            if not self._hides(run.request, each):
                outputs = run.outputs.get(each.id, []) if run.request.outputs else None
                items.append(item_json(each, outputs, run.container, shown))
        return self._object(_kept(self._running[run.id]), items)

    def settle(self, run: AnswerRun) -> None:
        """Keep an answer that has ended. Only the first call has an effect."""
        running = self._running.pop(run.id, None)
        if running is None:
            return
        if run.request.store:
            self._keep(running)
        if run.request.background:
            self.store.unmark(run.id)
        if run.request.conversation is not None:
            failed = run.ended is None or run.ended.status == "failed"
            with contextlib.suppress(OSError):
                kept = copied(_kept(running))
                self.conversations.end(running.who.name, kept, keep=bool(kept.transcript) or not failed)

    def keep(self, run: AnswerRun) -> None:
        """Keep the items so far of an answer that runs."""
        running = self._running.get(run.id)
        if running is not None and run.request.store:
            began = time.monotonic()
            self._keep(running)
            run.share.charge(time.monotonic() - began)

    def _object(self, kept: KeptResponse, items: list[dict[str, Any]]) -> dict[str, Any]:
        head = ResponseHead(id=kept.id, created=kept.created, request=kept.request)
        if kept.ended is None:
            return response_json(head, "in_progress", items)
        found = response_json(head, kept.ended.status, items, kept.usage, kept.ended, kept.completed)
        if kept.elided:
            found["metadata"] = {**found["metadata"], "x-kernelsvc-elided": str(kept.elided)}
        return found

    def _as(self, request: AnswerRequest) -> Any:
        name = request.model.removesuffix(VIRTUAL)
        model = self._models.get(name) or self._models.get("*")
        shown = model.reasoning_as if model is not None else "none"
        asked = request.repeated.get("reasoning") or {}
        if shown == "none":
            return "sealed" if request.sealed else "none"
        return "summary" if shown == "text" and asked.get("summary") else shown

    def _hides(self, request: AnswerRequest, entry: Entry) -> bool:
        return not is_shown(entry) or (isinstance(entry, ReasoningItem) and self._as(request) == "none")

    def _keep(self, running: RunningAnswer) -> None:
        try:
            self.store.put_response(running.who.name, _kept(running))
        except OSError as error:
            log.error("Can't store the response %s: %s", running.id, error.strerror)

    def _find(self, who: Principal, response: str) -> KeptResponse:
        running = self._running.get(response)
        if running is not None and running.who.name == who.name and running.head.request.store:
            return _kept(running)
        kept = self.store.response(who.name, response)
        if kept.ended is None and response not in self._cut:
            # It ran when the server was killed.
            kept.ended = AnswerEnded("failed", fault=_LOST)
            for each in kept.transcript:
                if isinstance(each, OutputItem) and each.status == "in_progress":
                    each.status = "incomplete"
                    if isinstance(each, CodeItem):
                        each.ran = True  # the session's log knows
        return kept

    async def response(self, who: Principal, response: str, *, outputs: bool) -> dict[str, Any]:
        """Return a stored or running response.

        Args:
            who: The principal.
            response: Its id.
            outputs: Whether items have the outputs of cells, also if the request did not ask for them.

        Raises:
            NotFound: The principal has no such response.
        """
        kept = self._find(who, response)
        items = []
        for each in kept.transcript:
            if self._hides(kept.request, each):
                continue
            found = await self._outputs(who, each) if outputs or kept.request.outputs else None
            items.append(item_json(each, found, kept.container, self._as(kept.request)))
        return self._object(kept, items)

    async def _outputs(self, who: Principal, entry: Entry) -> list[dict[str, Any]] | None:
        """Read the outputs of an item's cell from the session's log."""
        if not isinstance(entry, CodeItem):
            return None
        if not entry.ran and (entry.result or not entry.container):
            return []
        return await self.outputs(who, entry)

    async def outputs(self, who: Principal, entry: CodeItem) -> list[dict[str, Any]] | None:
        """Read the outputs of a cell from the session's log. None if the log does not have it any more."""
        try:
            session = session_id(entry.container)
            await self._service.ensure_loaded(session)
            return outputs_of(self._service.cell(who, session, entry.id))
        except KernelsvcError:
            return None

    async def input_items(self, who: Principal, response: str, asked: Mapping[str, str]) -> dict[str, Any]:
        """Return a page of the input of a response. A thread reads it. Safe to cancel.

        Raises:
            NotFound: The principal has no such response.
            BadRequest: See ``page_of``.
        """
        running = self._running.get(response)
        if running is not None and not (running.who.name == who.name and running.head.request.store):
            running = None

        def show(each: Entry | msgspec.Raw) -> dict[str, Any]:
            entry = msgspec.json.decode(each, type=Entry) if isinstance(each, msgspec.Raw) else each
            return item_json(entry, None, "")

        def page() -> dict[str, Any]:
            found = running.run.request.input if running is not None else self.store.input_of(who.name, response)
            return page_of(found[::-1], asked, show)

        return await asyncio.to_thread(page)

    def remove(self, who: Principal, response: str) -> None:
        """Erase a response. One that runs is cancelled.

        Raises:
            NotFound: The principal has no such response.
        """
        self.store.response(who.name, response)
        running = self._running.get(response)
        if running is not None and running.who.name == who.name:
            running.head = msgspec.structs.replace(
                running.head, request=msgspec.structs.replace(running.head.request, store=False)
            )
            running.run.request = running.head.request
            running.cancel()
        self.store.remove(who.name, response)

    async def cancel(self, who: Principal, response: str) -> None:
        """Cancel a background response, and wait for its end. Cancelling an ended one does nothing.

        Raises:
            NotFound: The principal has no such response.
            BadRequest: It was not made with ``background``.
        """
        kept = self._find(who, response)
        if not kept.request.background:
            raise BadRequest("Only a response with 'background' can be cancelled. Close the connection of another one.")
        running = self._running.get(response)
        if running is not None and running.task is not None:
            running.run.cancel()
            await asyncio.wait([running.task])

    def events(self, who: Principal, response: str, after: int) -> EventLog:
        """Return the events of a background response. It may omit those before the number ``after``.

        Raises:
            NotFound: The principal has no such response.
            BadRequest: It was not made with ``background``.
        """
        running = self._running.get(response)
        kept = self._find(who, response)
        if not kept.request.background:
            raise BadRequest("Only the events of a response with 'background' can be read again.", param="stream")
        if running is not None:
            return running.log
        if not kept.events:
            # A kill of the server has cut the answer, and its events were in memory.
            found = EventLog(keep=True, first=after)
            found.add([_lost_event(kept, after)])
            found.close()
            return found
        found = EventLog(keep=True)
        found.add(kept.events)
        found.close()
        return found


def _without_files(tool: CodeTool | None) -> CodeTool | None:
    return None if tool is None else msgspec.structs.replace(tool, file_ids=[])


def _ended(entries: Sequence[Entry]) -> list[CodeItem]:
    return [each for each in entries if isinstance(each, CodeItem) and each.status != "in_progress"]


def _lost_event(kept: KeptResponse, number: int) -> dict[str, Any]:
    head = ResponseHead(id=kept.id, created=kept.created, request=kept.request)
    response = response_json(head, "failed", [], ended=kept.ended)
    return {"type": "response.failed", "sequence_number": number, "response": response}


def _may_use(who: Principal, model: ModelSettings) -> bool:
    return any(fnmatch.fnmatchcase(who.name, pattern) for pattern in model.principals)


def _limits(request: AnswerRequest, model: ModelSettings) -> AnswerLimits:
    return AnswerLimits(
        max_turns=model.max_turns,
        max_tool_calls=request.max_tool_calls,
        max_output_tokens=request.max_output_tokens,
        parallel=request.parallel,
        force=request.force,
        tools=request.may_call,
    )


def _check_history(size: int, param: str) -> None:
    if size > MAX_HISTORY:
        raise BadRequest(
            f"The earlier answers have more than {MAX_HISTORY // 2**20} MiB together. Start a new conversation.",
            param=param,
        )


def _check_results(entries: list[Entry]) -> None:
    calls = {each.call_id for each in entries if isinstance(each, FunctionItem)}
    for each in entries:
        if isinstance(each, FunctionResult) and each.call_id not in calls:
            shown = each.call_id[:100]
            raise refused(f"No tool call found for function call output with call_id {shown}.", "input")


def _kept(running: RunningAnswer) -> KeptResponse:
    run = running.run
    ended = run.ended
    return KeptResponse(
        id=running.id,
        created=running.head.created,
        request=run.request,
        transcript=list(run.machine.transcript),
        container=run.container,
        usage=run.machine.usage,
        ended=ended,
        completed=int(time.time()) if ended is not None and ended.status == "completed" else None,
        elided=run.elided,
        events=running.log.all() if run.request.background and ended is not None else [],
        emitted=running.log.number if run.request.background else 0,
        resumed=running.resumed,
    )
