"""The codec of the native API: JSON-RPC 2.0 in WebSocket text frames. Pure.

Rules:

* ``decode`` returns a ``Request`` whose params have passed their types, or raises
  ``RequestRefused`` with an error of the common hierarchy, and with the request's id
  if it could be read. It raises nothing else, for any bytes.
* An event notification is a journal line with a prefix and a suffix. It is never
  decoded and encoded again, so clients receive the bytes of the log.
* Mistakes that would otherwise be silent are refused: unknown fields, positional
  params, batch arrays, NaN, invalid UTF-8.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from kernelsvc.errors import BadRequest, Internal, KernelsvcError, NotFound, TooLarge
from kernelsvc.model.storage.name_rules import in_words
from kernelsvc.protocol.jupyter import COPIED, check_json
from kernelsvc.protocol.methods import METHODS, Method

#: Deepest JSON in a client's own data (metadata, arguments). Readers of the journal recurse.
MAX_DEPTH = 64

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND = -32700, -32600, -32601
INVALID_PARAMS, INTERNAL_ERROR, SERVER_ERROR = -32602, -32603, -32000

RpcId = Annotated[str, Meta(max_length=256)] | int | float | None


class RequestRefused(Exception):
    """A frame is not a request that can be served.

    Attributes:
        id: The request's id. None if none could be read.
        code: JSON-RPC's number for the error.
        error: The error for ``error.data``.
    """

    def __init__(self, id: RpcId, code: int, error: KernelsvcError) -> None:
        super().__init__(error.message)
        self.id, self.code, self.error = id, code, error


class Request(Struct, frozen=True, kw_only=True):
    """A call that has passed its types. ``id`` is UNSET for a notification, which gets no reply."""

    id: RpcId | UnsetType
    method: Method
    params: Any


#: Largest data of a client's own in a request for a cell, in bytes of JSON. The server has it in memory with the cell.
OWN_BYTES = 1024 * 1024


class RequestLimits(Struct, frozen=True, kw_only=True):
    """Largest request, in bytes of UTF-8 and levels of nesting."""

    frame_bytes: int = 64 * 1024 * 1024
    code_bytes: int = 4 * 1024 * 1024
    depth: int = MAX_DEPTH


class _RequestEnvelope(Struct, kw_only=True, forbid_unknown_fields=True):
    jsonrpc: Literal["2.0"]
    method: Annotated[str, Meta(max_length=128)]
    params: Raw = Raw(b"{}")
    id: RpcId | UnsetType = UNSET


def _call_of(row: Method) -> type[Struct]:
    """Make the type of one method's whole request, so that a valid request is decoded in one pass."""
    fields: list[Any] = [
        ("jsonrpc", Literal["2.0"]),
        ("params", row.params | None, None),
        ("id", RpcId | UnsetType, UNSET),
    ]
    more: dict[str, Any] = {"tag_field": "method", "tag": row.name, "kw_only": True, "forbid_unknown_fields": True}
    return msgspec.defstruct(f"Call_{row.name.replace('.', '_')}", fields, frozen=True, **more)


class _IdOnly(Struct, kw_only=True):
    id: RpcId = None


_envelopes = msgspec.json.Decoder(_RequestEnvelope)
_ids = msgspec.json.Decoder(_IdOnly)
_calls: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Union[*map(_call_of, METHODS.values())])
_params = {name: msgspec.json.Decoder(row.params) for name, row in METHODS.items()}
_encoder = msgspec.json.Encoder()

#: Errors of msgspec for hostile text: invalid JSON, types or UTF-8, deep nesting, huge numbers.
DECODE_ERRORS = (msgspec.DecodeError, ValueError, RecursionError, OverflowError)


DEFAULT_LIMITS = RequestLimits()


