"""A session's events as async iterators, and the line to one session that they share with it."""

from __future__ import annotations

import weakref
from typing import Any, Self

import msgspec

from kernelsvc.client.address import quoted, without_none
from kernelsvc.client.connection import RpcConnection
from kernelsvc.client.event_feed import FeedReader
from kernelsvc.client.http import Rest, query
from kernelsvc.client.values import Cell, event_of, read
from kernelsvc.model.events import Event


class SessionRpc:
    """Requests about one session.

    Attributes:
        session: its id.
        seen: a position of its log that is known to exist; where a new reader may begin without missing anything.
    """

    def __init__(self, connection: RpcConnection, session: str, seen: int) -> None:
        self.connection = connection
        self.session = session
        self.seen = seen

    async def call(self, method: str, *, repeat: bool = False, **params: Any) -> Any:
        """Call ``session.<method>``; parameters that are None are left out."""
        params = {"session": self.session, **without_none(**params)}
        return await self.connection.call(f"session.{method}", params, repeat=repeat)

    def cell(self, data: Any) -> Cell:
        """A cell from an answer."""
        cell = read(data, Cell)
        self.seen = max(self.seen, cell.seq.last)
        return cell


class AsyncEvents:
    """A session's events from a position on; iterate over it. ``aclose`` (or the end of a ``with``) lets go early."""

    def __init__(self, rpc: SessionRpc, after: int, cell: str | None = None) -> None:
        self._rpc = rpc
        self._after = after
        self._cell = cell
        self._reader: FeedReader | None = None
        self._ready: list[Event] = []
        self._finalizer: Any = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if not self._ready:
            self._ready = (await self.next_batch())[::-1]
        if not self._ready:
            raise StopAsyncIteration
        return self._ready.pop()

    async def next_batch(self) -> list[Event]:
        """All events that are there, at least one; empty at the end. Safe to cancel: nothing is lost."""
        reader = self._reader or await self._begin()
        events = await self._rpc.connection.read(self._rpc.session, reader)
        if events:
            self._rpc.seen = max(self._rpc.seen, events[-1].seq)
        else:
            await self.aclose()
        return events

    async def _begin(self) -> FeedReader:
        connection = self._rpc.connection
        self._reader = reader = connection.follow(self._rpc.session, self._after, self._cell)
        # Whoever breaks out of the loop and forgets the iterator lets go of the reader too.
        self._finalizer = weakref.finalize(self, connection.unfollow_threadsafe, self._rpc.session, reader)
        return reader

    async def aclose(self) -> None:
        """Read no more. A cell that runs goes on."""
        if self._finalizer is not None:
            self._finalizer()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


class AsyncPages(AsyncEvents):
    """The events that a session's log holds now, a page at a time."""

    def __init__(self, rpc: SessionRpc, rest: Rest, after: int) -> None:
        super().__init__(rpc, after)
        self._rest = rest

    async def next_batch(self) -> list[Event]:
        """The next page; empty at the end. Safe to cancel: nothing is lost."""
        path = f"/v1/sessions/{quoted(self._rpc.session)}/events"
        page = msgspec.json.decode(await self._rest.raw("GET", query(path, after=self._after)), type=_Page)
        self._after = page.next_after
        return [event_of(bytes(raw)) for raw in page.events]


class _Page(msgspec.Struct):
    events: list[msgspec.Raw]
    next_after: int


class AsyncStream(AsyncEvents):
    """The events of one cell; made by ``AsyncSession.stream``.

    Attributes:
        id: the cell's id, for ``input``.
    """

    def __init__(self, rpc: SessionRpc, request: dict[str, Any]) -> None:
        super().__init__(rpc, rpc.seen, request["cell"])
        self.id: str = request["cell"]
        self._request = request

    async def _begin(self) -> FeedReader:
        # The attachment is asked for first and the cell sent right behind it: one trip.
        reader = await super()._begin()
        try:
            accepted = await self._rpc.call("execute", repeat=True, wait="queued", **self._request)
        except BaseException:
            await self.aclose()
            raise
        first = read(accepted, Cell).seq.first
        if first <= self._after:  # An id that was used before: its events are the old ones.
            self._rpc.connection.rewind(self._rpc.session, reader, first - 1)
        return reader

    async def cell(self) -> Cell:
        """The whole cell; waits for its end."""
        return self._rpc.cell(await self._rpc.call("execute", repeat=True, wait="finished", **self._request))
