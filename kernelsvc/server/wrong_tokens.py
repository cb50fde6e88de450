"""Requests with a wrong token, counted for each address, and the delay of their refusals. Pure.

A right token is never delayed or refused here, so that no client can lock out another one behind the same address.
"""

from __future__ import annotations

from collections import OrderedDict

#: Wrong tokens of one address that are refused without a delay, and seconds by which each further one adds to it.
FREE, STEP_SECONDS = 100, 0.02
#: Longest distance between two refusals of one address, and the longest wait of one request, in seconds.
MAX_STEP_SECONDS, MAX_WAIT_SECONDS = 1.0, 5.0
#: Seconds after which half of the wrong tokens are forgotten, and the most addresses that are remembered.
HALF_LIFE, MAX_ADDRESSES = 60.0, 10_000


class WrongTokens:
    """The recent wrong tokens of all addresses."""

    def __init__(self) -> None:
        # Of each address: wrong tokens, time of the last one, and time of its last refusal. The oldest is first.
        self._known: OrderedDict[str, tuple[float, float, float]] = OrderedDict()

    def note(self, address: str, now: float) -> tuple[float, int]:
        """Count a wrong token.

        Args:
            address: the client's.
            now: seconds on any clock that does not go back.

        Returns:
            Seconds to wait before the refusal, and the address's recent wrong tokens.
        """
        count, last, refused = self._known.pop(address, (0.0, now, now))
        count = count * 0.5 ** ((now - last) / HALF_LIFE) + 1
        distance = min(MAX_STEP_SECONDS, max(0.0, count - FREE) * STEP_SECONDS)
        # Refusals queue: more connections give no more guesses.
        refused = min(max(now, refused + distance), now + MAX_WAIT_SECONDS) if distance else now
        self._known[address] = count, now, refused
        while len(self._known) > MAX_ADDRESSES:
            self._known.popitem(last=False)
        return refused - now, round(count)
