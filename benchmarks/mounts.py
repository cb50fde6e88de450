"""The time that a mount and a workspace add to the creation of a session, in turns in one run.

    python -m benchmarks.mounts [--turns N]

One server makes a session with both and one with neither, in an order that alternates. The figures are medians in
milliseconds from the request to the ready session. ``added`` is the median of the differences of neighbours, and
``added, of the fastest tenth`` compares the 10th percentiles, which other programs of the machine delay less.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.spans import TOKEN, server
from kernelsvc import Client

WITH: dict[str, Any] = {"mounts": ["some"], "workspace": "report"}


def created(client: Client, **more: Any) -> float:
    """Return the milliseconds that a creation takes."""
    began = time.perf_counter()
    session = client.create_session(**more)
    spent = (time.perf_counter() - began) * 1000
    session.close()
    return spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=200, help="pairs of sessions")
    turns = parser.parse_args().turns
    found: dict[str, list[float]] = {"plain": [], "with a mount and a workspace": []}
    plain, rich = found.values()
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="k")))
        (root / "some").mkdir()
        root.chmod(0o755)
        mounts = json.dumps({"some": {"path": str(root / "some")}})
        url, _ = stack.enter_context(server(root, "--mounts", mounts))
        client = stack.enter_context(Client(url, TOKEN))
        for each in ({}, WITH, {}, WITH):
            created(client, **each)
        for turn in range(turns):
            for each in ({}, WITH) if turn % 2 else (WITH, {}):
                (rich if each else plain).append(created(client, **each))
    figures = {name: statistics.median(values) for name, values in found.items()}
    figures["added"] = statistics.median(more - less for more, less in zip(rich, plain, strict=True))
    tenths = [statistics.quantiles(values, n=10)[0] for values in (rich, plain)]
    figures["added, of the fastest tenth"] = tenths[0] - tenths[1]
    figures["load of the machine"] = os.getloadavg()[0]
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=2))


if __name__ == "__main__":
    main()
