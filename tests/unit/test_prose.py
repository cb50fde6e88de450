"""The prose check counts prose and nothing else, and fails over a bar."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "prose.py"
spec = importlib.util.spec_from_file_location("prose", SCRIPT)
assert spec is not None
assert spec.loader is not None
prose = importlib.util.module_from_spec(spec)
sys.modules["prose"] = prose
spec.loader.exec_module(prose)

PAGE = """# Title

<!-- a comment: nobody counts it; nobody -->
Plain words with `code; nobody` and a [link](somebody;anew.md).

```python
x = 1; nobody = x
```

Here nobody reads;
what is told goes on.
"""

MODULE = '''"""What a kernel is told."""

import logging

log = logging.getLogger(__name__)


def run(name: str) -> None:
    """Run it; somebody asked."""
    text = "an ordinary literal; nobody prints it"
    log.info("the kernel %s goes on", name)
    raise ValueError(f"nobody asked for {name} at all")
'''


def found(text: str, suffix: str) -> list[tuple[str, str, int]]:
    """Kind, rule and line of each hit."""
    read = prose.markdown if suffix == ".md" else prose.python
    texts = list(read(Path(f"a{suffix}"), text))
    return [(each.kind, hit.rule.name.split()[0], hit.line) for each in texts for hit in prose.hits(each)]


def test_a_page_is_counted_without_its_code_comments_and_links() -> None:
    assert sorted(found(PAGE, ".md")) == [
        ("Markdown", "anew/beside/of", 11),
        ("Markdown", "is", 11),
        ("Markdown", "nobody/somebody/whoever", 10),
        ("Markdown", "semicolon", 10),
        ("Markdown", "what-clause", 11),
    ]


def test_a_generated_page_is_left_out() -> None:
    assert not found(f"{prose.GENERATED} from the code -->\n\nnobody; nobody\n", ".md")


def test_docstrings_and_messages_are_counted_and_other_literals_are_not() -> None:
    assert sorted(found(MODULE, ".py")) == [
        ("docstrings", "is", 1),
        ("docstrings", "nobody/somebody/whoever", 9),
        ("docstrings", "semicolon", 9),
        ("docstrings", "what-clause", 1),
        ("messages", "anew/beside/of", 11),
        ("messages", "nobody/somebody/whoever", 12),
    ]


@pytest.mark.parametrize(
    ("text", "status"), [("Plain words, one after another.", 0), ("The cell has what nobody reads.", 1)]
)
def test_the_status_says_whether_all_counts_are_within_their_bars(
    text: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.md").write_text(text)
    assert prose.main(["--list", str(tmp_path)]) == status
    assert ("page.md:1: " in capsys.readouterr().out) == bool(status)
