"""The MCP Inspector's command line, from npm, unmodified: over HTTP and with ``kernelsvc mcp`` as its program."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from environments import INSTALL_SECONDS, clean_env, node_with
from served import Served

RUN_SECONDS = 60
INSPECTOR = "@modelcontextprotocol/inspector@2.12.0"
#: It needs a newer Node than Debian has; npm has Node itself, as a package for each kind of machine.
NODE = f"node-linux-{ {'x86_64': 'x64', 'aarch64': 'arm64'}.get(platform.machine(), 'x64') }"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + 4 * RUN_SECONDS)]

Inspect = Callable[..., tuple[int, Any, str]]


@pytest.fixture(params=["http", "stdio"])
def inspect(request: pytest.FixtureRequest, served: Served, tmp_path: Path) -> Inspect:
    modules = node_with(INSPECTOR, f"{NODE}@22.23.3") / "node_modules"
    start = [
        modules / NODE / "bin" / "node",
        modules / "@modelcontextprotocol/inspector/clients/launcher/build/index.js",
    ]
    ways = {
        "http": [
            served.url + "/mcp?facts=1",
            "--transport",
            "http",
            "--header",
            f"Authorization: Bearer {served.token}",
        ],
        "stdio": [
            *("-e", f"KERNELSVC_URL={served.url}", "-e", f"KERNELSVC_TOKEN={served.token}"),
            *(sys.executable, "-m", "kernelsvc", "mcp", "--facts"),
        ],
    }

    def run(method: str, *words: str) -> tuple[int, Any, str]:
        done = subprocess.run(
            [*start, "--cli", *ways[request.param], "--method", method, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            env=clean_env(HOME=str(tmp_path)),
        )
        return done.returncode, json.loads(done.stdout or "null"), done.stderr

    return run


def called(inspect: Inspect, tool: str, **arguments: str) -> tuple[int, Any]:
    given = [f"{name}={value}" for name, value in arguments.items()]
    code, answer, said = inspect("tools/call", "--tool-name", tool, *(["--tool-arg", *given] if given else []))
    assert answer is not None, said
    return code, answer


def test_its_tools_are_portable_and_work(inspect: Inspect, request: pytest.FixtureRequest):
    name = f"inspected-{request.node.callspec.id}"
    code, listed, said = inspect("tools/list", "--strict")
    assert code == 0, said
    assert {tool["name"] for tool in listed["tools"]} >= {"run_code", "undo", "fork", "export_notebook"}
    code, first = called(inspect, "run_code", session=name, code="x = 41")
    assert (code, first["isError"]) == (0, False)
    plot = "import matplotlib.pyplot as plt; plt.plot([x]); plt.show(); print(x + 1)"
    _, second = called(inspect, "run_code", session=name, code=plot)
    assert second["structuredContent"]["text"].endswith("42\n")
    assert [part["type"] for part in second["content"]] == ["text", "image"]
    code, failed = called(inspect, "run_code", session=name, code="1/0")
    assert (code, failed["isError"]) == (5, True)
    _, refused = called(inspect, "variables", session="nobodys")
    assert "run_code" in refused["content"][0]["text"]

    session = first["structuredContent"]["session"]
    _, resources, _ = inspect("resources/list")
    uri = f"kernelsvc://sessions/{session}/notebook.ipynb"
    assert uri in {each["uri"] for each in resources["resources"]}
    _, read, _ = inspect("resources/read", "--uri", uri)
    assert json.loads(read["contents"][0]["text"])["nbformat"] == 4
    _, prompt, _ = inspect("prompts/get", "--prompt-name", "resume", "--prompt-args", f"session={name}")
    assert name in prompt["messages"][0]["content"]["text"]
    called(inspect, "sessions", close=name)
