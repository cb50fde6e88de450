"""Which of many equal refusals are recorded."""

from kernelsvc.model.network.repeats import MAX_KEYS, Repeats


def test_the_first_the_tenth_and_the_hundredth_are_recorded():
    repeats = Repeats()
    recorded = [n for n in (repeats.count("c1", "a") for _ in range(1000)) if n]
    assert recorded == [1, 10, 100, 1000]
    assert repeats.count("c2", "a") == 1  # another cell


def test_many_different_refusals_are_counted_as_one():
    repeats = Repeats()
    recorded = [repeats.count("c1", f"name {n}") for n in range(MAX_KEYS + 1000)]
    assert len([n for n in recorded if n]) == MAX_KEYS + 4


def test_refusals_after_the_end_of_a_cell_count_with_it():
    repeats = Repeats()
    names = [f"name {n}" for n in range(MAX_KEYS)]
    assert sum(repeats.count("c1", name) for name in names) == MAX_KEYS
    assert [repeats.count("", name) for name in [*names, "a further one"]] == [0] * MAX_KEYS + [1]
    assert repeats.count("c2", names[0]) == 1
