"""The protocol's own conformance suite, from npm, unmodified, against ``/mcp``.

Most of its scenarios call tools, resources and prompts by names that a server
made for the suite has (``test_simple_text``, ``test://static-text``); a server
with tools of its own has none of them, and the suite counts them as failures.
They are named here, so that one which begins to apply, or another that begins
to fail, is told.
"""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest
from environments import INSTALL_SECONDS, clean_env, node_with
from served import Served

RUN_SECONDS = 120
SUITE = "@modelcontextprotocol/conformance@0.1.16"
NODE = f"node-linux-{ {'x86_64': 'x64', 'aarch64': 'arm64'}.get(platform.machine(), 'x64') }"
#: What it asks of its own server by name; logging, sampling and elicitation are not offered here.
OTHERS = """server:
  - logging-set-level
  - tools-call-simple-text
  - tools-call-image
  - tools-call-audio
  - tools-call-embedded-resource
  - tools-call-mixed-content
  - tools-call-with-logging
  - tools-call-error
  - tools-call-with-progress
  - tools-call-sampling
  - tools-call-elicitation
  - elicitation-sep1034-defaults
  - elicitation-sep1330-enums
  - resources-read-text
  - resources-read-binary
  - resources-templates-read
  - resources-subscribe
  - resources-unsubscribe
  - prompts-get-simple
  - prompts-get-with-args
  - prompts-get-embedded-resource
  - prompts-get-with-image
"""
APPLIES = (
    "server-initialize", "ping", "completion-complete", "tools-list", "server-sse-multiple-streams",
    "resources-list", "prompts-list", "dns-rebinding-protection",
)  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS + 60)]


def test_what_applies_of_it_passes(served: Served, tmp_path: Path) -> None:
    modules = node_with(SUITE, f"{NODE}@22.23.3") / "node_modules"
    others = tmp_path / "others.yaml"
    others.write_text(OTHERS)
    # The suite can't be given a header, so the token stands in the address.
    done = subprocess.run(
        [
            *(modules / NODE / "bin" / "node", modules / "@modelcontextprotocol/conformance/dist/index.js", "server"),
            *("--url", f"{served.url}/t/{served.token}/mcp", "--expected-failures", str(others)),
        ],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        env=clean_env(HOME=str(tmp_path)),
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    for scenario in APPLIES:
        assert f"✓ {scenario}: " in done.stdout, scenario
