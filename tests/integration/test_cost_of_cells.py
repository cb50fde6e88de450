"""What a cell costs does not grow with the cells before it. Counted in bytes, never in seconds."""

from __future__ import annotations

import tempfile
from pathlib import Path

import psutil
import pytest
from served import Served

from kernelsvc import Client
from kernelsvc.store.write_limiter import BURST, PART_BYTES

PART = 400


@pytest.fixture
def served(short_tmp: Path):
    """A server without copies, whose cost depends on pauses and not on the number of cells."""
    server = Served(Path(tempfile.mkdtemp(dir=short_tmp)), "--checkpoints=0")
    server.start()
    yield server
    server.stop()


def test_the_bytes_written_for_a_cell_stay_the_same(served: Served) -> None:
    process = psutil.Process(served.process.pid)
    costs = []
    with Client(served.url, served.token) as client:
        session = client.create_session()
        for _ in range(4):
            before = process.io_counters().write_chars
            for _ in range(PART // 50):
                assert [cell.reason for cell in session.batch(["1+1"] * 50)] == ["ok"] * 50
            costs.append((process.io_counters().write_chars - before) / PART)
    # One write of a notebook that was not written for long may fall into a part; one for each cell may not.
    saved_up = BURST * PART_BYTES / PART
    assert costs[-1] < 1.5 * costs[1] + saved_up, costs
