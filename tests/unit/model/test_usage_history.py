"""What a session used over its life, in a bounded number of samples."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.model.limits import Usage
from kernelsvc.model.usage_history import FIRST_SECONDS, MAX_SAMPLES, UsageHistory, UsageSample, sample_of


def use(n: float) -> Usage:
    return Usage(cpu_seconds=n, memory_bytes=int(n) * 10, disk_bytes=int(n))


def test_samples_are_some_seconds_apart() -> None:
    history = UsageHistory()
    for second in range(21):
        history.add(1000.0 + second, use(second))
    assert [*history] == [UsageSample(1000.0 + n, float(n), n * 10, n) for n in (0, 5, 10, 15, 20)]
    assert sample_of(1.0, Usage()) == UsageSample(1.0, 0.0, 0, 0)


@given(st.integers(MAX_SAMPLES, 5000), st.floats(0.5, 50))
def test_a_long_life_is_told_from_its_beginning_in_few_samples(count: int, pause: float) -> None:
    history = UsageHistory()
    for n in range(count):
        history.add(n * pause, use(n))
    moments = [each.at for each in history]
    assert moments[0] == 0.0
    assert len(moments) == len(history) <= MAX_SAMPLES
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    assert all(gap >= min(FIRST_SECONDS, pause) - 1e-6 for gap in gaps)
    assert count * pause < 8 * FIRST_SECONDS or moments[-1] >= (count - 1) * pause / 2


def test_a_clock_that_is_set_back_stops_nothing() -> None:
    history = UsageHistory()
    history.add(1000.0, use(1))
    history.add(10.0, use(2))
    assert len(history) == 2
