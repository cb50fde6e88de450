"""The Python client: ``AsyncClient``, and ``Client`` for code without an event loop.

* ``async_client``, ``sessions``, ``streams``: the API's operations as methods.
* ``connection``: JSON-RPC over one WebSocket that reconnects by itself.
* ``event_feed``: delivers each event to each reader once. Pure.
* ``programs``: programs in a session's sandbox.
* ``http``, ``transfer``: files and notebooks over HTTP.
* ``sync_client``: runs the async client on a thread, and adds no behaviour.
* ``tool_backend``: the tools' interface to a server.
"""

from kernelsvc.client.async_client import AsyncClient
from kernelsvc.client.programs import AsyncProgram, CommandResult
from kernelsvc.client.sessions import AsyncSession
from kernelsvc.client.streams import AsyncEvents, AsyncStream
from kernelsvc.client.sync_client import Client, Events, Session, SessionProgram, Stream
from kernelsvc.client.values import Cell, CellFailed, ConnectionLost, FileInfo, Image, Unreachable

__all__ = [
    "AsyncClient",
    "AsyncEvents",
    "AsyncProgram",
    "AsyncSession",
    "AsyncStream",
    "Cell",
    "CellFailed",
    "Client",
    "CommandResult",
    "ConnectionLost",
    "Events",
    "FileInfo",
    "Image",
    "Session",
    "SessionProgram",
    "Stream",
    "Unreachable",
]
