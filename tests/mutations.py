"""Damaged messages for parsers of hostile bytes: many, fast, and the same in each run of one seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from examples import examples


def mutations(messages: Sequence[bytes], number: int, seed: int = 0) -> Iterator[bytes]:
    """Yield ``number`` damaged messages, 20 times as many with ``make test-properties``."""
    random_ = random.Random(seed)
    for _ in range(examples(number)):
        data = bytearray(random_.choice(messages))
        for _ in range(random_.randint(1, 6)):
            at = random_.randrange(len(data) + 1)
            match random_.randrange(5):
                case 0 if at < len(data):
                    data[at] ^= 1 << random_.randrange(8)
                case 1 if at < len(data):
                    data[at] = random_.choice((0, 1, 0x3F, 0x7F, 0xC0, 0xFF))
                case 2:
                    data[at:at] = random_.randbytes(random_.randint(1, 4))
                case 3:
                    del data[at : at + random_.randint(1, 8)]
                case 4:
                    data[at:at] = data[at : at + random_.randint(1, 40)]
        yield bytes(data)
