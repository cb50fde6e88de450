"""The resources of one cell."""

from __future__ import annotations

import pytest

from kernelsvc.guest import cell_meter
from kernelsvc.guest.cell_meter import CellMeter

MiB = 1 << 20


def test_without_a_reset_a_later_cell_does_not_report_an_earlier_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    peak, resident = [300 * MiB], [50 * MiB]
    monkeypatch.setattr(cell_meter, "_peak_rss", lambda: peak[0])
    monkeypatch.setattr(cell_meter, "_resident_bytes", lambda: resident[0])
    meter = CellMeter()
    meter.begin()
    resident[0] = 70 * MiB
    assert meter._peak(300 * MiB) == 70 * MiB
    assert meter._peak(301 * MiB) == 301 * MiB


def test_the_peak_of_a_cell_is_its_own_where_it_can_be_reset() -> None:
    meter = CellMeter()
    meter.reopen()
    if not meter.fds():
        pytest.skip("this process may not reset its peak memory")
    meter.begin()
    bytearray(64 * MiB)
    assert meter.end()["peak_rss_bytes"] > 64 * MiB
    meter.begin()
    assert meter.end()["cpu_ms"] >= 0
