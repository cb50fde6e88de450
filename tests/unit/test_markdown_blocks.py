"""How the docs' blocks are read."""

from __future__ import annotations

from pathlib import Path

import pytest
from markdown_blocks import agrees, blocks, commands

PAGE = """
```python
x = 1
print(x)
```

<!-- prints -->
```text
1
```

<!-- not run: it never ends -->
```console
$ kernelsvc serve
```

```toml
a = 1
```
"""


def test_a_page_gives_its_blocks_with_what_they_print_and_why_they_are_not_run() -> None:
    first, second, third = blocks(Path("page.md"), PAGE)
    assert (first.where, first.runs, first.prints) == ("page.md:3", True, "1\n")
    assert (second.runs, second.not_run) == (False, "it never ends")
    assert (third.language, third.runs) == ("toml", False)


@pytest.mark.parametrize("page", ["<!-- not run: -->\n```bash\nx\n```\n", "<!-- prints -->\n```text\nx\n```\n"])
def test_a_comment_that_says_nothing_is_an_error(page: str) -> None:
    with pytest.raises(ValueError, match=r"page\.md"):
        blocks(Path("page.md"), page)


def test_a_console_block_is_commands_and_their_output() -> None:
    (block,) = blocks(Path("p.md"), "```console\n$ echo a\na\n$ echo \\\n  b\nb\n$ true\n```\n")
    assert commands(block) == [("echo a", "a\n"), ("echo \\\n  b", "b\n"), ("true", "")]


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        ("1\n", "1", True),
        ("a   1\nb   2\n", "a 1\nb 2\n", True),
        ("start\n...\nend\n", "start\nany\nthing\nend\n", True),
        ("...ok", "it is ok", True),
        ("1", "12", False),
        ("a.c", "abc", False),
    ],
)
def test_outputs_agree_up_to_white_space_and_ellipses(expected: str, actual: str, same: bool) -> None:
    assert agrees(expected, actual) is same
