"""Calls in the state machine: each ends exactly once, and the open ones follow from the log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from kernelsvc.errors import Conflict, NotFound, SessionClosed
from kernelsvc.model import events as ev
from kernelsvc.model import stimuli as st
from kernelsvc.model.machine import Machine
from kernelsvc.model.objects import CellRequest
from kernelsvc.model.state import Policy
from kernelsvc.model.stimuli import CancelCall, DeliverResult, DispatchCall
from kernelsvc.model.tool_calls.ledger import MAX_OPEN, MAX_REUSED_BYTES, runs_of, waiting_calls
from kernelsvc.model.tool_calls.offers import Offer

OFFER = Offer(name="f", timeout_seconds=30.0, effects="read")
ASK = Offer(name="f", approval="always", approval_seconds=100.0, timeout_seconds=30.0)


class Bench:
    """A machine whose events also go to a second one, as a log would bring them to a new server."""

    def __init__(self, **policy: Any) -> None:
        self.policy = Policy(**policy)
        self.machine = Machine(self.policy)
        self.log: list[tuple[ev.Event, float]] = []
        self.handle(st.KernelReady(ev.SessionStarted(), ordered=True))
        self.handle(st.Submit((CellRequest(code="x"),), ("c1",)))

    def handle(self, stimulus: st.Stimulus, now: float = 0.0) -> st.Decision:
        decision = self.machine.decide(stimulus, now)
        for event in decision.events:
            event.seq = len(self.log) + 1
            self.log.append((event, now))
        self.machine.commit(decision, now)
        return decision

    def call(self, number: int = 1, offer: Offer | None = OFFER, now: float = 0.0, **more: Any) -> st.Decision:
        fields = {"approval": offer.approval if offer else "never", **more}
        asked = st.ToolRequested(f"k.{number}", "f", {"a": 1}, (), 7, "c1", offer, "p", **fields)
        return self.handle(asked, now)

    def reply(self, status: str = "ok", now: float = 1.0) -> st.Decision:
        return self.handle(st.KernelReplied("c1", status, 1, ename="E"), now)

    def rebuilt(self) -> Machine:
        """A machine from the log alone, each event encoded and decoded."""
        again = Machine(self.policy)
        for event, now in self.log:
            again.evolve(ev.decode(ev.encode(event)), now)
        return again


def kinds(decision: st.Decision) -> list[str]:
    return [type(event).__name__ for event in decision.events]


def ends(events: Iterable[ev.Event]) -> dict[str, str]:
    return {event.call: event.status for event in events if isinstance(event, ev.ToolReturned)}


def test_a_call_goes_to_its_provider_and_back() -> None:
    bench = Bench()
    asked = bench.call()
    assert kinds(asked) == ["ToolCalled"]
    assert asked.effects == [DispatchCall("k.1")]
    answered = bench.handle(st.CallAnswered("k.1", "ok", {"b": 2}, 8), 2.0)
    (returned,) = answered.events
    assert isinstance(returned, ev.ToolReturned)
    assert (returned.status, returned.value, returned.ms, returned.delivered) == ("ok", {"b": 2}, 2000.0, True)
    assert answered.effects == [DeliverResult(returned, {"b": 2})]
    assert not bench.machine.calls.open


def test_the_entries_about_calls_are_known_without_the_rest_of_the_log() -> None:
    bench = Bench()
    bench.call(1, ASK)
    bench.handle(st.CallsDecided(("k.1",), True, "me", None, None))
    bench.handle(st.CallAnswered("k.1", "ok", 1, 1))
    about_calls = [event.seq for event, _ in bench.log if "call" in type(event).__struct_fields__]
    assert [*bench.machine.calls.entries] == [*bench.rebuilt().calls.entries] == about_calls
    assert len(about_calls) == 3
    bench.reply()
    assert [*runs_of([*about_calls, 100, 107], 7)] == [(about_calls[0], about_calls[-1]), (100, 107)]
    assert [*runs_of([], 7)] == []


def test_the_entries_about_the_calls_of_a_cell_are_counted() -> None:
    bench = Bench()
    bench.call(1, ASK)
    bench.handle(st.CallsDecided(("k.1",), True, "me", None, None))
    bench.handle(st.CallAnswered("k.1", "ok", "x" * 100, 102))
    bench.call(2)
    bench.handle(st.CallAnswered("k.2", "error", None, 0, {"type": "E", "message": "m" * 1000}))
    ((_, noted),) = bench.machine.calls.of_cell.items()
    assert [*noted.entries] == [*bench.machine.calls.entries]
    assert 1102 < noted.size < 1400
    assert noted.reusable
    assert bench.rebuilt().calls.of_cell == bench.machine.calls.of_cell
    noted.size = MAX_REUSED_BYTES + 1
    assert not noted.reusable


def test_the_same_answer_again_is_nothing_and_a_late_one_is_a_conflict() -> None:
    bench = Bench()
    bench.call()
    bench.handle(st.CallAnswered("k.1", "ok", 1))
    assert bench.handle(st.CallAnswered("k.1", "ok", 1)) == st.Decision()
    bench.call(2)
    bench.handle(st.CallAbandoned("k.2"))
    with pytest.raises(Conflict, match="cancelled"):
        bench.handle(st.CallAnswered("k.2", "ok", 1))
    with pytest.raises(NotFound):
        bench.handle(st.CallAnswered("k.9", "ok", 1))


def test_a_function_that_is_not_offered_is_refused_at_once() -> None:
    bench = Bench()
    decision = bench.call(offer=None, refusal="There is no tool 'f'.")
    assert kinds(decision) == ["ToolCalled", "ToolReturned"]
    assert ends(decision.events) == {"k.1": "refused"}
    assert isinstance(decision.effects[0], DeliverResult)


@pytest.mark.parametrize("limit", ["max_calls_per_cell", "max_calls_per_session"])
def test_counts_are_limited(limit: str) -> None:
    bench, offer = Bench(), msgspec.structs.replace(OFFER, **{limit: 2})
    for number in (1, 2, 3):
        decision = bench.call(number, offer)
    assert ends(decision.events) == {"k.3": "limit"}
    assert limit in str(decision.events[-1].error)


def test_the_number_of_open_calls_is_limited() -> None:
    bench = Bench()
    for number in range(1, MAX_OPEN + 1):
        bench.call(number)
    assert ends(bench.call(MAX_OPEN + 1).events) == {f"k.{MAX_OPEN + 1}": "limit"}


def test_only_the_kernels_own_growing_ids_are_accepted() -> None:
    bench = Bench()
    bench.call(5)
    accepts = bench.machine.calls.is_next
    assert accepts("k.6", "k")
    for forged in ("k.5", "k.1", "other.6", "k.-7", "k.6x", "6", "", "k.\u0667", "k." + "9" * 20):
        assert not accepts(forged, "k"), forged


@pytest.mark.parametrize(("stimulus", "status", "told"), [
    (st.CallAbandoned("k.1"), "cancelled", True),
    (st.CallFailed("k.1", "lost", "gone"), "lost", False),
    (st.CallFailed("k.1", "unavailable", "gone"), "unavailable", False),
    (st.CallFailed("k.1", "too_large", "big"), "too_large", True),
    (st.KernelReplied("c1", "error", 1, ename="E"), "cancelled", True),
    (st.Restart(), "cancelled", True),
    (st.Close("end"), "cancelled", True),
])  # fmt: skip
def test_each_way_to_end_a_call_ends_it_once(stimulus: st.Stimulus, status: str, told: bool) -> None:
    bench = Bench()
    bench.call()
    decision = bench.handle(stimulus, 1.0)
    assert ends(decision.events) == {"k.1": status}
    assert any(isinstance(effect, CancelCall) for effect in decision.effects) is told
    assert not bench.machine.calls.open
    assert [event for event, _ in bench.log if isinstance(event, ev.ToolReturned)] == [
        event for event in decision.events if isinstance(event, ev.ToolReturned)
    ]


def test_calls_of_background_tasks_outlive_a_cell_that_ended_well() -> None:
    bench = Bench()
    bench.call()
    assert ends(bench.reply("ok").events) == {}
    assert bench.machine._hibernates_at() is None
    assert ends(bench.handle(st.CallAnswered("k.1", "ok", 1)).events) == {"k.1": "ok"}


def test_the_deadline_of_the_function_ends_the_call() -> None:
    bench = Bench(idle_seconds=None, lifetime_seconds=None)
    bench.call(now=10.0)
    assert bench.machine.next_deadline() == 40.0
    assert bench.handle(st.Tick(), 39.0) == st.Decision([], [])
    assert ends(bench.handle(st.Tick(), 40.0).events) == {"k.1": "timeout"}


def test_an_approval_is_asked_for_and_given() -> None:
    bench = Bench()
    assert bench.call(offer=ASK).effects == []
    with pytest.raises(Conflict, match="waits for a person"):
        bench.handle(st.CallAnswered("k.1", "ok"))
    decision = bench.handle(st.CallsDecided(("k.1",), approve=True, by="ada"), 50.0)
    assert kinds(decision) == ["ToolDecided"]
    assert decision.effects == [DispatchCall("k.1")]
    (returned,) = bench.handle(st.CallAnswered("k.1", "ok"), 51.0).events
    assert isinstance(returned, ev.ToolReturned)
    assert (returned.ms, returned.waited_ms) == (1000.0, 50000.0)
    with pytest.raises(Conflict, match="waits for no decision"):
        bench.handle(st.CallsDecided(("k.1",), approve=True, by="ada"))


def test_a_denied_call_is_not_carried_out() -> None:
    bench = Bench()
    bench.call(offer=ASK)
    decision = bench.handle(st.CallsDecided(("k.1",), approve=False, by="ada", reason="not on Fridays"))
    assert ends(decision.events) == {"k.1": "denied"}
    assert not any(isinstance(effect, DispatchCall | CancelCall) for effect in decision.effects)
    assert "ada denied the call: not on Fridays" in str(decision.events[-1].error)


def test_nobody_decides() -> None:
    bench = Bench(idle_seconds=None, lifetime_seconds=None)
    bench.call(offer=ASK)
    assert ends(bench.handle(st.Tick(), 100.0).events) == {"k.1": "expired"}


def test_a_remembered_approval_answers_the_calls_that_wait_and_those_that_follow() -> None:
    bench, offer = Bench(), msgspec.structs.replace(ASK, approval="once_per_cell")
    for number in (1, 2, 3):
        bench.call(number, offer)
    decision = bench.handle(st.CallsDecided(("k.2",), approve=True, by="ada", remember="cell"))
    assert {effect.call for effect in decision.effects if isinstance(effect, DispatchCall)} == {"k.1", "k.2", "k.3"}
    called = bench.call(4, offer).events[0]
    assert isinstance(called, ev.ToolCalled)
    assert called.approval == "remembered"
    assert bench.call(5, ASK).effects == [], "an offer that always asks is not remembered"


def test_time_in_which_a_person_decides_is_not_time_of_the_cell() -> None:
    bench = Bench(cell_seconds=10.0, idle_seconds=None, lifetime_seconds=None)
    bench.call(1, ASK, now=4.0)
    bench.call(2, ASK, now=5.0)
    assert bench.machine._cell_deadline() is None
    bench.handle(st.CallsDecided(("k.1",), approve=True, by="ada"), 50.0)
    assert bench.machine._cell_deadline() is None, "the second call still waits"
    bench.handle(st.CallsDecided(("k.2",), approve=False, by="ada"), 54.0)
    assert bench.machine._cell_deadline() == 60.0
    bench.handle(st.Tick(), 59.0)
    assert kinds(bench.handle(st.Tick(), 60.0)) == ["LimitReached", "Interrupted"]


def test_calls_of_a_dead_kernel_end_by_their_answers_and_pending_ones_at_once() -> None:
    bench = Bench()
    bench.call(1)
    bench.call(2, ASK)
    decision = bench.handle(st.KernelExited("signalled", "killed"), 1.0)
    assert ends(decision.events) == {"k.2": "cancelled"}
    assert CancelCall("k.1", "the kernel has ended") in decision.effects
    answered = bench.handle(st.CallAnswered("k.1", "ok", 1), 2.0)
    (returned,) = answered.events
    assert isinstance(returned, ev.ToolReturned)
    assert returned.delivered is False
    assert answered.effects == []


def test_a_closed_session_takes_no_calls() -> None:
    bench = Bench()
    bench.call(1)
    assert kinds(bench.handle(st.Close("end")))[-1] == "SessionClosed"
    with pytest.raises(SessionClosed):
        bench.call(2)


@pytest.mark.parametrize("steps", range(1, 8))
def test_a_new_server_knows_the_open_calls_from_the_log(steps: int) -> None:
    bench, script = Bench(), [
        lambda b: b.call(1),
        lambda b: b.call(2, ASK, now=3.0),
        lambda b: b.handle(st.CallAnswered("k.1", "ok", 1), 4.0),
        lambda b: b.handle(st.CallsDecided(("k.2",), approve=True, by="ada", remember="session"), 5.0),
        lambda b: b.call(3, msgspec.structs.replace(ASK, approval="once_per_session"), now=6.0),
        lambda b: b.handle(st.CallAnswered("k.2", "error", None, 0, {"type": "KeyError", "message": "x"}), 7.0),
        lambda b: b.reply("error", 8.0),
    ]  # fmt: skip
    for step in script[:steps]:
        step(bench)
    again, now = bench.rebuilt(), bench.machine
    assert again.calls.open == now.calls.open
    assert again.calls.ended == now.calls.ended
    assert again.calls == now.calls


def test_redacted_results_reach_code_and_no_log() -> None:
    bench = Bench()
    bench.call(offer=msgspec.structs.replace(OFFER, redact_result=True))
    decision = bench.handle(st.CallAnswered("k.1", "ok", "CANARY", 8))
    assert b"CANARY" not in ev.encode(decision.events[0])
    (effect,) = decision.effects
    assert isinstance(effect, DeliverResult)
    assert effect.value == "CANARY"


def test_a_flood_of_calls_counts_as_output() -> None:
    bench = Bench(max_cell_output_bytes=5000)
    for number in range(1, 20):
        bench.call(number)
    assert "LimitReached" in kinds(bench.handle(st.CheckOutputLimit()))


@pytest.mark.parametrize("welcome", [None, "k.1", {"a": 1}, [1, None, ["x"]]])
def test_a_kernel_that_names_nonsense_as_waiting_calls_names_none(welcome: object) -> None:
    assert waiting_calls(welcome) == []
