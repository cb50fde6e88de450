"""Steps of the machine's clock."""

from __future__ import annotations

import pytest

from kernelsvc.linux.clock import SteadyClock, boot_time


class Machine:
    def __init__(self):
        self.wall, self.steady = 1_000_000.0, 50.0

    def clock(self):
        return SteadyClock(lambda: self.wall, lambda: self.steady)

    def passes(self, seconds):
        self.wall += seconds
        self.steady += seconds


@pytest.mark.parametrize(("step", "shown"), [(86400, 10), (-86400, 10 - 86400), (0, 10)])
def test_a_step_forward_makes_nothing_old(step, shown):
    machine = Machine()
    clock = machine.clock()
    machine.passes(10)
    machine.wall += step
    assert clock() == 1_000_000 + shown


@pytest.mark.parametrize(("step", "seen"), [(3600, 3600), (-3600, -3600), (5, 0), (-5, 0)])
def test_a_step_is_seen_once(step, seen):
    machine = Machine()
    clock = machine.clock()
    machine.passes(100)
    assert clock.step() == 0
    machine.wall += step
    assert clock.step() == seen
    machine.passes(100)
    assert clock.step() == 0


def test_the_steady_clock_runs():
    assert boot_time() <= boot_time()
