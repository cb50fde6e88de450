"""The environment of kernelspec kernels' processes."""

from __future__ import annotations

import pytest

from kernelsvc.kernels.zmq.processes import inherited


def test_what_is_inherited_holds_nothing_of_the_server_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELSVC_TOKEN", "x")
    monkeypatch.setenv("TZ", "UTC")
    assert inherited()["TZ"] == "UTC"
    assert "KERNELSVC_TOKEN" not in inherited()
