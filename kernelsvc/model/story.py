"""How tests and log lines watch a session's machine: its last transitions, and the invariants of its state.

The model is dask's ``WorkerState``: each stimulus has a number, and the same stimuli at the same times lead to the same
state. A story keeps the events of its transitions in memory. So a session has one only in tests and at log level DEBUG.
``Machine.replay`` repeats it. Tests check the invariants after every transition (``Machine.validate``).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from kernelsvc.model.events import Event
from kernelsvc.model.objects import CellState, SessionState
from kernelsvc.model.state import MachineState
from kernelsvc.model.stimuli import Decision, Effect, RecordEvents, Stimulus

#: Number of transitions that a story keeps.
STORY_LENGTH = 200


@dataclass(frozen=True)
class Transition:
    """One stimulus with its events and effects.

    Attributes:
        number: number of the transition in the session, from 1.
        at: time in monotonic seconds.
    """

    number: int
    at: float
    stimulus: Stimulus
    before: SessionState
    after: SessionState
    events: tuple[Event, ...]
    effects: tuple[Effect, ...]

    def __str__(self) -> str:
        """Return one line for a log. It contains no code, no output and no client's answer."""
        parts = [f"{self.number} {type(self.stimulus).__name__}: {self.before} -> {self.after}"]
        if self.events:
            parts.append("events " + " ".join(type(event).__name__ for event in self.events))
        if self.effects:
            parts.append("effects " + " ".join(type(effect).__name__ for effect in self.effects))
        return ", ".join(parts)


class Story:
    """The last ``STORY_LENGTH`` transitions of one machine, oldest first."""

    def __init__(self) -> None:
        self.transitions: deque[Transition] = deque(maxlen=STORY_LENGTH)
        self._count = 0

    def add(self, decision: Decision, at: float, before: SessionState, after: SessionState) -> None:
        """Add a decision that was committed."""
        self._count += 1
        events = tuple(decision.events)
        stimulus = decision.stimulus or RecordEvents(events)
        self.transitions.append(Transition(self._count, at, stimulus, before, after, events, tuple(decision.effects)))

    def last(self) -> str:
        """Return one line for the last transition."""
        return str(self.transitions[-1])

    def __str__(self) -> str:
        """Return one line for each transition."""
        return "\n".join(map(str, self.transitions))


class InvariantError(AssertionError):
    """A transition led to a state that breaks an invariant."""


def check_invariants(machine: MachineState) -> None:
    """Check one machine, in time proportional to its number of cells.

    Raises:
        InvariantError: an invariant does not hold. The message names it.
    """
    for holds, text in _invariants(machine):
        if not holds:
            raise InvariantError(f"A session in state {machine.state} broke an invariant: {text}.")


def _invariants(machine: MachineState) -> list[tuple[bool, str]]:
    state, run, waiting = machine.state, machine.running, machine.waiting_for
    unfinished = {cell.id for cell in machine.cells.values() if cell.state is not CellState.FINISHED}
    return [
        ((run is not None) == (state is SessionState.BUSY), "a cell runs exactly while the session is busy"),
        (run is None or run.id == next(iter(machine.queue), None), "the running cell is the first of the queue"),
        (
            unfinished == {*machine.queue, *machine.held},
            "the queue and the held cells have not finished",
        ),
        (
            waiting is None or (run is not None and waiting.cell == run.id),
            "only the running cell waits for an answer",
        ),
        (state is not SessionState.CLOSED or not unfinished, "a closed session has no unfinished cells"),
        (state is not SessionState.CLOSED or not machine.calls.open, "a closed session has no open calls"),
        (not machine.hibernated or not machine.checkpoints, "a session without a kernel has no checkpoints"),
        (
            not machine.hibernated or machine.paused == (state is SessionState.PAUSED),
            "a saved session is paused exactly if its lease is",
        ),
        (
            state is SessionState.CLOSED or machine.checkpoints.keys() == machine.checkpoint_kernels.keys(),
            "each checkpoint has its process",
        ),
    ]
