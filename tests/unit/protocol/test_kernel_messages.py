"""A kernel may send anything: each message becomes an event that encodes, or nothing."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernelsvc.model import events as ev
from kernelsvc.protocol import kernel_messages

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "name",
    "text",
    "data",
    "metadata",
    "transient",
    "ename",
    "evalue",
    "traceback",
    "wait",
    "prompt",
    "password",
    "execution_count",
    "status",
]
KINDS = [
    "stream",
    "display_data",
    "update_display_data",
    "execute_result",
    "error",
    "clear_output",
    "input_request",
    "comm_open",
    "nonsense",
]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6))
def test_any_content_gives_an_event_that_survives_the_journal(kind, content):
    event = kernel_messages.event_of(kind, content, {}, [b"\x00\xff"])
    if event is not None:
        assert type(ev.decode(ev.encode(event))) is type(event)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6), st.dictionaries(st.just("kernelsvc"), JSON))
def test_any_reply_can_be_read(content, metadata):
    assert kernel_messages.reply_of("c", content, metadata, 3).status in ("ok", "error", "aborted")


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        ("stream", {"name": "stderr", "text": "x"}, ev.Stream(name="stderr", text="x")),
        ("stream", {"name": "stdout", "text": ""}, None),
        ("clear_output", {"wait": True}, ev.OutputCleared(wait=True)),
        (
            "execute_result",
            {"data": {"text/plain": ["a", "b"]}, "execution_count": 2},
            ev.Result(data={"text/plain": "ab"}, execution_count=2),
        ),
        ("update_display_data", {"data": {}, "transient": {"display_id": "d"}}, ev.DisplayUpdated(display_id="d")),
        (
            "execute_result",
            {"data": {"application/json": ["a"]}, "execution_count": True},
            ev.Result(data={"application/json": ["a"]}),
        ),
        ("status", {"execution_state": "busy"}, None),
    ],
)
def test_known_messages(kind, content, expected):
    assert kernel_messages.event_of(kind, content) == expected


def test_a_traceback_without_end_is_cut_in_the_middle():
    cut = kernel_messages.lines([str(n) for n in range(10_000)])
    assert len(cut) == kernel_messages.MAX_TRACEBACK_LINES + 1
    assert cut[0] == "0"
    assert cut[-1] == "9999"


@pytest.mark.parametrize("value", [None, 1, "x", {"source": "page"}, [1, None, "x"], [["page"]]])
def test_a_payload_of_another_form_is_left_out(value: object) -> None:
    assert kernel_messages.payload(value) == ()


def test_a_payload_is_limited_in_number_and_size() -> None:
    small, large = {"source": "page", "data": "x"}, {"data": "x" * kernel_messages.MAX_PAYLOAD_BYTES}
    assert kernel_messages.payload([small, large, small]) == (small, small)
    assert len(kernel_messages.payload([small] * 100)) == kernel_messages.MAX_PAYLOADS
