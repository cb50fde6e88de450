"""The tools' backend in the server: the service, for one principal."""

from __future__ import annotations

import os
from typing import Any, TypeVar, cast

import msgspec

from kernelsvc.errors import BadRequest, NotFound
from kernelsvc.model.objects import Principal
from kernelsvc.protocol import jsonrpc, methods
from kernelsvc.server import auth
from kernelsvc.server.handler import ServerContext, invoke
from kernelsvc.service.api import NotebookFormat
from kernelsvc.tools import FilePart
from kernelsvc.tools.definitions import FileShown

T = TypeVar("T")

MAX_LISTED = 1000


class ServiceToolBackend:
    """Backend that calls the service as one principal, within its token's scopes."""

    def __init__(self, context: ServerContext, who: Principal) -> None:
        self._context, self._who = context, who

    async def call(self, method: str, params: dict[str, Any], kind: type[T]) -> T:
        """Call a method of the native API. Cancelling stops the wait, not the accepted work.

        Raises:
            KernelsvcError: The scope is missing, the params are wrong, or the service's own error.
        """
        row = methods.METHODS[method]
        try:
            decoded = msgspec.convert(params, row.params)
        except msgspec.ValidationError as error:
            missing = "session" in params and "$.session" in str(error)
            raise (NotFound() if missing else BadRequest(f"The arguments are invalid: {error}.")) from None
        jsonrpc.check(decoded, self._context.request_limits)
        value = await invoke(self._context, self._who, row, decoded)
        # A few methods return JSON, not a struct.
        return msgspec.convert(value, kind) if isinstance(value, dict) else cast("T", value)

    async def put_file(self, session: str, path: str, data: bytes) -> None:
        """Write a file of the working directory, whole or not at all.

        Raises:
            KernelsvcError: The session has ended, the disk's limit is reached, or the path leads outside.
        """
        auth.require_scope(self._who, "run")
        found = self._context.service.get(self._who, session)
        bound = found.limits.disk_bytes
        if bound is not None and len(data) > max(0, bound - (found.usage.disk_bytes or 0)):
            raise jsonrpc.too_large("The file", len(data), max(0, bound - (found.usage.disk_bytes or 0)))
        await self._context.service.files.put(self._who, session, os.fsencode(path), data)

    async def read_file(self, session: str, path: str, offset: int, limit: int) -> FilePart:
        """Read some bytes of a file of the working directory.

        Raises:
            KernelsvcError: There is no such regular file.
        """
        auth.require_scope(self._who, "read")
        reader = await self._context.service.files.open(self._who, session, os.fsencode(path))
        try:
            return FilePart(data=await reader.read(offset, limit), size=reader.status.size)
        finally:
            reader.close()

    async def list_files(self, session: str, path: str, *, recursive: bool) -> tuple[list[FileShown], bool]:
        """List a directory: at most a thousand names, and whether there are more.

        Raises:
            KernelsvcError: It is not a directory of the session.
        """
        auth.require_scope(self._who, "read")
        named = os.fsencode(path.strip("/")) if path.strip("/.") else b""
        entries, more = await self._context.service.files.list(
            self._who, session, named, depth=None if recursive else 1, limit=MAX_LISTED
        )
        shown = [
            FileShown(path=each.path.decode("utf-8", "replace"), kind=each.kind, size=each.size) for each in entries
        ]
        return shown, more

    async def notebook(self, session: str, format: str) -> bytes:
        """Return the session as a notebook, also if it is closed."""
        auth.require_scope(self._who, "read")
        return await self._context.service.notebook(self._who, session, cast("NotebookFormat", format))
