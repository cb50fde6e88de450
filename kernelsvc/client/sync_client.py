"""``Client``: the async client for code without an event loop.

It runs ``AsyncClient`` on the event loop of a thread, and adds no behaviour. Each method is ``_blocking(method)`` of
the async class, and so has the same arguments and docstring. Returned sessions and iterators are wrapped in their
blocking counterparts.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from kernelsvc.client.address import Address
from kernelsvc.client.async_client import AsyncClient
from kernelsvc.client.programs import AsyncProgram
from kernelsvc.client.sessions import AsyncSession
from kernelsvc.client.streams import AsyncEvents, AsyncStream
from kernelsvc.client.tools import AsyncCall
from kernelsvc.model.events import Event
from kernelsvc.model.objects import OutputPiece, SessionInfo

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class EventLoopThread:
    """An event loop on a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # A daemon thread, so that a program that forgets close() can exit.
        self._thread = threading.Thread(target=self._loop.run_forever, name="kernelsvc client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine and return its result. A KeyboardInterrupt cancels it, but not the cell that it waits for."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            # Also on Ctrl-C, which Python raises in the main thread only. The coroutine runs on the other thread.
            future.cancel()
            raise

    @property
    def closed(self) -> bool:
        """Whether ``stop`` was called."""
        return self._loop.is_closed()

    def stop(self) -> None:
        """Stop the thread and close the loop."""
        # On its own thread: the caller's may have a running loop, as that of a cell in Jupyter does.
        self.run(_shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _shut_down() -> None:
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


def _unwrapped(outer: Any, value: T) -> T:
    return value


def _blocking(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Any, P], R]:
    """Return a blocking version of an async method."""
    return _blocking_as(method, _unwrapped)


def _blocking_as(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], wrap: Callable[[Any, R], T]
) -> Callable[Concatenate[Any, P], T]:
    """Return a blocking version of an async method that wraps the result."""

    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return wrap(self, self._loop.run(method(self._inner, *args, **kwargs)))

    functools.update_wrapper(call, method)
    return call


def _iterating(
    method: Callable[Concatenate[Any, P], R], wrap: Callable[[Any, R], T]
) -> Callable[Concatenate[Any, P], T]:
    """Return a version of a method that returns an async iterator, with a blocking iterator."""

    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return wrap(self, method(self._inner, *args, **kwargs))

    functools.update_wrapper(call, method)
    return call


