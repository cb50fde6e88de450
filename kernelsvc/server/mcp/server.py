"""The MCP server: the official SDK's low-level server, with handlers over a toolbox.

Both transports use it: HTTP (``asgi_bridge``) and stdio (``kernelsvc mcp``). Only
this module, ``asgi_bridge``, ``subscriptions`` and ``event_store`` import the SDK. They are
imported with the first MCP request, since the SDK's own imports take a second.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn
from urllib.parse import unquote

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from msgspec import Struct

from kernelsvc import __version__
from kernelsvc.errors import KernelsvcError
from kernelsvc.model.objects import SessionState
from kernelsvc.model.tracing.context import RequestMeta
from kernelsvc.protocol.method_params import SessionPage
from kernelsvc.server.mcp import approvals
from kernelsvc.server.mcp.prompts import PROMPTS, render_prompt
from kernelsvc.server.mcp.subscriptions import Subscriptions
from kernelsvc.service.api import REQUEST_META
from kernelsvc.tools import TOOLS, ImageContent, ResourceLink, TextContent, Tool, ToolBackend, Toolbox, ToolResult
from kernelsvc.tools.definitions import INSTRUCTIONS, selected
from kernelsvc.tools.schema import described, input_schema, output_schema, place
from kernelsvc.tools.toolbox import MIME, notebook_uri

Context = ServerRequestContext[Any, Any]
#: Returns the toolbox and the backend for a request's sender.
Find = Callable[[Context], tuple[Toolbox, ToolBackend]]


class McpOptions(Struct, frozen=True, kw_only=True):
    """What a client asks for in the address of the endpoint.

    Attributes:
        facts: Whether results have the facts for programs too, as structured content.
        tools: Which tools are listed: ``core``, ``all``, or names with commas.
    """

    facts: bool = False
    tools: str | None = None


OptionsOf = Callable[[Context], McpOptions]
_DEFAULT = McpOptions()

#: Most bytes of a resource in one response.
MAX_RESOURCE = 16 * 1024 * 1024
MAX_SUGGESTED = 100
_ROOT = "kernelsvc://sessions/"

_ANY_TEMPLATES = (
    ("notebook.ipynb", "Notebook", "A session as a Jupyter notebook, at any time.", MIME["ipynb"]),
    ("notebook.html", "Notebook as a page", "A session as a web page.", MIME["html"]),
    ("notebook.py", "Notebook as a script", "A session's cells as Python.", MIME["py"]),
    ("files/{+path}", "File", "A file of a session's working directory.", None),
)


def make_server(
    find: Find, owner: Callable[[Context], str] = lambda ctx: "", options: OptionsOf = lambda ctx: _DEFAULT
) -> Server[Any]:
    """Make an MCP server that answers each request over the backend that ``find`` returns.

    Args:
        find: Returns toolbox and backend.
        owner: Returns the name of the request's principal. One server for one person needs none.
        options: Returns the request's options.
    """
    handlers = _Handlers(find, options)
    subscriptions = Subscriptions(lambda ctx: find(ctx)[1], parse_uri, owner)
    return Server(
        "kernelsvc",
        version=__version__,
        title="kernelsvc",
        instructions=INSTRUCTIONS,
        get_tool_input_schema=lambda name: input_schema(TOOLS[name]) if name in TOOLS else None,
        on_list_tools=handlers.list_tools,
        on_call_tool=handlers.call_tool,
        on_list_resources=handlers.list_resources,
        on_list_resource_templates=handlers.list_templates,
        on_read_resource=handlers.read_resource,
        on_subscribe_resource=subscriptions.subscribe,
        on_unsubscribe_resource=subscriptions.unsubscribe,
        on_subscriptions_listen=subscriptions.listen,
        on_list_prompts=handlers.list_prompts,
        on_get_prompt=handlers.get_prompt,
        on_completion=handlers.complete,
    )


class _Handlers:
    """One method for each request of the protocol."""

    def __init__(self, find: Find, options: OptionsOf) -> None:
        self._find = find
        self._options = options

    # --- tools ------------------------------------------------------------------------------

    async def list_tools(self, ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        options = self._options(ctx)
        try:
            names = selected(options.tools)
        except KernelsvcError as error:
            _refuse(error)
        templates = await self._call_backend(ctx, lambda backend: backend.call("templates", {}, list[dict[str, Any]]))
        info = await self._call_backend(ctx, lambda backend: backend.call("info", {}, dict[str, Any]))
        where = place(templates, info)
        return types.ListToolsResult(
            tools=[_tool(described(TOOLS[name], where), facts=options.facts) for name in names]
        )

    async def call_tool(
        self, ctx: Context, params: types.CallToolRequestParams
    ) -> types.CallToolResult | types.InputRequiredResult:
        toolbox, _ = self._find(ctx)
        name, arguments = params.name, params.arguments
        given: dict[str, Any] = {**(ctx.meta or {})}
        if "traceparent" in given:
            REQUEST_META.set(RequestMeta(traceparent=given["traceparent"], tracestate=given.get("tracestate")))
        try:
            if (again := await approvals.decide_again(toolbox, params)) is not None:
                name, arguments = "wait", again
            result = await toolbox.call(name, arguments, _reporter(ctx), approvals.decider(ctx))
            return call_result(result, facts=self._options(ctx).facts)
        except approvals.InputRequired as needed:
            return needed.result()
        except KernelsvcError as error:
            _refuse(error)

    # --- resources --------------------------------------------------------------------------

    async def list_resources(
        self, ctx: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        asked: dict[str, Any] = {"limit": 100}
        if params is not None and params.cursor is not None:
            asked["page"] = params.cursor
        page = await self._call_backend(ctx, lambda backend: backend.call("session.list", asked, SessionPage))
        found = [
            types.Resource(
                uri=notebook_uri(each.id, "ipynb"),
                name=f"{each.name or each.id}.ipynb",
                title=f"Notebook of {each.name or each.id}",
                description=f"{each.state}, {each.execution_count} cells, made {each.created_at}",
                mime_type=MIME["ipynb"],
            )
            for each in page.sessions
        ]
        return types.ListResourcesResult(resources=found, next_cursor=page.next_page)

    async def list_templates(
        self, ctx: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        found = [
            types.ResourceTemplate(
                uri_template=f"{_ROOT}{{session}}/{path}",
                name=path.partition("/")[0],
                title=title,
                description=about,
                mime_type=mime,
            )
            for path, title, about, mime in _ANY_TEMPLATES
        ]
        return types.ListResourceTemplatesResult(resource_templates=found)

    async def read_resource(self, ctx: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        uri = str(params.uri)
        session, rest = parse_uri(uri)
        data, mime = await self._call_backend(ctx, lambda backend: _resource(backend, session, rest, uri))
        return types.ReadResourceResult(contents=[contents(uri, mime, data)])

    # --- prompts ----------------------------------------------------------------------------

    async def list_prompts(self, ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListPromptsResult:
        found = [
            types.Prompt(
                name=prompt.name,
                title=prompt.title,
                description=prompt.about,
                arguments=[
                    types.PromptArgument(name=name, description=about, required=name in prompt.required)
                    for name, about in prompt.arguments.items()
                ],
            )
            for prompt in PROMPTS.values()
        ]
        return types.ListPromptsResult(prompts=found)

    async def get_prompt(self, ctx: Context, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        try:
            text = render_prompt(params.name, params.arguments or {})
        except KernelsvcError as error:
            _refuse(error)
        message = types.PromptMessage(role="user", content=types.TextContent(text=text))
        return types.GetPromptResult(description=PROMPTS[params.name].about, messages=[message])

    async def complete(self, ctx: Context, params: types.CompleteRequestParams) -> types.CompleteResult:
        names: list[str] = []
        if params.argument.name == "session":
            page = await self._call_backend(
                ctx, lambda backend: backend.call("session.list", {"limit": 100}, SessionPage)
            )
            names = [each.id for each in page.sessions if each.state is not SessionState.CLOSED]
        fitting = [name for name in names if name.startswith(params.argument.value)][:MAX_SUGGESTED]
        return types.CompleteResult(completion=types.Completion(values=fitting, total=len(fitting), has_more=False))

    async def _call_backend(self, ctx: Context, ask: Callable[[ToolBackend], Awaitable[Any]]) -> Any:
        try:
            return await ask(self._find(ctx)[1])
        except KernelsvcError as error:
            _refuse(error)


def parse_uri(uri: str) -> tuple[str, str]:
    """Return a resource's session and its path in the session."""
    session, _, rest = uri.removeprefix(_ROOT).partition("/")
    if not uri.startswith(_ROOT) or not session or not rest:
        raise MCPError(types.INVALID_PARAMS, f"There is no resource {uri!r}. Call resources/templates/list.")
    return unquote(session), unquote(rest)


