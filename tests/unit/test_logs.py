"""The limit of log records per place in the code."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from kernelsvc import logs


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def output(clock: Clock) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logs.RateLimit(handler, clock)
    log.addHandler(handler)
    yield stream
    log.removeHandler(handler)


log = logging.getLogger("test.logs")
log.setLevel(logging.DEBUG)
log.propagate = False


def repeat(times: int) -> None:
    for number in range(times):
        log.warning("again %d", number)


def test_of_one_place_only_so_many_are_written_and_the_rest_is_counted(output: io.StringIO, clock: Clock) -> None:
    repeat(10_000)
    assert output.getvalue().count("again") == logs.BURST
    log.error("another place")
    assert output.getvalue().endswith("another place\n")
    clock.now = logs.PERIOD_SECONDS
    repeat(1)
    lines = output.getvalue().splitlines()
    assert f"{10_000 - logs.BURST} more records" in lines[-2]
    assert lines[-1] == "again 0"
    assert len(lines) == logs.BURST + 3


def test_a_summary_does_not_wait_for_another_record(output: io.StringIO, clock: Clock) -> None:
    repeat(logs.BURST + 1)
    (limit,) = [each for handler in log.handlers for each in handler.filters if isinstance(each, logs.RateLimit)]
    limit.flush()
    assert "more records" not in output.getvalue()
    clock.now = logs.PERIOD_SECONDS
    limit.flush()
    limit.flush()
    assert output.getvalue().count("1 more records") == 1


def test_long_records_are_shortened_also_with_a_traceback(output: io.StringIO) -> None:
    for _ in range(50):
        try:
            raise ValueError("x" * 100_000)
        except ValueError:
            log.exception("y" * 100_000)
    assert len(output.getvalue()) < (logs.BURST + 1) * (logs.MAX_MESSAGE + logs.MAX_TRACEBACK + 100)
    assert "Traceback" not in output.getvalue()[: logs.MAX_MESSAGE]


def test_debugging_is_not_limited(output: io.StringIO) -> None:
    for _ in range(logs.BURST * 3):
        log.debug("detail")
    assert output.getvalue().count("detail") == logs.BURST * 3