def decode(frame: bytes | str, bounds: RequestLimits = DEFAULT_LIMITS) -> Request:
    """Decode one frame into a request.

    Raises:
        RequestRefused: The frame is not a request. Nothing else is raised, for any bytes.
    """
    try:
        raw = frame.encode() if isinstance(frame, str) else frame
    except UnicodeEncodeError:
        raise RequestRefused(
            None, PARSE_ERROR, BadRequest("The frame is not UTF-8. Encode the JSON text in UTF-8.")
        ) from None
    if len(raw) > bounds.frame_bytes:
        raise RequestRefused(None, INVALID_REQUEST, too_large("The frame", len(raw), bounds.frame_bytes))
    try:
        _check_size(raw)
    except BadRequest as error:
        raise RequestRefused(None, INVALID_REQUEST, error) from None
    try:
        call = _calls.decode(raw)
    except DECODE_ERRORS:
        call = None  # _decode_by_steps finds the cause
    if call is None or call.params is None:
        return _decode_by_steps(raw, bounds)
    method = METHODS[call.__struct_config__.tag]
    _check(call.params, bounds, call.id)
    return Request(id=call.id, method=method, params=call.params)


def _check(params: Any, bounds: RequestLimits, id: RpcId | UnsetType) -> None:
    try:
        check(params, bounds)
    except KernelsvcError as error:
        raise RequestRefused(None if isinstance(id, UnsetType) else id, INVALID_PARAMS, error) from None


def _decode_by_steps(raw: bytes, bounds: RequestLimits) -> Request:
    """Decode the envelope, then the method, then its params. Each step has an error of its own."""
    envelope = _envelope(raw)
    id = None if isinstance(envelope.id, UnsetType) else envelope.id
    method = METHODS.get(envelope.method)
    if method is None:
        unknown = NotFound(f"There is no method {envelope.method!r}; GET /v1/openrpc.json lists them.")
        raise RequestRefused(id, METHOD_NOT_FOUND, unknown)
    try:
        params = decode_json(_params[method.name], bytes(envelope.params), "params")
    except KernelsvcError as error:
        raise RequestRefused(id, INVALID_PARAMS, error) from None
    _check(params, bounds, envelope.id)
    return Request(id=envelope.id, method=method, params=params)


def _envelope(raw: bytes) -> _RequestEnvelope:
    try:
        return _envelopes.decode(raw)
    except msgspec.ValidationError as error:
        raise RequestRefused(_id_of(raw), INVALID_REQUEST, BadRequest(_envelope_advice(raw, error))) from None
    except DECODE_ERRORS as error:
        raise RequestRefused(None, PARSE_ERROR, BadRequest(f"The frame is not JSON: {_reason(error)}.")) from None


def _envelope_advice(raw: bytes, error: Exception) -> str:
    if raw.lstrip()[:1] == b"[":
        return "JSON-RPC batch arrays are not supported; send one request per frame, or use session.batch."
    return f"The frame is not a JSON-RPC 2.0 request: {_reason(error)}."


def _id_of(raw: bytes) -> RpcId:
    try:
        return _ids.decode(raw).id
    except DECODE_ERRORS:
        return None


def decode_json(decoder: msgspec.json.Decoder[Any], raw: bytes, what: str) -> Any:
    """Decode a client's JSON.

    Raises:
        BadRequest: It is not JSON, or not of the type. The message names the place.
    """
    _check_size(raw)
    try:
        return decoder.decode(raw)
    except DECODE_ERRORS as error:
        raise BadRequest(f"The {what} can't be read: {_reason(error)}.") from None


def _check_size(raw: bytes) -> None:
    """Refuse a long text that would be decoded for seconds, while all clients wait."""
    if len(raw) > COPIED:
        check_json(raw)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return in_words(str(error)).rstrip(".")


def too_large(what: str, size: int, bound: int) -> TooLarge:
    """Make the error for a size over its limit, with both figures."""
    return TooLarge(
        f"{what} has {size} bytes and the bound is {bound}; send less, or in parts.", size=size, bound=bound
    )


_BOUNDED = ("code", "function", "metadata", "args", "kwargs")
_bounded: dict[type, tuple[str, ...]] = {}


def _limited_fields(kind: type) -> tuple[str, ...]:
    """Return the fields of params that hold code or a client's own data."""
    fields = _bounded.get(kind)
    if fields is None:
        fields = _bounded[kind] = tuple(each for each in _BOUNDED if hasattr(kind, each))
    return fields


