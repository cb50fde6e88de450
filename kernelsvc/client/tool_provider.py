"""Carry out the calls of functions that this client offers.

The server sends ``tool.call`` on the connection that offered, and the answer is the method ``tool.return``. A call is
kept from its start until the server has acknowledged the answer, and is named in ``holding`` when the client connects
again: so no call starts twice in one process, and no answer is lost with a connection.

``async def`` functions run on the client's event loop, others in at most ``MAX_THREADS`` threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import os
import threading
import traceback
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import msgspec

from kernelsvc.client.offered import OfferedFunction, answer_of
from kernelsvc.errors import Conflict, KernelsvcError, NotFound
from kernelsvc.linux.tasks import OwnedTasks

log = logging.getLogger(__name__)

MAX_THREADS = 32
#: The call that the running function belongs to.
current_call: contextvars.ContextVar[ToolCall | None] = contextvars.ContextVar("kernelsvc_call", default=None)


class CallConnection(Protocol):
    """The part of the connection that a provider needs."""

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        """Call a method of the server."""


class ToolCall:
    """One call of a function that this client offers. A parameter annotated with this class gets it.

    Attributes:
        id: the call's id.
        session: the session whose code calls.
        cell: the cell that calls.
        tool: the function's name.
        offered_in: the session for which the function was offered, None for all. A branch calls those of its origin.
        key: unique for the call, also if it is repeated: pass it on as an idempotency key.
        attempt: how often the server has sent the call. Above 1 only for an idempotent function.
        deadline: when the server ends the call, on the event loop's clock (monotonic seconds).
        cancelled: set when the result is not awaited any more. A function in a thread should look at it.
        connection: number of the connection on which it came.
    """

    def __init__(self, params: dict[str, Any], provider: ToolProvider, loop: asyncio.AbstractEventLoop) -> None:
        self.id: str = params["call"]
        self.session: str = params["session"]
        self.cell: str | None = params.get("cell")
        self.tool: str = params["tool"]
        self.offered_in: str | None = params.get("offered_in", self.session)
        self.key: str = params.get("key", "")
        self.attempt: int = params.get("attempt", 1)
        self.deadline = loop.time() + float(params.get("deadline_seconds", 0.0))
        self.cancelled = threading.Event()
        self._provider = provider
        self._loop = loop
        self.connection = provider.connections

    def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Report how far the call is. Returns immediately, and may be called in any thread."""
        params = {"session": self.session, "call": self.id, "progress": progress, "total": total, "message": message}
        self._loop.call_soon_threadsafe(self._provider.report, params)

    def upload(self, name: str, data: bytes) -> None:
        """Write a file into the session's directory, for a result that is too large. Call it in a thread."""
        work = self._provider.upload(self.session, name, data)
        asyncio.run_coroutine_threadsafe(work, self._loop).result()


