"""Turns to write: at once while there are few, spaced when there are many."""

from kernelsvc.store.write_limiter import BURST, PART_BYTES, PER_SECOND, SLACK, SPACING, WriteLimiter, WriteSchedule


def test_few_write_at_once_and_many_in_turn():
    limiter = WriteLimiter(100.0)
    waits = [limiter.delay(100.0) for _ in range(100)]
    at_once = round(SLACK / SPACING)
    assert waits[:at_once] == [0.0] * at_once
    assert abs(waits[-1] - (100 - 1 - at_once) * SPACING) < 1e-6
    assert waits == sorted(waits)


def test_one_every_now_and_then_never_waits():
    limiter = WriteLimiter(0.0)
    assert not any(limiter.delay(now * SPACING * 1.01) for now in range(1000))


def test_quiet_gives_no_more_than_its_slack():
    limiter = WriteLimiter(0.0)
    assert sum(limiter.delay(1000.0) == 0.0 for _ in range(100)) in (round(SLACK / SPACING), round(SLACK / SPACING) + 1)


def test_pace_keeps_writing_to_its_share():
    now, pace, spent = 0.0, WriteSchedule(0.0), 0.0
    while now < 60:
        wait = pace.wait(now)
        if wait == 0:
            pace.spent(0.2)
            spent += 0.2
        now += max(0.01, wait)
    assert spent / 60 < 0.06


def test_pace_does_not_delay_what_is_cheap():
    pace, now = WriteSchedule(0.0), 0.0
    for _ in range(100):
        assert pace.wait(now) == 0
        pace.spent(0.0004)
        now += 1.0
    for _ in range(int(BURST)):
        assert pace.wait(now) == 0
        pace.spent(0.0004)
        now += 0.001


def test_pace_writes_once_a_second_in_a_stream_of_cells():
    pace, now, writes = WriteSchedule(0.0), 0.0, 0
    while now < 60:
        if pace.wait(now) == 0:
            pace.spent(0.0004)
            writes += 1
        now += 0.003
    assert writes <= 60 * PER_SECOND + BURST


def test_pace_writes_no_more_bytes_for_a_cell_when_there_are_many():
    pace, now, size, written = WriteSchedule(0.0), 0.0, 0, []
    for _ in range(20_000):
        size, now = size + 700, now + 0.003
        if pace.wait(now) == 0:
            pace.spent(size / 1e9, size)
            written.append((now, size))
    first = sum(bytes for at, bytes in written if at < 15)
    last = sum(bytes for at, bytes in written if at >= 45)
    assert last <= 15 * PART_BYTES + size
    assert first <= 15 * PART_BYTES + BURST * PART_BYTES
