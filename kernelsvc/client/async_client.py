"""``AsyncClient``: every operation of the API as a method, over one WebSocket and plain HTTP.

What a method sends stands here and nowhere else; ``blocking`` wraps these
classes for code without an event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from kernelsvc.client.address import Address, find, without_none
from kernelsvc.client.connection import RpcConnection
from kernelsvc.client.http import Rest
from kernelsvc.client.sessions import AsyncSession
from kernelsvc.client.values import Cell, new_id, read
from kernelsvc.model.objects import SessionInfo

#: The server's own bound on a page.
_PAGE = 1000


class AsyncClient:
    """A connection to one kernelsvc server.

    It comes back by itself when the link breaks or the server restarts; what
    was under way goes on, each event is seen once and nothing runs twice. Use
    it as an async context manager, within one event loop.

    Args:
        url: ``http://HOST:PORT`` or ``unix:/path``; default: ``KERNELSVC_URL``, then your own running server.
        token: default: ``KERNELSVC_TOKEN``, then your own running server's.
        connect_seconds: how long the first connection is tried.
        retry_seconds: how long a broken one is tried again before what waits fails with ``Unreachable``.
        on_state: called with ``connected``, ``lost`` or ``gone`` as the link changes.

    Raises:
        Unreachable: no address was given and no server of yours is running here.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        connect_seconds: float = 5.0,
        retry_seconds: float = 60.0,
        on_state: Callable[[str], None] | None = None,
    ) -> None:
        self.address: Address = find(url, token)
        self._rpc = RpcConnection(
            self.address, connect_seconds=connect_seconds, retry_seconds=retry_seconds, on_state=on_state
        )
        self._rest = Rest(self.address, connect_seconds=connect_seconds, retry_seconds=retry_seconds)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the server. Sessions live on until they are closed or expire."""
        await self._rpc.close()
        self._rest.close()

    @property
    def reconnects(self) -> int:
        """How often the link broke and came back."""
        return self._rpc.reconnects

    # --- the server ---------------------------------------------------------------

    async def info(self) -> dict[str, Any]:
        """Version, limits, and what the sandbox enforces."""
        return read(await self._rpc.call("info", {}, repeat=True), dict[str, Any])

    async def templates(self) -> list[dict[str, Any]]:
        """The environments that a session can be made from."""
        return read(await self._rpc.call("templates", {}, repeat=True), list[dict[str, Any]])

    async def execute_once(
        self,
        code: str | None = None,
        *,
        function: str | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        template: str | None = None,
        files: Mapping[str, str] | None = None,
        limits: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Cell:
        """Run code, or call a function, in a session of its own that is then closed.

        Args:
            code: what to run.
            function: instead of code, the source of a lambda or a def; its return value is the cell's ``value``.
            args: its arguments, as JSON holds them.
            kwargs: its keyword arguments.
            template: environment to fork.
            files: names and texts to put into the working directory before.
            limits: caps, at most the server's.
            timeout: seconds the cell may take.

        Raises:
            KernelsvcError: the request was refused. A cell that fails is no exception; see ``Cell.raise_for_error``.
        """
        body = without_none(
            code=code,
            function=function,
            template=template,
            timeout_seconds=timeout,
            args=list(args) or None,
            kwargs=dict(kwargs or {}) or None,
            files=dict(files or {}) or None,
            limits=dict(limits or {}) or None,
        )
        return read(await self._rpc.call("call", body, repeat=False), Cell)

    # --- sessions -------------------------------------------------------------------

    async def create_session(
        self,
        *,
        template: str | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        limits: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        beside: str | None = None,
        keep: bool = False,
    ) -> AsyncSession:
        """A new session, ready for its first cell.

        Args:
            template: environment to fork, or the name of a Jupyter kernelspec.
            name: for people.
            labels: for finding it again.
            limits: caps such as ``{"memory_bytes": 1 << 30, "cell_seconds": 60}``, at most the server's.
            env: environment variables of the kernel.
            beside: a session's id: a kernel of its own in that one's directory, which ends with it.
            keep: whether leaving the session's ``with`` block leaves it open.

        Raises:
            KernelsvcError: ``at_capacity``, ``quota_exceeded``, ``limit_too_high``, ``sandbox_unavailable``, …
        """
        params = without_none(
            template=template,
            name=name,
            labels=dict(labels or {}) or None,
            limits=dict(limits or {}) or None,
            env=dict(env or {}) or None,
            beside=beside,
            idempotency_key=new_id("create"),
            attach=False,
        )
        info = read(await self._rpc.call("session.create", params, repeat=True), SessionInfo)
        return AsyncSession(self._rpc, self._rest, info, keep=keep)

    async def session(self, id: str, *, keep: bool = True) -> AsyncSession:
        """A session that exists, by its id (leaving its ``with`` block leaves it open, unless ``keep`` is False).

        Raises:
            NotFound: there is none, or it is another principal's.
        """
        info = read(await self._rpc.call("session.get", {"session": id}, repeat=True), SessionInfo)
        return AsyncSession(self._rpc, self._rest, info, keep=keep)

    async def sessions(
        self, *, state: str | None = None, label: str | None = None, limit: int | None = None
    ) -> list[SessionInfo]:
        """Your sessions, closed ones too, all pages unless ``limit`` says how many."""
        found: list[SessionInfo] = []
        page: str | None = None
        while True:
            size = _PAGE if limit is None else min(_PAGE, limit - len(found))
            params = without_none(state=state, label=label, limit=size, page=page)
            answer = await self._rpc.call("session.list", params, repeat=True)
            found += read(answer["sessions"], list[SessionInfo])
            page = answer["next_page"]
            if page is None or (limit is not None and len(found) >= limit):
                return found