class Events:
    """An iterator over a session's events. ``close``, or the end of a ``with``, ends it early."""

    def __init__(self, loop: EventLoopThread, inner: AsyncEvents) -> None:
        self._loop = loop
        self._inner = inner
        self._ready: list[Event] = []

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        # A batch at a time: a switch to the other thread costs more than an event.
        if not self._ready:
            self._ready = self._loop.run(self._inner.next_batch())[::-1]
        if not self._ready:
            raise StopIteration
        return self._ready.pop()

    close = _blocking(AsyncEvents.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Stream(Events):
    """An iterator over the events of one cell. Made by ``Session.stream``.

    Attributes:
        id: the cell's id, for ``input``.
    """

    _inner: AsyncStream

    @property
    def id(self) -> str:
        """The cell's id."""
        return self._inner.id

    cell = _blocking(AsyncStream.cell)


def _events(session: Session, inner: AsyncEvents) -> Events:
    return Events(session._loop, inner)


def _stream(session: Session, inner: AsyncStream) -> Stream:
    return Stream(session._loop, inner)


class SessionCall:
    """``AsyncCall`` for code without an event loop."""

    def __init__(self, loop: EventLoopThread, inner: AsyncCall) -> None:
        self._loop = loop
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __repr__(self) -> str:
        return repr(self._inner).replace("AsyncCall", "SessionCall")

    approve = _blocking(AsyncCall.approve)
    deny = _blocking(AsyncCall.deny)


class SessionProgram:
    """``AsyncProgram`` for code without an event loop: iterate over it to read its output."""

    def __init__(self, loop: EventLoopThread, inner: AsyncProgram) -> None:
        self._loop = loop
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> OutputPiece:
        try:
            return self._loop.run(self._inner.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    wait = _blocking(AsyncProgram.wait)
    write = _blocking(AsyncProgram.write)
    close_input = _blocking(AsyncProgram.close_input)
    signal = _blocking(AsyncProgram.signal)
    resize = _blocking(AsyncProgram.resize)


def _program(outer: Session, inner: AsyncProgram) -> SessionProgram:
    return SessionProgram(outer._loop, inner)


def _programs(outer: Session, inner: list[AsyncProgram]) -> list[SessionProgram]:
    return [_program(outer, one) for one in inner]


def _call(outer: Session, inner: AsyncCall) -> SessionCall:
    return SessionCall(outer._loop, inner)


def _calls(outer: Session, inner: list[AsyncCall]) -> list[SessionCall]:
    return [_call(outer, one) for one in inner]


def _offering(asynchronous: Callable[..., Any]) -> Any:
    """Return the blocking form of ``tool``: a decorator that offers the function."""

    def tool(self: Any, function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return functools.partial(tool, self, **options)
        self.offer(function, **options)
        return function

    tool.__doc__ = asynchronous.__doc__
    tool.__signature__ = inspect.signature(asynchronous)  # type: ignore[attr-defined]
    return tool


def _session(outer: Client | Session, inner: AsyncSession) -> Session:
    return Session(outer._loop, inner)


def _sessions(outer: Client | Session, inner: list[AsyncSession]) -> list[Session]:
    return [_session(outer, one) for one in inner]


class Session:
    """``AsyncSession`` for code without an event loop, with the same methods."""

    def __init__(self, loop: EventLoopThread, inner: AsyncSession) -> None:
        self._loop = loop
        self._inner = inner

    @property
    def id(self) -> str:
        """The session's id."""
        return self._inner.id

    @property
    def details(self) -> SessionInfo:
        """The last description of the session from the server."""
        return self._inner.details

    def __repr__(self) -> str:
        return repr(self._inner).replace("AsyncSession", "Session")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.run(self._inner.__aexit__(*exc))

    info = _blocking(AsyncSession.info)
    run = _blocking(AsyncSession.run)
    stream = _iterating(AsyncSession.stream, _stream)
    batch = _blocking(AsyncSession.batch)
    cell = _blocking(AsyncSession.cell)
    cells = _blocking(AsyncSession.cells)
    view = _blocking(AsyncSession.view)
    events = _iterating(AsyncSession.events, _events)
    input = _blocking(AsyncSession.input)
    interrupt = _blocking(AsyncSession.interrupt)
    hold = _blocking(AsyncSession.hold)
    let_go = _blocking(AsyncSession.let_go)
    decide = _blocking(AsyncSession.decide)
    restart = _blocking(AsyncSession.restart)
    complete = _blocking(AsyncSession.complete)
    inspect = _blocking(AsyncSession.inspect)
    variables = _blocking(AsyncSession.variables)
    value = _blocking(AsyncSession.value)
    offer = _blocking(AsyncSession.offer)
    tool = _offering(AsyncSession.tool)
    withdraw = _blocking(AsyncSession.withdraw)
    tools = _blocking(AsyncSession.tools)
    calls = _blocking_as(AsyncSession.calls, _calls)
    call = _blocking_as(AsyncSession.call, _call)
    command = _blocking(AsyncSession.command)
    start_program = _blocking_as(AsyncSession.start_program, _program)
    programs = _blocking_as(AsyncSession.programs, _programs)
    checkpoint = _blocking(AsyncSession.checkpoint)
    checkpoints = _blocking(AsyncSession.checkpoints)
    drop_checkpoint = _blocking(AsyncSession.drop_checkpoint)
    rollback = _blocking(AsyncSession.rollback)
    branch = _blocking_as(AsyncSession.branch, _sessions)
    update_network = _blocking(AsyncSession.update_network)
    hibernate = _blocking(AsyncSession.hibernate)
    share_port = _blocking(AsyncSession.share_port)
    unshare_port = _blocking(AsyncSession.unshare_port)
    output = _blocking(AsyncSession.output)
    close = _blocking(AsyncSession.close)
    upload = _blocking(AsyncSession.upload)
    download = _blocking(AsyncSession.download)
    save = _blocking(AsyncSession.save)
    delete = _blocking(AsyncSession.delete)
    files = _blocking(AsyncSession.files)
    notebook = _blocking(AsyncSession.notebook)
    journal = _blocking(AsyncSession.journal)


async def _make_client(url: str | None, token: str | None, options: dict[str, Any]) -> AsyncClient:
    return AsyncClient(url, token, **options)


class Client:
    """``AsyncClient`` for code without an event loop, with the same arguments and methods."""

    def __init__(self, url: str | None = None, token: str | None = None, **options: Any) -> None:
        self._loop = EventLoopThread()
        try:
            self._inner = self._loop.run(_make_client(url, token, options))
        except BaseException:
            self._loop.stop()
            raise

    @property
    def address(self) -> Address:
        """The address of the server."""
        return self._inner.address

    @property
    def reconnects(self) -> int:
        """How often the client has lost the connection."""
        return self._inner.reconnects

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Sessions stay open until they are closed or expire."""
        if self._loop.closed:
            return
        self._loop.run(self._inner.close())
        self._loop.stop()

    info = _blocking(AsyncClient.info)
    templates = _blocking(AsyncClient.templates)
    execute_once = _blocking(AsyncClient.execute_once)
    offer = _blocking(AsyncClient.offer)
    tool = _offering(AsyncClient.tool)
    withdraw = _blocking(AsyncClient.withdraw)
    create_session = _blocking_as(AsyncClient.create_session, _session)
    session = _blocking_as(AsyncClient.session, _session)
    sessions = _blocking(AsyncClient.sessions)
    notebook = _blocking(AsyncClient.notebook)
    journal = _blocking(AsyncClient.journal)
    purge = _blocking(AsyncClient.purge)
    workspaces = _blocking(AsyncClient.workspaces)
    workspace = _blocking(AsyncClient.workspace)
    set_workspace = _blocking(AsyncClient.set_workspace)
    remove_workspace = _blocking(AsyncClient.remove_workspace)
    workspace_files = _blocking(AsyncClient.workspace_files)
    download_from = _blocking(AsyncClient.download_from)
    upload_to = _blocking(AsyncClient.upload_to)
