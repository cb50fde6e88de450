"""The tools as LangChain tools, for any of its models and agents."""

from __future__ import annotations

import base64
import importlib
from collections.abc import Iterable
from typing import Any

from kernelsvc.client.offered import OfferedFunction, offered, require_named
from kernelsvc.integrations.tool_calls import AsyncTools, Tools
from kernelsvc.tools import TOOLS, Tool, ToolResult
from kernelsvc.tools.schema import described, input_schema

_Answer = tuple[list[dict[str, Any]], dict[str, Any] | None]


def tools(over: Tools | AsyncTools, names: list[str] | None = None) -> list[Any]:
    """Return a LangChain ``StructuredTool`` for each tool. Needs the package ``langchain-core``.

    The content of a tool message is text and images, as LangChain's content blocks. Its artifact is the facts. A
    failure is content too, so that the model reads it.

    Args:
        over: runs the calls. With ``AsyncTools`` the tools can only be awaited.
        names: names of tools. None means all.
    """
    kind = importlib.import_module("langchain_core.tools").StructuredTool
    where = over.place() if isinstance(over, Tools) else ""
    return [_tool(kind, described(TOOLS[name], where), over) for name in names or TOOLS]


def offers(tools: Iterable[Any], **options: Any) -> list[OfferedFunction]:
    """Return LangChain tools as functions that code in sessions may call. They run in this program.

    Args:
        tools: ``BaseTool`` objects.
        options: fields of all offers, such as ``approval``.
    """
    return [_offer(tool, options) for tool in tools]


def _offer(tool: Any, options: dict[str, Any]) -> OfferedFunction:
    # Without the arguments that the application gives itself (InjectedToolArg).
    schema = tool.tool_call_schema
    parameters = schema if isinstance(schema, dict) else schema.model_json_schema()

    async def call(**arguments: Any) -> Any:
        # ``ainvoke`` takes those, too, and has a meaning of its own for a dictionary that looks like a tool call.
        require_named(tool.name, arguments, parameters)
        return await tool.ainvoke(arguments)

    return offered(call, name=tool.name, description=tool.description, parameters=parameters, **options)


def _tool(kind: Any, tool: Tool, over: Tools | AsyncTools) -> Any:
    def call(**arguments: Any) -> _Answer:
        if isinstance(over, AsyncTools):
            raise TypeError("These tools can only be awaited. Call ainvoke, or make them over Tools.")
        return _answer(over.call(tool.name, arguments))

    async def acall(**arguments: Any) -> _Answer:
        if isinstance(over, Tools):
            raise TypeError("These tools can't be awaited. Call invoke, or make them over AsyncTools.")
        return _answer(await over.call(tool.name, arguments))

    more = {"func": call} if isinstance(over, Tools) else {"coroutine": acall}
    return kind(
        name=tool.name,
        description=tool.about,
        args_schema=input_schema(tool),
        response_format="content_and_artifact",
        **more,
    )


def _answer(result: ToolResult) -> _Answer:
    content: list[dict[str, Any]] = [{"type": "text", "text": result.text}]
    for picture in result.pictures:
        data = base64.b64encode(picture.data).decode()
        content.append({"type": "image", "base64": data, "mime_type": picture.mime})
    return content, result.facts
