"""Values of code as JSON, and results of clients as values. Never by pickle, in either direction."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import decimal
import enum
import io
import json
import math
import pathlib
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from kernelsvc.guest.tools.tool_errors import ToolArgumentError, ToolTooLarge
from kernelsvc.guest.wire_frames import size_error

#: Largest arguments of a call, as JSON, in bytes. The server has the same limit.
MAX_ARGUMENT_BYTES = 1024 * 1024
#: Deepest arguments. Also ends the conversion of a value that contains itself.
MAX_DEPTH = 64

#: Returns the JSON schema of the arguments. Asked for only if a value has several forms.
SchemaOf = Callable[[], Any]


class Rows(list[Any]):
    """A list of objects, with a method that makes a DataFrame of it."""

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with one row for each object."""
        import pandas

        return pandas.DataFrame(list(self))


class ToolImage:
    """An image that a function returned.

    Attributes:
        mime: Its media type.
        data: The file's bytes.
    """

    def __init__(self, data: bytes, mime: str) -> None:
        self.data = data
        self.mime = mime

    def __repr__(self) -> str:
        return f"<ToolImage {self.mime}, {len(self.data)} bytes>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {self.mime: base64.b64encode(self.data).decode()}


def encode(arguments: Mapping[str, Any], schema: SchemaOf) -> bytes:
    """Return arguments as JSON.

    Raises:
        ToolArgumentError: A value has no JSON form. The message names its place.
        ToolTooLarge: The JSON is too large, or has too many parts.
    """
    try:
        plain = _Converter(schema).convert(arguments, ())
        data = json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise ToolArgumentError("A text of the arguments is not valid Unicode: it has a lone surrogate.") from None
    why = size_error(data)
    if why is None and len(data) > MAX_ARGUMENT_BYTES:
        why = f"they have {len(data)} bytes and may have {MAX_ARGUMENT_BYTES}"
    if why is not None:
        raise ToolTooLarge(f"The arguments are too large: {why}. Write a file and pass its name.", status="too_large")
    return data


class _Converter:
    def __init__(self, schema: SchemaOf) -> None:
        self._schema = schema

    def convert(self, value: Any, path: tuple[str | int, ...]) -> Any:
        if value is None or isinstance(value, bool | str):
            return str(value) if type(value) is not str and isinstance(value, str) else value
        if isinstance(value, enum.Enum):
            return self.convert(value.value, path)
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else None
        if len(path) > MAX_DEPTH:
            raise ToolArgumentError(f"The argument {path[0]!r} is nested deeper than {MAX_DEPTH}.")
        if isinstance(value, Mapping):
            return {self._key(key, path): self.convert(inner, (*path, str(key))) for key, inner in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.convert(inner, (*path, at)) for at, inner in enumerate(value)]
        if isinstance(value, bytes | bytearray | memoryview):
            return self._binary(bytes(value), path)
        if isinstance(value, datetime.datetime | datetime.date | datetime.time):
            return None if str(value) == "NaT" else value.isoformat()
        if isinstance(value, pathlib.PurePath | uuid.UUID | decimal.Decimal):
            return str(value)
        return self._of_library(value, path)

    def _key(self, key: Any, path: tuple[str | int, ...]) -> str:
        if isinstance(key, str | int | float) or type(key).__module__ == "numpy":
            return str(key)
        raise ToolArgumentError(f"{_place(path)}: the key {key!r} is not a text.")

    def _of_library(self, value: Any, path: tuple[str | int, ...]) -> Any:
        """Convert values of libraries, by their methods: nothing is imported for it."""
        kind = type(value)
        library = kind.__module__.partition(".")[0]
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: self.convert(getattr(value, f.name), (*path, f.name)) for f in dataclasses.fields(value)}
        if callable(getattr(value, "model_dump", None)):
            return self.convert(value.model_dump(mode="json"), path)
        if library == "pandas" and kind.__name__ == "DataFrame":
            by_column = self._at(path).get("type") == "object"
            return self.convert(value.to_dict("list" if by_column else "records"), path)
        if library == "pandas" and kind.__name__ in ("NAType", "NaTType"):
            return None
        if library == "pandas" and callable(getattr(value, "tolist", None)):
            return self.convert(value.tolist(), path)
        if library == "numpy" and callable(getattr(value, "tolist", None)) and (plain := value.tolist()) is not value:
            return self.convert(plain, path)  # a scalar becomes a number, an array a list
        if library == "PIL" and callable(getattr(value, "save", None)):
            return self._binary(_written(lambda file: value.save(file, "PNG")), path)
        if library == "matplotlib" and callable(getattr(value, "savefig", None)):
            return self._binary(_written(lambda file: value.savefig(file, format="png")), path)
        raise ToolArgumentError(f"{_place(path)}: a {kind.__name__} has no JSON form. Convert it first.")

    def _binary(self, data: bytes, path: tuple[str | int, ...]) -> str:
        schema = self._at(path)
        if schema.get("contentEncoding") == "base64" or schema.get("format") == "binary" or not schema:
            return base64.b64encode(data).decode()
        raise ToolArgumentError(f"{_place(path)}: the function takes no bytes here. Pass text, or a file's name.")

    def _at(self, path: tuple[str | int, ...]) -> dict[str, Any]:
        schema = self._schema()
        for step in path:
            if not isinstance(schema, dict):
                return {}
            inner = schema.get("properties")
            if isinstance(step, str):
                schema = inner.get(step) if isinstance(inner, dict) else None
            else:
                schema = schema.get("items")
        return schema if isinstance(schema, dict) else {}


def _place(path: tuple[str | int, ...]) -> str:
    if not path:
        return "The arguments"
    return f"The argument {path[0]}" + "".join(f"[{step!r}]" for step in path[1:])


def _written(write: Callable[[Any], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def value_of(value: Any, form: str) -> Any:
    """Return a result as code gets it. A text stays a text: it is never decoded.

    Args:
        value: JSON.
        form: ``content`` for a list of content blocks, ``rows`` for a list of objects, else "".
    """
    if form == "rows" and isinstance(value, list):
        return Rows(value)
    if form != "content" or not isinstance(value, list):
        return value
    blocks = [_block(block) for block in value]
    return blocks[0] if len(blocks) == 1 else blocks


def _block(block: Any) -> Any:
    if not isinstance(block, dict):
        return block
    kind, data = block.get("type"), block.get("data")
    if kind == "text":
        return str(block.get("text", ""))
    if kind in ("image", "blob") and isinstance(data, str):
        try:
            raw = base64.b64decode(data, validate=True)
        except ValueError:
            return block
        return raw if kind == "blob" else ToolImage(raw, str(block.get("mimeType", "image/png")))
    return block
