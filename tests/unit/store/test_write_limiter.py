"""Turns to write: at once while there are few, spaced when there are many."""

from kernelsvc.store.write_limiter import SLACK, SPACING, WriteLimiter


def test_few_write_at_once_and_many_in_turn():
    crowd = WriteLimiter(100.0)
    waits = [crowd.delay(100.0) for _ in range(100)]
    at_once = round(SLACK / SPACING)
    assert waits[:at_once] == [0.0] * at_once
    assert abs(waits[-1] - (100 - 1 - at_once) * SPACING) < 1e-6
    assert waits == sorted(waits)


def test_one_every_now_and_then_never_waits():
    crowd = WriteLimiter(0.0)
    assert not any(crowd.delay(now * SPACING * 1.01) for now in range(1000))


def test_quiet_gives_no_more_than_its_slack():
    crowd = WriteLimiter(0.0)
    assert sum(crowd.delay(1000.0) == 0.0 for _ in range(100)) in (round(SLACK / SPACING), round(SLACK / SPACING) + 1)
