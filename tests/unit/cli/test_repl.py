import pytest

from kernelsvc.cli.repl import COMMANDS, help_wanted, indent_after, is_whole, summary_of


@pytest.mark.parametrize(
    "code", ["1 + 1", "x = 5", "for i in 'ab':\n    print(i)\n\n", "%timeit 1", "!ls", ":help", "1 +* 2"]
)
def test_whole(code):
    assert is_whole(code)


@pytest.mark.parametrize("code", ["for i in 'ab':", "def f(\n", "for i in 'ab':\n    print(i)", "'''text", "x = [1,"])
def test_not_whole(code):
    assert not is_whole(code)


def test_indent():
    assert indent_after("for i in 'ab':") == "    "
    assert indent_after("x = [1,") == ""


@pytest.mark.parametrize(
    ("code", "wanted"),
    [("len?", ("len", 0)), ("np.array??", ("np.array", 1)), ("?len", ("len", 0)), ("a if b else c", None), ("x", None)],
)
def test_help(code, wanted):
    assert help_wanted(code) == wanted


def test_every_command_says_what_it_does():
    assert all(summary_of(name) for name in COMMANDS)
