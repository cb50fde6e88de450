"""Each screen of the console with a real session: what a person can do there, and its accessibility."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
from browsing import run_cells
from waiting import wait_for

pytestmark = pytest.mark.timeout(180)


def events(served: Any, session: str, kind: str) -> list[dict[str, Any]]:
    page = served.call("GET", f"/v1/sessions/{session}/events?limit=10000")
    return [each for each in page["events"] if each["type"] == kind]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 320])
def test_every_screen_is_accessible(console: Any, accessibility: Any, scheme: str, width: int) -> None:
    view = console(color_scheme=scheme)
    view.page.set_viewport_size({"width": width, "height": 800})
    code = "from IPython.display import HTML\nHTML('<table><tr><th>a<td>1</table>')"
    session = run_cells(view.served, "x = {'a': 1}  # a comment", code, "print('\\x1b[31mred')\n1/0", name="accessible")
    page = view.open()
    faults = {}
    for route, text in [
        ("/", "accessible"), (f"/s/{session}", "ZeroDivisionError"), (f"/s/{session}/tree", "Checkpoints"),
        (f"/s/{session}/log", "cell_finished"), (f"/s/{session}/resources", "Memory"),
        (f"/s/{session}/files", "The directory is empty"), (f"/s/{session}/about", "Sandbox"),
        ("/waiting", "Nothing waits"), ("/server", "Templates"), ("/nowhere", "no such page"),
    ]:  # fmt: skip
        page.goto(f"{view.served.url}/console/#{route}")
        page.locator("main").get_by_text(text).last.wait_for(state="attached")
        faults[route] = accessibility(view)
    page.keyboard.press("?")
    page.get_by_role("dialog").wait_for()
    faults["help"] = accessibility(view)
    assert {route: found for route, found in faults.items() if found} == {}
    assert view.violations() == []


def test_a_cell_by_hand_its_question_and_an_interrupt(console: Any) -> None:
    view = console()
    served = view.served
    session = run_cells(served)
    page = view.open(f"/s/{session}")
    box = page.get_by_label("Run a cell by hand")
    box.fill("name = input('Who? ')\nprint('hello', name)")
    box.press("Control+Enter")
    page.get_by_label("Who?").fill("Ada")
    page.get_by_label("Who?").press("Enter")
    page.get_by_text("hello Ada").last.wait_for()
    box.fill("import time\nwhile True: time.sleep(0.05)")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("article", name="Cell 2, running").wait_for()
    page.get_by_role("button", name="Interrupt").click()
    page.get_by_role("article", name="Cell 2, interrupted").wait_for()
    assert [each["principal"] for each in events(served, session, "cell_queued")] == ["local", "local"]
    # By keys alone.
    page.get_by_role("article").first.focus()
    page.keyboard.press("j")
    wait_for(lambda: page.evaluate("document.activeElement.dataset.cell") is not None, what="the focus in a cell")
    page.keyboard.press("g")
    page.keyboard.press("t")
    page.get_by_role("heading", name="Checkpoints").wait_for()


def test_a_person_takes_over_and_lets_go(console: Any, accessibility: Any) -> None:
    view = console()
    served = view.served
    session = run_cells(served, "x = 1", name="taken over")
    page = view.open(f"/s/{session}")
    page.get_by_text("● live").wait_for()
    page.get_by_role("button", name="Take over").click()
    page.get_by_text("held by local").wait_for()
    agents = [{"code": f"x += {n}  # of the agent"} for n in (10, 100)]
    served.call("POST", f"/v1/sessions/{session}/cells?wait=queued", {"cells": agents})
    first = page.get_by_role("article", name="Cell 2, held")
    first.get_by_label("Reason").fill("not yet")
    assert accessibility(view) == []
    view.picture("taken-over")
    # The person's own cell runs at once.
    page.get_by_label("Run a cell by hand").fill("print('by hand', x)")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("by hand 1").last.wait_for()
    first.get_by_role("button", name="Refuse").click()
    page.get_by_text("Refused by local: not yet").wait_for()
    page.goto(f"{served.url}/console/#/waiting")
    page.get_by_role("article", name="Held cell in taken over").get_by_text("x += 100").wait_for()
    assert accessibility(view) == []
    view.picture("held-cell")
    page.get_by_role("button", name="Approve").click()
    page.get_by_text("Nothing waits").wait_for()
    page.goto(f"{served.url}/console/#/s/{session}")
    page.get_by_role("button", name="Let go").click()
    page.get_by_role("button", name="Take over").wait_for()
    assert [(e["mode"], e["by"]) for e in events(served, session, "session_held")] == [
        ("ask", "local"),
        ("off", "local"),
    ]
    decided = [(e["decision"], e["by"]) for e in events(served, session, "cell_decided")]
    assert decided == [("approve", "local"), ("refuse", "local"), ("approve", "local")]


def test_a_rollback_says_what_it_undoes_and_a_branch_is_a_session(console: Any, accessibility: Any) -> None:
    view = console()
    served = view.served
    session = run_cells(served, "x = 1")
    served.call("POST", f"/v1/sessions/{session}/checkpoints", {"name": "clean"})
    served.call("POST", f"/v1/sessions/{session}/cells", {"code": "x = 2  # to be undone"})
    page = view.open(f"/s/{session}/tree")
    row = page.get_by_role("row").filter(has_text="clean")
    row.get_by_role("button", name="Roll back").click()
    page.get_by_role("dialog").get_by_text("to be undone").wait_for()
    assert accessibility(view) == []
    view.picture("rollback")
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    page.get_by_text("· undone").wait_for()
    assert [event["by"] for event in events(served, session, "rolled_back")] == ["local"]
    page.get_by_role("button", name="Branch from now").click()
    page.get_by_role("dialog").get_by_role("button", name="Branch here").click()
    # Not page.url: it changes only while Playwright waits.
    wait_for(lambda: session not in page.evaluate("location.href"), deadline=40, what="the branch")
    page.get_by_role("link", name="Tree").click()
    page.get_by_text("branched at entry").wait_for()


def test_two_branches_and_two_cells_are_compared(console: Any, accessibility: Any) -> None:
    view = console()
    served = view.served
    session = run_cells(served, "x = 1")
    (branch,) = served.call("POST", f"/v1/sessions/{session}/branches", {"count": 1})
    for id, code in ((session, "print(x)\nprint('one')"), (branch["id"], "print(x)\nprint('two')"), (session, "y = 1")):
        served.call("POST", f"/v1/sessions/{id}/cells", {"code": code})
    page = view.open(f"/s/{session}/tree")
    page.get_by_role("button", name="Compare with").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("region", name="Cell 3").get_by_text("ok and no such cell").wait_for()
    assert dialog.get_by_role("region").count() == 2  # The cell before the branch is not among them.
    code = dialog.get_by_role("group", name="Code, compared").first
    assert code.inner_text().splitlines() == ["  print(x)", "- print('one')", "+ print('two')"]
    assert dialog.get_by_role("group", name="Output, compared").first.inner_text().split() == [
        "1",
        "-",
        "one",
        "+",
        "two",
    ]
    assert accessibility(view) == []
    view.picture("compared")
    dialog.get_by_role("button", name="Close").click()
    page.goto(f"{served.url}/console/#/s/{session}")
    page.get_by_role("article", name="Cell 1, ok").get_by_role("button", name="Compare").click()
    page.get_by_role("article", name="Cell 3, ok").get_by_role("button", name="Compare with this").click()
    dialog.get_by_text("Output: the same in both").wait_for()
    assert dialog.get_by_role("group").inner_text().splitlines() == ["- x = 1", "+ y = 1"]


def test_a_comparison_has_both_texts_and_is_no_longer_than_needed(console: Any) -> None:
    page = console().open()
    page.get_by_role("heading", name="Sessions").wait_for()
    choose = random.Random(7)
    pairs = [[choose.choices("abc", k=choose.randrange(12)) for _ in range(2)] for _ in range(60)]
    script = """async (pairs) => { const { difference } = await import("/console/compare.js");
        return pairs.map(([one, other]) => difference(one, other)); }"""
    for (before, after), found in zip(pairs, page.evaluate(script, pairs), strict=True):
        assert [line["text"] for line in found if line["sign"] != "+"] == before
        assert [line["text"] for line in found if line["sign"] != "-"] == after
        assert sum(line["sign"] == " " for line in found) == longest(tuple(before), tuple(after))


@cache
def longest(before: tuple[str, ...], after: tuple[str, ...]) -> int:
    """The length of the longest common subsequence, by its definition."""
    if not before or not after:
        return 0
    both = before[-1] == after[-1]
    return (
        both + longest(before[:-1], after[:-1])
        if both
        else max(longest(before[:-1], after), longest(before, after[:-1]))
    )


def test_files_go_up_and_down_and_a_hostile_one_is_text(console: Any, accessibility: Any, tmp_path: Any) -> None:
    view = console()
    session = run_cells(view.served, "open('note.txt', 'w').write('first')")
    page = view.open(f"/s/{session}/files")
    hostile = tmp_path / "x.html"
    hostile.write_text("<script>top.postMessage({hit: 1}, '*')</script>")
    page.get_by_label("Upload").set_input_files(hostile)
    page.get_by_role("button", name="x.html").click()
    page.get_by_text("top.postMessage").wait_for()
    assert page.evaluate("hits") == []
    row = page.get_by_role("row").filter(has_text="note.txt")
    with page.expect_download() as done:
        row.get_by_role("button", name="Download").click()
    assert done.value.suggested_filename == "note.txt"
    assert accessibility(view) == []


def test_what_waits_is_answered_on_one_screen(console: Any, accessibility: Any) -> None:
    view = console()
    served = view.served
    session = run_cells(served, name="asks")
    cell = {"code": "print('got', input('Colour? '))", "allow_stdin": True}
    served.call("POST", f"/v1/sessions/{session}/cells?wait=queued", cell)
    page = view.open("/waiting")
    page.get_by_label("Colour?").wait_for()
    assert accessibility(view) == []
    page.get_by_label("Colour?").fill("green")
    page.get_by_label("Colour?").press("Enter")
    page.get_by_text("Nothing waits").wait_for()
    (given,) = events(served, session, "input_given")
    assert (given["text"], given["by"]) == ("green", "local")


def test_the_answer_to_a_question_that_is_too_old_to_be_found_is_hidden(console: Any) -> None:
    view = console()
    session = run_cells(view.served)
    cell = {"code": "print('got', input('Colour? '))", "allow_stdin": True}
    view.served.call("POST", f"/v1/sessions/{session}/cells?wait=queued", cell)
    wait_for(lambda: events(view.served, session, "input_requested"), what="the question")
    page = view.page
    page.route("**/events?*", lambda route: route.fulfill(json={"events": [], "next_after": 0}))
    for screen in (f"/s/{session}", "/waiting"):
        view.open(screen)
        field = page.get_by_label("The cell asks for a line of input")
        field.wait_for()
        assert field.get_attribute("type") == "password"
    field.fill("green")
    field.press("Enter")
    wait_for(lambda: events(view.served, session, "input_given"), what="the answer")
