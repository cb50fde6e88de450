"""Spans that follow from events."""

from __future__ import annotations

import pickle

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.model import events as ev
from kernelsvc.model.events import KernelInfo, Reason, SandboxReport
from kernelsvc.model.hash_chain import timestamp
from kernelsvc.model.limits import CellUsage
from kernelsvc.model.tracing.context import CellTrace, own_trace, span_id
from kernelsvc.model.tracing.spans import MAX_EVENTS, MAX_VALUE, SpanFold

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER = CellTrace(parent=f"00-{TRACE}-{SPAN}-01", state="a=b")
STARTED = ev.SessionStarted(
    template="python3", principal="alice", kernel=KernelInfo(language="python"), sandbox=SandboxReport(isolation="ns")
)


class Journal:
    """Events with an envelope, a tenth of a second apart, and the lines that a journal would have."""

    def __init__(self, **options):
        self.fold, self.seq, self.lines = SpanFold("s1", **options), 0, []
        self.spans = []

    def add(self, *events):
        for event in events:
            self.seq += 1
            event.session, event.seq, event.at = "s1", self.seq, timestamp(1_800_000_000 + self.seq / 10)
            self.lines.append(ev.encode(event))
            self.spans += self.fold.feed_line(self.lines[-1])
        return self.spans


def at(seq):
    return (1_800_000_000 * 10 + seq) * 100_000_000


@pytest.mark.parametrize(
    "events",
    [
        [ev.CellStarted(cell="c1", execution_count=1), ev.CellFinished(cell="c1", execution_count=1)],
        [ev.ToolCalled(cell="c1", call="t1", tool="f"), ev.ToolReturned(cell="c1", call="t1", status="ok")],
        [ev.ProgramStarted(cell="c1", program=7, argv=["ls"]), ev.ProgramEnded(program=7, exit_code=0)],
    ],
    ids=["cell", "call", "program"],
)
def test_no_span_ends_before_its_start_if_the_clock_was_set_back(events):
    journal = Journal()
    journal.add(STARTED, ev.CellQueued(cell="c1", code="1", principal="alice"), *events[:-1])
    journal.seq -= 1000  # the envelope's time follows
    *_, span = journal.add(events[-1])
    assert span.end == span.start


def test_a_cell_is_a_span_with_the_conventions_names():
    journal = Journal()
    (span,) = journal.add(
        STARTED,
        ev.CellQueued(cell="c1", code="secret = 1", principal="alice"),
        ev.CellStarted(cell="c1", execution_count=1),
        ev.Stream(cell="c1", text="secret output"),
        ev.CellFinished(
            cell="c1", execution_count=1, usage=CellUsage(cpu_ms=20.0, peak_rss_bytes=1000, output_bytes=13)
        ),
    )
    assert (span.name, span.kind, span.parent, span.error) == ("execute_tool run_code", "internal", b"", None)
    assert (span.start, span.end, span.seq) == (at(2), at(5), 5)
    assert (span.trace_id, span.span_id) == (own_trace("s1", "c1"), span_id("s1", "c1"))
    assert span.attributes == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "run_code",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": "c1",
        "gen_ai.conversation.id": "s1",
        "session.id": "s1",
        "kernelsvc.template": "python3",
        "kernelsvc.language": "python",
        "kernelsvc.isolation": "ns",
        "kernelsvc.reason": "ok",
        "kernelsvc.execution_count": 1,
        "kernelsvc.queue_seconds": 0.1,
        "kernelsvc.cpu_seconds": 0.02,
        "kernelsvc.peak_rss_bytes": 1000,
        "kernelsvc.output_bytes": 13,
        "kernelsvc.seq.first": 2,
        "kernelsvc.seq.last": 5,
    }
    assert [(each.at, each.name) for each in span.events] == [(at(3), "started")]
    assert "secret" not in repr(span)


def test_a_callers_trace_is_the_parent_and_its_flag_decides():
    unrecorded = CellTrace(parent=f"00-{TRACE}-{SPAN}-00")
    journal = Journal(sample=0.0)
    (span,) = journal.add(
        STARTED,
        ev.CellQueued(cell="c1", trace=CALLER),
        ev.CellFinished(cell="c1"),
        ev.CellQueued(cell="c2", trace=unrecorded),
        ev.Egress(cell="c2", host="h"),
        ev.CellFinished(cell="c2"),
        ev.CellQueued(cell="c3"),
        ev.CellFinished(cell="c3"),
    )
    assert (span.trace_id.hex(), span.parent.hex(), span.state, span.kind) == (TRACE, SPAN, "a=b", "server")


