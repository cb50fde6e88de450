"""Properties that a session's state has after every transition. Checked in tests (``Machine.validate``)."""

from __future__ import annotations

from kernelsvc.model.objects import CellState, SessionState
from kernelsvc.model.state import MachineState


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
        (unfinished == set(machine.queue), "the queue holds exactly the cells that have not finished"),
        (
            waiting is None or (run is not None and waiting.cell == run.id),
            "only the running cell waits for an answer",
        ),
        (state is not SessionState.CLOSED or not machine.queue, "a closed session has no unfinished cells"),
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