def check(params: Any, bounds: RequestLimits) -> None:
    """Check limits that types alone can't express.

    Raises:
        TooLarge: The code is over its limit.
        BadRequest: The client's own data is nested too deep.
    """
    for cell in (params, *getattr(params, "cells", ())):
        for field in _limited_fields(type(cell)):
            value = getattr(cell, field)
            if not value:
                continue
            if isinstance(value, str):
                # A character takes at most four bytes: the exact count is needed only near the limit.
                if len(value) * 4 > bounds.code_bytes and len(value.encode()) > bounds.code_bytes:
                    raise too_large("The code", len(value.encode()), bounds.code_bytes)
            elif too_deep(value, bounds.depth):
                raise BadRequest(f"{field} is nested deeper than {bounds.depth} levels. Flatten it.")
            elif (size := len(_encoder.encode(value))) > OWN_BYTES:
                raise too_large(field, size, OWN_BYTES)


def too_deep(value: Any, limit: int) -> bool:
    """Return whether JSON-like data has more levels than ``limit``. Does not recurse."""
    level: list[Any] = [value] if isinstance(value, (dict, list)) and value else []
    depth = 0
    while level:
        depth += 1
        if depth > limit:
            return True
        inner = (item for box in level for item in (box.values() if isinstance(box, dict) else box))
        level = [item for item in inner if isinstance(item, (dict, list))]
    return False


_RESULT = b'{"jsonrpc":"2.0","id":%b,"result":%b}'
_EVENT = b'{"jsonrpc":"2.0","method":"event","params":'
_EVENT_SIZE = len(_EVENT) + 1
_NUMBERS = {"internal": INTERNAL_ERROR, "bad_request": INVALID_PARAMS}


def encode_result(id: RpcId, value: Any) -> bytes:
    """Encode the reply to a request.

    Raises:
        Internal: The value has no JSON form (a lone surrogate, for example).
    """
    try:
        return _RESULT % (_encoder.encode(id), _encoder.encode(value))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Internal("The result has no JSON form. Read the cell's output in pieces instead.") from error


def encode_error(id: RpcId, error: KernelsvcError, code: int | None = None) -> bytes:
    """Encode an error reply. ``error.data`` holds the same error object as in REST."""
    number = _NUMBERS.get(error.code, SERVER_ERROR) if code is None else code
    data = error_json(error)
    body = {"code": number, "message": data["message"], "data": data}
    return _encoder.encode({"jsonrpc": "2.0", "id": id, "error": body})


def error_json(error: KernelsvcError) -> dict[str, Any]:
    """Return ``error.to_json()``, with details that are certain to have a JSON form."""
    shape = error.to_json()
    try:
        _encoder.encode(shape)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return {**shape, "message": error.message.encode("utf-8", "replace").decode(), "details": {}}
    return shape


def frame_head(size: int) -> bytes:
    """Return the head of a server's text frame (RFC 6455, section 5.2): FIN, opcode 1, no mask."""
    if size < 126:
        return b"\x81" + size.to_bytes(1, "big")
    if size < 1 << 16:
        return b"\x81\x7e" + size.to_bytes(2, "big")
    return b"\x81\x7f" + size.to_bytes(8, "big")


def text_frame(payload: bytes) -> bytes:
    """Return a whole text frame from a server."""
    return frame_head(len(payload)) + payload


def event_frame(line: bytes) -> bytes:
    """Frame a journal line as a notification, byte for byte."""
    size = len(line) + _EVENT_SIZE
    if 126 <= size < 1 << 16:
        return b"\x81\x7e%b%b%b}" % (size.to_bytes(2, "big"), _EVENT, line)
    return b"".join(event_pieces(line))


def event_pieces(line: bytes) -> tuple[bytes, bytes, bytes]:
    """Return ``event_frame`` as prefix, line and suffix, without copying the line."""
    return frame_head(len(line) + _EVENT_SIZE) + _EVENT, line, b"}"


def encode_notification(method: str, params: dict[str, Any]) -> bytes:
    """Encode a notification to a client."""
    return _encoder.encode({"jsonrpc": "2.0", "method": method, "params": params})


def encode_detached(session: str, error: KernelsvcError) -> bytes:
    """Encode the notification that ends a session's events, with the cause."""
    return encode_notification("detached", {"session": session, "error": error_json(error)})
