"""The common part of all vendors' formats: the tools, the calls in a reply, and their results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Self

from msgspec import Struct

from kernelsvc.client import AsyncClient
from kernelsvc.client.sync_client import EventLoopThread
from kernelsvc.client.tool_backend import ClientToolBackend
from kernelsvc.client.values import new_id
from kernelsvc.errors import BadRequest, KernelsvcError
from kernelsvc.tools import Toolbox, ToolResult, tool_definitions
from kernelsvc.tools.result import error_result
from kernelsvc.tools.schema import place
from kernelsvc.tools.session_resolver import CallerState


class RequestedCall(Struct, frozen=True, kw_only=True):
    """One tool call of a model.

    Attributes:
        id: the vendor's id of the call.
        name: name of the tool.
        arguments: an object, or its JSON text.
    """

    id: str
    name: str
    arguments: Mapping[str, Any] | str | None = None


class AsyncTools:
    """The tools of a server, for code with an event loop.

    Args:
        url: see ``AsyncClient``.
        token: see ``AsyncClient``.
        session: session of calls that do not name one: an id, or a name. The same name finds the same session later.
            Default: a new session, created by the first call.
    """

    def __init__(self, url: str | None = None, token: str | None = None, *, session: str | None = None) -> None:
        self._client = AsyncClient(url, token)
        self._toolbox = Toolbox(
            ClientToolBackend(self._client), CallerState(session or new_id("tools"), session or "tools")
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Sessions stay open until they are closed or expire."""
        await self._client.close()

    async def place(self) -> str:
        """Return a sentence for models about the server's environment: packages and network. See ``Vendor.tools``."""
        return place(await self._client.templates(), await self._client.info())

    async def call(self, name: str, arguments: Mapping[str, Any] | str | None = None) -> ToolResult:
        """Run one call. Safe to cancel: an accepted cell continues.

        Args:
            name: name of the tool.
            arguments: arguments from the model, an object or its JSON text.

        Returns:
            the result. An error of the call is a result too, so that the model reads it.
        """
        try:
            return await self._toolbox.call(name, _object(arguments))
        except KernelsvcError as error:
            return error_result(error)


def _object(arguments: Mapping[str, Any] | str | None) -> dict[str, Any]:
    if isinstance(arguments, str):
        # OpenAI sends the arguments as JSON text, the others as an object. A model may write text that is not JSON.
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"The arguments are not valid JSON ({error}). Send them again.") from None
    if arguments is not None and not isinstance(arguments, Mapping):
        raise BadRequest("The arguments must be a JSON object. Send them again.")
    return dict(arguments or {})


async def _make_tools(url: str | None, token: str | None, session: str | None) -> AsyncTools:
    return AsyncTools(url, token, session=session)


class Tools:
    """``AsyncTools`` for code without an event loop, with the same arguments and methods."""

    def __init__(self, url: str | None = None, token: str | None = None, *, session: str | None = None) -> None:
        self._loop = EventLoopThread()
        try:
            self._inner = self._loop.run(_make_tools(url, token, session))
        except BaseException:
            self._loop.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Sessions stay open until they are closed or expire."""
        if not self._loop.closed:
            self._loop.run(self._inner.close())
            self._loop.stop()

    def place(self) -> str:
        """Return a sentence for models about the server's environment: see ``AsyncTools.place``."""
        return self._loop.run(self._inner.place())

    def call(self, name: str, arguments: Mapping[str, Any] | str | None = None) -> ToolResult:
        """Run one call: see ``AsyncTools.call``."""
        return self._loop.run(self._inner.call(name, arguments))


Answered = list[tuple[RequestedCall, ToolResult]]


class Vendor(Struct, frozen=True):
    """One vendor's format.

    Attributes:
        format: format of the definitions.
        calls: returns the calls in a reply.
        answers: returns the messages with their results, none if there are no calls.
    """

    format: str
    calls: Callable[[Any], list[RequestedCall]]
    answers: Callable[[Answered], list[dict[str, Any]]]

    def tools(self, names: list[str] | None = None, where: str = "") -> list[dict[str, Any]]:
        """Return the value of a request's ``tools``.

        Args:
            names: names of tools, for example ``kernelsvc.tools.CORE``. None means all.
            where: a sentence about the server's environment, from ``Tools.place``.
        """
        return tool_definitions(self.format, [*names] if names else None, where)

    def run(self, tools: Tools, reply: Any) -> list[dict[str, Any]]:
        """Run the calls in a reply, in order.

        Returns:
            the messages to append after the reply. Empty if the model called no tool.
        """
        return self.answers([(call, tools.call(call.name, call.arguments)) for call in self.calls(reply)])

    async def arun(self, tools: AsyncTools, reply: Any) -> list[dict[str, Any]]:
        """Run the calls in a reply, in order. The async version of ``run``."""
        return self.answers([(call, await tools.call(call.name, call.arguments)) for call in self.calls(reply)])


def field(thing: Any, name: str, default: Any = None) -> Any:
    """Return a field of a vendor's object, or of its JSON. Return the default if it is missing or None."""
    found = thing.get(name, default) if isinstance(thing, Mapping) else getattr(thing, name, default)
    return default if found is None else found
