"""Functions that a client offers, and calls of them, as a session's methods use them."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from kernelsvc.client.address import quoted, without_none
from kernelsvc.client.connection import RpcConnection
from kernelsvc.client.http import Rest
from kernelsvc.client.tool_provider import ToolProvider
from kernelsvc.client.values import read
from kernelsvc.model.objects import ToolCallInfo

Decision = bool | str | None
#: Called with a call that waits for approval. True approves it, False or a reason denies it, None leaves it waiting.
OnApproval = Callable[["AsyncCall"], Decision | Awaitable[Decision]]


class AsyncCall:
    """A call of a session's code to a client's function.

    Attributes:
        info: the entries of the log about it.
    """

    def __init__(self, connection: RpcConnection, info: ToolCallInfo) -> None:
        self.info = info
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self.info, name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.info.call} {self.info.tool}: {self.info.status or self.info.state}>"

    async def approve(self, *, remember: Literal["cell", "session"] | None = None) -> ToolCallInfo:
        """Let the call be carried out. With ``remember``, further calls of the function in the cell or session, too.

        Raises:
            Conflict: it waits for no decision.
            Forbidden: the token lacks the scope ``approve``.
        """
        return await self._decide("approve", None, remember)

    async def deny(self, reason: str | None = None) -> ToolCallInfo:
        """Refuse the call. Code gets a ``PermissionError`` with the reason.

        Raises:
            Conflict: it waits for no decision.
            Forbidden: the token lacks the scope ``approve``.
        """
        return await self._decide("deny", reason, None)

    async def _decide(self, decision: str, reason: str | None, remember: str | None) -> ToolCallInfo:
        params = without_none(
            session=self.info.session, calls=[self.info.call], decision=decision, reason=reason, remember=remember
        )
        answer = await self._connection.call("session.decide", params)
        self.info = read(answer[0], ToolCallInfo)
        return self.info

    async def ask(self, on_approval: OnApproval) -> None:
        """Decide as a function says."""
        decision = on_approval(self)
        if inspect.isawaitable(decision):
            decision = await decision
        if decision is True:
            await self.approve()
        elif decision is not None:
            await self.deny(decision if isinstance(decision, str) else None)


def provider_of(connection: RpcConnection, rest: Rest) -> ToolProvider:
    """Return the provider of a connection, made at its first use."""
    if connection.provider is None:

        async def upload(session: str, name: str, data: bytes) -> None:
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(len(data))}
            path = f"/v1/sessions/{quoted(session)}/files/{quoted(name)}"
            await rest.raw("PUT", path, data, headers=headers, repeat=True)

        connection.provider = ToolProvider(connection, upload, connection.provider_name)
    return connection.provider
