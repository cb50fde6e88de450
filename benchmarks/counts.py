"""The number of samples of each kind."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """Numbers of samples. The defaults are for published figures: about 20 minutes with all peers on two idle cores."""

    rounds: int = 3
    creates: int = 10
    slow_creates: int = 2
    cells: int = 400
    thoughts: int = 10
    warmup: int = 30
    lines: int = 100_000
    delays: int = 40
    print_rounds: int = 3
    burst: int = 50
    busy: tuple[int, ...] = (10, 100)
    slow_busy: int = 10
    busy_seconds: int = 5
    big_bytes: int = 100_000_000
    result_bytes: int = 10_000_000
    results: int = 3
    far_rounds: int = 3
    copies: int = 8
    long: int = 10_000
    idle: int = 100
    slow_idle: int = 10
    dense: int = 2000
    dense_seconds: int = 300

    @property
    def told(self) -> str:
        """Return the numbers in words, for the report."""
        return (
            f"{self.rounds} rounds of {self.creates} new sessions ({self.slow_creates} for the peers) and "
            f"{self.cells} cells each, {self.print_rounds} of {self.lines:,} lines, "
            f"{self.idle} idle sessions ({self.slow_idle} for the peers)"
        )


#: Few samples, to test the harness.
SMOKE = Counts(
    rounds=1,
    creates=1,
    slow_creates=1,
    cells=5,
    thoughts=1,
    warmup=1,
    delays=3,
    burst=2,
    busy=(2,),
    slow_busy=0,
    busy_seconds=1,
    lines=2000,
    print_rounds=1,
    big_bytes=2_000_000,
    result_bytes=200_000,
    results=1,
    far_rounds=1,
    copies=1,
    long=50,
    idle=1,
    dense=2,
)
