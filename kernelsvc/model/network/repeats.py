"""Which of many equal refusals are recorded, so that a journal stays small."""

from __future__ import annotations

#: Most different refusals of one cell that are recorded.
MAX_KEYS = 64
_OTHERS = "\0others"


class Repeats:
    """Counts equal refusals in one cell. A new cell begins a new count.

    Refusals that arrive when no cell runs count with those of the last cell: the last of a flood arrive after its cell.
    """

    def __init__(self) -> None:
        self._cell = ""
        self._counts: dict[str, int] = {}

    def count(self, cell: str, key: str) -> int:
        """Count a refusal in ``cell``, "" when none runs. Return how often it occurred if it is recorded, else 0.

        Recorded are the 1st, the 10th, the 100th and so on. All refusals beyond ``MAX_KEYS`` are counted as one.
        """
        if cell and cell != self._cell:
            self._cell, self._counts = cell, {}
        if key not in self._counts and len(self._counts) >= MAX_KEYS:
            key = _OTHERS
        number = self._counts[key] = self._counts.get(key, 0) + 1
        return number if str(number).strip("0") == "1" else 0
