"""Several servers behind one address, by the command line. ``make test-cluster`` has more, and the faults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
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
        command = [sys.executable, "-m", "kernelsvc", "nodes"]
        shown = subprocess.run(command, env=served.client_env, capture_output=True, text=True, timeout=60)
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.count(" ready ") == 2, shown.stdout
    assert (root / "data" / "workers" / "2" / "sessions").is_dir()
