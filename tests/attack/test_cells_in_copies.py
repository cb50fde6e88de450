"""The cells of the attack suite in branches, and in resumed checkpoints of dead kernels."""

from __future__ import annotations

import pytest

from attack.cell import Cell, Who
from attack.cell_runs import CONFINED, WHO, check_confined, run
from attack.cells import FAMILY

pytestmark = pytest.mark.timeout(300)

CELLS = [(who, cell, kind) for kind in ("branch", "resumed") for who, cell in CONFINED]
CELLS += [(who, cell, "branch") for who in WHO for cell in FAMILY]


@pytest.mark.parametrize(
    ("who", "cell", "kind"), CELLS, ids=[f"{who}: {kind}: {cell.name}" for who, cell, kind in CELLS]
)
def test_a_copy_has_no_right_that_its_original_has_lost(who: Who, cell: Cell, kind: str) -> None:
    check_confined(cell, run(who, kind, tuple(c.name for w, c, k in CELLS if (w, k) == (who, kind))))
