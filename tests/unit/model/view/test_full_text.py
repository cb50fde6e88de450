"""The full text of a cell's outputs."""

from __future__ import annotations

import pytest

from kernelsvc.model.view.full_text import _without_cell_files


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('x /tmp/ipykernel_12/3.py:4 "/a/b/ipykernel_1/22.py"', 'x Cell:4 "Cell"'),
        ("ipykernel_1/2.py and ipykernel_1/x.py", "ipykernel_1/2.py and ipykernel_1/x.py"),
        # Each of these takes hours if every slash starts a search to the end of the text.
        ("/" * 1_000_000 + "ipykernel_", "/" * 1_000_000 + "ipykernel_"),
        ("/ipykernel_" * 90_000, "/ipykernel_" * 90_000),
        ("/a/ipykernel_1/1.py " * 20_000, "Cell " * 20_000),
    ],
)
def test_files_of_cells_have_no_path(text: str, shown: str) -> None:
    assert _without_cell_files(text) == shown
