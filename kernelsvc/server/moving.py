"""The route by which a node takes sessions of another node that leaves its cluster for good."""

from __future__ import annotations

import hmac
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from kernelsvc.errors import Unauthenticated
from kernelsvc.server import auth
from kernelsvc.server.handler import ApiHandler, ServerContext

PATH = "/v1/cluster/take"
#: Header with the key of the node that gives.
PUBLIC_KEY = "X-Kernelsvc-Public-Key"
#: Part of the free space of the disk that a request may fill: it is unpacked, too.
_SHARE = 3

Take = Callable[[Path, str], Awaitable[list[str]]]


class TakeHandler(ApiHandler):
    """Handler of ``/v1/cluster/take``: the archive of a family, from a node with the cluster's key."""

    scope = None
    own_authentication = True
    transport = "cluster"
    route = PATH

    def initialize(self, context: ServerContext, key: str, data: Path, take: Take) -> None:  # type: ignore[override]
        """Tornado's hook."""
        super().initialize(context)
        self._key, self._data, self._take = key, data, take
        self._file = tempfile.TemporaryFile(dir=data)  # noqa: SIM115 - closed in on_finish
        self._size = 0

    def authenticate_request(self) -> None:
        """Check the cluster's key.

        Raises:
            Unauthenticated: It is another one.
        """
        given = auth.bearer(self.request.headers.get("Authorization")) or ""
        if not hmac.compare_digest(given.encode("utf-8", "surrogatepass"), self._key.encode()):
            raise Unauthenticated("The cluster key is another one. Give nodes and fronts the same.")

    def max_body(self) -> int:
        """Return the largest archive, in bytes."""
        free = os.statvfs(self._data)
        return free.f_bavail * free.f_frsize // _SHARE

    def data_received(self, chunk: bytes) -> None:
        """Tornado's hook: keep the archive on the disk."""
        self._file.write(chunk)

    async def post(self) -> None:
        """Take the sessions."""
        self._file.flush()
        # proc(5): the link leads to the file, which has no name.
        archive = Path(f"/proc/self/fd/{self._file.fileno()}")
        self.answer({"sessions": await self._take(archive, self.request.headers.get(PUBLIC_KEY, ""))})

    def on_finish(self) -> None:
        """Tornado's hook."""
        self._file.close()
        super().on_finish()


def routes(context: ServerContext, key: str, data: Path, take: Take) -> list[Any]:
    """Return the route of a node."""
    return [(PATH, TakeHandler, {"context": context, "key": key, "data": data, "take": take})]
