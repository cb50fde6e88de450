"""Admission adds up promises."""

import pytest

from kernelsvc.errors import AtCapacity, QuotaExceeded
from kernelsvc.model.admission import Ceilings, Reservation, admit
from kernelsvc.model.limits import Limits

ALICE = Reservation(principal="alice", memory_bytes=100)
LIMITS = Limits(memory_bytes=50)


@pytest.mark.parametrize(
    ("ceilings", "error"),
    [
        (Ceilings(), None),
        (Ceilings(sessions=3, sessions_per_principal=2, memory_bytes=250), None),
        (Ceilings(sessions=2), AtCapacity),
        (Ceilings(sessions_per_principal=1), QuotaExceeded),
        (Ceilings(memory_bytes=249), AtCapacity),
    ],
)
def test_admission(ceilings, error):
    live = [ALICE, Reservation(principal="bob", memory_bytes=100)]
    if error is None:
        admit(live, ceilings, "alice", LIMITS)
    else:
        with pytest.raises(error):
            admit(live, ceilings, "alice", LIMITS)


def test_many_at_once_count_as_many():
    with pytest.raises(AtCapacity):
        admit([], Ceilings(sessions=15), "a", LIMITS, count=16)