@pytest.mark.parametrize(
    ("reason", "error_type"),
    [(Reason.ERROR, "ValueError"), (Reason.TIMEOUT, "timeout"), (Reason.MEMORY, "memory"), (Reason.OK, None)],
)
def test_the_reason_is_the_error(reason, error_type):
    (span,) = Journal().add(
        ev.CellQueued(cell="c1"),
        ev.Error(cell="c1", ename="ValueError", evalue="secret"),
        ev.CellFinished(cell="c1", reason=reason),
    )
    assert span.attributes.get("error.type") == error_type
    assert span.error == (None if reason is Reason.OK else reason.value)
    assert "secret" not in repr(span)


def test_calls_and_connections_are_children_also_after_the_cells_end():
    spans = Journal().add(
        STARTED,
        ev.CellQueued(cell="c1", trace=CALLER),
        ev.ToolCalled(cell="c1", call="k1-1", tool="search", arguments={"q": "secret"}, bytes=14),
        ev.ToolReturned(cell="c1", call="k1-1", value="secret", bytes=8, ms=100.0, waited_ms=50.0),
        ev.ToolCalled(cell="c1", call="k1-2", tool="search"),
        ev.ToolReturned(cell="c1", call="k1-2", status="error", error={"type": "KeyError", "message": "secret"}),
        ev.ToolCalled(cell="c1", call="k1-3", tool="search"),
        ev.ToolReturned(cell="c1", call="k1-3", status="denied"),
        ev.CellFinished(cell="c1"),
        ev.Egress(
            cell="c1", rule="r", host="a.example", address="192.0.2.1", port=80, method="GET", path="/secret",
            status=404, sent=10, received=20, seconds=0.25, end="closed",
        ),
        ev.Egress(cell="c1", rule="r", host="b.example", port=443, seconds=0.1, end="failed: refused"),
    )  # fmt: skip
    first, failed, denied, cell, http, tls = spans
    assert {each.parent for each in spans if each is not cell} == {cell.span_id}
    assert {each.trace_id.hex() for each in spans} == {TRACE}
    assert len({each.span_id for each in spans}) == 6
    assert (first.name, first.kind, first.error) == ("execute_tool search", "client", None)
    assert first.attributes["gen_ai.tool.call.id"] == "k1-1"
    assert first.attributes["kernelsvc.waited_seconds"] == 0.05
    assert (failed.error, failed.attributes["error.type"]) == ("error", "KeyError")
    assert (denied.error, denied.attributes["error.type"]) == ("denied", "denied")
    assert (http.name, http.end - http.start, http.attributes["http.response.status_code"]) == ("GET", 250_000_000, 404)
    assert (http.attributes["error.type"], http.attributes["server.address"]) == ("404", "a.example")
    assert (tls.name, tls.attributes["error.type"], tls.error) == ("connect", "failed", "failed: refused")
    assert "secret" not in repr(spans)


def test_what_happens_in_a_cell_is_an_event_of_its_span_up_to_a_limit():
    (span,) = Journal().add(
        ev.CellQueued(cell="c1"),
        ev.CellStarted(cell="c1"),
        ev.InputRequested(cell="c1", prompt="secret"),
        ev.Interrupted(cell="c1", why="requested"),
        ev.LimitReached(limit="memory_bytes"),
        ev.KernelDied(cause="oom"),
        ev.KernelRestored(checkpoint="p"),
        *(ev.EgressDenied(cell="c1", host="h", why="not allowed", via="dns") for _ in range(100)),
        ev.CellFinished(cell="c1", reason=Reason.MEMORY),
    )
    names = [each.name for each in span.events]
    assert names[:6] == [
        "started", "input_requested", "interrupted", "limit_reached", "kernel_died", "kernel_restored",
    ]  # fmt: skip
    assert (len(names), span.dropped_events) == (MAX_EVENTS, 6 + 100 - MAX_EVENTS)
    assert "secret" not in repr(span)


@pytest.mark.parametrize(
    ("why", "shown"),
    [
        ("no rule for GET /v1/secret", "no rule for GET"),
        ("the path /v1/secret//x can be read in two ways", "the path can be read in two ways"),
        ("10.0.0.1 is not a public address", "10.0.0.1 is not a public address"),
    ],
)
def test_a_refusal_has_the_path_of_the_request_only_with_content(why, shown):
    for content, expected in (("off", shown), ("code", why)):
        (span,) = Journal(content=content).add(
            ev.CellQueued(cell="c1"),
            ev.EgressDenied(cell="c1", host="h", why=why, via="http"),
            ev.CellFinished(cell="c1"),
        )
        assert span.events[0].attributes["kernelsvc.why"] == expected


@pytest.mark.parametrize("content", ["off", "code", "all"])
def test_cells_and_calls_that_wait_take_little_memory(content):
    journal = Journal(content=content)
    journal.add(
        ev.CellQueued(cell="c1", code="x" * 1_000_000),
        ev.ProgramStarted(program=7, argv=["sh", "x" * 1_000_000]),
        ev.ToolCalled(cell="c1", call="k", arguments={"a": "x" * 1_000_000}),
    )
    assert len(pickle.dumps(vars(journal.fold))) < 20_000


