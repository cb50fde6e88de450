import json

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Wire
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from otlp_receiver import attributes

from kernelsvc.model.tracing.spans import Span, SpanEvent
from kernelsvc.protocol.otlp import encode, judge

PROTOBUF = {"Content-Type": "application/x-protobuf"}


def test_a_span_can_be_read_back_field_by_field():
    values = {"text": "ä", "yes": True, "number": 5, "huge": 2**70, "share": 0.5}
    span = Span(
        trace_id=b"t" * 16, span_id=b"s" * 8, parent=b"p" * 8, state="a=b", name="n", kind="server", start=5, end=9,
        attributes=values, events=[SpanEvent(6, "started", {"k": "v"})], links=[(b"l" * 16, b"m" * 8)],
        error="timeout", seq=1, dropped_events=3,
    )  # fmt: skip
    body = encode(
        [span, Span(trace_id=b"t" * 16, span_id=b"o" * 8, name="o", start=1, end=1, seq=2)], {"r": "x"}, "1.2"
    )
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    (scope,) = resource.scope_spans
    first, second = scope.spans
    assert attributes(resource.resource.attributes) == {"r": "x"}
    assert (scope.scope.name, scope.scope.version) == ("kernelsvc", "1.2")
    assert attributes(first.attributes) == {**values, "huge": 2**63 - 1}
    assert (first.trace_id, first.span_id, first.parent_span_id) == (b"t" * 16, b"s" * 8, b"p" * 8)
    assert (first.trace_state, first.name, first.kind) == ("a=b", "n", Wire.SPAN_KIND_SERVER)
    assert (first.start_time_unix_nano, first.end_time_unix_nano, first.dropped_events_count) == (5, 9, 3)
    assert (first.status.code, first.status.message) == (Status.STATUS_CODE_ERROR, "timeout")
    assert (first.flags, second.flags) == (0x301, 0x1)
    (event,), (link,) = first.events, first.links
    assert (event.time_unix_nano, event.name, attributes(event.attributes)) == (6, "started", {"k": "v"})
    assert (link.trace_id, link.span_id) == (b"l" * 16, b"m" * 8)
    assert (second.status.code, second.kind, second.parent_span_id) == (0, Wire.SPAN_KIND_INTERNAL, b"")


def partial(**fields):
    return ExportTraceServiceResponse(partial_success=ExportTracePartialSuccess(**fields)).SerializeToString()


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind", "rejected", "after"),
    [
        (200, {}, b"", "accepted", 0, 0),
        (200, PROTOBUF, partial(), "accepted", 0, 0),
        (202, PROTOBUF, partial(rejected_spans=2, error_message="no"), "accepted", 2, 0),
        (200, PROTOBUF, partial(rejected_spans=-2), "accepted", 0, 0),
        (200, {"Content-Type": "application/json; charset=utf-8"}, b"{}", "accepted", 0, 0),
        (200, {"Content-Type": "application/json"}, b'{"partialSuccess":{"rejectedSpans":"3"}}', "accepted", 3, 0),
        (200, {"Content-Type": "application/json"}, b"[" * 100_000, "later", 0, 0),
        (200, {"Content-Type": "application/json"}, b'{"partialSuccess":[1]}', "later", 0, 0),
        (200, PROTOBUF, b"\xff\xff", "later", 0, 0),
        (200, {"Content-Type": "text/html"}, b"<html>Sign in</html>", "later", 0, 0),
        (302, {"Location": "http://elsewhere"}, b"", "later", 0, 0),
        (429, {"Retry-After": "7"}, b"", "later", 0, 7),
        (503, {"Retry-After": "99999999999"}, b"", "later", 0, 0),
        (503, {"Retry-After": "9999"}, b"", "later", 0, 300),
        (503, {"Retry-After": "Wed, 21 Oct"}, b"", "later", 0, 0),
        (401, {}, b"", "later", 0, 0),
        (404, {}, b"", "later", 0, 0),
        (415, {}, b"", "later", 0, 0),
        (400, {}, b"", "refused", 0, 0),
        (413, {}, b"", "refused", 0, 0),
        (422, {}, json.dumps({}).encode(), "refused", 0, 0),
    ],
)
def test_the_fate_of_the_spans_of_a_request(status, headers, body, kind, rejected, after):
    found = judge(status, headers, body)
    assert (found.kind, found.rejected, found.after) == (kind, rejected, after)
