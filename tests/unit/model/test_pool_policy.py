"""How many ready kernels are kept."""

from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.model.pool_policy import HALF_LIFE, LEAST, WINDOW, PoolDemand


def test_a_server_begins_with_the_most_and_lets_go_of_what_nobody_asks_for() -> None:
    demand = PoolDemand(40, 0.0)
    assert demand.target(0.0) == 40
    assert demand.target(HALF_LIFE) == 20
    assert demand.target(10 * HALF_LIFE) == 40 * LEAST


def test_a_burst_is_remembered_for_a_while() -> None:
    demand = PoolDemand(40, 0.0)
    later = 10 * HALF_LIFE
    for _ in range(30):
        demand.asked(later)
    assert demand.target(later) == 30
    assert demand.target(later + WINDOW) == 30
    assert demand.target(later + HALF_LIFE + WINDOW) == 15


def test_sessions_that_come_one_by_one_are_no_burst() -> None:
    demand, now = PoolDemand(40, 0.0), 10 * HALF_LIFE
    for _ in range(1000):
        now += WINDOW
        demand.asked(now)
    assert demand.target(now) == 40 * LEAST


def test_none_are_kept_where_none_may_be() -> None:
    demand = PoolDemand(0, 0.0)
    demand.asked(1.0)
    assert demand.target(1.0) == 0


@given(st.integers(0, 50), st.lists(st.tuples(st.floats(0, 100), st.integers(0, 80)), max_size=30))
def test_never_more_than_may_be_nor_fewer_than_were_just_asked_for(most: int, bursts: list[tuple[float, int]]) -> None:
    demand, now = PoolDemand(most, 0.0), 0.0
    for pause, count in bursts:
        now += pause
        for _ in range(count):
            demand.asked(now)
        assert min(most, count) <= demand.target(now) <= most
