"""The last transitions of one session's machine, for log lines and for ``Machine.replay``.

The model is dask's ``WorkerState``: each stimulus has a number, and the same stimuli at the same times lead to the same
state. A story keeps the events of its transitions in memory. So a session has one only in tests and at log level DEBUG.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from kernelsvc.model.events import Event
from kernelsvc.model.objects import SessionState
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
