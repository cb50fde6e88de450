"""Events of MCP's streams, stored in memory for clients whose stream was interrupted.

The SDK names a stream by the request's id alone, which two clients may share.
Each MCP session therefore has its own ``McpSession``. The handler puts it into the
context of its requests, and their tasks inherit it. An event is stored for its
session, and replayed only to that session.
"""

from __future__ import annotations

from contextvars import ContextVar

from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp_types import JSONRPCMessage
from msgspec import Struct

from kernelsvc.model.identity.fair_cache import FairCache

#: Most bytes for the clients of one principal, and for all together. See ``FairCache``.
MAX_BYTES_OF_ONE, MAX_BYTES = 16 * 1024 * 1024, 64 * 1024 * 1024
#: Bytes that an event counts for besides its message.
EVENT_BYTES = 640


class McpSession:
    """One MCP session, as an owner of events.

    Attributes:
        principal: Name of the principal that opened it.
        requests: Number of its requests that are being answered.
    """

    def __init__(self, principal: str = "") -> None:
        self.principal = principal
        self.requests = 0


class _StoredEvent(Struct, frozen=True):
    session: McpSession
    stream: str
    message: JSONRPCMessage | None


#: The MCP session of the current request.
current_session: ContextVar[McpSession] = ContextVar("mcp_session")


class MemoryEventStore(EventStore):
    """Events in memory, limited in size. A restarted server has none, and its clients start new streams."""

    def __init__(self, max_bytes_of_one: int = MAX_BYTES_OF_ONE, max_bytes: int = MAX_BYTES) -> None:
        self._kept: FairCache[int, _StoredEvent] = FairCache(max_bytes_of_one, max_bytes)
        self._last = 0

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        """The SDK's hook: store a message (None: a stream's beginning) and return its id."""
        size = EVENT_BYTES + (len(message.model_dump_json()) if message is not None else 0)
        session = current_session.get()
        self._last += 1
        self._kept.put(session.principal, self._last, _StoredEvent(session, stream_id, message), size)
        return str(self._last)

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        """The SDK's hook: send the events after this one on its stream. None if the event is unknown."""
        known = self._kept.get(int(last_event_id)) if last_event_id.isdecimal() and len(last_event_id) < 20 else None
        session = current_session.get()
        if known is None or known.session is not session:
            return None
        after = int(last_event_id)
        for number, kept in list(self._kept.of(session.principal)):
            if number > after and kept.session is session and kept.stream == known.stream and kept.message is not None:
                await send_callback(EventMessage(kept.message, str(number)))
        return known.stream

    def forget(self, session: McpSession) -> None:
        """Drop the events of a session that has ended."""
        for number in [number for number, kept in self._kept.of(session.principal) if kept.session is session]:
            self._kept.pop(number)
