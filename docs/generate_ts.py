"""Generate the types of the TypeScript client from the OpenRPC document, the tree of errors and the table of tools.

An own generator, because the ones that exist for JSON Schema read a default as "always there", which holds for the
objects of answers and is wrong for parameters, and none reads OpenRPC's methods (docs/adr/0032-typescript-client.md).
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from kernelsvc import errors
from kernelsvc.model import events as ev
from kernelsvc.server.native import openapi
from kernelsvc.tools import TOOLS
from kernelsvc.tools.schema import described, input_schema

NOTE = "// Written by docs/generate_ts.py from the code of the server. Run `make docs` to update it.\n\n"
Schema = dict[str, Any]
#: TypeScript has names of its own for these.
_PRIMITIVES = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}
_EVENTS = {kind.__name__ for kind in typing.get_args(ev.AnyEvent)}


def api_module() -> str:
    """Return ``src/generated.ts``: objects, events, methods and errors."""
    document = openapi.openrpc("")
    schemas: dict[str, Schema] = document["components"]["schemas"]
    rows: list[Schema] = document["methods"]
    sent = set(_reached((param["schema"] for row in rows for param in row["params"]), schemas))
    event_union = _named(document["x-notifications"], "event")["schema"]
    received = [row["result"]["schema"] for row in rows] + [event_union, {"$ref": "FileList"}, {"$ref": "EventPage"}]
    wanted = sent | set(_reached(received, schemas))
    lines = ['import { KernelsvcError } from "./errors.ts";', ""]
    lines += [line for name in sorted(wanted) for line in _declaration(name, schemas[name], sent=name in sent)]
    lines += _event_types()
    lines += ["/** The methods of the WebSocket, by name. */", "export interface Methods {"]
    for row in rows:
        lines += [*_comment(row["summary"], "  "), f"  {json.dumps(row['name'])}: {{ {_signature(row)} }};"]
    lines += ["}", ""]
    repeatable = [row["name"] for row in rows if row["x-repeatable"]]
    lines += ["/** Methods that a client may send again on another connection. */"]
    lines += ["export const REPEATABLE: ReadonlySet<string> = new Set([", *(f'  "{each}",' for each in repeatable)]
    lines += ["]);", "", *_error_classes()]
    return NOTE + "\n".join(lines) + "\n"


def tools_module() -> str:
    """Return ``src/ai/generated.ts``: the tools for models, in the words that every protocol uses."""
    rows = [
        {
            "name": tool.name,
            "title": tool.title,
            "description": described(tool).about,
            "inputSchema": input_schema(tool),
            "reads": tool.reads,
            "destroys": tool.destroys,
            "repeats": tool.repeats,
        }
        for tool in TOOLS.values()
    ]
    names = " | ".join(f'"{tool}"' for tool in TOOLS)
    return (
        NOTE + f"/** A tool for models. */\nexport type ToolName = {names};\n\n"
        "/** A tool: its words for models, the JSON schema of its arguments, and hints about its effects. */\n"
        "export interface ToolDefinition {\n  name: ToolName;\n  title: string;\n  description: string;\n"
        "  inputSchema: Record<string, unknown>;\n  reads: boolean;\n  destroys: boolean;\n  repeats: boolean;\n}\n\n"
        "/** The tools, in the order in which models see them. */\n"
        f"export const TOOLS: readonly ToolDefinition[] = {json.dumps(rows, indent=2, ensure_ascii=False)};\n"
    )


def _named(rows: Iterable[Schema], name: str) -> Schema:
    return next(row for row in rows if row["name"] == name)


def _target(schema: Schema) -> str:
    return str(schema["$ref"].rpartition("/")[2])


def _reached(roots: Iterable[Any], schemas: dict[str, Schema]) -> Iterator[str]:
    """Yield the names of all components that these schemas refer to."""
    seen: set[str] = set()
    todo = list(roots)
    while todo:
        each = todo.pop()
        if isinstance(each, list):
            todo += each
        elif isinstance(each, dict):
            if "$ref" in each and (name := _target(each)) not in seen:
                seen.add(name)
                todo.append(schemas[name])
                yield name
            todo += [value for key, value in each.items() if key not in ("default", "description")]


def _type_name(component: str) -> str:
    """Return the TypeScript name. Events get a suffix: Error, Result and Stream have other meanings in JavaScript."""
    return f"{component}Event" if component in _EVENTS and not component.endswith("Event") else component


def _comment(text: str, indent: str = "") -> list[str]:
    lines = text.replace("``", "`").replace("*/", "* /").strip().splitlines()
    if not lines:
        return []
    if len(lines) == 1:
        return [f"{indent}/** {lines[0]} */"]
    return [f"{indent}/**", *(f"{indent} * {line}".rstrip() for line in lines), f"{indent} */"]


def _declaration(name: str, schema: Schema, *, sent: bool) -> list[str]:
    shown = _type_name(name)
    text, attributes = _documented(schema.get("description", ""))
    if "properties" not in schema:
        return [*_comment(text), f"export type {shown} = {_type(schema)};", ""]
    required = schema.get("required", [])
    lines = [*_comment(text), f"export interface {shown} {{"]
    for field, value in schema["properties"].items():
        # The server writes the fields that have a default into each answer. A client may leave them out of a request.
        given = field in required or ("default" in value and not sent)
        lines += _comment(attributes.get(field) or value.get("description", ""), "  ")
        lines.append(f"  {field}{'' if given else '?'}: {_type(value)};")
    return [*lines, "}", ""]


def _documented(text: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into its text and the descriptions of its attributes."""
    about, _, section = text.partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", section, re.MULTILINE)
    return about.strip(), {name: " ".join(value.split()) for name, value in found}


