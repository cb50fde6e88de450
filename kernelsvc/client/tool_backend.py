"""The tools' backend outside of the server: a client, for the principal of its token."""

from __future__ import annotations

from typing import Any, TypeVar

from kernelsvc.client.address import quoted
from kernelsvc.client.async_client import AsyncClient
from kernelsvc.client.http import query
from kernelsvc.client.values import new_id, read
from kernelsvc.errors import BadRequest
from kernelsvc.tools import FilePart
from kernelsvc.tools.definitions import FileShown

T = TypeVar("T")

MAX_LISTED = 1000


class ClientToolBackend:
    """Runs tool calls over a client. It reconnects by itself, and no cell runs twice."""

    def __init__(self, client: AsyncClient) -> None:
        self._rpc, self._rest = client._rpc, client._rest

    async def call(self, method: str, params: dict[str, Any], kind: type[T]) -> T:
        """Call a method of the native API. Safe to cancel: the server still executes a call that it has accepted.

        Raises:
            KernelsvcError: the server's error, ``Unreachable`` or ``ConnectionLost``.
        """
        if method == "session.create":
            params = {"attach": False, "idempotency_key": new_id("create"), **params}
        return read(await self._rpc.call(method, params), kind)

    async def put_file(self, session: str, path: str, data: bytes) -> None:
        """Write a file of the working directory atomically."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(len(data))}
        await self._rest.raw("PUT", _files(session, path), data, headers=headers, repeat=True)

    async def read_file(self, session: str, path: str, offset: int, limit: int) -> FilePart:
        """Read at most ``limit`` bytes of a file of the working directory."""
        received: dict[str, str] = {}
        range_header = {"Range": f"bytes={offset}-{offset + limit - 1}"}
        try:
            data = await self._rest.raw("GET", _files(session, path), headers=range_header, response_headers=received)
        except BadRequest:
            if offset:
                raise
            # RFC 9110, section 14.1.2: a range of an empty file is not satisfiable, also one that starts at 0.
            data = await self._rest.raw("GET", _files(session, path), response_headers=received)
        size = received.get("content-range", "").rpartition("/")[2]
        return FilePart(data=data, size=int(size) if size.isdecimal() else offset + len(data))

    async def list_files(self, session: str, path: str, *, recursive: bool) -> tuple[list[FileShown], bool]:
        """List a directory. Returns at most 1,000 files, and whether there are more."""
        where = path.strip("/").removeprefix("./").removeprefix(".")
        asked = query(_files(session, where), limit=MAX_LISTED, recursive="true" if recursive else None)
        answer = await self._rest.json("GET", asked)
        return read(answer["files"], list[FileShown]), bool(answer["truncated"])

    async def notebook(self, session: str, format: str) -> bytes:
        """Return an open or closed session as a notebook."""
        return await self._rest.raw("GET", query(f"/v1/sessions/{quoted(session)}/notebook", format=format))


def _files(session: str, path: str) -> str:
    return f"/v1/sessions/{quoted(session)}/files/{quoted(path)}"
