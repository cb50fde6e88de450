"""The client: ``AsyncClient``, and ``Client`` on top of it for code without an event loop.

Flow: ``aio``, ``sessions`` and ``streams`` say what each method sends; ``connection`` carries JSON-RPC over
one WebSocket that comes back by itself; ``feed`` (values only) decides which
event goes to which reader, each once; ``rest`` and ``transfer`` carry files and notebooks;
``blocking`` runs all that on a thread of its own and adds no behaviour.
"""

from kernelsvc.client.async_client import AsyncClient
from kernelsvc.client.sessions import AsyncSession
from kernelsvc.client.streams import AsyncEvents, AsyncStream
from kernelsvc.client.sync_client import Client, Events, Session, Stream
from kernelsvc.client.values import Cell, CellFailed, ConnectionLost, FileInfo, Image, Unreachable

__all__ = [
    "AsyncClient",
    "AsyncEvents",
    "AsyncSession",
    "AsyncStream",
    "Cell",
    "CellFailed",
    "Client",
    "ConnectionLost",
    "Events",
    "FileInfo",
    "Image",
    "Session",
    "Stream",
    "Unreachable",
]
