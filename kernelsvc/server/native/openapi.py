"""OpenAPI 3.1 and OpenRPC documents, generated from the tables that the server runs on."""

from __future__ import annotations

import functools
from typing import Any

import msgspec
from msgspec import Struct

from kernelsvc.errors import BY_CODE
from kernelsvc.model.events import AnyEvent
from kernelsvc.model.objects import SessionRequest
from kernelsvc.protocol import jsonrpc, method_params, methods
from kernelsvc.server.native import routes

_REF = "#/components/schemas/{name}"
Schema = dict[str, Any]

ERROR: Schema = {
    "type": "object",
    "description": "Every refusal, on every transport. The message says what to do next.",
    "required": ["code", "message", "retryable", "details"],
    "properties": {
        "code": {"enum": sorted(BY_CODE)},
        "message": {"type": "string"},
        "retryable": {"type": "boolean"},
        "details": {"type": "object"},
    },
}
_ERROR_REF = {"$ref": "#/components/schemas/Refusal"}


@functools.cache
def _schemas() -> tuple[dict[Any, Schema], dict[str, Schema]]:
    """Return the schema of each type, and the components that they refer to."""
    types: list[Any] = [AnyEvent, SessionRequest]
    for row in methods.METHODS.values():
        types += [row.params, row.result]
    for route in routes.ROUTES:
        types += [kind for kind in (route.query, route.body, route.result) if kind is not None]
    unique = list(dict.fromkeys(kind for kind in types if kind is not None))
    schemas, components = msgspec.json.schema_components(unique, ref_template=_REF)
    return dict(zip(unique, schemas, strict=True)), {**components, "Refusal": ERROR}


def schema_of(kind: Any) -> Schema:
    """Return a type's schema (for a struct, a reference)."""
    return {"type": "null"} if kind is None else _schemas()[0][kind]


def _struct_schema(kind: type[Struct]) -> Schema:
    return _schemas()[1][schema_of(kind)["$ref"].rpartition("/")[2]]


def _without(kind: type[Struct], names: list[str]) -> Schema:
    """Return a struct's schema without these fields."""
    schema = _struct_schema(kind)
    properties = {name: value for name, value in schema["properties"].items() if name not in names}
    required = [name for name in schema.get("required", []) if name not in names]
    kept = {key: value for key, value in schema.items() if key not in ("properties", "required", "title")}
    return {**kept, "properties": properties, **({"required": required} if required else {})}


# --- OpenAPI -------------------------------------------------------------------------------


@functools.cache
def openapi_json(version: str) -> bytes:
    """Return the OpenAPI document as JSON."""
    return msgspec.json.encode(openapi(version))


def openapi(version: str) -> Schema:
    """Return the OpenAPI 3.1 document."""
    paths: dict[str, Schema] = {}
    for route in routes.ROUTES:
        paths.setdefault(route.path, {})[route.verb.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kernelsvc",
            "version": version,
            "description": "A self-hosted code interpreter: sessions that live, stream and are kept as notebooks.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": _schemas()[1],
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: routes.Route) -> Schema:
    error = {"description": "A refusal.", "content": {"application/json": {"schema": _ERROR_REF}}}
    good = _good_answer(route)
    responses = {str(route.status): good, "default": error}
    if route.id == "session.execute":
        responses["202"] = good
    if route.id == "files.put":
        responses["200"] = good
    if route.id in ("files.get", "files.head"):
        responses |= {"206": good, "304": {"description": "It has not changed."}}
    operation: Schema = {
        "operationId": route.id,
        "summary": route.summary,
        "parameters": _parameters(route),
        "responses": responses,
        "security": [{"bearer": []}] if route.scope else [],
    }
    if body := _body(route):
        operation["requestBody"] = body
    return operation


def _good_answer(route: routes.Route) -> Schema:
    if route.status == 204:
        return {"description": "Done."}
    content = {}
    for media in route.media:
        typed = media == routes.JSON and route.result is not None
        content[media] = {"schema": schema_of(route.result)} if typed else {}
    return {"description": "Done.", "content": content}


def _parameters(route: routes.Route) -> list[Schema]:
    found: list[Schema] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1, "maxLength": 4096 if name == "path" else 128},
        }
        for name in route.names
    ]
    schema = _without(route.query, route.names)
    for name, value in schema["properties"].items():
        required = name in schema.get("required", [])
        found.append({"name": name, "in": "query", "required": required, "schema": _no_null(value)})
    if route.id in ("session.create", "session.execute"):
        key = {"type": "string", "minLength": 1, "maxLength": 256, "pattern": "^[\\x21-\\x7e]+$"}
        found.append({"name": "Idempotency-Key", "in": "header", "required": False, "schema": key})
    return found


def _no_null(schema: Schema) -> Schema:
    """Remove null from a query's schema: an absent parameter means None."""
    options = [each for each in schema.get("anyOf", []) if each.get("type") != "null"]
    if not options:
        return schema
    rest_of = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    return {**rest_of, **options[0]} if len(options) == 1 else {**rest_of, "anyOf": options}


def _body(route: routes.Route) -> Schema | None:
    if route.takes is not None:
        return {"required": True, "content": {route.takes: {"schema": {"type": "string", "format": "binary"}}}}
    if route.body is None:
        return None
    if route.id == "session.execute":
        names = [*route.names, "wait"]
        schema: Schema = {
            "oneOf": [_without(method_params.ExecuteParams, names), _without(method_params.BatchParams, names)]
        }
    elif route.names:
        schema = _without(route.body, route.names)
    else:
        schema = schema_of(route.body)
    wanted = _without(route.body, route.names).get("required")
    return {"required": bool(wanted), "content": {"application/json": {"schema": schema}}}


# --- OpenRPC --------------------------------------------------------------------------------


@functools.cache
def openrpc_json(version: str) -> bytes:
    """Return the OpenRPC document as JSON."""
    return msgspec.json.encode(openrpc(version))


def openrpc(version: str) -> Schema:
    """Return the OpenRPC document of ``/v1/ws``. Notifications are under ``x-notifications``."""
    return {
        "openrpc": "1.3.2",
        "info": {"title": "kernelsvc", "version": version},
        "methods": [_method(row) for row in methods.METHODS.values()],
        "components": {"schemas": _schemas()[1]},
        "x-notifications": [
            {
                "name": "event",
                "summary": "One entry of a session's log, in order of seq, without gap or repeat.",
                "schema": schema_of(AnyEvent),
            },
            {
                "name": "detached",
                "summary": "No more events of this session follow, and why.",
                "schema": {
                    "type": "object",
                    "required": ["session", "error"],
                    "properties": {"session": {"type": "string"}, "error": _ERROR_REF},
                },
            },
        ],
    }


def _method(row: methods.Method) -> Schema:
    schema = _struct_schema(row.params)
    required = schema.get("required", [])
    return {
        "name": row.name,
        "summary": row.summary,
        "paramStructure": "by-name",
        "params": [
            {"name": name, "required": name in required, "schema": value}
            for name, value in schema["properties"].items()
        ],
        "result": {"name": "result", "schema": schema_of(row.result)},
        "errors": [{"code": jsonrpc.SERVER_ERROR, "message": "refused", "data": _ERROR_REF}],
        "x-scope": row.scope,
        "x-repeatable": row.repeatable,
    }
