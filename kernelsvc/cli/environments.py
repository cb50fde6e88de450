"""``kernelsvc env``: environments of Python for sessions, made and checked without a restart of the server."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kernelsvc.cli import INTERRUPTED
from kernelsvc.cli.terminal import Terminal
from kernelsvc.errors import BadRequest, Conflict, NotFound, TemplateFailed
from kernelsvc.host.forkserver import VARIABLES
from kernelsvc.service.directories import unlock_data_directory
from kernelsvc.settings import load
from kernelsvc.store.environments import EnvironmentRecord, EnvironmentStore

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: What each environment needs to run sessions and to hibernate them.
_NEEDED = ("ipykernel>=7,<8", "cloudpickle")
#: Seconds for the imports of a check.
_CHECK_SECONDS = 120
#: Imports the modules one by one, and names those after which another thread runs: fork(2) copies one thread only. It
#: forks, as a fork server does, because OpenBLAS (numpy, scipy) ends its pool in its pthread_atfork(3) handler.
_CHECK = """
import importlib, json, os, resource, sys, time
import ipykernel.ipkernel
def tasks():
    os.fork() or os._exit(0)
    os.wait()
    found = {}
    for each in os.listdir("/proc/self/task"):
        try:
            found[each] = open(f"/proc/self/task/{each}/comm").read().strip()
        except OSError:
            pass  # it has ended meanwhile
    return found
began, threads, before = time.perf_counter(), {}, tasks()
for name in sys.argv[1:]:
    importlib.import_module(name)
    if len(now := tasks()) > len(before):
        threads[name] = sorted({now[each] for each in now.keys() - before.keys()})
        before = now
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
    unlock_data_directory(settings)
    store = EnvironmentStore(settings.data_path())
    if args.action == "list":
        _print_list(args, terminal, store)
        return 0
    if not args.name or not _NAME.fullmatch(args.name):
        raise BadRequest(f"Give a name of letters, digits, '.', '_' and '-': kernelsvc env {args.action} NAME.")
    if args.action == "show":
        terminal.json(_known(store, args.name))
    elif args.action == "remove":
        _known(store, args.name, args.owner)
        with store.changing(args.name):
            _known(store, args.name, args.owner)  # Another command may have removed it before this one had the lock.
            await asyncio.to_thread(_remove, terminal, store, args.name)
    else:
        if args.name in settings.templates:
            raise Conflict(f"The settings have a template {args.name!r}. Choose another name.")
        return await _until_interrupted(_change(args, terminal, store), terminal)
    return 0