@pytest.mark.parametrize(("content", "has"), [("off", (False, False)), ("code", (True, False)), ("all", (True, True))])
def test_content_is_in_spans_only_if_the_setting_says_so(content, has):
    spans = Journal(content=content).add(
        ev.CellQueued(cell="c1", code="CODE" + "x" * 10_000),
        ev.ToolCalled(cell="c1", call="k", tool="t", arguments={"q": "CODE"}),
        ev.ToolReturned(cell="c1", call="k", value="RESULT"),
        ev.Stream(cell="c1", text="RESULT" + "y" * 10_000 + "TAIL"),
        ev.Display(cell="c1", data={"image/png": "RESULTpicture"}),
        ev.Result(cell="c1", data={"text/plain": "5"}),
        ev.CellFinished(cell="c1"),
    )
    for span in spans:
        assert ("CODE" in repr(span), "RESULT" in repr(span)) == has
        assert all(len(value) <= MAX_VALUE for value in span.attributes.values() if isinstance(value, str))
    if content == "all":
        assert "TAIL" in spans[-1].attributes["gen_ai.tool.call.result"]
        assert "picture" not in repr(spans)


def test_a_program_has_its_exit_code_and_no_arguments():
    span, other = Journal().add(
        ev.ProgramStarted(program=7, argv=["/usr/bin/psql", "--password=secret"]),
        ev.ProgramEnded(program=7, exit_code=0),
        ev.ProgramStarted(program=7, argv=["sh"]),
        ev.ProgramEnded(program=7, exit_code=None),
        ev.ProgramEnded(program=7, exit_code=1),
    )
    assert (span.name, span.attributes["process.exit.code"], span.error) == ("program psql", 0, None)
    assert (other.error, other.attributes["error.type"]) == ("exit", "unknown")
    assert span.span_id != other.span_id
    assert "secret" not in repr(span)


def test_a_cell_after_a_rollback_links_to_the_moment_it_went_back_to():
    _, _, span = Journal().add(
        ev.CellQueued(cell="c1"), ev.CellFinished(cell="c1"),
        ev.CellQueued(cell="c2"), ev.CellFinished(cell="c2"),
        ev.RolledBack(to="p", after_cell="c1", undone=["c2"]),
        ev.CellQueued(cell="c3"), ev.CellFinished(cell="c3"),
    )  # fmt: skip
    assert span.links == [(own_trace("s1", "c1"), span_id("s1", "c1"))]


def test_a_share_of_the_traces_is_sampled_with_all_their_spans():
    journal = Journal(sample=0.5)
    for number in range(400):
        cell = f"c{number}"
        journal.add(ev.CellQueued(cell=cell), ev.Egress(cell=cell, host="h"), ev.CellFinished(cell=cell))
    traces = {span.trace_id for span in journal.spans}
    assert 120 < len(traces) < 280
    assert len(journal.spans) == 2 * len(traces)


def test_lines_that_this_version_does_not_know_give_no_span():
    fold = SpanFold("s1")
    for line in (b'{"type":"new_thing","seq":1}', b"not json", b"", b'{"type":"cell_finished","cell":"never-queued"}'):
        assert fold.feed_line(line) == []


_cells = st.sampled_from(["c1", "c2", "c3"])
_events = st.one_of(
    st.builds(ev.CellQueued, cell=_cells, trace=st.sampled_from([CALLER, CellTrace(parent="x")])),
    st.builds(ev.CellStarted, cell=_cells),
    st.builds(ev.CellFinished, cell=_cells, reason=st.sampled_from([*Reason])),
    st.builds(ev.ToolCalled, cell=_cells, call=st.sampled_from("ab")),
    st.builds(ev.ToolReturned, cell=_cells, call=st.sampled_from("ab"), value=st.text()),
    st.builds(ev.Egress, cell=_cells, seconds=st.floats(-5, 1e6), method=st.text(), status=st.integers(0, 999)),
    st.builds(ev.ProgramStarted, program=st.integers(1, 3), argv=st.lists(st.text(), max_size=2)),
    st.builds(ev.ProgramEnded, program=st.integers(1, 3), exit_code=st.none() | st.integers()),
    st.builds(ev.RolledBack, after_cell=st.none() | _cells),
    st.builds(ev.KernelDied),
)


@given(st.lists(_events, max_size=40))
def test_the_same_journal_gives_the_same_spans_and_each_id_once(events):
    first, again = Journal(content="all"), Journal(content="all")
    first.add(*map(msgspec.structs.replace, events))
    again.spans = [span for line in first.lines for span in again.fold.feed_line(line)]
    assert again.spans == first.spans
    assert all(0 < span.start <= span.end and span.seq for span in first.spans)
    ids = [span.span_id for span in first.spans if not span.name.startswith("execute_tool")]
    assert len(ids) == len(set(ids))
