"""The tools as JSON Schema, and in the formats of vendors' APIs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from kernelsvc.errors import BadRequest
from kernelsvc.tools.definitions import HIDDEN, TOOLS, Tool

#: Limits that the tools check themselves. An error names them, and models pay for each definition with each request.
_CHECKED = ("minLength", "maxLength", "pattern", "minimum", "maximum", "exclusiveMinimum", "default")
_REF = "#/$defs/{name}"


def input_schema(tool: Tool) -> dict[str, Any]:
    """Return the schema of a tool's arguments, without references and null. Optional arguments are not required."""
    found = _closed(_plain(tool.arguments))
    found["properties"] = {
        name: {field: value for field, value in each.items() if field not in _CHECKED}
        for name, each in found["properties"].items()
        if not each.get(HIDDEN)
    }
    return found


def output_schema(tool: Tool) -> dict[str, Any]:
    """Return the schema of a result's facts."""
    return _plain(tool.result)


def _plain(kind: type[Struct]) -> dict[str, Any]:
    (top,), parts = msgspec.json.schema_components([kind], ref_template=_REF)
    found: dict[str, Any] = _inlined(top, parts)
    found.pop("description", None)
    return found


def _inlined(schema: Any, parts: dict[str, Any]) -> Any:
    """Replace each reference in a schema by its target. Remove titles, and null as a choice."""
    if isinstance(schema, list):
        return [_inlined(each, parts) for each in schema]
    if not isinstance(schema, dict):
        return schema
    # Gemini's subset of OpenAPI has no $ref.
    if "$ref" in schema:
        return _inlined(parts[schema["$ref"].rpartition("/")[2]], parts)
    choices = [each for each in schema.get("anyOf", []) if each != {"type": "null"}]
    # Some vendors have no alternatives: the first one is what models should send.
    if len(choices) > 1 and "anyOf" in schema:
        choices = choices[:1]
    if len(choices) == 1:
        rest = {name: value for name, value in schema.items() if name != "anyOf"}
        return _inlined(choices[0] | rest, parts)
    if "enum" in schema:
        schema = {"type": "string", **schema}
    found = {name: _inlined(value, parts) for name, value in schema.items() if name != "title"}
    if "properties" in schema:
        found["properties"] = {name: _inlined(value, parts) for name, value in schema["properties"].items()}
    if found.get("default", 0) is None:
        del found["default"]
    return found


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    # OpenAI refuses an object schema without "properties".
    found = {"type": "object", "properties": {}, **schema, "additionalProperties": False}
    return {name: value for name, value in found.items() if name != "required" or value}


def _openai(tool: Tool) -> dict[str, Any]:
    """Return a tool for Chat Completions."""
    inner = {"name": tool.name, "description": tool.about, "parameters": input_schema(tool)}
    return {"type": "function", "function": inner}


def _openai_responses(tool: Tool) -> dict[str, Any]:
    """Return a tool for the Responses API, where optional parameters need ``strict`` off."""
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.about,
        "parameters": input_schema(tool),
        "strict": False,
    }


def _anthropic(tool: Tool) -> dict[str, Any]:
    """Return a tool for the Messages API."""
    return {"name": tool.name, "description": tool.about, "input_schema": input_schema(tool)}


#: Fields of a schema in Gemini's subset of OpenAPI.
_GEMINI = ("description", "enum", "default", "minimum", "maximum", "pattern")


def _gemini_schema(schema: dict[str, Any]) -> dict[str, Any]:
    kind = schema.get("type") or "string"
    found: dict[str, Any] = {"type": str(kind).upper()}
    found |= {name: schema[name] for name in _GEMINI if name in schema}
    if schema.get("properties"):
        found["properties"] = {name: _gemini_schema(each) for name, each in schema["properties"].items()}
        found["required"] = schema.get("required", [])
    return found


def _gemini(tool: Tool) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.about, "parameters": _gemini_schema(input_schema(tool))}


def _each(form: Callable[[Tool], dict[str, Any]]) -> Callable[[list[Tool]], list[dict[str, Any]]]:
    return lambda tools: [form(tool) for tool in tools]


def _gemini_tools(tools: list[Tool]) -> list[dict[str, Any]]:
    """Return one tool with all functions, for ``generateContent``."""
    return [{"functionDeclarations": [_gemini(tool) for tool in tools]}]


#: Most packages that a tool's description names, and what ends a package's name in a requirement (PEP 508).
_MAX_PACKAGES, _REQUIREMENT = 30, re.compile(r"[\s<>=!~;\[@(]")
#: Most hosts of network rules that a tool's description names.
_MAX_HOSTS = 8
#: Formats by name. Each returns the value of ``tools`` in a request.
FORMATS: dict[str, Callable[[list[Tool]], list[dict[str, Any]]]] = {
    "openai": _each(_openai),
    "openai-responses": _each(_openai_responses),
    "anthropic": _each(_anthropic),
    "gemini": _gemini_tools,
}


def place(templates: list[dict[str, Any]], info: dict[str, Any]) -> str:
    """Return a sentence about the packages of a server's default environment, and what its code can reach."""
    chosen = [each for each in templates if each.get("name") == info.get("default_template")] or templates[:1]
    wanted = [_REQUIREMENT.split(text)[0] for each in chosen for text in each.get("wanted") or []]
    loaded = wanted or [name.partition(".")[0] for each in chosen for name in each.get("preload") or []]
    names = [*dict.fromkeys(loaded)]
    more = f" and {len(names) - _MAX_PACKAGES} more" if len(names) > _MAX_PACKAGES else ""
    packages = f" Installed: {', '.join(names[:_MAX_PACKAGES])}{more} and what they need." if loaded else ""
    # In the server it is a struct, over HTTP an object.
    network = msgspec.to_builtins(info.get("limits", {})).get("network")
    return packages + _reach(network)


def _reach(network: object) -> str:
    """Return a sentence about the network of a server's sessions, as ``limits.network`` has it in JSON."""
    if network == "none":
        return " No network: pip and downloads fail."
    if not isinstance(network, dict):
        return ""
    hosts = [one if isinstance(one, str) else str(one.get("host")) for one in network.get("allow") or []]
    more = f" and {len(hosts) - _MAX_HOSTS} more" if len(hosts) > _MAX_HOSTS else ""
    return f" The network reaches only {', '.join(hosts[:_MAX_HOSTS]) or 'nothing'}{more}."


def described(tool: Tool, where: str = "") -> Tool:
    """Return a tool whose description has a sentence about the place that it runs in."""
    return msgspec.structs.replace(tool, about=tool.about.replace("{PLACE}", where))


def tool_definitions(format: str, names: list[str] | None = None, where: str = "") -> list[dict[str, Any]]:
    """Return the tools in a vendor's format, for the field ``tools`` of a request.

    Args:
        format: ``openai``, ``openai-responses``, ``anthropic`` or ``gemini``.
        names: names of tools, in this order. None means all.
        where: a sentence about the server's environment: ``Tools.place()``, or ``place``.

    Raises:
        BadRequest: the format or a tool is unknown.
    """
    if format not in FORMATS:
        raise BadRequest(f"There is no format {format!r}. Choose one of {', '.join(FORMATS)}.")
    unknown = [name for name in names or [] if name not in TOOLS]
    if unknown:
        raise BadRequest(f"There is no tool {unknown[0]!r}. Choose from {', '.join(TOOLS)}.")
    return FORMATS[format]([described(TOOLS[name], where) for name in names or TOOLS])
