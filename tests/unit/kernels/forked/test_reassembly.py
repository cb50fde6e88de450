"""One limit for the incomplete frames of all kernels."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.kernels.forked.reassembly import Reassembly


class Connection:
    """An owner of an incomplete frame."""

    def __init__(self) -> None:
        self.dropped = 0

    def drop_partial(self) -> None:
        self.dropped += 1


def test_the_oldest_frame_is_dropped_first() -> None:
    memory = Reassembly(100)
    one, two, three = Connection(), Connection(), Connection()
    memory.hold(one, 1, 40)
    memory.hold(two, 1, 40)
    memory.hold(one, 1, 45)  # it grows, and is as old as before
    memory.hold(three, 1, 40)
    assert [each.dropped for each in (one, two, three)] == [1, 0, 0]
    assert memory.total == 80


def test_a_frame_that_became_whole_makes_the_next_one_young() -> None:
    memory = Reassembly(100)
    one, two, three = Connection(), Connection(), Connection()
    memory.hold(one, 1, 40)
    memory.hold(two, 1, 40)
    memory.hold(one, 2, 40)
    memory.hold(three, 1, 40)
    assert [each.dropped for each in (one, two, three)] == [0, 1, 0]


def test_one_that_is_larger_than_the_limit_is_dropped_itself() -> None:
    memory = Reassembly(100)
    one = Connection()
    memory.hold(one, 1, 101)
    assert (one.dropped, memory.total) == (1, 0)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(0, 60))))
def test_the_sum_is_right_and_never_above_the_limit(steps: list[tuple[int, int, int]]) -> None:
    memory = Reassembly(100)
    connections = [Connection() for _ in range(5)]
    for index, frame, size in steps:
        if size == 60:
            memory.release(connections[index])
        else:
            memory.hold(connections[index], frame, size)
        assert memory.total == sum(size for _, size in memory._held.values()) <= memory.max_bytes
