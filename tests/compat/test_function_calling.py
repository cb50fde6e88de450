"""``kernelsvc.integrations`` against the vendors' own packages: their types hold our definitions and our answers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from environments import INSTALL_SECONDS, clean_env, python_with
from served import Served

ROOT = Path(__file__).parents[2]
CLIENTS = Path(__file__).parent / "clients"
RUN_SECONDS = 120
#: What the client side of kernelsvc imports, and no more: a vendor's package brings the rest itself.
OURS = ("msgspec", "tornado", "platformdirs", "pillow")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS + 60)]


@pytest.mark.parametrize(
    "package", ["anthropic==2.12.0", "openai==3.54.0", "google-genai==3.4.0", "langchain-core==1.7.0"]
)
def test_a_vendors_types(served: Served, package: str) -> None:
    python = python_with(package, *OURS)
    script = [str(CLIENTS / "function_calling.py"), served.url, served.token, package.partition("==")[0]]
    done = subprocess.run(
        [python, *script], capture_output=True, text=True, timeout=RUN_SECONDS, env=clean_env(PYTHONPATH=str(ROOT))
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip().endswith("ok")
