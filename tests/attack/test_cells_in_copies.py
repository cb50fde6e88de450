"""The cells of the attack suite in branches, and in resumed checkpoints of dead kernels."""

from __future__ import annotations

import pytest

from attack.cell import Cell, Who
from attack.cell_runs import CONFINED, WHO, check_confined, run
from attack.cells import FAMILY

pytestmark = pytest.mark.timeout(300)

#: A branch and a resumed checkpoint are copies of the same kind, and test_cells.py has both users. So the others are
#: left to a thorough run.
USUAL = (WHO[0], "branch")
COPIES = [
    pytest.param(
        who,
        cell,
        kind,
        id=f"{who}: {kind}: {cell.name}",
        marks=[] if (who, kind) == USUAL else [pytest.mark.thorough],
    )
    for kind in ("branch", "resumed")
    for who, cell in CONFINED
]
RELATIVES = [
    pytest.param(who, cell, id=f"{who}: {cell.name}", marks=[] if who == WHO[0] else [pytest.mark.thorough])
    for who in WHO
    for cell in FAMILY
]


@pytest.mark.parametrize(("who", "cell", "kind"), COPIES)
def test_a_copy_has_no_right_that_its_original_has_lost(who: Who, cell: Cell, kind: str) -> None:
    check_confined(cell, run(who, kind, tuple(c.name for w, c in CONFINED if w == who)))


@pytest.mark.parametrize(("who", "cell"), RELATIVES)
def test_a_branch_reaches_nothing_of_its_parent(who: Who, cell: Cell) -> None:
    check_confined(cell, run(who, "branch", tuple(c.name for c in FAMILY)))
