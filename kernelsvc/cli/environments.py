"""``kernelsvc env``: environments of Python for sessions, made and checked without a restart of the server."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kernelsvc.cli.terminal import Terminal
from kernelsvc.errors import BadRequest, Conflict, NotFound, TemplateFailed
from kernelsvc.host.forkserver import VARIABLES
from kernelsvc.settings import load
from kernelsvc.store.environments import EnvironmentRecord, EnvironmentStore

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: What each environment needs to run sessions and to hibernate them.
_NEEDED = ("ipykernel>=7,<8", "cloudpickle")
#: Seconds for the imports of a check.
_CHECK_SECONDS = 120
#: Imports the modules one by one, and names those after which another thread runs: fork(2) copies one thread only.
_CHECK = """
import importlib, json, os, resource, sys, time
import ipykernel.ipkernel
def tasks(): return len(os.listdir("/proc/self/task"))
began, threads, before = time.perf_counter(), [], tasks()
for name in sys.argv[1:]:
    importlib.import_module(name)
    if tasks() > before:
        threads.append(name)
        before = tasks()
from importlib.metadata import distributions
print(json.dumps({
    "start_ms": round((time.perf_counter() - began) * 1e3, 1),
    "memory_bytes": int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize(),
    "threads": threads,
    "packages": {each.metadata["Name"]: each.version for each in distributions() if each.metadata["Name"]},
}))
"""


async def main(args: argparse.Namespace, terminal: Terminal) -> int:
    """Carry out the action of the first argument."""
    settings = load({"data_dir": args.data_dir, "config": args.config}, os.environ)
    store = EnvironmentStore(settings.data_path())
    if args.action == "list":
        _print_list(args, terminal, store)
        return 0
    if not args.name or not _NAME.fullmatch(args.name):
        raise BadRequest(f"Give a name of letters, digits, '.', '_' and '-': kernelsvc env {args.action} NAME.")
    if args.action == "show":
        terminal.json(_known(store, args.name))
    elif args.action == "remove":
        _known(store, args.name)
        await asyncio.to_thread(_remove, terminal, store, args.name)
    else:
        if args.name in settings.templates:
            raise Conflict(f"The settings have a template {args.name!r}. Choose another name.")
        await asyncio.to_thread(_add, args, terminal, store)
    return 0


def _known(store: EnvironmentStore, name: str) -> EnvironmentRecord:
    found = store.read_all().get(name)
    if found is None:
        raise NotFound(f"There is no environment {name!r}. 'kernelsvc env list' shows those that exist.")
    return found


def _print_list(args: argparse.Namespace, terminal: Terminal, store: EnvironmentStore) -> None:
    found = list(store.read_all().values())
    if args.json:
        terminal.json(found)
        return
    for each in found:
        size = f"{len(each.packages)} packages, starts in {each.start_ms:.0f} ms, {each.memory_bytes >> 20} MiB"
        terminal.line(f"{each.name}  {size}  {each.python}")


def _remove(terminal: Terminal, store: EnvironmentStore, name: str) -> None:
    store.withdraw(name)
    if store.in_use(name):
        terminal.message(
            f"Sessions that run use {name}. New ones can't. Remove {store.directory(name)} when they have ended."
        )
        return
    store.remove(name)


def _add(args: argparse.Namespace, terminal: Terminal, store: EnvironmentStore) -> None:
    directory = store.directory(args.name)
    if not store.is_own():
        raise Conflict(f"{directory.parent.parent} belongs to another user. Run this command as that user.")
    if options := [each for each in args.package if each.startswith("-")]:
        raise BadRequest(f"{options[0]!r} is an option of pip. Put options into a file, and use -r FILE.")
    with store.changing(args.name):
        _add_locked(args, terminal, store, directory)


def _add_locked(args: argparse.Namespace, terminal: Terminal, store: EnvironmentStore, directory: Path) -> None:
    if directory.exists():
        raise Conflict(f"There is an environment {args.name!r}. Remove it first: kernelsvc env remove {args.name}.")
    is_path = args.python is not None and os.sep in args.python
    registered = args.python if is_path and not (args.package or args.requirements) else ""
    try:
        python = registered or _build(args, terminal, store.venv(args.name))
        terminal.message("checking: imports, and threads that they start")
        preload = [module for text in args.preload or [] for module in text.split(",") if module]
        about = _check(python, preload)
        store.write(EnvironmentRecord(name=args.name, python=os.path.abspath(python), preload=preload, **about))
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    terminal.message(
        f"{args.name} is ready: {len(about['packages'])} packages, imports in {about['start_ms']:.0f} ms, "
        f"{about['memory_bytes'] >> 20} MiB. A running server has it within seconds."
    )


def _build(args: argparse.Namespace, terminal: Terminal, venv: Path) -> str:
    """Make a virtual environment with uv, or with venv and pip where uv is not on the path. Return its interpreter."""
    wanted = [*_NEEDED, *args.package]
    files = [part for path in args.requirements or [] for part in ("-r", path)]
    uv = shutil.which("uv")
    base = args.python or sys.executable
    terminal.message(f"making a virtual environment with {'uv' if uv else 'venv'}")
    venv.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if uv:
        _run([uv, "venv", "--quiet", "--python", base, str(venv)])
    else:
        program = base if os.sep in base else shutil.which(f"python{base}") or shutil.which(base)
        if program is None:
            raise BadRequest(f"There is no interpreter {base!r}. Install it, or give the path of one: --python PATH.")
        _run([program, "-m", "venv", str(venv)])
    python = str(venv / "bin" / "python")
    terminal.message(f"installing {' '.join([*wanted, *(args.requirements or [])])}")
    if uv:
        _run([uv, "pip", "install", "--quiet", "--python", python, *files, *wanted])
    else:
        _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *files, *wanted])
    return python


def _check(python: str, preload: Sequence[str]) -> dict[str, Any]:
    """Import the modules as a fork server does.

    Raises:
        TemplateFailed: an import fails, or leaves a thread running, which a fork would lose.
    """
    # The variables of a fork server keep libraries from starting threads.
    env = {**os.environ, **VARIABLES, "PATH": os.environ.get("PATH", VARIABLES["PATH"])}
    env.pop("PYTHONPATH", None)
    try:
        done = subprocess.run(
            [python, "-P", "-c", _CHECK, *preload],
            capture_output=True, text=True, env=env, timeout=_CHECK_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TemplateFailed(f"{python} can't be checked: {error}. Name a Python that has ipykernel 7.") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]
        raise TemplateFailed(f"An import fails: {last}. Install the package, or leave it out of --preload.")
    try:
        about: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise TemplateFailed(f"{python} is no Python. Name one that has ipykernel 7: --python PATH.") from None
    if threads := about.pop("threads"):
        raise TemplateFailed(
            f"The import of {', '.join(threads)} leaves threads running, which a fork would lose. Leave it out of "
            "--preload: sessions can still import it."
        )
    return about


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BadRequest(f"{command[0]} can't be run: {error.strerror}. Name an interpreter: --python PATH.") from None
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
        raise BadRequest(f"{' '.join(command[:4])} failed: {' '.join(lines[-3:])[:1000]}", command=command)
