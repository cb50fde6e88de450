"""Repeat a story: the same stimuli at the same times must lead a machine to the same state."""

from __future__ import annotations

from collections.abc import Iterable

from kernelsvc.model.machine import Machine
from kernelsvc.model.stimuli import Decision
from kernelsvc.model.story import Transition


def replay(transitions: Iterable[Transition], machine: Machine) -> None:
    """Give a machine the same stimuli at the same times.

    Args:
        transitions: from a story.
        machine: in the state that the first of them found.

    Raises:
        ValueError: the machine decides otherwise than it did. The message names the transition.
    """
    for each in transitions:
        decision = machine.decide(each.stimulus, each.at)
        if [type(e) for e in decision.events] != [type(e) for e in each.events] or decision.effects != [*each.effects]:
            raise ValueError(f"Transition {each} was replayed as events {decision.events}, effects {decision.effects}.")
        # The recorded events bear the log's numbers and times, which the machine keeps.
        machine.commit(Decision([*each.events], decision.effects, each.stimulus), each.at)
        if machine.state is not each.after:
            raise ValueError(f"Transition {each} was replayed and led to {machine.state}.")
