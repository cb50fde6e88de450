"""The trace of a program's requests for cells: given by the caller, or that of OpenTelemetry's current span.

A program that traces itself has imported ``opentelemetry.trace`` already. So nothing is imported here, and a program
without OpenTelemetry pays one look into ``sys.modules`` for each cell.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

#: The fields of W3C Trace Context. A carrier may be all headers of a request, and no other header is sent.
_FIELDS = ("traceparent", "tracestate")


def request_meta(trace: Mapping[str, str] | None) -> dict[str, str] | None:
    """Return the ``_meta`` of a request (SEP-414 of MCP), or None if the request belongs to no trace.

    Args:
        trace: the caller's ``traceparent`` and ``tracestate``. None takes OpenTelemetry's current span. An empty
            mapping is no trace.
    """
    if trace is None:
        return _current()
    return {name: trace[name] for name in _FIELDS if trace.get(name)} or None


def _current() -> dict[str, str] | None:
    # Another thread may be importing the module at this moment: then the function is not there yet.
    current_span = getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)
    if current_span is None:
        return None
    span = current_span().get_span_context()
    if not span.is_valid:
        return None
    meta = {"traceparent": f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags & 1:02x}"}
    if state := span.trace_state.to_header():
        meta["tracestate"] = state
    return meta
