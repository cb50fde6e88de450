"""The context of a trace: how a request carries it, the ids of spans, and the environment of a cell. Pure.

The format is that of W3C Trace Context. A value that does not follow it counts as absent, as section 2.2.2 there asks:
a mistake in a trace is no reason to refuse a cell.

The ids of spans follow from session and cell. So a span that is sent again has the same id, and spans of processes
that a cell starts can name the cell's span before it exists.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

#: Most characters of ``tracestate``. W3C Trace Context, section 3.3.1.5, asks for at least 512.
MAX_STATE = 512
#: Version, trace id, span id, flags. Later versions may have more parts (section 2.2.4).
_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-[ -~]*)?")
#: Printable ASCII, which is all that the grammar of a list of members allows.
_STATE = re.compile(r"[ -~]*")
#: Flag of a caller that records the trace.
SAMPLED = 1


class RequestMeta(Struct, kw_only=True, frozen=True):
    """``_meta`` of a request, as in MCP (SEP-414). Other fields, and values of another form, are ignored."""

    traceparent: Annotated[Any, Meta(description="The caller's span, as in W3C Trace Context.")] = None
    tracestate: Annotated[Any, Meta(description="Further state of the caller's trace.")] = None


class CellTrace(Struct, kw_only=True, frozen=True):
    """The trace that the request for a cell carried, in the log.

    Attributes:
        parent: the caller's span (``traceparent``).
        state: ``tracestate``. Left out if it is empty.
    """

    parent: str = ""
    state: str | UnsetType = UNSET


class SpanParent(Struct, kw_only=True, frozen=True):
    """A parsed ``traceparent``."""

    trace_id: bytes
    span_id: bytes
    flags: int

    @property
    def sampled(self) -> bool:
        """Whether the caller records its span."""
        return bool(self.flags & SAMPLED)


def parse(text: object) -> SpanParent | None:
    """Return the parts of a ``traceparent``, or None if the value does not follow the standard."""
    if not isinstance(text, str) or len(text) > 128 or not (found := _PARENT.fullmatch(text)):
        return None
    if found[4] and text.startswith("00"):  # Version 00 has exactly four parts.
        return None
    return SpanParent(trace_id=bytes.fromhex(found[1]), span_id=bytes.fromhex(found[2]), flags=int(found[3], 16))


def trace_of(meta: RequestMeta | None) -> CellTrace | UnsetType:
    """Return what the log keeps of a request's trace. UNSET if there is no valid one."""
    if meta is None or (found := parse(meta.traceparent)) is None:
        return UNSET
    state = meta.tracestate
    kept = isinstance(state, str) and len(state) <= MAX_STATE and _STATE.fullmatch(state)
    return CellTrace(parent=render(found), state=state if kept and state else UNSET)


def render(parent: SpanParent) -> str:
    """Return the ``traceparent`` of a span."""
    return f"00-{parent.trace_id.hex()}-{parent.span_id.hex()}-{parent.flags & SAMPLED:02x}"


def span_id(session: str, *names: str | int) -> bytes:
    """Return the id of the span of a cell, a call or another part of a session."""
    return _digest(8, session, *names)


def own_trace(session: str, *names: str | int) -> bytes:
    """Return the id of the trace of a span whose request carried none."""
    return _digest(16, session, *names)


def _digest(size: int, *names: str | int) -> bytes:
    text = "\0".join(map(str, names)).encode("utf-8", "surrogatepass")
    found = blake2b(text, digest_size=size, person=b"kernelsvc-trace").digest()
    # All zeros is not a valid id (section 3.2.2.3).
    return found if any(found) else b"\1" * size


def child(trace: CellTrace, session: str, *names: str | int) -> CellTrace:
    """Return the trace in which a part of a session is the parent, for what it starts."""
    found = parse(trace.parent)
    if found is None:
        return trace
    own = SpanParent(trace_id=found.trace_id, span_id=span_id(session, *names), flags=found.flags)
    return CellTrace(parent=render(own), state=trace.state)


def environment(trace: CellTrace) -> dict[str, str]:
    """Return the environment variables of a process in a trace, as OpenTelemetry's propagators read them."""
    found = {"TRACEPARENT": trace.parent}
    return found if isinstance(trace.state, UnsetType) else {**found, "TRACESTATE": trace.state}