def _refuse(error: KernelsvcError) -> NoReturn:
    number = types.INVALID_PARAMS if error.fault == "caller" else types.INTERNAL_ERROR
    raise MCPError(number, error.message, {"code": error.code, "retryable": error.retryable}) from None


def _tool(tool: Tool, *, facts: bool) -> types.Tool:
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.about,
        input_schema=input_schema(tool),
        output_schema=output_schema(tool) if facts else None,
        annotations=types.ToolAnnotations(
            title=tool.title,
            read_only_hint=tool.reads,
            destructive_hint=tool.destroys,
            idempotent_hint=tool.repeats or tool.reads,
            open_world_hint=False,
        ),
    )


def _reporter(ctx: Context) -> Callable[[float, str], Awaitable[None]] | None:
    """Return a function that reports progress to the client. None if the client did not ask for it."""
    if not {"progress_token", "progressToken"} & set(ctx.meta or ()):
        return None

    async def report(seconds: float, said: str) -> None:
        await ctx.session.report_progress(round(seconds, 1), message=said or f"running for {seconds:.0f} s")

    return report


def call_result(outcome: ToolResult, *, facts: bool = False) -> types.CallToolResult:
    """Convert a tool's result into the protocol's.

    Without ``facts`` there is no structured content: hosts that find some show the model nothing else, so that it
    would see neither the pictures nor the text.
    """
    content: list[types.ContentBlock] = []
    for part in outcome.parts:
        match part:
            case TextContent(text=text):
                content.append(types.TextContent(text=text))
            case ImageContent(mime=mime, data=data):
                content.append(types.ImageContent(data=base64.b64encode(data).decode(), mime_type=mime))
            case ResourceLink():
                content.append(types.ResourceLink(uri=part.uri, name=part.name, mime_type=part.mime, size=part.size))
    return types.CallToolResult(
        content=content, structured_content=outcome.facts if facts else None, is_error=outcome.failed
    )


async def _resource(backend: ToolBackend, session: str, rest: str, uri: str) -> tuple[bytes, str | None]:
    kind, _, path = rest.partition("/")
    stem, _, format = kind.rpartition(".")
    if stem == "notebook" and format in MIME and not path:
        return await backend.notebook(session, format), MIME[format]
    if kind != "files" or not path:
        raise MCPError(types.INVALID_PARAMS, f"There is no resource {uri!r}. Call resources/templates/list.")
    piece = await backend.read_file(session, path, 0, MAX_RESOURCE)
    if piece.size > MAX_RESOURCE:
        advice = f"{path} has {piece.size} bytes and a resource {MAX_RESOURCE} at most; use read_file with from_line."
        raise MCPError(types.INVALID_PARAMS, advice)
    return piece.data, None


def contents(uri: str, mime: str | None, data: bytes) -> types.TextResourceContents | types.BlobResourceContents:
    """Return bytes as a resource: as text if they are UTF-8."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return types.BlobResourceContents(
            uri=uri, mime_type=mime or "application/octet-stream", blob=base64.b64encode(data).decode()
        )
    return types.TextResourceContents(uri=uri, mime_type=mime or "text/plain", text=text)
