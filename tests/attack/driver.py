"""Run the attack suite's cells under one policy as whoever runs this; verdicts as JSON.

A program of its own, so that the tests can run it as root and as an ordinary user::

    python -m attack.driver required|off|session|branch|resumed [--without LAYER ...] [NAME ...]

Each cell gets a fresh kernel: forked, confined by the real hooks, and thrown away. In copies several cells share one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from typing import Any, NoReturn

import msgspec

from attack.canaries import VARIABLE, Canaries
from attack.cell import Cell
from attack.cells import ALL, COPIES
from kernelsvc.guest.confine import confine
from kernelsvc.model.limits import Limits, MiB
from kernelsvc.sandbox.manager import SandboxAllocation, SandboxManager
from kernelsvc.sandbox.probe import probe
from kernelsvc.sandbox.probe_result import Layer, Probe

LIMITS = Limits(memory_bytes=512 * MiB, disk_bytes=64 * MiB, processes=64, open_files=256)
#: Much longer where the machine is emulated.
CELL_SECONDS = float(os.environ.get("KERNELSVC_CELL_SECONDS", "30"))
_RELEASE_SECONDS = 10.0


def run_cell(ticket: SandboxAllocation, cell: Cell, facts: dict[str, Any]) -> dict[str, Any]:
    """One cell in one kernel: its verdict, what it said, and what the machine saw."""
    facts = {**facts, "inside": ticket.plan["home"], "memory": LIMITS.memory_bytes, "disk_bytes": LIMITS.disk_bytes}
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.close(reader)
        _middle(ticket, cell.source(facts), writer)
    os.close(writer)
    os.waitpid(middle, 0)
    text = _read_all(reader, CELL_SECONDS)
    return {"verdict": _verdict(text), "text": text[-2000:]}


def _middle(ticket: SandboxAllocation, code: str, writer: int) -> NoReturn:
    try:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.close(writer)
        confine.lx.close_others({0, 1, 2})
        confine.enter(ticket.plan)
        if os.fork():
            os._exit(0)
        confine.build(ticket.plan)
        kernel = os.fork()
        if kernel == 0:
            _kernel(ticket, code)
        confine.guard_init(ticket.plan)
        _reap(kernel)
    except BaseException:
        os.write(2, b"SETUP " + traceback.format_exc().encode())
        os._exit(1)


def _kernel(ticket: SandboxAllocation, code: str) -> NoReturn:
    confine.seal(ticket.plan)
    try:
        exec(compile(code, "<cell>", "exec"), {"__name__": "__main__"})
        said = "\nVERDICT reached\n"
    except BaseException as error:
        said = f"\nVERDICT blocked {type(error).__name__}: {error}\n"
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(1, said.encode(errors="replace"))
    os._exit(0)


def _reap(kernel: int) -> NoReturn:
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == kernel:
            if os.waitstatus_to_exitcode(status) != 0:
                os.write(1, f"\nEXIT {os.waitstatus_to_exitcode(status)}\n".encode())
            os._exit(0)


def _read_all(reader: int, seconds: float) -> str:
    deadline, chunks = time.monotonic() + seconds, []
    with os.fdopen(reader, "rb", buffering=0) as f:
        while (left := deadline - time.monotonic()) > 0 and select.select([f], [], [], left)[0]:
            chunk = f.read(65536)
            if not chunk:
                return b"".join(chunks).decode(errors="replace")
            chunks.append(chunk)
    return b"".join(chunks).decode(errors="replace") + "\nTIMEOUT\n"


def _verdict(text: str) -> str:
    for line in reversed(text.splitlines()):
        if line.startswith("VERDICT "):
            return line.split()[1]
        if line.startswith(("EXIT ", "TIMEOUT")):
            return "died" if line.startswith("EXIT ") else "timeout"
        if line.startswith("SETUP "):
            return "setup"
    return "nothing"


def _release(sandbox: SandboxManager, ticket: SandboxAllocation) -> bool:
    deadline = time.monotonic() + _RELEASE_SECONDS
    if ticket.group is not None:
        ticket.group.kill()
    while not sandbox.release(ticket):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def _without(found: Probe, names: list[str]) -> Probe:
    lost = {name: Layer(name=name, ok=False, why="left out for the test") for name in names}
    return msgspec.structs.replace(found, layers=found.layers | lost)


def run_plain(given: argparse.Namespace, cells: list[Cell], base: str, canaries: Canaries) -> dict[str, Any]:
    """Each cell in a plain Python under the hooks."""
    run, results = os.path.join(base, "run"), {}
    found = _without(probe(directory=run), given.without)
    hidden = [os.path.join(base, "data"), canaries.facts["concealed"]]
    sandbox = SandboxManager(policy=given.policy, runtime_dir=run, hidden=hidden, found=found)
    with contextlib.closing(sandbox):
        for number, cell in enumerate(cells):
            workdir = os.path.join(base, "work", str(number))
            os.mkdir(workdir)
            ticket = sandbox.prepare(f"c{number}", workdir=workdir, limits=LIMITS, python=sys.executable)
            result = run_cell(ticket, cell, canaries.facts)
            result["oom_kills"] = ticket.group.sample().oom_kills if ticket.group else 0
            result["clean"] = _release(sandbox, ticket)
            result["victim"] = canaries.victim_lives()
            results[cell.name] = result
            report = ticket.report
    return {"cells": results, "report": msgspec.to_builtins(report), "facts": canaries.facts}


def run_sessions(as_: str, cells: list[Cell], base: str, canaries: Canaries) -> dict[str, Any]:
    """Each cell in a session of the real kernel host, or in a copy of one."""
    from attack import sessions

    facts = {**canaries.facts, "memory": LIMITS.memory_bytes, "disk_bytes": LIMITS.disk_bytes}
    run, work, data = (os.path.join(base, name) for name in ("run", "work", "data"))
    results = asyncio.run(sessions.run(cells, facts, LIMITS, run, work, data, as_))
    for result in results.values():
        result["victim"] = canaries.victim_lives()
    return {"cells": results, "facts": canaries.facts}


def main() -> None:
    """Run the cells that are named, or all; print the verdicts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("policy", choices=["required", "best-effort", "off", "session", "branch", "resumed"])
    parser.add_argument("--without", action="append", default=[])
    parser.add_argument("--names", help="JSON list; all when left out")
    given = parser.parse_args()
    names = json.loads(given.names) if given.names else [cell.name for cell in ALL]
    cells = [cell for cell in COPIES if cell.name in names]
    os.environ[VARIABLE] = "secret"
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with tempfile.TemporaryDirectory(prefix="kat-", ignore_cleanup_errors=True) as base:
        for name in ("run", "work"):
            os.mkdir(os.path.join(base, name), 0o700)
        with Canaries(base) as canaries:
            if given.policy in ("session", "branch", "resumed"):
                answer = run_sessions(given.policy, cells, base, canaries)
            else:
                answer = run_plain(given, cells, base, canaries)
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