class ToolProvider:
    """The functions that one client offers. Use it on the client's event loop.

    Args:
        connection: the client's connection.
        upload: writes a file of a session.
        name: the provider's id. Empty for a random one.

    Attributes:
        connections: number of connections after the first.
    """

    def __init__(
        self, connection: CallConnection, upload: Callable[[str, str, bytes], Coroutine[Any, Any, None]], name: str = ""
    ) -> None:
        self.upload = upload
        self._connection = connection
        self._id = {"id": name or f"p_{os.urandom(6).hex()}", "instance": os.urandom(8).hex()}
        self._functions: dict[str | None, dict[str, OfferedFunction]] = {}
        self._held: dict[str, ToolCall] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._tasks = OwnedTasks()
        self._offering: set[asyncio.Task[Any]] = set()
        self._again: set[asyncio.Task[None]] = set()
        self.connections = 0
        self._threads: ThreadPoolExecutor | None = None
        self._closing = False

    @property
    def active(self) -> bool:
        """Whether the client must stay connected, to receive calls."""
        return any(self._functions.values())

    async def offer(self, functions: Iterable[OfferedFunction], session: str | None) -> None:
        """Offer functions in addition to those offered before. A function of the same name is replaced.

        Raises:
            KernelsvcError: the server refused the offer. Nothing changed.
        """
        known = self._functions.get(session, {})
        self._functions[session] = {**known, **{each.offer.tool: each for each in functions}}
        try:
            await self._send(session)
        except KernelsvcError:
            self._functions[session] = known
            raise

    def start_offer(self, functions: Iterable[OfferedFunction], session: str | None) -> None:
        """Offer functions without waiting. Later requests of this client wait until it is done (``settled``)."""
        task = asyncio.get_running_loop().create_task(self.offer(functions, session))
        self._offering.add(task)

    async def settled(self) -> None:
        """Wait until all offers were accepted, and raise the error of one that was not."""
        while self._offering:
            task = self._offering.pop()
            await task

    async def withdraw(self, names: Sequence[str] | None, session: str | None) -> None:
        """Withdraw functions, or all of a session."""
        known = self._functions.get(session, {})
        self._functions[session] = {n: f for n, f in known.items() if names is not None and n not in names}
        params: dict[str, Any] = {} if session is None else {"session": session}
        if names is not None:
            params["names"] = [*names]
        await self._connection.call("tools.withdraw", params)

    async def _send(self, session: str | None) -> None:
        params = {
            "offers": [each.offer for each in self._functions[session].values()],
            "provider": self._id,
            "holding": [*self._held],
            **({} if session is None else {"session": session}),
        }
        answer = await self._connection.call("tools.offer", params)
        for call in answer["cancelled"]:
            self._cancel(call)

    def connected(self) -> None:
        """Offer everything again: the connection is new, and perhaps the server."""
        self.connections += 1
        for session in [each for each, functions in self._functions.items() if functions]:
            task = self._tasks.start(self._offer_again(session), name="kernelsvc client: offer")
            self._again.add(task)
            task.add_done_callback(self._again.discard)

    async def _offer_again(self, session: str | None) -> None:
        try:
            await self._send(session)
        except KernelsvcError as error:
            if session is not None and isinstance(error, NotFound | Conflict):
                self._functions.pop(session, None)  # the session has ended
            else:
                log.warning("functions could not be offered again: %s", error.message)

    # -- calls -----------------------------------------------------------------------------

    def notified(self, method: str, raw: bytes) -> None:
        """Take a notification of the server: ``tool.call`` or ``tool.cancel``."""
        params = msgspec.json.decode(raw)
        if method == "tool.cancel":
            self._cancel(params["call"])
        elif params["call"] not in self._held:
            call = ToolCall(params, self, asyncio.get_running_loop())
            self._held[call.id] = call
            task = self._tasks.start(self._carry_out(call, params["arguments"]), name=f"kernelsvc call {call.tool}")
            self._running[call.id] = task

    def _cancel(self, call: str) -> None:
        held = self._held.get(call)
        if held is not None:
            held.cancelled.set()
            function = self._find(held)
            # A thread can't be cancelled. It is told, and its answer is recorded.
            if function is not None and function.is_async and (task := self._running.get(call)) is not None:
                task.cancel()

    def report(self, params: dict[str, Any]) -> None:
        """Send a call's progress in the background."""

        async def send() -> None:
            with contextlib.suppress(KernelsvcError):
                await self._connection.call("tool.progress", params)

        self._tasks.start(send(), name="kernelsvc client: progress")

    def _find(self, call: ToolCall) -> OfferedFunction | None:
        return self._functions.get(call.offered_in, {}).get(call.tool)

    async def _carry_out(self, call: ToolCall, arguments: dict[str, Any]) -> None:
        try:
            answer = await self._answer(call, arguments)
        except asyncio.CancelledError:
            if not call.cancelled.is_set() or self._closing:  # the client closes
                self._held.pop(call.id, None)
                self._running.pop(call.id, None)
                raise
            answer = _failed("CancelledError", "The call was cancelled.")
        self._running.pop(call.id, None)
        try:
            await self._return(call, {"session": call.session, "call": call.id, **answer})
        except KernelsvcError as error:
            if not isinstance(error, Conflict | NotFound):  # the call has ended meanwhile
                log.warning("the result of %s (%s) was not accepted: %s", call.tool, call.id, error.message)
        finally:
            self._held.pop(call.id, None)

    async def _return(self, call: ToolCall, answer: dict[str, Any]) -> None:
        try:
            await self._connection.call("tool.return", answer)
        except NotFound:
            if call.connection == self.connections:
                raise
            # A new server learns from the offers who has the calls of another principal's session. An answer that
            # waited for the connection arrives before them.
            if self._again:
                await asyncio.wait(self._again)
            await self._connection.call("tool.return", answer)

    async def _answer(self, call: ToolCall, arguments: dict[str, Any]) -> dict[str, Any]:
        function = self._find(call)
        if function is None:
            return _failed("NotImplementedError", f"This client does not offer {call.tool} any more.")
        try:
            args, kwargs = function.convert(arguments)
        except Exception as error:  # msgspec's or pydantic's, which is not imported
            return _failed("ToolArgumentError", str(error))
        if function.call_parameter:
            kwargs[function.call_parameter] = call
        token = current_call.set(call)
        try:
            if function.is_async:
                value = await function.function(*args, **kwargs)
            else:
                value = await self._in_thread(functools.partial(function.function, *args, **kwargs))
            return answer_of(value)
        except TypeError as error:
            wrong_call = error.__traceback__ is not None and error.__traceback__.tb_next is None
            return _reported(error, function, "ToolArgumentError" if wrong_call else "")
        except Exception as error:
            return _reported(error, function)
        finally:
            current_call.reset(token)

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="kernelsvc call")
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._threads, context.run, function)

    def nested_in(self, session: str) -> str | None:
        """Return the call of this client whose function is running now, for a cell that it submits.

        Raises:
            Conflict: the cell's session waits for the function.
        """
        call = current_call.get()
        if call is None or call._provider is not self:
            return None
        if call.session == session:
            raise Conflict(
                "A function that code calls can't run a cell in the same session, which waits for the function. "
                "Use another session.",
                call=call.id,
            )
        return call.id

    async def close(self) -> None:
        """Stop carrying out calls. Threads that run are only told."""
        self._closing = True
        for call in self._held.values():
            call.cancelled.set()
        self._tasks.cancel()
        for task in self._offering:
            task.cancel()
        await self._tasks.wait()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


def _failed(kind: str, message: str, trace: str | None = None) -> dict[str, Any]:
    error = {"type": kind[:200], "message": message[:60_000]}
    return {"status": "error", "error": {**error, "traceback": trace[-250_000:]} if trace else error}


def _reported(error: Exception, function: OfferedFunction, kind: str = "") -> dict[str, Any]:
    trace = "".join(traceback.format_exception(error)) if function.send_traceback else None
    return _failed(kind or _known_name(error), _message(error), trace)


def _known_name(error: Exception) -> str:
    """Return the name of the nearest built-in class of an exception, or its own name."""
    for kind in type(error).__mro__:
        if kind.__module__ == "builtins" and kind not in (Exception, BaseException, object):
            return kind.__name__
    return type(error).__name__


def _message(error: Exception) -> str:
    # str(KeyError('a')) is quoted, which would be quoted again.
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
