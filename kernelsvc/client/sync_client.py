"""``Client``: the async client, run on a thread of its own, for code without an event loop.

No behaviour stands here. Each method is ``_blocking(the async one)``, with the
same arguments and docstring by construction; only sessions and iterators are
wrapped again on their way out.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from kernelsvc.client.address import Address
from kernelsvc.client.async_client import AsyncClient
from kernelsvc.client.sessions import AsyncSession
from kernelsvc.client.streams import AsyncEvents, AsyncStream
from kernelsvc.model.events import Event
from kernelsvc.model.objects import SessionInfo

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class EventLoopThread:
    """An event loop on a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kernelsvc client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run to the end. A KeyboardInterrupt cancels the waiting; what the server accepted goes on."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    @property
    def closed(self) -> bool:
        """Whether it was stopped."""
        return self._loop.is_closed()

    def stop(self) -> None:
        """End the thread and the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


def _unwrapped(outer: Any, value: T) -> T:
    return value


def _blocking(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Any, P], R]:
    """The same method for a caller without an event loop."""
    return _blocking_as(method, _unwrapped)


def _blocking_as(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], wrap: Callable[[Any, R], T]
) -> Callable[Concatenate[Any, P], T]:
    """The same method, its result wrapped."""

    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return wrap(self, self._loop.run(method(self._inner, *args, **kwargs)))

    functools.update_wrapper(call, method)
    return call


def _iterating(
    method: Callable[Concatenate[Any, P], R], wrap: Callable[[Any, R], T]
) -> Callable[Concatenate[Any, P], T]:
    """The same for a method that gives an iterator and waits for nothing."""

    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return wrap(self, method(self._inner, *args, **kwargs))

    functools.update_wrapper(call, method)
    return call


class Events:
    """A session's events; iterate over it. ``close`` (or the end of a ``with``) lets go early."""

    def __init__(self, loop: EventLoopThread, inner: AsyncEvents) -> None:
        self._loop = loop
        self._inner = inner
        self._ready: list[Event] = []

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        # A batch at a time: a hop to the other thread costs more than an event.
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
    """The events of one cell; made by ``Session.stream``.

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


def _session(outer: Client | Session, inner: AsyncSession) -> Session:
    return Session(outer._loop, inner)


def _sessions(outer: Client | Session, inner: list[AsyncSession]) -> list[Session]:
    return [_session(outer, one) for one in inner]


class Session:
    """``AsyncSession`` for code without an event loop: the same methods, awaited for you."""

    def __init__(self, loop: EventLoopThread, inner: AsyncSession) -> None:
        self._loop = loop
        self._inner = inner

    @property
    def id(self) -> str:
        """The session's id."""
        return self._inner.id

    @property
    def details(self) -> SessionInfo:
        """The session as the server last described it."""
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
    events = _iterating(AsyncSession.events, _events)
    input = _blocking(AsyncSession.input)
    interrupt = _blocking(AsyncSession.interrupt)
    restart = _blocking(AsyncSession.restart)
    complete = _blocking(AsyncSession.complete)
    inspect = _blocking(AsyncSession.inspect)
    variables = _blocking(AsyncSession.variables)
    checkpoint = _blocking(AsyncSession.checkpoint)
    checkpoints = _blocking(AsyncSession.checkpoints)
    drop_checkpoint = _blocking(AsyncSession.drop_checkpoint)
    rollback = _blocking(AsyncSession.rollback)
    branch = _blocking_as(AsyncSession.branch, _sessions)
    hibernate = _blocking(AsyncSession.hibernate)
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
    """``AsyncClient`` for code without an event loop: the same arguments and methods, awaited for you."""

    def __init__(self, url: str | None = None, token: str | None = None, **options: Any) -> None:
        self._loop = EventLoopThread()
        try:
            self._inner = self._loop.run(_make_client(url, token, options))
        except BaseException:
            self._loop.stop()
            raise

    @property
    def address(self) -> Address:
        """Where the server is."""
        return self._inner.address

    @property
    def reconnects(self) -> int:
        """How often the link broke and came back."""
        return self._inner.reconnects

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the server. Sessions live on until they are closed or expire."""
        if self._loop.closed:
            return
        self._loop.run(self._inner.close())
        self._loop.stop()

    info = _blocking(AsyncClient.info)
    templates = _blocking(AsyncClient.templates)
    execute_once = _blocking(AsyncClient.execute_once)
    create_session = _blocking_as(AsyncClient.create_session, _session)
    session = _blocking_as(AsyncClient.session, _session)
    sessions = _blocking(AsyncClient.sessions)
