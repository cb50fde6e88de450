"""Monotonic times shown as wall-clock times."""

from __future__ import annotations

from kernelsvc.session.session_info import WallClock


def test_a_time_is_shown_the_same_each_time_until_the_clock_is_set() -> None:
    jitter, step = 0.0, 0.0
    clock = WallClock(wall=lambda: 1000.0 + step + jitter, monotonic=lambda: 10.0)
    assert clock.wall_time(20.0) == 1010.0
    jitter = 0.0004
    assert clock.wall_time(20.0) == 1010.0
    step = 60.0
    assert clock.wall_time(20.0) == 1070.0004
