"""The tools' desk outside of the server: a client, for whoever its token names."""

from __future__ import annotations

from typing import Any, TypeVar

from kernelsvc.client.address import quoted
from kernelsvc.client.async_client import AsyncClient
from kernelsvc.client.http import query
from kernelsvc.client.values import new_id, read
from kernelsvc.errors import BadRequest
from kernelsvc.protocol.methods import METHODS
from kernelsvc.tools import FilePart
from kernelsvc.tools.definitions import FileShown

T = TypeVar("T")

MAX_LISTED = 1000
#: Besides what only reads: a cell carries its own id, a creation its key, and what is closed can be closed again.
_REPEATABLE = {"session.execute", "session.create", "session.close", "session.variables"}


class ClientToolBackend:
    """Calls a server. It comes back by itself when the link breaks; nothing runs twice."""

    def __init__(self, client: AsyncClient) -> None:
        self._rpc, self._rest = client._rpc, client._rest

    async def call(self, method: str, params: dict[str, Any], kind: type[T]) -> T:
        """A method of the native API. Safe to cancel: what was accepted goes on.

        Raises:
            KernelsvcError: the server's, ``Unreachable`` or ``ConnectionLost``.
        """
        if method == "session.create":
            params = {"attach": False, "idempotency_key": new_id("create"), **params}
        repeat = METHODS[method].scope == "read" or method in _REPEATABLE
        return read(await self._rpc.call(method, params, repeat=repeat), kind)

    async def put_file(self, session: str, path: str, data: bytes) -> None:
        """Write a file of the working directory, whole or not at all."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(len(data))}
        await self._rest.raw("PUT", _files(session, path), data, headers=headers, repeat=True)

    async def read_file(self, session: str, path: str, offset: int, limit: int) -> FilePart:
        """Some bytes of a file of the working directory."""
        received: dict[str, str] = {}
        range_header = {"Range": f"bytes={offset}-{offset + limit - 1}"}
        try:
            data = await self._rest.raw("GET", _files(session, path), headers=range_header, response_headers=received)
        except BadRequest:
            if offset:
                raise
            # An empty file has no first byte to ask for.
            data = await self._rest.raw("GET", _files(session, path), response_headers=received)
        size = received.get("content-range", "").rpartition("/")[2]
        return FilePart(data=data, size=int(size) if size.isdecimal() else offset + len(data))

    async def list_files(self, session: str, path: str, *, recursive: bool) -> tuple[list[FileShown], bool]:
        """What lies in a directory, at most a thousand names, and whether there are more."""
        where = path.strip("/").removeprefix("./").removeprefix(".")
        asked = query(_files(session, where), limit=MAX_LISTED, recursive="true" if recursive else None)
        answer = await self._rest.json("GET", asked)
        return read(answer["files"], list[FileShown]), bool(answer["truncated"])

    async def notebook(self, session: str, format: str) -> bytes:
        """The session as a notebook; closed ones too."""
        return await self._rest.raw("GET", query(f"/v1/sessions/{quoted(session)}/notebook", format=format))


def _files(session: str, path: str) -> str:
    return f"/v1/sessions/{quoted(session)}/files/{quoted(path)}"
