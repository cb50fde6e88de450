"""How many examples of a property a run tries: few in ``make test``, and many in ``make test-properties``."""

from __future__ import annotations

import os

from hypothesis import settings

#: ``KERNELSVC_EXAMPLES=20`` tries 20 times as many, and other ones in each run.
FACTOR = int(os.environ.get("KERNELSVC_EXAMPLES", "1"))
MORE = FACTOR > 1
#: Examples of a property that names no number. The default of hypothesis is 100.
USUAL = 40


def examples(number: int) -> int:
    """Return the number of examples to try.

    Args:
        number: examples of an ordinary run.
    """
    return number * FACTOR


def load_profile() -> None:
    """Set the defaults of hypothesis. No deadlines: a machine that does much else is slow."""
    settings.register_profile("kernelsvc", max_examples=examples(USUAL), deadline=None)
    settings.load_profile("kernelsvc")
