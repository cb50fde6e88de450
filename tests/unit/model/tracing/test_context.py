import pytest
from msgspec import UNSET

from kernelsvc.model.tracing.context import (
    CellTrace,
    RequestMeta,
    child,
    environment,
    own_trace,
    parse,
    span_id,
    trace_of,
)

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (GOOD, True),
        (f"00-{TRACE}-{SPAN}-00", True),
        (f"cc-{TRACE}-{SPAN}-01-what-a-later-version-adds", True),
        (f"{GOOD}-more", False),
        (f"ff-{TRACE}-{SPAN}-01", False),
        (f"00-{'0' * 32}-{SPAN}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (GOOD.upper(), False),
        (f"{GOOD},{GOOD}", False),
        (f"cc-{TRACE}-{SPAN}-01-{'x' * 1000}", False),
        ("", False),
        (None, False),
        (7, False),
        (["00"], False),
    ],
)
def test_a_traceparent_that_breaks_the_standard_counts_as_absent(text, valid):
    trace = trace_of(RequestMeta(traceparent=text))
    assert (parse(text) is not None) is valid
    assert (trace is not UNSET) is valid


@pytest.mark.parametrize("state", ["", "a=b\r\nX: y", "x" * 513, "ä=1", 5, {"a": 1}])
def test_a_bad_tracestate_is_left_out_and_the_parent_stays(state):
    assert trace_of(RequestMeta(traceparent=GOOD, tracestate=state)) == CellTrace(parent=GOOD)


def test_what_a_cell_starts_has_the_cells_span_as_parent():
    trace = trace_of(RequestMeta(traceparent=GOOD, tracestate="a=b"))
    assert environment(trace) == {"TRACEPARENT": GOOD, "TRACESTATE": "a=b"}
    own = environment(child(trace, "s1", "c1"))
    assert own == {"TRACEPARENT": f"00-{TRACE}-{span_id('s1', 'c1').hex()}-01", "TRACESTATE": "a=b"}


def test_ids_follow_from_the_names_and_differ():
    names = [("s", "c"), ("s", "c2"), ("sc", ""), ("s", "c", 1)]
    assert len({span_id(*each) for each in names}) == len({own_trace(*each) for each in names}) == 4
    assert (len(span_id("s")), len(own_trace("s"))) == (8, 16)
    # Stored spans of earlier versions keep their ids.
    assert span_id("s_1", "c_1").hex() == span_id("s_1", "c_1").hex()
