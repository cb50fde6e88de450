"""The view of a cell: every gap can be read, the budget holds, and the same cell gives the same text."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelsvc.errors import BadRequest
from kernelsvc.model import events as ev
from kernelsvc.model.cell_fold import CellFold
from kernelsvc.model.events import Event, Reason
from kernelsvc.model.objects import CellView
from kernelsvc.model.view import cell_view
from kernelsvc.model.view.cell_view import ViewRequest, shares, view_cell
from kernelsvc.model.view.estimate import estimate
from kernelsvc.model.view.folding import Item
from kernelsvc.model.view.full_text import LINE, full_text
from kernelsvc.model.view.line_search import compile_pattern
from kernelsvc.model.view.plain_form import MODEL_MIME

GAP = re.compile(r"\[… lines? (\d+)(?:–(\d+))? …\]")
PNG = "iVBORw0KGgo="


def folded(*events: Event, reason: Reason | None = Reason.OK, **end: Any) -> CellFold:
    fold = CellFold()
    fold.feed(ev.CellQueued(cell="c", code="x"))
    fold.feed(ev.CellStarted(cell="c"))
    for event in events:
        fold.feed(event)
    if reason is not None:
        fold.feed(ev.CellFinished(cell="c", reason=reason, **end))
    return fold


def out(text: str, name: Any = "stdout") -> ev.Stream:
    return ev.Stream(cell="c", name=name, text=text)


def shown(*data: dict[str, Any]) -> list[ev.Display]:
    return [ev.Display(cell="c", data=each) for each in data]


def result(plain: str, **more: str) -> ev.Result:
    return ev.Result(cell="c", data={"text/plain": plain, **more})


def view(fold: CellFold, **request: Any) -> CellView:
    return view_cell(fold, 3, "s", ViewRequest(**request))


def text(*events: Event, reason: Reason = Reason.OK, budget: int = 3000, **end: Any) -> str:
    return view(folded(*events, reason=reason, **end), budget=budget).text


def numbered(fold: CellFold) -> list[str]:
    return list(full_text(fold.render(), fold.error_lines).lines())


def read_back(fold: CellFold, first: int, last: int) -> list[str]:
    """Read lines as a model does: by as many calls as the answers ask for."""
    found: list[str] = []
    while len(found) < last - first + 1:
        start = first + len(found)
        page = view(fold, from_line=start, lines=last - start + 1).text
        count = int(re.findall(r"lines \d+–(\d+) of", page)[-1]) - start + 1
        found += page.split("\n")[:count]
    return found


def check_promises(fold: CellFold, budget: int) -> str:
    seen = view(fold, budget=budget)
    assert view(fold, budget=budget) == seen
    assert estimate(seen.text) <= 1.4 * budget
    lines = numbered(fold)
    assert seen.lines == len(lines)
    for first, last in GAP.findall(seen.text):
        begin, end = int(first), int(last or first)
        assert 1 <= begin <= end <= len(lines)
        assert read_back(fold, begin, min(end, begin + 300)) == lines[begin - 1 : min(end, begin + 300)]
    return seen.text


# --- small outputs stay as they are ------------------------------------------------------------------


def test_a_small_output_is_unchanged_and_the_cell_is_a_number():
    assert text(out("a\nb  c\n"), result("42")) == "a\nb  c\n42\n[3]"
    assert text() == "[3 no output]"


def test_one_terminal_shows_both_streams():
    assert text(out("value: "), out("warned\n", "stderr"), out("end")) == "value: warned\nend\n[3]"


@pytest.mark.parametrize(
    ("reason", "end", "expected"),
    [
        (Reason.ERROR, {}, "[3 error]"),
        (
            Reason.TIMEOUT,
            {"message": "1 s reached; interrupted, variables kept."},
            "1 s reached; interrupted, variables",
        ),
        (
            Reason.KERNEL_DIED,
            {"message": "SIGSEGV.", "variables_kept": True},
            "[3 kernel_died: SIGSEGV. Variables kept.]",
        ),
        (Reason.KERNEL_DIED, {"message": "x", "variables_kept": False}, "The variables are lost."),
        (Reason.CANCELLED, {}, "[3 cancelled: did not run, because a cell before it failed]"),
    ],
)
def test_the_last_line_says_how_it_ended_once(reason: Reason, end: dict[str, Any], expected: str):
    found = text(reason=reason, **end)
    assert expected in found
    assert found.count(end.get("message", expected)) == 1


def test_a_quiet_cell_shows_what_it_changed():
    changes = {"new": ["margin: Series 5000", "best: Period"], "files": ["+clean.csv (3 kB)"]}
    assert (
        text(changes=changes) == "[new: margin: Series 5000, best: Period]\n[files: +clean.csv (3 kB)]\n[3 no output]"
    )
    assert text(out("x"), changes=changes) == "x\n[files: +clean.csv (3 kB)]\n[3]"


def test_the_kernels_form_of_values_and_errors_replaces_the_plain_one():
    error = ev.Error(cell="c", ename="E", evalue="x", traceback=["long", "form"], model=["short: x"])
    assert text(result("wide", **{MODEL_MIME: "DataFrame, 2 rows\na,b"}), error, reason=Reason.ERROR) == (
        "DataFrame, 2 rows\na,b\nshort: x\n[3 error]"
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"text/plain": "<IPython.core.display.Markdown object>", "text/markdown": "## **12 %**"}, "## **12 %**"),
        ({"text/plain": "<IPython.core.display.HTML object>", "text/html": "<b>a</b><script>x</script>"}, "a"),
        ({"text/plain": "<IPython.core.display.Latex object>", "text/latex": "$b$"}, "$b$"),
        (
            {"text/plain": "<pandas.io.formats.style.Styler at 0x7f00>", "text/html": "<tr><td>a</td> <td>1</td></tr>"},
            "a | 1",
        ),
        (
            {"text/plain": "<IPython.core.display.SVG object>", "image/svg+xml": "<svg><text>Flow</text></svg>"},
            "[SVG drawing: Flow]",
        ),
        ({"text/plain": "<Node object at 0x7f1122334455>"}, "<Node object at 0x…>"),
        ({"text/plain": "[<Node object at 0x7f1122334455>]"}, "[<Node object at 0x…>]"),
    ],
)
def test_a_placeholder_is_replaced_by_the_text_behind_it(data: dict[str, Any], expected: str):
    assert text(*shown(data)) == f"{expected}\n[3]"


# --- terminal, warnings, repetitions, runs -----------------------------------------------------------


def test_a_progress_bar_ends_as_its_last_state():
    bar = "".join(f"\r{k:3}%|{'█' * k}{' ' * (10 - k)}|" for k in range(11))
    assert text(out(bar + "\ndone\n")) == f" 10%|{'█' * 10}|\ndone\n[3]"


def test_warnings_of_one_shape_are_shown_once_with_their_number():
    where = "/srv/env/lib/python3.13/site-packages/sk/_log.py:4"
    lines = "".join(f"{where}: UserWarning: could not parse '{k % 3}'\n  warn(\nSTOP at 9\n" for k in range(90))
    found = text(out(lines, "stderr"))
    assert found.startswith("sk/_log.py:4: UserWarning: could not parse '0' [x90 in all; also: could not parse '1'")
    assert "/srv" not in found
    assert estimate(found) < 120


def test_a_file_of_a_cell_has_no_path():
    written = '/tmp/ipykernel_2/609.py:3: ChainedAssignmentError: a copy\n  File "/srv/t/ipykernel_9/1.py", line 2\n'
    assert view(folded(out(written))).text.startswith('Cell:3: ChainedAssignmentError: a copy\n  File "Cell", line 2\n')


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a" * 1500 + "b", "a[this text x1500]b"),
        ("<style>" + ".c{x}" * 200 + "</style>" + "y" * 399, "<style>.c{x}[this text x200]</style>" + "y" * 399),
        ("ab" * 399, "ab" * 399),
        ("".join(map(str, range(400))), "".join(map(str, range(400)))),
    ],
)
def test_what_repeats_inside_a_long_line_is_shown_once(line: str, expected: str):
    assert text(out(line + "\n")).splitlines()[0] == expected


def test_a_repeated_line_or_group_is_shown_once():
    assert text(out("retry\n" * 500 + "gave up\n")) == "retry [this line x500]\ngave up\n[3]"
    assert text(out("a\nb\n" * 40)) == "a\nb [these 2 lines x40]\n[3]"
    assert text(out("a\n" * 3)) == "a\na\na\n[3]"


def test_a_run_of_one_shape_is_thinned_and_the_odd_line_stays():
    rows = [f"item {k}: verified ok after {k / 7:.3f} s" for k in range(4000)]
    rows[2345] = "ERROR item 2345: checksum mismatch"
    fold = folded(out("\n".join(rows)))
    found = check_promises(fold, 3000)
    assert "checksum mismatch" in found
    assert rows[0] in found
    assert rows[-1] in found
    assert estimate(found) < 1500


def test_an_odd_line_is_lifted_out_of_the_middle():
    rows = [f"{'abcdefgh'[k % 8] * (k % 40 + 3)} {k}" for k in range(20_000)]
    rows[9_000] = "connection refused by host"
    assert "connection refused" in check_promises(folded(out("\n".join(rows))), 500)


# --- cuts --------------------------------------------------------------------------------------------


def test_an_error_behind_much_output_is_whole():
    trace = [f"frame {k} of the traceback" for k in range(30)]
    error = ev.Error(cell="c", ename="E", evalue="", traceback=[*trace, "E: the cause"])
    rows = "\n".join(f"{k} {'x' * (k % 50)}" for k in range(5000))
    found = check_promises(folded(out(rows), error, reason=Reason.ERROR), 1000)
    assert "\n".join([*trace, "E: the cause"]) in found


def test_shares_leave_no_room_unused():
    assert shares(["stream", "value"], [5000.0, 100.0], 1000.0) == [900.0, 100.0]
    assert shares(["stream", "value"], [5000.0, 5000.0], 900.0) == [pytest.approx(300.0), pytest.approx(600.0)]
    assert shares(["error", "stream"], [5000.0, 100.0], 1000.0) == [900.0, 100.0]
    assert shares(["value", "value", "value"], [10.0, 900.0, 900.0], 610.0) == [10.0, 300.0, 300.0]


def test_a_long_line_is_cut_inside_and_each_part_can_be_read():
    word = "".join(f"token{k} " for k in range(30_000))
    fold = folded(result(word))
    found = check_promises(fold, 3000)
    assert found.startswith("token0 token1 ")
    assert "token29999" in found
    assert GAP.search(found)
    assert "".join(numbered(fold)) == word
    assert all(len(line) <= LINE for line in numbered(fold))


def test_many_small_outputs_stay_in_the_budget():
    found = check_promises(folded(*shown(*({"text/plain": f"value {k}"} for k in range(3000)))), 300)
    assert "value 0" in found
    assert "value 2999" in found


@st.composite
def cells(draw: st.DrawFn) -> CellFold:
    piece = st.one_of(
        st.text(max_size=80),
        st.text(st.sampled_from("ab1 .\n\r\b\x1b[AKJ0;m2月\ud83d"), max_size=200),
        st.builds(lambda c, n: c * n, st.sampled_from(["x", "ab ", "0\n", "线\n", "é", "a\r"]), st.integers(1, 4000)),
        st.builds(lambda a, n: "\n".join(f"{a}{k}" for k in range(n)), st.text(max_size=9), st.integers(1, 300)),
    )
    event: st.SearchStrategy[Event] = st.one_of(
        st.builds(out, piece, st.sampled_from(["stdout", "stderr"])),
        st.builds(result, piece),
        st.builds(lambda data: shown({"text/plain": data, "image/png": PNG})[0], piece),
    )
    events = draw(st.lists(event, max_size=8))
    if draw(st.booleans()):
        events.append(ev.Error(cell="c", ename="E", evalue="v", traceback=draw(st.lists(piece, max_size=4))))
    return folded(*events, reason=draw(st.sampled_from([Reason.OK, Reason.ERROR, None])))


@settings(deadline=None, max_examples=60)
@given(cells(), st.integers(200, 3000))
def test_every_gap_can_be_read_and_the_budget_holds(fold: CellFold, budget: int):
    check_promises(fold, budget)


@pytest.mark.parametrize(
    "hostile",
    [
        "x" * 4_000_000,
        "".join(f"{k}\n" for k in range(100_000)),
        "\n" * 200_000,
        "x\x1b[0m" * 100_000,
        "x\x1b[K" * 80_000,
        ("y" * 5000 + "\r") * 2000,
        "a\x1b[A\x1b[B" * 50_000,
        "\x1b]" * 100_000,
        "\x1b[" + "1" * 1_000_000,
        "\x00\x01\udcff" * 60_000,
        "<script>" * 100_000,
        "f.py:1: AWarning: x\n  s\n" * 20_000,
    ],
    ids=range(12),
)
@pytest.mark.timeout(60)
def test_a_hostile_output_takes_time_in_proportion(hostile: str):
    fold = folded(out(hostile), *shown({"text/html": hostile}))
    seen = view(fold, budget=2000)
    assert estimate(seen.text) <= 1.4 * 2000
    assert seen.lines <= len(hostile) + 2000


# --- reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [out, lambda text: shown({"text/plain": text})[0]])
def test_of_very_many_lines_those_at_both_ends_are_compared(monkeypatch: pytest.MonkeyPatch, event: Any):
    made = []
    monkeypatch.setattr(cell_view, "LISTED", 200)
    monkeypatch.setattr(cell_view, "Item", lambda *args, **fields: made.append(args) or Item(*args, **fields))
    values = [f"{block} {line} {'abcdefg'[line % 7] * (line % 11)}" for block in range(2) for line in range(1000)]
    events = [event("\n".join(values[at : at + 1000]) + "\n") for at in (0, 1000)]
    pair = [events[0], result("between"), events[1]]
    text = view(folded(*pair), budget=400).text
    lines = numbered(folded(*pair))
    assert len(made) <= 3 * 68
    assert text.startswith(lines[0])
    assert lines[-1] in text
    gaps = [(int(start), int(end or start)) for start, end in GAP.findall(text)]
    assert gaps
    assert len(lines) == 2001
    kept = [number for number, line in enumerate(lines, 1) if not any(a <= number <= b for a, b in gaps)]
    assert [lines[number - 1] for number in kept] == [line for line in text.split("\n") if line in set(lines)]


def test_lines_are_found_with_their_numbers():
    fold = folded(out("".join(f"line {k}\n" for k in range(1, 2000))), result("the end"))
    assert view(fold, find="line 1[05]0$").text == "100: line 100\n150: line 150\n[3 2 of 2000 lines match]"
    assert view(fold, find="THE END").text == "2000: the end\n[3 1 of 2000 lines match]"
    assert view(fold, find="line (").text == "[3 0 of 2000 lines match]"
    assert ", 1 shown]" in view(fold, find="line", budget=3).text


@pytest.mark.parametrize(
    "pattern",
    [
        *("(a+)+b", "(a|a)*", r"(.)\1", "(?=a)b", "(?:a*)*", "a*b*c*d*", "a{1,}b*c+.*", "x" * 300),
        *("a?" * 14 + "a" * 14, "[ab]??" * 12 + "c", "(a|aa)" * 12 + "b", "(|a)" * 14),
        "(a|b|c|" * 5 + "a" + ")" * 5,
    ],
)
def test_a_pattern_that_could_take_long_is_refused(pattern: str):
    with pytest.raises(BadRequest, match="'find'"):
        view(folded(out("a" * 100)), find=pattern)


@pytest.mark.parametrize(
    ("pattern", "factors"),
    [
        *(("[ab]*c", 1), ("https?://.*", 2), ("(a|b|ab)c*", 4), ("a?" * 10 + "b", 1024)),
        *(("[ab]?" * 6 + "[ab]*c", 64), ("[ab]?" * 10 + "[ab]*[ab]*[ab]+c", 1024)),
    ],
)
def test_a_line_is_searched_as_far_as_the_pattern_costs_little(pattern: str, factors: int):
    _, length = compile_pattern(pattern)
    repeats = sum(pattern.count(each) for each in "*+")
    assert length ** (repeats + 1) / math.factorial(repeats + 1) * factors <= 2_000_000
    assert length >= 14


def test_a_search_ends_in_time():
    fold = folded(out(("a" * 4000 + "\n") * 4000))
    assert "the search was stopped" in view(fold, find="a*a*a*b").text


def test_lines_and_pictures_that_do_not_exist():
    fold = folded(out("one\n"))
    assert view(fold, from_line=7).text == "[3 has 1 lines]"
    assert view(fold, picture=2).text == "[3 has 0 pictures, none with number 2]"


def test_four_pictures_are_sent_and_the_others_are_had_by_number():
    data = [
        {"text/plain": f"<Figure {k}>", "image/png": f"{PNG}{k}", MODEL_MIME: f"[picture: 'S{k}']"} for k in range(6)
    ]
    fold = folded(*shown(*data))
    seen = view(fold)
    assert [each.number for each in seen.pictures] == [1, 2, 3, 4]
    assert "[picture 2: 'S1']" in seen.text
    assert "[picture 6, not sent: read_output with cell=3 and picture=6]" in seen.text
    (sixth,) = view(fold, picture=6).pictures
    assert sixth.data == f"{PNG}5"


def test_waiting_gives_only_what_is_new():
    events: list[Event] = [out("one\ntwo\n")]
    first = view(folded(*events, reason=None))
    assert first.text.startswith("one\ntwo\n[3 runs: wait")
    events.append(out("three\n"))
    second = view(folded(*events, reason=None), after_line=first.next_line)
    assert "one" not in second.text
    events.append(result("done"))
    last = view(folded(*events), after_line=second.next_line)
    assert last.text == "three\ndone\n[3]"
    assert view(folded(*events), after_line=last.next_line).text == "[3 nothing new]"


def test_polls_of_a_printing_cell_cost_little_more_than_its_text():
    events: list[Event] = []
    polls: list[str] = []
    after = 0
    for poll in range(7):
        events.append(out("".join(f"step {poll}.{k}: loss {k * 37 % 101} of {poll + k}\n" for k in range(12))))
        seen = view(folded(*events, reason=None), after_line=after)
        polls.append(seen.text)
        after = seen.next_line
    whole = "".join(event.text for event in events if isinstance(event, ev.Stream))
    assert sum(map(estimate, polls)) <= 1.2 * estimate(whole)
    assert all(line in "".join(polls) for line in whole.splitlines())


def test_a_held_cell_says_that_it_waits_for_a_person():
    """A model must not interrupt another cell in order to have its own run."""
    fold = CellFold()
    fold.feed(ev.CellQueued(cell="c", code="x"))
    fold.feed(ev.CellHeld(cell="c"))
    assert "waits until a person approves" in view_cell(fold, 1, "s", ViewRequest()).text
    fold.feed(ev.CellDecided(cell="c", decision="approve"))
    assert "waits for another cell" in view_cell(fold, 1, "s", ViewRequest()).text
