"""What is called plain, IPython hands back as it is: whatever the cell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.macro import Macro
from traitlets.config import Config

from kernelsvc.guest.plain_cells import PlainCellDetector

#: What transformers look for, and what they might confuse with it.
PIECES = [
    *(
        "1",
        "+",
        "x",
        "=",
        "(",
        ")",
        "[",
        "]",
        '"',
        "'",
        '"""',
        "'''",
        "#",
        "\\",
        ".",
        "*",
        ":",
        ",",
        ";",
        "/",
        "@",
        "==",
    ),
    *("\n", "\n\n", "\r\n", "\r", "\f", "\v", "\x1c", "\x85", "\u2028", " ", "\t", "    "),
    *("?", "??", "!", "!!", "%", "%%", "%%time", "%time ", "!ls", "x?", "?x", "= !ls", "= %pwd", "!= "),
    *(">>> ", "... ", "...", "In [1]: ", "   ...: ", "[nav] In [2]: ", "[ins]", "In", ">>>"),
    *(
        "ls",
        "pwd",
        "cd x",
        "time ",
        "exit",
        "quit",
        "who",
        "mine",
        "macro",
        "print(x)",
        "lambda: 0",
        "async ",
        "await x",
    ),
    *(
        "def f():\n    return 1\n",
        "for i in x:\n  pass",
        "if x:\n\ty = 1\n",
        "class A: pass",
        "x = 1\ny",
        "π",
        "é1",
        "_",
        "1.5",
    ),
    *("f'{x!r}'", "f'{x:%Y}'", "b'a'", "/x", ",x y", ";x y", "x ,y", "1 ; 2", "# ?", "'# %'"),
]


@pytest.fixture(scope="module")
def shell() -> Iterator[Any]:
    config = Config()
    config.HistoryManager.enabled = False
    InteractiveShell.clear_instance()
    made = InteractiveShell.instance(config=config)
    made.user_ns["macro"] = Macro("1 + 1\n")
    made.user_ns["ls"] = 3
    yield made
    InteractiveShell.clear_instance()


@settings(max_examples=examples(500))
@given(cell=st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=8).map("".join))
def test_a_plain_cell_is_not_transformed(shell: Any, cell: str) -> None:
    if not PlainCellDetector(shell).is_plain(cell):
        return
    try:
        theirs = shell.transform_cell(cell)
    except SyntaxError:  # their tokenizer can't read it; then the compiler can't, and says so
        with pytest.raises(SyntaxError):
            compile(cell, "cell", "exec")
    else:
        assert theirs == (cell if cell.endswith("\n") else cell + "\n")


@pytest.mark.parametrize(
    "cell",
    [
        "1+1",
        "x",
        "1+1\n",
        "print('a')",
        "x = [1, 2]\nfor i in x:\n    print(i)\n",
        "df.head()",
        "x = 1\n\n\n",
        "# a\n'b'",
    ],
)
def test_ordinary_cells_are_plain(shell: Any, cell: str) -> None:
    assert PlainCellDetector(shell).is_plain(cell)


@pytest.mark.parametrize(
    "cell",
    [
        "",
        " ",
        "\n1",
        " x",
        "%pwd",
        "!ls",
        "x?",
        "pwd",
        "exit",
        "macro",
        ">>> 1",
        "x = 1\n/f 2",
        "ls -l",
        "x = !ls",
        "a\r\nb",
        "a\0b",
        "x = 1\n  \ny",
        "if x:\n  y\n ",
    ],
)
def test_what_stands_out_is_ipythons(shell: Any, cell: str) -> None:
    assert not PlainCellDetector(shell).is_plain(cell)


@pytest.mark.parametrize("where", ["cleanup_transforms", "line_transforms"])
def test_when_somebody_changes_a_transformer_nothing_is_plain(shell: Any, where: str) -> None:
    plain = PlainCellDetector(shell)
    transforms = getattr(shell.input_transformer_manager, where)
    transforms.append(lambda lines: [line.replace("1", "2") for line in lines])
    try:
        assert not plain.is_plain("1+1")
    finally:
        transforms.pop()
    assert plain.is_plain("1+1")


def test_names_that_become_magics_are_not_plain_any_more(shell: Any) -> None:
    plain = PlainCellDetector(shell)
    assert plain.is_plain("shout x")
    shell.register_magic_function(lambda line: line, magic_name="shout")
    assert not plain.is_plain("shout x")


def test_with_autocall_no_line_is_plain(shell: Any) -> None:
    plain = PlainCellDetector(shell)
    shell.autocall = 1
    try:
        assert not plain.is_plain("len x")
        assert plain.is_plain("len(x)\n1")
    finally:
        shell.autocall = 0
