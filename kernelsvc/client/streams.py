"""A session's events as async iterators, and the requests about one session."""

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
        session: the session's id.
        seen: highest known sequence number of its log. The events of a new cell come after it.
    """

    def __init__(self, connection: RpcConnection, session: str, seen: int) -> None:
        self.connection = connection
        self.session = session
        self.seen = seen

    async def call(self, method: str, **params: Any) -> Any:
        """Call ``session.<method>``, without the parameters that are None."""
        params = {"session": self.session, **without_none(**params)}
        provider = self.connection.provider
        if provider is not None:
            await provider.settled()  # code may call the functions that were offered before
            if method in ("execute", "batch") and (within := provider.nested_in(self.session)) is not None:
                for cell in params["cells"] if method == "batch" else [params]:
                    cell.setdefault("within", within)
        return await self.connection.call(f"session.{method}", params)

    def cell(self, data: Any) -> Cell:
        """Decode a cell from a response."""
        cell = read(data, Cell)
        self.seen = max(self.seen, cell.seq.last)
        return cell


class AsyncEvents:
    """An async iterator over a session's events after a position. ``aclose`` or the end of a ``with`` ends it early."""

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
        """Wait for events and return all that have arrived. Empty at the end. Safe to cancel: no event is lost."""
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
        # A caller may break out of the loop without closing the iterator. The reader then ends with the iterator.
        self._finalizer = weakref.finalize(self, connection.unfollow_threadsafe, self._rpc.session, reader)
        return reader

    async def aclose(self) -> None:
        """Stop reading. A running cell continues."""
        if self._finalizer is not None:
            self._finalizer()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


class AsyncPages(AsyncEvents):
    """An async iterator over the events that are in a session's log now, a page at a time."""

    def __init__(self, rpc: SessionRpc, rest: Rest, after: int) -> None:
        super().__init__(rpc, after)
        self._rest = rest

    async def next_batch(self) -> list[Event]:
        """Return the next page. Empty at the end. Safe to cancel: no event is lost."""
        path = f"/v1/sessions/{quoted(self._rpc.session)}/events"
        page = msgspec.json.decode(await self._rest.raw("GET", query(path, after=self._after)), type=_Page)
        self._after = page.next_after
        return [event_of(bytes(raw)) for raw in page.events]


class _Page(msgspec.Struct):
    events: list[msgspec.Raw]
    next_after: int


class AsyncStream(AsyncEvents):
    """An async iterator over the events of one cell. Made by ``AsyncSession.stream``.

    Attributes:
        id: the cell's id, for ``input``.
    """

    def __init__(self, rpc: SessionRpc, request: dict[str, Any]) -> None:
        super().__init__(rpc, rpc.seen, request["cell"])
        self.id: str = request["cell"]
        self._request = request

    async def _begin(self) -> FeedReader:
        # Attach first, and send the cell without waiting for the reply: one round trip, and no event is missed.
        reader = await super()._begin()
        try:
            accepted = await self._rpc.call("execute", wait="queued", **self._request)
        except BaseException:
            await self.aclose()
            raise
        first = read(accepted, Cell).seq.first
        if first <= self._after:  # The id was used before, and the cell's events are older.
            self._rpc.connection.rewind(self._rpc.session, reader, first - 1)
        return reader

    async def cell(self) -> Cell:
        """Wait for the end of the cell and return it."""
        return self._rpc.cell(await self._rpc.call("execute", wait="finished", **self._request))
