"""What a model reads of cells as models write them: every fact, few tokens, no path of the server.

``python -m benchmarks.model_corpus`` runs the whole corpus, with packages that the tests do not need.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from served import Served

from benchmarks.corpus import GROUPS, CorpusCell, group, quick
from benchmarks.model_corpus import CellAnswer, Totals, answers, totals
from kernelsvc.integrations import Tools
from kernelsvc.model.view.estimate import estimate

#: Of the part that runs here, by the estimate, which is up to a quarter above the tokens of o200k_base.
MOST_TOKENS, MOST_P90, MOST_LARGEST = 55_000, 1500, 4200
pytestmark = pytest.mark.timeout(240)
_GAP = re.compile(r"\[… lines? (\d+)(?:–(\d+))? …\]")


@pytest.fixture(scope="session")
def served(preloaded_server: Served) -> Served:
    return preloaded_server


@pytest.fixture(scope="module")
def tools(served: Served) -> Iterator[Tools]:
    with Tools(served.url, served.token, session="corpus") as made:
        yield made
        made.call("sessions", {"close": "corpus"})


@pytest.fixture(scope="module")
def found(tools: Tools) -> list[CellAnswer]:
    cells: list[CorpusCell] = [cell for name in GROUPS for cell in quick(group(name))]
    return list(answers(tools, cells))


@pytest.fixture(scope="module")
def figures(found: list[CellAnswer]) -> Totals:
    return totals(found, lambda text: round(estimate(text)))


def test_every_fact_is_in_the_answer_to_its_cell(figures: Totals) -> None:
    assert figures.missing == {}
    assert figures.all_facts > 200


def test_answers_are_short(figures: Totals) -> None:
    assert figures.tokens <= MOST_TOKENS
    assert figures.p90 <= MOST_P90
    assert figures.largest <= MOST_LARGEST


def test_every_picture_can_be_had(figures: Totals) -> None:
    assert figures.pictures == figures.all_pictures > 0


def test_no_answer_shows_a_path_of_the_server(served: Served, figures: Totals) -> None:
    if "filesystem" not in served.call("GET", "/v1/info")["sandbox"]["enforced"]:
        pytest.skip("sessions have the machine's filesystem here: no mount namespaces")
    assert figures.leaks == []


def test_every_gap_can_be_read(tools: Tools, found: list[CellAnswer]) -> None:
    read = 0
    for each in found:
        number = re.findall(r"^\[(\d+)", each.text, re.MULTILINE)[-1]
        for first, last in _GAP.findall(each.text)[:2]:
            page = tools.call("read_output", {"cell": int(number), "from_line": int(first), "lines": 3}).text
            assert f"[{number} lines {first}–" in page, (each.cell.name, page)
            assert last is not None
            read += 1
    assert read > 10
