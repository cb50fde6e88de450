"""A limit on a rate."""

from __future__ import annotations


class TokenBucket:
    """Allows ``burst`` events together and ``rate`` events a second after that. It holds no timer.

    Args:
        rate: events a second.
        burst: most events together.
        now: the present, in seconds of any clock.
    """

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self._rate, self._burst = rate, float(burst)
        self._tokens, self._at = float(burst), now

    def wait(self, now: float) -> float:
        """Return 0 if there is a token, or the seconds until there is one. Take nothing."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (1 - self._tokens) / self._rate)

    def take(self, now: float) -> float:
        """Take one token. Return 0, or the seconds until there is one. Then take nothing."""
        if wait := self.wait(now):
            return wait
        self._tokens -= 1
        return 0.0
