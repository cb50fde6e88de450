"""The network of sandboxes by E2B's client, on a machine whose Internet is one process (``tests/fake_internet.py``)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from egress_servers import needs_low_ports
from environments import INSTALL_SECONDS, clean_env, python_with

TESTS = Path(__file__).parents[1]

pytestmark = [needs_low_ports, pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + 180)]


@pytest.mark.skipif(shutil.which("ip") is None, reason="needs iproute2 (Debian: apt-get install iproute2)")
def test_e2bs_network_with_addresses_names_and_the_sandboxs_own_servers() -> None:
    client = [
        python_with("e2b-code-interpreter==2.11.5", "e2b==2.63.0", "pytest"),
        TESTS / "compat/clients/e2b_network.py",
    ]
    command = ["unshare", "-n", "-m", "--propagation", "private", sys.executable, TESTS / "fake_internet.py", *client]
    env = clean_env(KERNELSVC_LIMITS_NETWORK=json.dumps({"allow": ["*", "0.0.0.0/0"]}))
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=180, env=env, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip().endswith("ok")
