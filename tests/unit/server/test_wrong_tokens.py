"""The delay of refusals after many wrong tokens."""

from __future__ import annotations

from kernelsvc.server.wrong_tokens import (
    FREE,
    HALF_LIFE,
    MAX_ADDRESSES,
    MAX_STEP_SECONDS,
    MAX_WAIT_SECONDS,
    WrongTokens,
)


def test_a_few_wrong_tokens_are_refused_at_once() -> None:
    wrong = WrongTokens()
    assert all(wrong.note("a", 5.0)[0] == 0 for _ in range(FREE))
    assert wrong.note("a", 5.0)[0] > 0
    assert wrong.note("b", 5.0) == (0, 1)


def test_many_are_refused_one_a_second_however_many_connections_send_them() -> None:
    wrong = WrongTokens()
    for _ in range(4 * FREE):
        waited, count = wrong.note("a", 5.0)
    assert (waited, count) == (MAX_WAIT_SECONDS, 4 * FREE)
    now = 5.0 + MAX_WAIT_SECONDS
    for _ in range(20):  # one at a time
        waited, _ = wrong.note("a", now)
        assert waited == MAX_STEP_SECONDS
        now += waited


def test_they_are_forgotten() -> None:
    wrong = WrongTokens()
    for _ in range(4 * FREE):
        wrong.note("a", 5.0)
    assert wrong.note("a", 5.0 + 4 * HALF_LIFE)[0] == 0
    for n in range(MAX_ADDRESSES + 1):
        wrong.note(str(n), 900.0)
    assert wrong.note("a", 900.0) == (0, 1)
    assert wrong.note(str(MAX_ADDRESSES), 900.0)[1] == 2
