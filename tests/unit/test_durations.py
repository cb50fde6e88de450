"""The table of durations adds up what the reports of a test's phases say."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import durations
import pytest


def report(test: str, when: str, seconds: float) -> pytest.TestReport:
    outcome = "passed"
    return pytest.TestReport(test, ("", 0, ""), {}, outcome, None, when, duration=seconds)


def test_the_phases_of_a_test_are_added_up():
    reports = [report("tests/unit/test_a.py::test_x", when, 0.5) for when in ("setup", "call", "teardown")]
    reporter = SimpleNamespace(stats={"": reports[:1] + reports[2:], "passed": reports[1:2], "warnings": [object()]})
    assert durations.of(reporter) == {"tests/unit/test_a.py::test_x": 1.5}


def test_folders_are_listed_with_the_longest_first():
    seconds = Counter(
        {"tests/unit/a/test_a.py::x": 1.0, "tests/unit/test_b.py::y": 1.0, "tests/attack/test_c.py::z": 3}
    )
    assert list(durations.by_folder(seconds).items()) == [("tests/attack", (1, 3.0)), ("tests/unit", (2, 2.0))]


def test_the_seconds_of_a_files_tests_are_added_up():
    seconds = Counter({"tests/a.py::x": 1.0, "tests/a.py::y": 2.0, "tests/b.py::x": 2.5})
    assert durations.by_file(seconds) == {"tests/a.py": 3.0, "tests/b.py": 2.5}


def test_the_longest_files_exist_and_come_first():
    tests = Path(__file__).parents[1]
    assert [name for name in durations.LONGEST if not (tests / name).exists()] == []
    paths = ["tests/unit/test_durations.py", f"tests/{durations.LONGEST[1]}", f"tests/{durations.LONGEST[0]}"]
    assert sorted(paths, key=durations.order) == paths[::-1]
