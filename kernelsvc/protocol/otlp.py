"""OTLP: spans as the protobuf of OpenTelemetry's protocol, and the answers of a receiver. Pure.

The messages are those of the package ``opentelemetry-proto``, which the extra ``telemetry`` installs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Literal

from google.protobuf.message import DecodeError
from msgspec import Struct
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2

from kernelsvc.model.tracing.spans import Attributes, Span, Value

CONTENT_TYPE = "application/x-protobuf"
_KINDS = {
    "internal": trace_pb2.Span.SPAN_KIND_INTERNAL,
    "server": trace_pb2.Span.SPAN_KIND_SERVER,
    "client": trace_pb2.Span.SPAN_KIND_CLIENT,
}
#: Flags of a span whose parent is known to be in another process (trace.proto, SpanFlags).
_SAMPLED, _HAS_IS_REMOTE, _IS_REMOTE = 0x1, 0x100, 0x200


#: Most characters of a receiver's message that are logged, and most seconds that it may ask to wait.
MAX_MESSAGE, MAX_RETRY_AFTER = 500, 300


class Fate(Struct, frozen=True, kw_only=True):
    """The fate of the spans of one request.

    Attributes:
        kind: the receiver has them (accepted), must get them again later, or refuses the request for good.
        rejected: spans of an accepted request that the receiver does not keep. They must not be sent again.
        message: why.
        after: seconds that the receiver asks to wait. 0 if it does not ask.
    """

    kind: Literal["accepted", "later", "refused"]
    rejected: int = 0
    message: str = ""
    after: float = 0.0


def encode(spans: Iterable[Span], resource: Attributes, version: str) -> bytes:
    """Return the body of one request to a receiver.

    Args:
        spans: the spans.
        resource: attributes of the server that all of them have.
        version: of the server.
    """
    scope = InstrumentationScope(name="kernelsvc", version=version)
    inner = trace_pb2.ScopeSpans(scope=scope, spans=[_span(each) for each in spans])
    outer = trace_pb2.ResourceSpans(resource=Resource(attributes=_attributes(resource)), scope_spans=[inner])
    encoded: bytes = ExportTraceServiceRequest(resource_spans=[outer]).SerializeToString()
    return encoded


def _span(span: Span) -> trace_pb2.Span:
    failed = span.error is not None
    status = trace_pb2.Status(code=trace_pb2.Status.STATUS_CODE_ERROR, message=span.error or "") if failed else None
    remote = _HAS_IS_REMOTE | (_IS_REMOTE if span.kind == "server" else 0) if span.parent else 0
    return trace_pb2.Span(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent,
        trace_state=span.state,
        flags=_SAMPLED | remote,
        name=span.name,
        kind=_KINDS[span.kind],
        start_time_unix_nano=span.start,
        end_time_unix_nano=span.end,
        attributes=_attributes(span.attributes),
        events=[
            trace_pb2.Span.Event(time_unix_nano=each.at, name=each.name, attributes=_attributes(each.attributes))
            for each in span.events
        ],
        dropped_events_count=span.dropped_events,
        links=[trace_pb2.Span.Link(trace_id=trace, span_id=other) for trace, other in span.links],
        status=status,
    )


def _attributes(attributes: Mapping[str, Value]) -> list[KeyValue]:
    return [KeyValue(key=name, value=_value(value)) for name, value in attributes.items()]


def _value(value: Value) -> AnyValue:
    if isinstance(value, bool):  # Also an int.
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=max(-(2**63), min(2**63 - 1, value)))
    if isinstance(value, float):
        return AnyValue(double_value=value)
    return AnyValue(string_value=value)


#: Statuses after which the same request may be accepted later (OTLP/HTTP, "Retryable Response Codes"), and those that a
#: person must resolve at the receiver or in the settings: a wrong key, a wrong path. Their spans wait.
_LATER = frozenset({401, 403, 404, 405, 408, 415, 429, 500, 501, 502, 503, 504})


def judge(status: int, headers: Mapping[str, str], body: bytes) -> Fate:
    """Return what the answer of a receiver means for the spans of a request.

    Args:
        status: of HTTP.
        headers: of the answer.
        body: of the answer.
    """
    if 200 <= status < 300:
        return _accepted(headers.get("Content-Type", ""), body)
    why = f"it answered {status}"
    if status in _LATER or 300 <= status < 400:
        return Fate(kind="later", message=why, after=_retry_after(headers.get("Retry-After", "")))
    return Fate(kind="refused", message=why)


def _retry_after(text: str) -> float:
    return float(min(int(text), MAX_RETRY_AFTER)) if text.isascii() and text.isdecimal() and len(text) < 9 else 0.0


def _accepted(content_type: str, body: bytes) -> Fate:
    """Read the answer to an accepted request. A page of a proxy is no answer of a receiver."""
    kind = content_type.partition(";")[0].strip().lower()
    try:
        if not body:
            return Fate(kind="accepted")
        if kind == "application/json":
            partial = json.loads(body).get("partialSuccess") or {}
            rejected, message = int(partial.get("rejectedSpans") or 0), str(partial.get("errorMessage") or "")
        elif kind in (CONTENT_TYPE, ""):
            found = ExportTraceServiceResponse.FromString(body).partial_success
            rejected, message = found.rejected_spans, found.error_message
        else:
            return Fate(kind="later", message=f"its answer has the type {kind[:100]!r}")
    except (DecodeError, ValueError, AttributeError, TypeError, RecursionError):
        return Fate(kind="later", message="its answer can't be read")
    return Fate(kind="accepted", rejected=max(0, rejected), message=message[:MAX_MESSAGE])
