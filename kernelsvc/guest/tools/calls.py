"""The kernel's end of calls: frames out, results in, and how code waits.

A call is sent immediately, and settled when its result is read from the wire, by whichever code reads: the event
loop, a thread that waits, or a print that waits for the socket. So results arrive in any order, and need no task.

Threads. The main thread may wait in ``join`` for threads that wait for results, so each waiting thread must be able to
read the wire. One at a time does (``_reader``), for at most ``SLICE`` seconds, because the event loop may read its
result meanwhile. The others wait until something is settled. A main thread that waits alone does so without a limit.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Generator
from typing import Any, NoReturn, Protocol

from kernelsvc.guest.private_modules import threading, time
from kernelsvc.guest.tools import conversion
from kernelsvc.guest.tools.tool_errors import (
    ToolCancelled,
    ToolError,
    ToolLimit,
    ToolLost,
    ToolTimeout,
    ToolUnavailable,
    error_of,
)
from kernelsvc.guest.wire_frames import WireRequest
from kernelsvc.guest.wire_server import WireServer

#: Most calls that code may have open at the same time. The server has the same limit.
MAX_OPEN = 1000
#: Seconds for which a thread reads the wire before it looks for its result.
SLICE = 0.02
#: Seconds after which a question about offers is asked again, because a new server does not know it, and attempts.
ASK_SECONDS, ASK_ATTEMPTS = 3.0, 5
#: Calls after which those are forgotten whose result was taken.
MAX_UNUSED = 32
#: Definitions that are kept.
MAX_KNOWN = 1000


class SendingKernel(Protocol):
    """The part of the kernel that calls need."""

    @property
    def wire(self) -> WireServer | None:
        """The wire, or None in the template."""

    def send_tool(self, msg_type: str, data: bytes) -> None:
        """Send a message on the channel ``tools``. ``data`` is its content as JSON."""


class CallFuture:
    """A call that was sent: its result is awaited, or taken by ``result()``.

    Attributes:
        id: The call's id in the log.
        tool: The function's name.
    """

    def __init__(self, calls: KernelCalls, id: str, tool: str, data: bytes) -> None:
        self.id = id
        self.tool = tool
        self._data = data
        self._calls = calls
        self._end: dict[str, Any] | None = None
        self._futures: list[asyncio.Future[None]] = []
        self._taken = False

    def __repr__(self) -> str:
        state = "open" if self._end is None else self._end.get("status")
        return f"<Call {self.tool} {self.id}: {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A call can't be saved: its result belongs to this kernel.")

    def done(self) -> bool:
        """Return whether the call has ended."""
        return self._end is not None

    def cancel(self) -> None:
        """End the call. The client is informed. The function may have run already."""
        self._taken = True
        self._calls.abandon(self)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the result and return it.

        Args:
            timeout: Seconds to wait. None waits until the function's own time-out.

        Raises:
            ToolError: The call failed. The class tells how.
            ToolTimeout: The time is over. The call is cancelled.
        """
        self._taken = True
        if self._end is None:
            try:
                if not self._calls.wait(self.done, timeout):
                    raise ToolTimeout(f"No result of {self.tool} in {timeout:g} s.", tool=self.tool, call=self.id)
            except BaseException:
                self._calls.abandon(self)
                raise
        return self._outcome()

    def __await__(self) -> Generator[Any, None, Any]:
        self._taken = True
        if self._end is None:
            future = asyncio.get_running_loop().create_future()
            self._futures.append(future)
            try:
                yield from future
            except asyncio.CancelledError:
                self._calls.abandon(self)
                raise
        return self._outcome()

    def _outcome(self) -> Any:
        end = self._end or {}
        if end.get("status") == "ok":
            return conversion.value_of(end.get("value"), str(end.get("form", "")))
        raise error_of(self.tool, self.id, str(end.get("status")), end.get("error"))

    def settle(self, end: dict[str, Any]) -> None:
        """Take the end of the call. Called in any thread, also while signals are masked."""
        self._end = end
        futures, self._futures = self._futures, []
        for future in futures:
            future.get_loop().call_soon_threadsafe(_wake, future)

    # A call is no result. Code that awaits and forgets to await here must not get a confusing error, or none.

    def _misused(self) -> NoReturn:
        raise TypeError(
            f"tools.{self.tool}(...) returned a call and no result, because this code awaits. Write 'await "
            f"tools.{self.tool}(...)', or call tools.call({self.tool!r}, {{...}}), which waits."
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # of protocols that look for a method
            raise AttributeError(name)
        try:
            self._misused()
        except TypeError as error:
            raise AttributeError(str(error)) from None

    def __bool__(self) -> bool:
        self._misused()

    def __len__(self) -> int:
        self._misused()

    def __iter__(self) -> Any:
        self._misused()

    def __getitem__(self, key: Any) -> Any:
        self._misused()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class KernelCalls:
    """The open calls of one kernel. A session that calls nothing has an empty one, from the template.

    Attributes:
        unused: Calls of the running cell whose result no code has taken yet.
        identify: Returns the kernel's id.
    """

    def __init__(self, kernel: SendingKernel) -> None:
        self.unused: list[CallFuture] = []
        self.identify: Callable[[], str] = str
        self._kernel = kernel
        self._open: dict[str, CallFuture] = {}
        self._number = 0
        self._prune_at = MAX_UNUSED
        self._questions: dict[str, dict[str, Any] | None] = {}
        self._known: dict[str, dict[str, Any]] = {}
        self._new_locks()

    def _new_locks(self) -> None:
        self._sending = threading.Lock()
        self._reader = threading.Lock()
        self._settled = threading.Condition()

    # -- out -------------------------------------------------------------------------

    def begin(self, tool: str, arguments: dict[str, Any]) -> CallFuture:
        """Send a call.

        Raises:
            ToolArgumentError, ToolTooLarge: The arguments can't be sent.
            ToolUnavailable: This is a process that user code forked, or a signal handler within a call.
            ToolLimit: Too many calls are open.
        """
        self._connected(tool)
        data = conversion.encode(arguments, lambda: self.definition(tool).get("parameters", {}))
        if len(self._open) >= MAX_OPEN:
            raise ToolLimit(f"{MAX_OPEN} calls are open. Wait for some of them first.", tool=tool, status="limit")
        # The server takes only numbers that grow, so number and frame must not be separated. A signal handler that
        # calls between them would wait for its own thread.
        main = threading.current_thread() is threading.main_thread()
        if not self._sending.acquire(blocking=not main, timeout=-1) and not self._sending.acquire(timeout=SLICE):
            raise ToolUnavailable("A signal handler can't call a function while the code does.", tool=tool)
        try:
            self._number += 1
            id = f"{self.identify()}.{self._number}"
            call = self._open[id] = CallFuture(self, id, tool, data)
            try:
                head = json.dumps({"call": id, "name": tool}).encode()
                self._kernel.send_tool("tool_call", head[:-1] + b',"arguments":' + data + b"}")
            except BaseException:
                self._open.pop(id, None)
                raise
        finally:
            self._sending.release()
        if len(self.unused) >= self._prune_at:  # a thousand calls by gather must not look at each other
            self.unused = [each for each in self.unused if not each._taken]
            self._prune_at = max(MAX_UNUSED, 2 * len(self.unused))
        self.unused.append(call)
        return call

    def _connected(self, tool: str) -> WireServer:
        wire = self._kernel.wire
        if wire is None or wire.foreign:
            raise ToolUnavailable(
                "A forked process has no functions of clients. Call them in the cell itself.",
                tool=tool,
                status="unavailable",
            )
        wire.on_tools = self.receive
        return wire

    def abandon(self, call: CallFuture) -> None:
        """End a call whose result is not awaited any more."""
        if self._open.pop(call.id, None) is None:
            return
        error = {"type": "cancelled", "message": f"The call of {call.tool} was cancelled."}
        call.settle({"status": "cancelled", "error": error})
        wire = self._kernel.wire
        if wire is not None and not wire.foreign:
            self._kernel.send_tool("tool_cancel", json.dumps({"call": call.id}).encode())

    # -- in --------------------------------------------------------------------------

    def receive(self, request: WireRequest) -> None:
        """Take a message of the server. Called while the wire is locked."""
        content = request.content
        name = str(content.get("call", ""))
        if request.msg_type == "tool_result":
            call = self._open.pop(name, None)
            if call is not None:
                call.settle(content)
        elif request.msg_type == "tool_described":
            if name in self._questions:
                self._questions[name] = content
        elif request.msg_type == "tools_changed":
            self._known.clear()
        elif request.msg_type == "tool_again" and name in self._open and (wire := self._kernel.wire) is not None:
            data = json.dumps({"call": name}).encode()[:-1] + b',"arguments":' + self._open[name]._data + b"}"
            wire.run_unlocked(lambda: self._kernel.send_tool("tool_arguments", data))
        with self._settled:
            self._settled.notify_all()

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until something is settled. Return False if the time is over. An interrupt raises out of it."""
        wire = self._connected("")
        if threading.current_thread() is threading.main_thread():
            with self._reader:  # a thread has it for at most a slice
                return wire.wait_for(ready, timeout)
        end = None if timeout is None else time.monotonic() + timeout
        while not ready():
            if end is not None and time.monotonic() >= end:
                return False
            if self._reader.acquire(blocking=False):
                try:
                    wire.wait_for(ready, SLICE)
                finally:
                    self._reader.release()
            else:
                with self._settled:
                    self._settled.wait_for(ready, SLICE)
        return True

    # -- definitions -----------------------------------------------------------------

    def definition(self, tool: str) -> dict[str, Any]:
        """Return the server's description of a function: signature, documentation, schemas. Empty if there is none."""
        if tool not in self._known:
            found = self.ask(names=[tool], detail="full")
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[tool] = found[0] if found else {}
        return self._known[tool]

    def ask(self, **question: Any) -> list[dict[str, Any]]:
        """Ask the server for offers: by ``names``, by a ``query``, or all.

        Raises:
            ToolUnavailable: No server answers.
        """
        wire = self._connected("")
        for _ in range(ASK_ATTEMPTS):
            with self._sending:
                self._number += 1
                name = f"q{self._number}"
            self._questions[name] = None
            corked = wire.corked
            try:
                self._kernel.send_tool("tool_describe", json.dumps({"call": name, **question}).encode())
                self.wait(lambda name=name: self._questions.get(name) is not None, ASK_SECONDS)  # type: ignore[misc]
                answer = self._questions[name]
            finally:
                del self._questions[name]
                if corked:
                    wire.cork()
            if answer is not None:
                tools = answer.get("tools")
                return [each for each in tools if isinstance(each, dict)] if isinstance(tools, list) else []
        raise ToolUnavailable("The server did not describe its functions. Try again.", status="unavailable")

    # -- the life of the kernel ---------------------------------------------------------

    def welcome(self) -> dict[str, Any]:
        """Return the field of WELCOME that names the open calls, if there are any."""
        return {"calls": [*self._open]} if self._open else {}

    def lose(self) -> None:
        """In a copy of the kernel: the open calls belong to the original."""
        if not self._number:
            return  # nothing was called, and each page that is written here is copied
        self._new_locks()
        self._known.clear()
        calls, self._open = self._open, {}
        for call in calls.values():
            text = "The call belongs to the session that this one was copied from."
            call.settle({"status": "lost", "error": {"type": "lost", "message": text}})

    def end_of_cell(self) -> str:
        """Return a warning about calls whose result no code has taken, or ""."""
        left, self.unused = [call for call in self.unused if not call._taken], []
        names = ", ".join(dict.fromkeys(call.tool for call in left))
        return f"Calls were never awaited: {names}. Write 'await' before them.\n" if left else ""


__all__ = ["CallFuture", "KernelCalls", "ToolCancelled", "ToolError", "ToolLost"]