def _type(schema: Schema) -> str:
    if "$ref" in schema:
        return _type_name(_target(schema))
    if "enum" in schema:
        return " | ".join(json.dumps(each) for each in schema["enum"])
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_type(each) for each in schema["anyOf"]))
    kind = schema.get("type")
    if kind == "array":
        inner = _type(schema.get("items") or {})
        return f"({inner})[]" if " | " in inner else f"{inner}[]"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"Record<string, {_type(inner) if isinstance(inner, dict) else 'unknown'}>"
    return _PRIMITIVES.get(str(kind), "unknown")


def _signature(row: Schema) -> str:
    params = [f"{param['name']}{'' if param['required'] else '?'}: {_type(param['schema'])}" for param in row["params"]]
    shown = f"{{ {'; '.join(params)} }}" if params else "Record<string, never>"
    return f"params: {shown}; result: {_type(row['result']['schema'])}"


def _event_types() -> list[str]:
    names = [_type_name(kind.__name__) for kind in typing.get_args(ev.AnyEvent)]
    tags = [f'"{kind.__struct_config__.tag}"' for kind in typing.get_args(ev.AnyEvent)]
    return [
        "/** The names of the events in this release. */",
        "export type EventType =",
        *(f"  | {tag}" for tag in tags[:-1]),
        f"  | {tags[-1]};",
        "",
        "/** An event whose type this release knows: check `event.type`. */",
        "export type KnownEvent =",
        *(f"  | {name}" for name in names[:-1]),
        f"  | {names[-1]};",
        "",
    ]


def _error_classes() -> list[str]:
    lines = []
    for code, kind in errors.BY_CODE.items():
        parent = kind.__base__.__name__ if kind.__base__ else ""
        doc = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
        lines += [
            f"/** {doc} */",
            f"export class {kind.__name__} extends {parent} {{",
            f'  static override readonly code: string = "{code}";',
            f"  static override readonly status: number = {kind.http_status};",
            f"  static override readonly retryable: boolean = {str(kind.retryable).lower()};",
            "}",
            "",
        ]
    lines += ["/** The classes of errors by their codes. */", "export const ERRORS: Readonly<"]
    lines[-1] += "Record<string, typeof KernelsvcError>> = {"
    lines += [f"  {code}: {kind.__name__}," for code, kind in errors.BY_CODE.items()]
    return [*lines, "};"]
