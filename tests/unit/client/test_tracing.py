"""The trace that a program's requests for cells carry."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from kernelsvc.client.tracing import request_meta

PARENT = f"00-{1:032x}-{2:016x}-01"


def span(*state: tuple[str, str], flags: int = 1, trace_id: int = 1) -> NonRecordingSpan:
    return NonRecordingSpan(SpanContext(trace_id, 2, False, TraceFlags(flags), TraceState(state)))


@pytest.mark.parametrize(
    ("current", "meta"),
    [
        (span(), {"traceparent": PARENT}),
        (span(("a", "b"), ("c", "d")), {"traceparent": PARENT, "tracestate": "a=b,c=d"}),
        # Not recorded, and flags of a later version of the standard.
        (span(flags=0), {"traceparent": f"{PARENT[:-2]}00"}),
        (span(flags=3), {"traceparent": PARENT}),
        (span(trace_id=0), None),
        (trace.INVALID_SPAN, None),
    ],
)
def test_the_current_span_is_the_trace(current: NonRecordingSpan, meta: dict[str, str] | None) -> None:
    with trace.use_span(current):
        assert request_meta(None) == meta
    assert request_meta(None) is None


@pytest.mark.parametrize(
    ("given", "meta"),
    [
        ({"traceparent": PARENT, "tracestate": "a=b"}, {"traceparent": PARENT, "tracestate": "a=b"}),
        ({"host": "example.org", "authorization": "secret", "traceparent": PARENT}, {"traceparent": PARENT}),
        ({"traceparent": PARENT, "tracestate": ""}, {"traceparent": PARENT}),
        ({}, None),
    ],
)
def test_a_given_trace_wins_over_the_current_span(given: dict[str, str], meta: dict[str, str] | None) -> None:
    with trace.use_span(span(trace_id=9)):
        assert request_meta(given) == meta


def test_a_program_without_opentelemetry_does_not_import_it() -> None:
    code = (
        "import sys; from kernelsvc.client.tracing import request_meta\n"
        "assert request_meta(None) is None\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