async def _until_interrupted(work: Coroutine[Any, Any, None], terminal: Terminal) -> int:
    """Carry out a change. A signal ends the installer and leaves everything as it was before."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        terminal.message("interrupted: nothing was changed", "red")
        return INTERRUPTED
    return 0


def _known(store: EnvironmentStore, name: str, owner: str | None = None) -> EnvironmentRecord:
    found = store.read_all().get(name)
    if found is None:
        raise NotFound(f"There is no environment {name!r}. 'kernelsvc env list' shows those that exist.")
    if owner is not None and found.owner != owner:
        raise Conflict(f"The environment {name!r} was not made for {owner!r}. Choose another name.")
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


async def _change(args: argparse.Namespace, terminal: Terminal, store: EnvironmentStore) -> None:
    directory = store.directory(args.name)
    if not store.is_own():
        raise Conflict(f"{directory.parent.parent} belongs to another user. Run this command as that user.")
    if options := [each for each in args.package if each.startswith("-")]:
        raise BadRequest(f"{options[0]!r} is an option of pip. Put options into a file, and use -r FILE.")
    if args.action == "update":
        _known(store, args.name)
    with store.changing(args.name):
        if args.action == "update":
            await _update(args, terminal, store, _known(store, args.name, args.owner))
            return
        if directory.exists():
            raise Conflict(f"There is an environment {args.name!r}. Change it: kernelsvc env update {args.name}.")
        asked = EnvironmentRecord(
            name=args.name,
            python="",
            preload=_modules(args),
            wanted=args.package,
            files=_absolute(args.requirements),
            base=args.python or "",
            owner=args.owner or "",
        )
        is_path = args.python is not None and os.sep in args.python
        if is_path and not (asked.wanted or asked.files):
            await _finish(terminal, store, msgspec.structs.replace(asked, python=args.python), directory)
        else:
            await _make(terminal, store, asked, store.venv(args.name), directory)


async def _update(
    args: argparse.Namespace, terminal: Terminal, store: EnvironmentStore, known: EnvironmentRecord
) -> None:
    """Make an environment again from its requirements and further ones, and use it from now on if that succeeds."""
    asked = msgspec.structs.replace(
        known,
        preload=_modules(args) if args.preload is not None else known.preload,
        # One that an earlier version made has no list of requirements.
        wanted=list(dict.fromkeys([*(known.wanted or ([] if known.files else sorted(known.packages))), *args.package])),
        files=_absolute(args.requirements) or known.files,
        base=args.python or known.base,
    )
    if not store.versions(args.name):  # a registered one
        if args.package or args.requirements:
            raise Conflict(f"{args.name!r} is an environment of another program. Install packages with its own pip.")
        await _finish(terminal, store, msgspec.structs.replace(asked, python=args.python or known.python), None)
        return
    venv = store.next_venv(args.name)
    await _make(terminal, store, asked, venv, venv)
    if left := store.remove_versions(args.name, str(venv / "bin" / "python")):
        names = ", ".join(path.name for path in left)
        terminal.message(f"Sessions may still use {names}. The next 'env update' or 'env remove' deletes unused files.")


def _absolute(paths: Sequence[str] | None) -> list[str]:
    return [os.path.abspath(path) for path in paths or []]


def _modules(args: argparse.Namespace) -> list[str]:
    return [module for text in args.preload or [] for module in text.split(",") if module]


async def _make(terminal: Terminal, store: EnvironmentStore, asked: EnvironmentRecord, venv: Path, made: Path) -> None:
    """Make a virtual environment and finish it. If that fails or is cancelled, remove ``made``."""
    try:
        python = await _build(asked, terminal, venv)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    await _finish(terminal, store, msgspec.structs.replace(asked, python=python), made)


async def _finish(terminal: Terminal, store: EnvironmentStore, asked: EnvironmentRecord, made: Path | None) -> None:
    """Check an environment and write its record. If that fails or is cancelled, remove ``made``."""
    try:
        terminal.message("checking: imports, and threads that they start")
        about = await _check(asked.python, asked.preload)
        store.write(msgspec.structs.replace(asked, python=_absolute([asked.python])[0], **about))
    except BaseException:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        raise
    terminal.message(
        f"{asked.name} is ready: {len(about['packages'])} packages, imports in {about['start_ms']:.0f} ms, "
        f"{about['memory_bytes'] >> 20} MiB. A running server has it within seconds."
    )


def find_uv() -> str | None:
    """Return the path of uv: from the search path, or from the environment of this program."""
    return shutil.which("uv") or shutil.which("uv", path=os.path.dirname(sys.executable))


async def _build(asked: EnvironmentRecord, terminal: Terminal, venv: Path) -> str:
    """Make a virtual environment with uv, or with venv and pip where there is no uv. Return its interpreter."""
    wanted = [*_NEEDED, *asked.wanted]
    files = [part for path in asked.files for part in ("-r", path)]
    uv = find_uv()
    base = asked.base or sys.executable
    terminal.message(f"making a virtual environment with {'uv' if uv else 'venv'}")
    venv.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if uv:
        await _run([uv, "venv", "--quiet", "--python", base, str(venv)])
    else:
        program = base if os.sep in base else shutil.which(f"python{base}") or shutil.which(base)
        if program is None:
            raise BadRequest(f"There is no interpreter {base!r}. Install it, or give the path of one: --python PATH.")
        await _run([program, "-m", "venv", str(venv)])
    python = str(venv / "bin" / "python")
    terminal.message(f"installing {' '.join([*wanted, *asked.files])}")
    if uv:
        await _run([uv, "pip", "install", "--quiet", "--python", python, *files, *wanted])
    else:
        await _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *files, *wanted])
    return python


async def _check(python: str, preload: Sequence[str]) -> dict[str, Any]:
    """Import the modules as a fork server does.

    Raises:
        TemplateFailed: an import fails, or leaves a thread running, which a fork would lose. It names both.
    """
    about = await _import(python, preload)
    if threads := about.pop("threads"):
        # A thread may start late, during the import of another module. So each of them is imported alone.
        alone = {name: (await _import(python, [name]))["threads"].get(name) for name in threads}
        named = {name: found for name, found in alone.items() if found} or threads
        raise TemplateFailed(
            "Imports leave threads running, which a fork would lose: "
            + "; ".join(f"{name} ({', '.join(found)})" for name, found in named.items())
            + ". Leave them out of --preload: sessions can still import them."
        )
    return about


async def _import(python: str, preload: Sequence[str]) -> dict[str, Any]:
    """Import modules in a new process, and return its report.

    Raises:
        TemplateFailed: an import fails.
    """
    # The variables of a fork server keep libraries from starting threads.
    env = {**os.environ, **VARIABLES, "PATH": os.environ.get("PATH", VARIABLES["PATH"])}
    env.pop("PYTHONPATH", None)
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            status, out, err = await _output([python, "-P", "-c", _CHECK, *preload], env)
    except (OSError, TimeoutError) as error:
        raise TemplateFailed(f"{python} can't be checked: {error}. Name a Python that has ipykernel 7.") from None
    if status != 0:
        last = (err.strip().splitlines() or ["it ended without a message"])[-1]
        step = "Install it there" if "'ipykernel'" in last else "Install the package, or leave it out of --preload"
        raise TemplateFailed(f"An import fails: {last}. {step}.")
    try:
        about: dict[str, Any] = json.loads(out.splitlines()[-1])
    except (IndexError, ValueError):
        raise TemplateFailed(f"{python} is no Python. Name one that has ipykernel 7: --python PATH.") from None
    return about


async def _run(command: list[str]) -> None:
    try:
        status, out, err = await _output(command, None)
    except OSError as error:
        raise BadRequest(f"{command[0]} can't be run: {error.strerror}. Name an interpreter: --python PATH.") from None
    if status != 0:
        lines = [line for line in (err or out).strip().splitlines() if line.strip()]
        raise BadRequest(f"{' '.join(command[:4])} failed: {' '.join(lines[-3:])[:1000]}", command=command)


async def _output(command: list[str], env: dict[str, str] | None) -> tuple[int, str, str]:
    """Run a program. Return its status and what it wrote. Cancelling this kills it with the programs that it started.

    Raises:
        OSError: it can't be started.
    """
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=env, start_new_session=True)
    try:
        out, err = await process.communicate()
    except BaseException:
        # kill(2): a negative pid is a process group. pip and uv start builds of packages.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise
    return process.returncode or 0, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")
