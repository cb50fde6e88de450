"""What all tests share: a served instance, and a watch over what a run leaves behind and leaves out."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import durations
import examples
import leaks
import pytest
from served import OTHER_PRINCIPAL, Served, serving

from benchmarks.corpus import LEAK
from kernelsvc.model.machine import Machine
from kernelsvc.tools import Toolbox, ToolResult

#: More skipped tests than this and the run fails: a machine on which so much can't be tried proves too little. Each
#: skip names what is missing (a privilege, a kernel feature), and the run's end lists them.
MAX_SKIPS = 20

gc.disable()  # until all tests are collected (pytest_collection_finish)
os.environ.pop("VIRTUAL_ENV", None)  # whoever runs the tests may work in another environment; IPython would warn of it
os.environ["KERNELSVC_VALIDATE"] = "1"  # in the servers that tests start, and by the next line in tests themselves
Machine.validate = True
examples.load_profile()
_RUN = leaks.mark(os.environ)
_CGROUPS_BEFORE = leaks.empty_cgroups()
_OUTERMOST = _RUN.startswith(f"{os.getpid()}-")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Make a worker of pytest-xdist like a run of one process.

    It has a thread that reads from its controller, of which Python warns at each fork. And its temporary directory has
    a longer name, in which sockets have no place (unix(7) gives them 108 bytes).
    """
    if hasattr(config, "workerinput"):
        config.addinivalue_line("filterwarnings", "ignore:This process .* is multi-threaded:DeprecationWarning")
        config.option.basetemp = tempfile.mkdtemp(prefix="pytest-", dir="/tmp")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove a worker's temporary directory; a run of one process keeps the last three, as pytest does."""
    if hasattr(config, "workerinput"):
        shutil.rmtree(config.option.basetemp, ignore_errors=True)


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A directory with a short path, for sockets: unix(7) gives them 108 bytes."""
    path = Path(tempfile.mkdtemp(prefix="k", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def short_tmp() -> Iterator[Path]:
    """The short directory of one file of tests. Two files may use the same name below theirs."""
    with short_directory() as path:
        yield path


@pytest.fixture(scope="session")
def run_tmp() -> Iterator[Path]:
    """The short directory of the whole run, for servers that files share."""
    with short_directory() as path:
        yield path


@pytest.fixture(scope="session")
def plain_server(run_tmp: Path) -> Iterator[Served]:
    """A server whose sessions import pandas and pyplot when they need them: their forks cost half as much."""
    with serving(run_tmp / "shared", env=OTHER_PRINCIPAL) as instance:
        yield instance


@pytest.fixture(scope="session")
def preloaded_server(run_tmp: Path) -> Iterator[Served]:
    """A server whose sessions have imported pandas and pyplot in advance, as is the default."""
    with serving(run_tmp / "preloaded", env=OTHER_PRINCIPAL, preload=True) as instance:
        yield instance


@pytest.fixture(scope="session")
def served(plain_server: Served) -> Served:
    """A server that the tests of one run share; make sessions of your own in it and leave its settings alone.

    It also knows ``other-token``, of another principal. A file whose cells plot or make tables takes the preloaded one.
    """
    return plain_server


@pytest.fixture(autouse=True)
def _logging_kept() -> Iterator[None]:
    """Undo what a command sets. pytest's handlers serve all later tests, and a limit would drop their records."""
    loggers = [logging.getLogger(name) for name in (None, "kernelsvc.telemetry.operator_log")]
    levels = [each.level for each in loggers]
    kept = [(handler, handler.filters[:], handler.formatter) for handler in logging.getLogger().handlers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    for handler, filters, formatter in kept:
        handler.filters[:] = filters
        handler.setFormatter(formatter)


@pytest.fixture(scope="session", autouse=True)
def _answers_of_tools_show_no_path() -> Iterator[None]:
    """Check each answer that the tools of this process give to a model: it has no path of the server."""
    call = Toolbox.call

    async def checked(self: Toolbox, *args: Any, **more: Any) -> ToolResult:
        result = await call(self, *args, **more)
        assert not LEAK.search(result.text), result.text
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Toolbox, "call", checked)
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests that repeat others in a further setting, and put those of the longest files first.

    Otherwise the order of the command line is kept. A test that is named by its id runs in any case.
    """
    if not os.environ.get("KERNELSVC_THOROUGH") and not any("::" in name for name in config.args):
        repeated = [item for item in items if item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=repeated)
        items[:] = [item for item in items if item not in set(repeated)]
    items.sort(key=lambda item: durations.order(item.nodeid.partition("::")[0]))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish() -> None:
    """Keep what is collected out of the garbage collector, which would look at these million objects again and again.

    One eighth of the CPU time of unit tests went there, and a quarter of that of the collection of tests.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that skipped too much or left something behind.

    Only the process that the run began with looks, and last: pytest-xdist's hook has ended its workers by then.
    """
    found = _left_behind() if _OUTERMOST else []
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skips = len(_counted(reporter.stats.get("skipped", []))) if reporter else 0
    session.config.stash[_LEFT] = found
    if (found or skips > MAX_SKIPS) and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _counted(skipped: list[pytest.TestReport]) -> list[pytest.TestReport]:
    """Those that say something of this machine; a foreign client that can't be installed says that it is offline."""
    return [report for report in skipped if not report.nodeid.startswith("tests/compat/")]


_LEFT = pytest.StashKey[list[str]]()


def _left_behind() -> list[str]:
    # One that is just ending is no leak: give it a moment.
    processes = leaks.processes(_RUN)
    if processes:
        leaks.psutil.wait_procs(processes, timeout=3)
        processes = leaks.processes(_RUN)
    found = [leaks.describe(process) for process in processes]
    leaks.end(processes)
    cgroups = set() if leaks.others(_RUN) else leaks.empty_cgroups() - _CGROUPS_BEFORE
    return found + [f"cgroup {path}" for path in sorted(cgroups)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """List how long each folder took, what was skipped, by reason, and what was left behind."""
    durations.write(terminalreporter)
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(_reason(report) for report in skipped)
    if reasons:
        total = len(_counted(skipped))
        foreign = f" (and {len(skipped) - total} foreign clients)" if total < len(skipped) else ""
        terminalreporter.section(f"skipped: {total}{foreign}, at most {MAX_SKIPS} allowed")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:4d}  {reason}", yellow=True)
        if total > MAX_SKIPS:
            terminalreporter.line("FAILED: more was skipped than allowed", red=True)
    if left := config.stash.get(_LEFT, []):
        terminalreporter.section("left behind by this run (now ended)")
        for line in left:
            terminalreporter.line(f"FAILED: {line}", red=True)


def _reason(report: pytest.TestReport) -> str:
    where = report.longrepr
    text = where[2] if isinstance(where, tuple) else str(where)
    return text.removeprefix("Skipped: ")
