"""Functions as offers: the name, the text and the schemas of an offer from a Python function.

The schema follows from the annotations by msgspec, and arguments are converted by the same type. A pydantic model is
used by its own methods, without importing pydantic.
"""

from __future__ import annotations

import base64
import dataclasses
import inspect
import io
import typing
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from kernelsvc.errors import BadRequest
from kernelsvc.model.tool_calls.offers import Offer

#: Turns arguments by name into positional and keyword arguments. Raises if they do not fit.
Convert = Callable[[Mapping[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]
#: Name of the parameter for the call's own description, if it has no annotation.
_CALL = "ToolCall"


@dataclasses.dataclass(frozen=True)
class ReadyAnswer:
    """The result of a function in the form that code gets, instead of a value to convert.

    Attributes:
        value: a JSON value.
        content: content blocks as in MCP's results, instead of a value.
        error: ``type`` and ``message`` of an exception that code gets, instead of a result.
    """

    value: Any = None
    content: list[dict[str, Any]] | None = None
    error: dict[str, Any] | None = None

    def answer(self) -> dict[str, Any]:
        """Return it as fields of ``tool.return``."""
        if self.error is not None:
            return {"status": "error", "error": self.error}
        return {"status": "ok", **({"value": self.value} if self.content is None else {"content": self.content})}


@dataclasses.dataclass(frozen=True)
class OfferedFunction:
    """A function with its offer.

    Attributes:
        offer: what code sees.
        function: plain or async.
        call_parameter: name of the parameter that gets the ``ToolCall``. Empty if there is none.
        send_traceback: whether code sees the function's traceback.
    """

    offer: Offer
    function: Callable[..., Any]
    convert: Convert
    call_parameter: str = ""
    send_traceback: bool = False

    @property
    def is_async(self) -> bool:
        """Whether the function is a coroutine function."""
        return inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(
            getattr(self.function, "__call__", None)  # noqa: B004 - an object with an async __call__
        )


def offered(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    description: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    returns: Mapping[str, Any] | None = None,
    model: Any = None,
    timeout: float | None = None,
    send_traceback: bool = False,
    **fields: Any,
) -> OfferedFunction:
    """Return a function as an offer.

    Args:
        function: plain or async. With a parameter annotated ``ToolCall`` it gets the call's own description.
        name: default: the function's name.
        description: default: the function's docstring.
        parameters: JSON schema of the arguments. Default: from the annotations.
        returns: JSON schema of the result. Default: from the annotation, if it has one.
        model: a pydantic model of the arguments, or another class with ``model_json_schema`` and ``model_validate``.
            The function gets one instance of it.
        timeout: seconds for one call.
        send_traceback: show code the traceback of an exception, which names files of this machine.
        fields: other fields of ``Offer``: ``approval``, ``effects``, ``redact``, ``max_calls_per_cell``, …

    Raises:
        BadRequest: a field has a wrong value, or the annotations have no JSON schema.
    """
    call_parameter, hints, signature = _signature_of(function)
    convert: Convert
    if model is not None:
        schema = dict(model.model_json_schema())
        convert = lambda arguments: ((model.model_validate(dict(arguments)),), {})  # noqa: E731
    elif parameters is not None:
        schema = dict(parameters)
        convert = lambda arguments: ((), dict(arguments))  # noqa: E731
    else:
        schema, convert = _from_annotations(function, signature, hints, call_parameter)
    if returns is None and "return" in hints and hints["return"] not in (Any, type(None), None):
        returns = _schema_or_none(hints["return"])
    values = {
        "name": name or getattr(function, "__name__", type(function).__name__),
        "description": inspect.getdoc(function) or "" if description is None else description,
        "parameters": schema,
        "returns": returns,
        **({"timeout_seconds": timeout} if timeout is not None else {}),
        **fields,
    }
    try:
        offer = msgspec.convert(values, Offer)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The offer {values['name']!r} is not valid: {error}.") from None
    return OfferedFunction(offer, function, convert, call_parameter, send_traceback)


def require_named(name: str, arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Check the arguments of a call from code, for a function that would take more than the code may give.

    Args:
        name: the function's name.
        arguments: of the call.
        parameters: JSON schema of the arguments.

    Raises:
        TypeError: the schema does not name one of them.
    """
    unknown = arguments.keys() - parameters.get("properties", {}).keys()
    if unknown and not parameters.get("additionalProperties"):
        raise TypeError(f"{name}() has no argument {min(unknown)!r}")


def _signature_of(function: Callable[..., Any]) -> tuple[str, dict[str, Any], inspect.Signature]:
    """Return the name of the parameter for the call, the annotations, and the signature."""
    target = function if inspect.isroutine(function) else type(function).__call__
    try:
        hints = typing.get_type_hints(target, include_extras=True)
    except (NameError, TypeError):  # names that exist only for a type checker
        hints = {}
    signature = inspect.signature(function)
    for parameter in signature.parameters.values():
        kind = hints.get(parameter.name, parameter.annotation)
        if getattr(kind, "__name__", str(kind).rpartition(".")[2]) == _CALL:
            return parameter.name, hints, signature
    return "", hints, signature


def _from_annotations(
    function: Callable[..., Any], signature: inspect.Signature, hints: dict[str, Any], call_parameter: str
) -> tuple[dict[str, Any], Convert]:
    fields: list[Any] = []
    for parameter in signature.parameters.values():
        if parameter.name == call_parameter or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        kind = hints.get(parameter.name, Any)
        if parameter.default is parameter.empty:
            fields.append((parameter.name, kind))
        else:
            # The function has its own default. Only the schema shows it.
            shown = msgspec.field(default=msgspec.UNSET)
            fields.append((parameter.name, kind | msgspec.UnsetType if kind is not Any else Any, shown))
    try:
        struct = msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)
        schema = _schema(struct)
    except TypeError as error:
        name = getattr(function, "__name__", "?")
        raise BadRequest(f"The annotations of {name} have no JSON schema ({error}). Pass parameters=SCHEMA.") from None
    for parameter in signature.parameters.values():
        part = schema.get("properties", {}).get(parameter.name)
        if part is not None and parameter.default is not parameter.empty:
            plain = isinstance(parameter.default, str | int | float | bool | list | dict)
            part.update({"default": parameter.default} if plain else {})

    def convert(arguments: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        found = msgspec.convert(dict(arguments), struct)
        values = ((name, getattr(found, name)) for name in struct.__struct_fields__)
        return (), {name: value for name, value in values if value is not msgspec.UNSET}

    return schema, convert


def _schema(kind: Any) -> dict[str, Any]:
    """Return a JSON schema whose top level is no reference."""
    schema = msgspec.json.schema(kind)
    definitions = schema.pop("$defs", {})
    name = schema.get("$ref", "").rpartition("/")[2]
    if name in definitions:
        schema = definitions.pop(name)
        schema.pop("title", None)
    return {**schema, "$defs": definitions} if definitions else schema


def _schema_or_none(kind: Any) -> dict[str, Any] | None:
    try:
        return _schema(kind)
    except TypeError:
        return None


def answer_of(value: Any) -> dict[str, Any]:
    """Return a function's result as fields of ``tool.return``: a JSON value, or content blocks for bytes and images.

    Args:
        value: any value with a JSON form, bytes, an image, or a ``ReadyAnswer``.

    Raises:
        TypeError: the result has no JSON form.
    """
    if isinstance(value, ReadyAnswer):
        return value.answer()
    if isinstance(value, bytes | bytearray | memoryview):
        return {"status": "ok", "content": [{"type": "blob", "data": base64.b64encode(value).decode()}]}
    library = type(value).__module__.partition(".")[0]
    if library == "PIL" and callable(getattr(value, "save", None)):
        file = io.BytesIO()
        value.save(file, "PNG")
        block = {"type": "image", "mimeType": "image/png", "data": base64.b64encode(file.getvalue()).decode()}
        return {"status": "ok", "content": [block]}
    return {"status": "ok", "value": msgspec.Raw(msgspec.json.encode(value, enc_hook=_plain))}


def _plain(value: Any) -> Any:
    if callable(getattr(value, "model_dump", None)):
        return value.model_dump(mode="json")
    if type(value).__name__ == "DataFrame":
        return value.to_dict("records")
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    if callable(getattr(value, "isoformat", None)):
        return value.isoformat()
    raise TypeError(f"The result holds a {type(value).__name__}, which has no JSON form.")
