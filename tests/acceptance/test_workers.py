"""Several servers behind one address, by the command line. ``make test-cluster`` has more, and the faults."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import kernelsvc
from served import serving


@pytest.mark.timeout(240)
def test_two_workers_serve_one_address(short_tmp: Path) -> None:
    root = short_tmp / "two"
    with serving(root, "--workers", "2") as served:
        made = [served.call("POST", "/v1/sessions")["id"] for _ in range(4)]
        assert len({each[2:8] for each in made}) == 2
        for session in made:
            assert served.call("POST", f"/v1/sessions/{session}/cells", {"code": "print(42)"})["text"] == "42\n"
        assert {each["id"] for each in served.call("GET", "/v1/sessions")["sessions"]} == set(made)
        shown, _ = kernelsvc("nodes", env=served.client_env)
        assert shown.count(" ready ") == 2, shown
    assert (root / "data" / "workers" / "2" / "sessions").is_dir()
