import json

import pytest

from kernelsvc.cli.cell_source import cells_of, limits_of
from kernelsvc.errors import BadRequest


def test_python_without_marks_is_one_cell():
    assert cells_of("a = 1\nb = 2\n", "x.py") == ["a = 1\nb = 2\n"]


def test_marks_part_cells_and_empty_ones_go():
    text = "# %% first\na = 1\n\n#%%\n\n# %% [markdown]\nb = '# %%'\n"
    assert cells_of(text, "-") == ["a = 1\n", "b = '# %%'\n"]


def test_a_notebook():
    cells = [
        {"cell_type": "markdown", "source": "# Title"},
        {"cell_type": "code", "source": ["a = 1\n", "a"]},
        {"cell_type": "code", "source": "  \n"},
        {"cell_type": "code", "source": "b"},
    ]
    assert cells_of(json.dumps({"cells": cells, "nbformat": 4}), "n.ipynb") == ["a = 1\na", "b"]


def code(**fields: object) -> str:
    return json.dumps({"cells": [{"cell_type": "code", "source": "1", **fields}]})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"cells": [1]}',
        '{"cells": [{"cell_type": "code"}]}',
        '{"cells":' + "[" * 100_000,
        code(source="print('\ud800')"),
        code(metadata=5),
        code(outputs=5),
        code(outputs=[5]),
    ],
    ids=lambda text: text[:60],
)
def test_no_notebook(text):
    with pytest.raises(BadRequest, match=r"n\.ipynb"):
        cells_of(text, "n.ipynb")


def test_limits():
    assert limits_of(["memory_bytes=1e9", "cell_seconds=0.5", "network=none"]) == {
        "memory_bytes": 1_000_000_000,
        "cell_seconds": 0.5,
        "network": "none",
    }
    with pytest.raises(BadRequest):
        limits_of(["memory_bytes"])
    with pytest.raises(BadRequest):
        limits_of(["memory_bytes=much"])
