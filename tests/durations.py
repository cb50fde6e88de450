"""How long the tests of a run took: a table by folder, the longest files, and the slowest tests."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

#: A run of fewer tests gets no table.
MIN_TESTS = 50
SLOWEST = 10
#: Files that take most of the time, the longest first. They start first, so that the workers end together. The table of
#: a run of all tests has them.
LONGEST = (
    "integration/test_host.py",
    "acceptance/test_cli.py",
    "acceptance/test_docs.py",
    "attack/test_cells.py",
    "integration/test_kernel_contract.py",
    "attack/test_caps.py",
    "integration/test_mcp.py",
    "acceptance/test_model_corpus.py",
    "integration/test_traces.py",
    "integration/test_tool_calls.py",
    "attack/test_descriptors.py",
    "integration/test_environments.py",
    "attack/test_cells_in_copies.py",
    "integration/test_kernels_zmq.py",
    "attack/test_floods.py",
    "integration/test_on_stop.py",
    "integration/test_mcp_stdio.py",
    "integration/test_kernel_wire.py",
    "integration/test_upgrade.py",
    "attack/test_egress.py",
    "integration/test_warm_pool.py",
    "acceptance/test_repl.py",
    "integration/test_connections.py",
    "integration/test_network_rules.py",
)
#: Tests that are faster than this, in seconds, are not among the slowest.
MIN_SECONDS = 1.0


def order(path: str) -> int:
    """Return the place of a file in the run: 0 for the longest, the same number for all that are not listed."""
    name = path.removeprefix("tests/")
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


def of(reporter: pytest.TerminalReporter) -> Counter[str]:
    """Seconds of each test, with its setup and teardown, by node id."""
    seconds: Counter[str] = Counter()
    for reports in reporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid] += report.duration
    return seconds


def by_folder(seconds: Counter[str]) -> dict[str, tuple[int, float]]:
    """Number of tests and seconds, by the first two parts of the path."""
    found: dict[str, tuple[int, float]] = {}
    for test, duration in seconds.items():
        folder = "/".join(Path(test.partition("::")[0]).parts[:2])
        number, total = found.get(folder, (0, 0.0))
        found[folder] = number + 1, total + duration
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def by_file(seconds: Counter[str]) -> Counter[str]:
    """Seconds by file."""
    found: Counter[str] = Counter()
    for test, duration in seconds.items():
        found[test.partition("::")[0]] += duration
    return found


def write(reporter: pytest.TerminalReporter) -> None:
    """Write the table. Seconds are those of the workers together: three workers spend three in a second."""
    seconds = of(reporter)
    if len(seconds) < MIN_TESTS:
        return
    reporter.section("durations")
    reporter.line(f"{'folder':24}{'tests':>8}{'seconds':>10}")
    for folder, (number, total) in by_folder(seconds).items():
        reporter.line(f"{folder:24}{number:8d}{total:10.1f}")
    for path, duration in by_file(seconds).most_common(len(LONGEST)):
        reporter.line(f"{duration:8.1f} s  {path}")
    slowest = [(test, duration) for test, duration in seconds.most_common(SLOWEST) if duration >= MIN_SECONDS]
    for test, duration in slowest:
        reporter.line(f"{duration:8.1f} s  {test}")
