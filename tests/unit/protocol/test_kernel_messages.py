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
    "payload",
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


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6))
def test_any_content_gives_an_event_that_survives_the_journal(kind, content):
    event = kernel_messages.event_of(kind, content, {}, [b"\x00\xff"])
    if event is not None:
        assert type(ev.decode(ev.encode(event))) is type(event)


@settings(suppress_health_check=[HealthCheck.too_slow])
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


PAYLOADS = [
    {"source": "page", "data": {"text/plain": "help", "text/html": "<b>help</b>"}, "start": 3},
    {"source": "set_next_input", "text": "x = 1", "replace": True},
]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_payload_is_shown_and_can_be_made_again(payload):
    reply = kernel_messages.reply_of("c", {"status": "ok", "payload": [payload]}, {}, 3)
    (shown,) = reply.outputs
    assert (shown.cell, shown.data["text/plain"]) == ("c", "help" if payload["source"] == "page" else "x = 1")
    assert kernel_messages.payload_of(ev.decode(ev.encode(shown))) == payload


@pytest.mark.parametrize(
    "payload", [None, 1, [1], [{}], [{"source": "page"}], [{"source": "ask_exit"}], [{"source": "page", "data": []}]]
)
def test_other_payloads_show_nothing(payload):
    assert kernel_messages.reply_of("c", {"status": "ok", "payload": payload}, {}, 3).outputs == ()


def test_payloads_are_bounded_and_displays_are_no_payloads():
    many = [{"source": "page", "data": {"text/plain": "x" * (5 << 20), "text/html": "x"}}] * 100
    outputs = kernel_messages.reply_of("c", {"status": "ok", "payload": many}, {}, 3).outputs
    assert len(outputs) == kernel_messages.MAX_PAYLOADS
    assert set(outputs[0].data) == {"text/html"}
    assert kernel_messages.payload_of(ev.Display(data={"text/plain": "x"}, metadata={"kernelsvc": 1})) is None


def test_a_reply_carries_the_traceback_for_models_and_the_changes() -> None:
    kinds = {"new": ["a: int = 1", 5], "files": "x", "other": ["y"]}
    reply = kernel_messages.reply_of("c", {"status": "error", "model": ["E: x"]}, {"kernelsvc": {"changes": kinds}}, 1)
    assert reply.model == ("E: x",)
    assert reply.changes == {"new": ["a: int = 1"]}
    assert kernel_messages.reply_of("c", {"status": "ok"}, {}, 1).changes is None


def test_both_are_limited_in_number_and_length() -> None:
    lines = kernel_messages.model_lines(["x" * 60_000, "y" * 60_000, "z"])
    assert [len(line) for line in lines] == [60_000, kernel_messages.MAX_MODEL_CHARACTERS - 60_000]
    assert len(kernel_messages.model_lines(["x"] * 10_000)) == kernel_messages.MAX_MODEL_LINES
    found = kernel_messages.changes({"gone": ["v" * 10_000] * 1000})
    assert found is not None
    assert len(found["gone"]) == kernel_messages.MAX_CHANGES
    assert {len(each) for each in found["gone"]} == {kernel_messages.MAX_CHANGE_CHARACTERS}
