"""The bridge to MCP servers: it offers their tools to sessions, as ``tools.NAME.tool(...)``.

The bridge is a client of kernelsvc like any other, in a process of its own (``kernelsvc bridge``). Each server of
``[tools.mcp.NAME]`` is one provider with a connection of its own. If an MCP server ends, it is started again, and its
open calls raise ``ToolLost``. A server that asks a person (elicitation) is not answered: the bridge does not offer that
capability.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from kernelsvc.client import AsyncClient
from kernelsvc.client.offered import OfferedFunction, ReadyAnswer
from kernelsvc.client.tool_provider import current_call
from kernelsvc.client.values import Unreachable
from kernelsvc.errors import Forbidden, KernelsvcError, Unauthenticated
from kernelsvc.model.tool_calls.mcp_servers import PROVIDER, McpServer, offer_of

log = logging.getLogger(__name__)

#: Seconds between two looks at a server that reports nothing: whether it lives, and which tools it has.
CHECK_SECONDS = 10.0
#: Seconds for a server to start, and for a call to wait for it.
START_SECONDS = 60.0
#: Seconds between two starts: after a server that ran for ``START_SECONDS``, and at most.
FIRST_PAUSE, MAX_PAUSE = 0.5, 30.0
#: Seconds without a kernelsvc server after which the bridge ends.
GONE_SECONDS = 300.0
#: Most pages of tools of one server. A server may send a cursor with every page.
MAX_PAGES = 100


async def run(servers: Mapping[str, McpServer], url: str | None, token: str | None) -> None:
    """Offer the tools of MCP servers until cancelled, or until no kernelsvc server answers any more.

    Raises:
        KernelsvcError: the kernelsvc server refused the bridge, or is gone.
    """
    gone = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for name, about in servers.items():
            tasks.create_task(_Bridged(name, about, gone).run(url, token), name=f"MCP server {name}")
        await gone.wait()
        raise KernelsvcError("The kernelsvc server is gone. The bridge ends.")


class _Bridged:
    """One MCP server."""

    def __init__(self, name: str, about: McpServer, gone: asyncio.Event) -> None:
        self._name = name
        self._about = about
        self._gone = gone
        self._mcp: Client | None = None
        self._ready = asyncio.Event()  # the MCP server answers
        self._news = asyncio.Event()  # it has other tools, or has ended
        self._offered: list[OfferedFunction] = []

    async def run(self, url: str | None, token: str | None) -> None:
        """Keep the server running, and its tools offered. Returns never."""
        client = AsyncClient(
            url,
            token,
            connect_seconds=GONE_SECONDS,
            retry_seconds=GONE_SECONDS,
            provider=f"{PROVIDER}{self._name}",
            on_state=lambda state: self._gone.set() if state == "gone" else None,
        )
        async with client:
            loop, pause = asyncio.get_running_loop(), FIRST_PAUSE
            while True:
                began = loop.time()
                try:
                    await self._serve(client)
                except (Unauthenticated, Forbidden, Unreachable):
                    raise
                # Of the MCP server, which may be any program, or of tools that can't be offered. Other servers go on.
                except Exception as error:
                    log.warning("the MCP server %s is not available: %s", self._name, _cause(error))
                self._ready.clear()
                pause = FIRST_PAUSE if loop.time() - began > START_SECONDS else min(2 * pause, MAX_PAUSE)
                await asyncio.sleep(pause)

    async def _serve(self, client: AsyncClient) -> None:
        """Connect, and offer the tools until the MCP server ends. It ends by an exception."""
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(START_SECONDS):
                mcp = await stack.enter_async_context(
                    Client(await self._target(stack), message_handler=self._on_message)
                )
                found = await self._functions(mcp)
            log.info("the MCP server %s has %d tools", self._name, len(found))
            while True:
                if [each.offer for each in found] != [each.offer for each in self._offered]:
                    gone = {each.offer.tool for each in self._offered} - {each.offer.tool for each in found}
                    if gone:
                        await client.withdraw(*gone)
                    await client.offer(*found)
                    self._offered = found
                self._mcp = mcp
                self._ready.set()
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CHECK_SECONDS):
                        await self._news.wait()
                async with asyncio.timeout(START_SECONDS):
                    found = await self._functions(mcp)

    async def _target(self, stack: contextlib.AsyncExitStack) -> Any:
        about = self._about
        if about.command:
            return StdioServerParameters(command=about.command[0], args=about.command[1:], env=dict(about.env) or None)
        http = await stack.enter_async_context(httpx2.AsyncClient(headers=about.headers, follow_redirects=True))
        return streamable_http_client(about.url, http_client=http)

    async def _on_message(self, message: Any) -> None:
        if "ListChanged" in type(getattr(message, "root", message)).__name__:
            self._news.set()

    async def _functions(self, mcp: Client) -> list[OfferedFunction]:
        found: list[OfferedFunction] = []
        cursor = None
        for _ in range(MAX_PAGES):
            page = await mcp.list_tools(cursor=cursor, cache_mode="refresh")
            for tool in page.tools:
                if self._about.permits(tool.name):
                    with contextlib.suppress(KernelsvcError):
                        found.append(self._function(tool))
            cursor = page.next_cursor
            if not cursor:
                return found
        log.warning("the MCP server %s has more than %d pages of tools: the others are left out", self._name, MAX_PAGES)
        return found

    def _function(self, tool: Any) -> OfferedFunction:
        hints = tool.annotations
        offer = offer_of(
            self._name,
            self._about,
            tool.name,
            description=tool.description or "",
            parameters=tool.input_schema,
            returns=_result_schema(tool.output_schema),
            read_only=bool(hints and hints.read_only_hint),
            idempotent=bool(hints and hints.idempotent_hint),
        )

        async def call(**arguments: Any) -> ReadyAnswer:
            return await self._call(tool.name, arguments)

        return OfferedFunction(offer, call, lambda arguments: ((), dict(arguments)))

    async def _call(self, tool: str, arguments: dict[str, Any]) -> ReadyAnswer:
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._ready.wait()
        except TimeoutError:
            return _failure("ToolUnavailable", f"The MCP server {self._name} does not start. Nothing was carried out.")
        mcp, own = self._mcp, current_call.get()
        assert mcp is not None

        async def report(progress: float, total: float | None, message: str | None) -> None:
            if own is not None:
                own.progress(progress, total, message)

        try:
            result = await mcp.call_tool(tool, arguments, progress_callback=report)
        except MCPError as error:
            if "closed" in str(error).lower():
                self._ready.clear()
                self._news.set()
                text = f"The MCP server {self._name} ended during the call, which may have been carried out."
                return _failure("ToolLost", text)
            return _failure("ToolFailed", str(error))
        return answer_of_result(result)


def _result_schema(schema: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the schema of the value that code gets. See ``answer_of_result``."""
    inner = (schema or {}).get("properties", {})
    return inner["result"] if inner.keys() == {"result"} else schema


def answer_of_result(result: Any) -> ReadyAnswer:
    """Return an MCP result as code gets it: the structured content, else one text, else content blocks.

    A structured result with the only name ``result`` is its value: so do servers wrap what is no object.
    """
    blocks = [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in result.content]
    texts = [str(each["text"]) for each in blocks if each.get("type") == "text"]
    if result.is_error:
        return _failure("ToolFailed", "\n".join(texts) or "The tool failed.")
    structured = result.structured_content
    if structured is not None:
        return ReadyAnswer(value=structured["result"] if structured.keys() == {"result"} else structured)
    if len(blocks) == 1 and texts:
        return ReadyAnswer(value=texts[0])
    return ReadyAnswer(content=blocks)


def _failure(kind: str, message: str) -> ReadyAnswer:
    return ReadyAnswer(error={"type": kind, "message": message[:60_000]})


def _cause(error: BaseException) -> str:
    """Return the first cause inside of exception groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
