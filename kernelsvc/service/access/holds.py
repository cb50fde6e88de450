"""Cells that wait for a person, who takes a session over, decides about each cell, and lets go again.

Every API's cells are held, because the machine of the session does it. A person who wants to run a cell meanwhile
sends it like any other and approves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from kernelsvc.model.objects import CellInfo, Principal, SessionInfo
from kernelsvc.model.stimuli import DecideCells, Hold
from kernelsvc.service.registry import SessionRegistry


class Holds:
    """The part of ``ServiceApi`` about held cells."""

    def __init__(self, registry: SessionRegistry) -> None:
        self._registry = registry

    def set(
        self,
        who: Principal,
        session: str,
        *,
        mode: Literal["off", "ask"],
        seconds: float,
        then: Literal["refuse", "approve"],
    ) -> SessionInfo:
        """Hold the session's cells back, or let go and run those that wait. See ``session.hold``."""
        found = self._registry.find(who, session, "approve")
        found.hold(Hold(mode, seconds, then, who.name))
        return self._registry.describe(found)

    def decide(
        self,
        who: Principal,
        session: str,
        cells: Sequence[str],
        *,
        decision: Literal["approve", "refuse"],
        reason: str | None,
    ) -> list[CellInfo]:
        """Approve or refuse held cells, all or none. See ``session.decide_cells``."""
        found = self._registry.find(who, session, "approve")
        found.decide_cells(DecideCells(tuple(cells), decision, reason, who.name))
        return [found.cell(cell) for cell in cells]
