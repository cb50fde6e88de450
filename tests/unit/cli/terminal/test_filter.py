"""What a hostile cell may do to a terminal."""

import itertools
import json
import re
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.cli.sessions.show import ago
from kernelsvc.cli.terminal.filter import EscapeFilter, json_text, one_line, safe, seconds, size, still, table
from kernelsvc.model.outputs import strip_ansi


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\r\n", "plain\ttext\r\n"),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
        ("\x1b[2K\x1b[1A", ""),
        ("\x1b[8mhidden", "\x1b[8mhidden\x1b[0m"),  # conceals the lines that follow
        ("\x1b]52;c;ZXZpbA==\x07", "\\x1b]52;c;ZXZpbA=="),  # sets the clipboard
        ("\x1b]0;title\x1b\\", "\\x1b]0;title\\x1b\\"),
        ("\x1bP+q544e\x1b\\", "\\x1bP+q544e\\x1b\\"),
        ("\x1b[?1049h", "\\x1b[?1049h"),  # another screen
        ("\x1b[6n", "\\x1b[6n"),  # makes the terminal type an answer
        ("\x9b31m", "\\x9b31m"),
        ("a\x00b", "a\\x00b"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("bell\a", "bell"),
    ],
)
def test_colours_pass_and_orders_are_shown(text, shown):
    assert safe(text, colour=True) == shown


def test_a_live_stream_may_move_the_cursor():
    text = "\x1b[2K\x1b[1A\x1b[6n"
    assert EscapeFilter(colour=True, movement=True).feed(text) == "\x1b[2K\x1b[1A\\x1b[6n"


#: Sequences inside of sequences: one removal of the inner ones would leave the outer ones.
NESTED = [
    "\x1b\x1b[A[99A\x1b\x1b[A[Jforged",
    "\x1b[\x1b[31m2Jforged",
    "\x1b\x1b]0;t\x07]52;c;ZQ==\x07forged",
    "\x1b\x1b\x1b[A[A[99Aforged",
    "\x1b\x1bcc\x1b\x1b[m[?1049hforged",
]


@pytest.mark.parametrize("text", NESTED)
@pytest.mark.parametrize("colour", [False, True])
def test_nested_sequences_leave_only_colours(text, colour):
    assert not re.search(r"\x1b(?!\[[0-9;:]*m)", safe(strip_ansi(text), colour=colour))
    assert not re.search(r"\x1b(?!\[[0-9;:]*m)", safe(text, colour=colour))
    assert "\x1b" not in strip_ansi(text)
    assert "\x1b" not in still(text)


@given(st.text(alphabet="\x1b[]AJHm29;?x\x07\x9b\n", max_size=60))
def test_no_text_moves_the_cursor(text):
    assert not re.search(r"\x1b(?!\[[0-9;:]*m)|\x9b", safe(strip_ansi(text), colour=True))
    assert not re.search(r"\x1b(?!\[[0-9;:]*m)|\x9b", safe(text, colour=True))
    assert strip_ansi(strip_ansi(text)) == strip_ansi(text)


def test_code_and_names_keep_their_line():
    assert still("x = 1\r\ny\rIn [2]: \b\b") == "x = 1\ny\\x0dIn [2]: \\x08\\x08"


def test_json_has_no_character_that_a_terminal_obeys():
    text = json_text(msgspec.json.encode({"name": "\x9b2J\u202e\x7f"}))
    assert (text, json.loads(text)) == ('{"name":"\\u009b2J\\u202e\\u007f"}', {"name": "\x9b2J\u202e\x7f"})


def test_without_colour_nothing_escapes():
    assert safe("\x1b[1;31mred\x1b[0m") == "red"


@given(st.text(alphabet="\x1b[]31m;?x\x07\x9b\n", max_size=60), st.lists(st.integers(0, 60), max_size=5), st.booleans())
def test_pieces_come_out_as_the_whole_does(text, cuts, colour):
    sieve = EscapeFilter(colour=colour)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = "".join(sieve.feed(text[a:b]) for a, b in itertools.pairwise(edges)) + sieve.flush()
    assert pieces == safe(text, colour=colour)


@given(st.text(max_size=200))
def test_no_escape_is_left_without_colour(text):
    shown = safe(text)
    assert not set(shown) & {*map(chr, range(8)), "\x1b", "\x7f", *map(chr, range(128, 160))}


def test_a_sequence_without_end_is_not_held_back_for_ever():
    assert EscapeFilter(colour=True).feed("\x1b[" + "1;" * 40) != ""


def test_words():
    assert [seconds(s) for s in (0.0011, 0.5, 12.34, 75, 7384)] == [
        "1.1 ms",
        "0.50 s",
        "12.3 s",
        "1 min 15 s",
        "2 h 3 min",
    ]
    assert [size(n) for n in (0, 1023, 1536, 200 * 1024, 5 << 30)] == ["0 B", "1023 B", "1.5 KiB", "200 KiB", "5.0 GiB"]
    assert one_line(" a\n  b\x1b[2J ", 10) == "a b"
    assert one_line("x" * 20, 10) == "x" * 9 + "…"
    assert table([["a", "bb"], ["ccc", ""]], ["H", "I"]) == ["H    I", "a    bb", "ccc"]


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("2026-01-01T12:00:30.000000Z", "30 s ago"),
        ("2026-01-01T11:00:00Z", "61 min ago"),
        ("2025-12-31T00:00:00Z", "36 h ago"),
        ("2025-01-01T00:00:00Z", "365 d ago"),
        ("", ""),
    ],
)
def test_ago(at, said):
    assert ago(at, datetime(2026, 1, 1, 12, 1, tzinfo=UTC)) == said
