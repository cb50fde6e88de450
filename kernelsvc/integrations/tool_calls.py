"""The common part of all vendors' formats: the tools, the calls in a reply, and their results."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from msgspec import Struct

from kernelsvc.client import AsyncClient
from kernelsvc.client.offered import OfferedFunction
from kernelsvc.client.sync_client import EventLoopThread
from kernelsvc.client.tool_backend import ClientToolBackend
from kernelsvc.client.values import new_id
from kernelsvc.errors import BadRequest, KernelsvcError, NotSupported
from kernelsvc.integrations.code_callers import Functions, VendorTool, offers_of, request_of
from kernelsvc.tools import Toolbox, ToolResult, tool_definitions
from kernelsvc.tools.result import TextContent, error_result
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

    async def offer(self, *functions: Callable[..., Any] | OfferedFunction, **options: Any) -> None:
        """Let code in all sessions of the token call functions. See ``AsyncClient.offer``."""
        await self._client.offer(*functions, **options)

    async def call_any(self, call: RequestedCall, functions: Functions) -> ToolResult:
        """Run a call of one of the application's functions, or of kernelsvc's tools."""
        function = functions.get(call.name)
        if function is None:
            return await self.call(call.name, call.arguments)
        try:
            value = function(**_object(call.arguments))
            if inspect.isawaitable(value):
                value = await value
        except Exception as error:  # the model reads it, as it reads those of kernelsvc's tools
            return ToolResult(parts=[TextContent(f"{type(error).__name__}: {error}")], failed=True)
        text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
        return ToolResult(parts=[TextContent(text)])


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

    def offer(self, *functions: Callable[..., Any] | OfferedFunction, **options: Any) -> None:
        """Let code in all sessions of the token call functions. See ``AsyncClient.offer``."""
        self._loop.run(self._inner.offer(*functions, **options))

    def call_any(self, call: RequestedCall, functions: Functions) -> ToolResult:
        """Run a call of one of the application's functions, or of kernelsvc's tools."""
        return self._loop.run(self._inner.call_any(call, functions))


Answered = list[tuple[RequestedCall, ToolResult]]


class Vendor(Struct, frozen=True):
    """One vendor's format.

    Attributes:
        format: format of the definitions.
        calls: returns the calls in a reply.
        answers: returns the messages with their results, none if there are no calls.
        read: reads definitions that say which tools code may call. None if the format does not say it.
    """

    format: str
    calls: Callable[[Any], list[RequestedCall]]
    answers: Callable[[Answered], list[dict[str, Any]]]
    read: Callable[[Iterable[Mapping[str, Any]]], list[VendorTool]] | None = None

    def tools(
        self, names: list[str] | None = None, where: str = "", also: Iterable[Mapping[str, Any]] = ()
    ) -> list[dict[str, Any]]:
        """Return the value of a request's ``tools``.

        Args:
            names: names of tools, for example ``kernelsvc.tools.CORE``. None means all.
            where: a sentence about the server's environment, from ``Tools.place``.
            also: the application's own definitions. Those that only code may call are left out.
        """
        found = tool_definitions(self.format, [*names] if names else None, where)
        return [*found, *request_of(self.read(also))] if self.read is not None else found

    def offers(self, definitions: Iterable[Mapping[str, Any]], functions: Functions, **options: Any) -> list[Any]:
        """Return those of the application's tools that code may call, for ``Tools.offer`` or ``Session.offer``.

        Args:
            definitions: in the vendor's format, with ``allowed_callers``.
            functions: the functions by name. They take the arguments by name.
            options: fields of all offers, such as ``approval``.

        Raises:
            BadRequest: a tool that code may call has no function.
            NotSupported: the vendor's format has no mark for code.
        """
        if self.read is None:
            raise NotSupported(f"The format {self.format!r} does not say which tools code may call. Use Session.offer.")
        return offers_of(self.read(definitions), functions, **options)

    def run(self, tools: Tools, reply: Any, functions: Functions | None = None) -> list[dict[str, Any]]:
        """Run the calls in a reply, in order.

        Args:
            tools: runs calls of kernelsvc's tools.
            reply: the model's reply.
            functions: the application's functions by name, for calls that the model makes itself.

        Returns:
            the messages to append after the reply. Empty if the model called no tool.
        """
        return self.answers([(call, tools.call_any(call, functions or {})) for call in self.calls(reply)])

    async def arun(self, tools: AsyncTools, reply: Any, functions: Functions | None = None) -> list[dict[str, Any]]:
        """Run the calls in a reply, in order. The async version of ``run``."""
        return self.answers([(call, await tools.call_any(call, functions or {})) for call in self.calls(reply)])


def field(thing: Any, name: str, default: Any = None) -> Any:
    """Return a field of a vendor's object, or of its JSON. Return the default if it is missing or None."""
    found = thing.get(name, default) if isinstance(thing, Mapping) else getattr(thing, name, default)
    return default if found is None else found
