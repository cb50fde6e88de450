"""An MCP server with one tool, ``python``, for model servers that run the loop themselves.

``vllm serve --tool-server HOST:PORT/python`` speaks MCP's first HTTP transport, a stream of events and POSTs (protocol
2024-11-05, "HTTP with SSE"). Gateways speak streamable HTTP. Both are the official SDK's, imported with the first
request.

The state is a container, as of OpenAI's API. The header ``x-container`` of a call names it. Without one it belongs to
``x-session-id``, which vLLM sets to the id of the response.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from typing import Any, Self
from urllib.parse import unquote

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.sse import SseServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage

from kernelsvc import __version__
from kernelsvc.answers.answer_run import outputs_of, result_text
from kernelsvc.answers.containers import AnswerContainer, Containers
from kernelsvc.errors import KernelsvcError
from kernelsvc.model.objects import CellRequest, Principal
from kernelsvc.protocol.openai.code_text import CodeText
from kernelsvc.protocol.openai.requests import CodeTool
from kernelsvc.server.handler import ServerContext
from kernelsvc.server.mcp.asgi_bridge import PRINCIPAL, SESSION_HEADER, Exchange, ManagerTask

NAME = "python"
#: Headers that name a container, the first one before the second.
CONTAINER, SESSION = "x-container", "x-session-id"
MAX_TEXT = 20_000
ABOUT = (
    "Use this tool to execute Python code in your chain of thought. The code runs in a Jupyter session that keeps its "
    "variables and files. Files are in the current directory."
)
_TOOL = types.Tool(
    name=NAME,
    description=ABOUT,
    input_schema={"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
)
#: vLLM leaves a tool with this annotation out of the prompt: models know ``python`` from their training.
_HIDDEN = {"include_in_prompt": False}
Context = ServerRequestContext[Any, Any]


class _AnnotatedTools:
    """A stream of messages to a client. It adds the annotation to tools, which the SDK's types would drop.

    Args:
        stream: The SDK's stream.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def send(self, item: SessionMessage, /) -> None:
        """Send a message."""
        result = getattr(item.message, "result", None)
        for tool in result.get("tools", []) if isinstance(result, dict) else []:
            tool["annotations"] = _HIDDEN
        await self._stream.send(item)

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *raised: Any) -> bool | None:
        ended: bool | None = await self._stream.__aexit__(*raised)
        return ended


class PythonToolService:
    """The tool server of one Tornado application.

    Args:
        context: The state of the server.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context, self._service = context, context.service
        settings = context.settings
        self._containers = Containers(
            context.service, settings.answers.idle_seconds, pauses=settings.hibernate_seconds is not None
        )
        self._server: Server[Any] = Server(
            NAME,
            version=__version__,
            instructions=ABOUT,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
        )
        self._events = SseServerTransport("/messages", max_request_body_size=settings.max_body_bytes)
        self._manager = StreamableHTTPSessionManager(self._server, stateless=True)
        self._running = ManagerTask(self._manager, "mcp python")

    async def stop(self) -> None:
        """End all connections."""
        await self._running.stop()

    async def answer(self, exchange: Exchange) -> None:
        """Serve one request of either transport."""
        await self._running.ready()
        prefix, _, last = exchange.handler.request.path.rstrip("/").rpartition("/")
        # The SDK quotes the path of the messages, which it sends to the client.
        scope = {**exchange.scope(), "root_path": unquote(prefix)}
        if last == "messages":
            await self._events.handle_post_message(scope, exchange.receive, exchange.send)
        elif last == "sse":
            async with self._events.connect_sse(scope, exchange.receive, exchange.send) as (reads, writes):
                await self._server.run(reads, _AnnotatedTools(writes), self._server.create_initialization_options())
        else:
            await self._manager.handle_request(scope, exchange.receive, exchange.send)

    async def _list_tools(self, ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[_TOOL])

    async def _call_tool(self, ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        code = _code_of(params)
        if params.name != NAME or code is None:
            raise MCPError(types.INVALID_PARAMS, 'The only tool is python, with {"code": "..."}.')
        request = ctx.request
        if request is None:
            raise RuntimeError("the MCP request has no HTTP request")
        who: Principal = request.scope[PRINCIPAL]
        try:
            return await self._execute(who, _container_of(request.headers), code)
        except KernelsvcError as error:
            return types.CallToolResult(content=[types.TextContent(text=f"Not run: {error.message}")], is_error=True)

    async def _execute(self, who: Principal, named: tuple[str | None, str], code: str) -> types.CallToolResult:
        container = AnswerContainer(self._containers, who, CodeTool(container=named[0]), "", {}, named[1])
        await container.open()
        request = CellRequest(code=code, on_error="continue", on_disconnect="interrupt")
        try:
            cell = await self._service.execute(who, container.session, request, client=container)
        except asyncio.CancelledError:
            self._service.client_gone(container)
            raise
        made = await container.changes()
        container.renew()
        text = result_text(cell, MAX_TEXT, made, vision=False)
        if container.notice:
            text = f"[{container.notice}]\n{text}"
        # SGLang's gateway makes a code_interpreter_call of these.
        facts = {"code": code, "container_id": container.id, "stdout": cell.text, "outputs": outputs_of(cell)}
        return types.CallToolResult(content=[types.TextContent(text=text)], structured_content=facts)


def _code_of(params: types.CallToolRequestParams) -> str | None:
    """Return the code. Models that know the tool by its JSON schema write JSON where vLLM expects the code itself."""
    code = (params.arguments or {}).get("code")
    if not isinstance(code, str):
        return None
    text = CodeText()
    text.feed(code)
    with contextlib.suppress(ValueError, RecursionError):
        if text.complete and set(json.loads(code)) == {"code"}:
            return text.end()[0]
    return code


def _container_of(headers: Any) -> tuple[str | None, str]:
    """Return the id of a container that a request names, or None, and the key of the one that it gets otherwise."""
    given = headers.get(CONTAINER) or ""
    if given.startswith("cntr_"):
        return given, ""
    key = given or headers.get(SESSION) or headers.get(SESSION_HEADER) or "default"
    return None, "python-" + hashlib.sha256(f"{bool(given)} {key}".encode()).hexdigest()
