"""Builds of E2B's templates: Python packages in an environment, files and commands in a sandbox.

Packages are installed by ``kernelsvc env``, which the server runs as a process of its own. That
runs code of the packages as the server's user, so it needs the scope ``admin``. For other callers
``pip install`` is a command like any other. Commands run in a sandbox of the caller, and what they
leave in its home directory becomes the template's files.

A built template is a directory of the workspace ``e2b-templates`` of its owner: ``NAME/template.json``
and ``NAME/home.tar.gz``. So quota, backup and removal are those of workspaces. The last builds are
there, too, so that a client gets the outcome of its build also after a restart of the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from kernelsvc.errors import BadRequest, Conflict, KernelsvcError, NotFound, QuotaExceeded, Timeout, TooLarge
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model.objects import Principal, SessionRequest
from kernelsvc.protocol import e2b_templates as recipes
from kernelsvc.protocol.e2b_templates import BuildRequest, BuildStep, BuiltTemplate
from kernelsvc.server.e2b import models
from kernelsvc.server.e2b.exec_files import INTERNAL_TAG, path_in_sandbox, temporary_name
from kernelsvc.server.e2b.process import working_directory

if TYPE_CHECKING:
    from kernelsvc.server.handler import ServerContext
    from kernelsvc.service.api import ServiceApi

log = logging.getLogger(__name__)

Kept = TypeVar("Kept")

#: Seconds of one build, of the wait for an environment, and of the waits for a ready command: in a build, in a sandbox.
BUILD_SECONDS, ENVIRONMENT_SECONDS, READY_SECONDS, START_SECONDS = 1800.0, 120.0, 60.0, 30.0
#: Most builds of one principal that are remembered and that run at a time, and lines of one log.
MAX_BUILDS, MAX_RUNNING, MAX_LINES = 10, 6, 2000
#: Most characters of a line.
_MAX_LINE = 1024
#: Seconds between two runs of a ready command.
READY_PAUSE = 0.3
_PIECE = 1 << 20
#: The directory of builds in the workspace, and the form of their ids.
BUILDS, _BUILD = b".builds", re.compile(r"[0-9a-f-]{36}")
#: Most bytes of a template's record, and of a build's, which has its log. The event loop decodes them.
MAX_TEMPLATE, MAX_RECORD = 1 << 20, 4 << 20
#: Arguments: archive, source pattern, target, mode. As in a Dockerfile, one directory is copied by its content.
_COPY = r"""set -e
work=$(mktemp -d); trap 'rm -rf "$work" "$archive"' EXIT
archive=$PWD/$1; target=$3 mode=$4 home=$PWD
tar -xf "$archive" -C "$work"; cd "$work"
IFS=; set -- $2
[ -e "$1" ] || [ -L "$1" ] || { echo "the uploaded files have no $1" >&2; exit 1; }
[ -z "$mode" ] || find "$@" -type f -exec chmod "$mode" {} +
case $target in */) slash=1;; *) slash=;; esac
target=$home/$target
if [ $# -eq 1 ] && [ -d "$1" ] && [ ! -L "$1" ]; then mkdir -p "$target"; cp -a -- "$1/." "$target"
elif [ $# -gt 1 ] || [ "$slash" ] || [ -d "$target" ]; then mkdir -p "$target"; cp -a -- "$@" "$target"
else mkdir -p "$(dirname "$target")"; cp -a -- "$1" "$target"; fi
"""
_ARCHIVE = 'exec tar --exclude="./$1" --exclude=./.cache -czf "$1" .'
_RESTORE = 'tar -xzf "$1" && rm -f -- "$1"'


class BuildLine(msgspec.Struct):
    """A line of a build's log, with the fields of E2B's API."""

    timestamp: str
    message: str
    level: str
    step: str


class Build(msgspec.Struct):
    """One build.

    Attributes:
        owner: the principal that asked for it.
        name: of the template.
        id: a UUID.
        status: as E2B names it: waiting, building, ready or error.
        reason: the error, with the number of its step.
        lines: its log.
        step: the number of the step that runs, or the name of the phase.
    """

    owner: str
    name: str
    id: str = msgspec.field(default_factory=lambda: str(uuid.uuid4()))
    status: Literal["waiting", "building", "ready", "error"] = "waiting"
    reason: dict[str, Any] = {}
    lines: list[BuildLine] = []
    step: str = "base"

    def log(self, text: str, level: str = "info") -> None:
        """Add lines to the log. Beyond a limit they are dropped."""
        at = datetime.now(UTC).isoformat()
        for line in text.splitlines()[: MAX_LINES - len(self.lines)]:
            self.lines.append(BuildLine(at, line[:_MAX_LINE], level, self.step))

    def fail(self, message: str) -> None:
        """End the build with an error."""
        self.log(message, "error")
        self.status, self.reason = "error", {"message": message, "step": self.step, "logEntries": []}


class TemplateBuilds:
    """All builds of one server, and the templates that they made.

    Args:
        context: the server's.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context, self._service, self._settings = context, context.service, context.settings
        self._builds: dict[str, Build] = {}
        self._tasks = OwnedTasks()

    async def stop(self) -> None:
        """Cancel the builds that run."""
        self._tasks.cancel()
        await self._tasks.wait(5.0)

    # -- builds ----------------------------------------------------------------------------

    async def request(self, who: Principal, name: str) -> Build:
        """Note a build that waits for its files and its recipe. The caller's oldest idle builds are forgotten.

        Raises:
            Conflict: the server has a template of that name.
            QuotaExceeded: the caller has too many workspaces.
        """
        taken = name in models.DEFAULT_TEMPLATES or name in self.server_templates()
        if taken and not self._owns_environment(who, name):
            raise Conflict(f"{name!r} is a template of this server. Choose another name.")
        self._service.workspaces.set(who, models.TEMPLATES)
        build = Build(who.name, name)
        self._remember(build)
        await self._forget_old(who)
        await self._keep(who, build)
        return build

    def _remember(self, build: Build) -> None:
        """Keep a build in memory, and no more than some of its owner's that don't run."""
        self._builds[build.id] = build
        mine = [each for each in self._builds.values() if each.owner == build.owner and each.status != "building"]
        for each in mine[:-MAX_BUILDS]:
            del self._builds[each.id]

    async def find(self, who: Principal, name: str, build: str) -> Build:
        """Return a build of the caller. One that ran when the server ended has failed.

        A build that was read from its file is not kept in memory: the caller can write any number of such files.

        Raises:
            NotFound: there is none.
        """
        found = self._builds.get(build)
        if found is None and _BUILD.fullmatch(build):
            name = recipes.template_name(name)  # The file's owner may have written any name into it.
            found = await self._read_file(who, build_path(build), Build, MAX_RECORD)
            if found is not None and found.status == "building":
                found.fail("The server was restarted during the build. Build again.")
        if found is None or (found.owner, found.name, found.id) != (who.name, name, build):
            raise NotFound(f"There is no such build. The last {MAX_BUILDS} builds are kept. Build again.")
        return found

    async def _keep(self, who: Principal, build: Build) -> None:
        """Write a build for the next server. If that fails, that server does not know it."""
        with contextlib.suppress(KernelsvcError):
            data = msgspec.json.encode(build)
            await self._service.workspaces.files.put(who, address(who), build_path(build.id), data)

    async def _forget_old(self, who: Principal) -> None:
        """Remove the kept builds but the newest ones."""
        files = self._service.workspaces.files
        with contextlib.suppress(KernelsvcError):
            listed, _ = await files.list(who, address(who), BUILDS)
            for each in sorted(listed, key=lambda each: each.mtime_ns, reverse=True)[MAX_BUILDS:]:
                await files.remove(who, address(who), each.path)

    def start(self, who: Principal, build: Build, wanted: BuildRequest) -> None:
        """Begin a build.

        Raises:
            Conflict: it has begun.
            QuotaExceeded: too many builds of the caller run.
        """
        if build.status != "waiting" or self._builds.get(build.id, build) is not build:
            raise Conflict("This build has begun already. Ask for its status.")
        running = sum(each.owner == who.name and each.status == "building" for each in self._builds.values())
        if running >= MAX_RUNNING:
            raise QuotaExceeded(f"{MAX_RUNNING} of your builds run. Wait for one of them.")
        build.status = "building"
        self._remember(build)
        build.lines, build.reason = [], {}
        self._tasks.start(self._run(who, build, wanted), name=f"build {build.name}")

    async def _run(self, who: Principal, build: Build, wanted: BuildRequest) -> None:
        await self._keep(who, build)
        try:
            async with asyncio.timeout(BUILD_SECONDS):
                await self._make(who, build, wanted)
            build.log(f"{build.name} is ready")
            build.status = "ready"
        except KernelsvcError as error:
            build.fail(error.message)
        except TimeoutError:
            build.fail(f"The build took longer than {BUILD_SECONDS:.0f} s.")
        except asyncio.CancelledError:
            build.fail("The server is stopping. Build again when it is back.")
            raise
        except Exception:
            log.exception("the build of a template failed")
            build.fail("The build failed by an error of the server, which its log has.")
        finally:
            await self._keep(who, build)
            for step in wanted.steps:
                with contextlib.suppress(KernelsvcError):
                    await self._service.workspaces.files.remove(who, address(who), files_path(step.filesHash or ""))

    async def _make(self, who: Principal, build: Build, wanted: BuildRequest) -> None:
        base = await self._base(who, wanted.fromTemplate)
        steps = [*enumerate(wanted.steps, 1)]
        packages: list[str] = []
        python = recipes.python_of(wanted.fromImage)
        if "admin" in who.scopes:
            found = {number: recipes.packages_of(step.args[0]) for number, step in steps if step.type == "RUN"}
            packages = [package for each in found.values() for package in each]
            steps = [(number, step) for number, step in steps if not found.get(number)]
        elif python:
            raise BadRequest(f"Another Python ({python}) than the default one needs a token with the scope 'admin'.")
        made = msgspec.structs.replace(base, start=wanted.startCmd or base.start, ready=wanted.readyCmd or base.ready)
        source = recipes.template_name(wanted.fromTemplate) if base.home else None
        if not packages and not python:
            await self._make_files(who, build, made, source, steps)
            return
        update = self._owns_environment(who, build.name)
        await self._make_environment(build, "update" if update else "add", packages, python)
        made = msgspec.structs.replace(made, environment=build.name)
        try:
            await self._make_files(who, build, made, source, steps)
        except BaseException:  # Also a stop of the server: a template without its files must not stay.
            if not update:
                await asyncio.shield(self._env(build, "remove"))
            raise

    async def _make_files(
        self, who: Principal, build: Build, made: BuiltTemplate, source: str | None, steps: list[tuple[int, BuildStep]]
    ) -> None:
        """Carry out the steps in a sandbox that begins with the files of ``source``, and save the template."""
        labels = {models.BUILD: build.name}
        session = await self._service.create(who, SessionRequest(template=made.environment, labels=labels))
        sandbox = TemplateSandbox(self._service, who, session.id)
        try:
            # The session ends with the build, and also if the server crashes.
            self._service.leases.grant(who, session.id, BUILD_SECONDS)
            await sandbox.restore(source)
            for number, step in steps:
                build.step = str(number)
                build.log(f"[{number}] {step.type} {' '.join(step.args[:2])}")
                made = await _carry_out(sandbox, build, step, made)
            build.step = "finalize"
            if made.start:
                await sandbox.start(made, READY_SECONDS, must=True)
            await sandbox.save(build.name, made)
        finally:
            with contextlib.suppress(KernelsvcError):
                await asyncio.shield(self._service.close(who, session.id, reason="template built"))

    # -- environments ------------------------------------------------------------------------

    async def _make_environment(self, build: Build, action: str, packages: list[str], python: str) -> None:
        """Make or change the environment of a template, and wait until the server uses it.

        Raises:
            BadRequest: the packages can't be installed. Nothing was changed.
        """
        status, last = await self._env(build, action, *packages, *(["--python", python] if python else []))
        if status != 0:
            raise BadRequest(f"The packages can't be installed: {last[-1000:]}")
        deadline = time.monotonic() + ENVIRONMENT_SECONDS
        while build.name not in self.server_templates():
            if time.monotonic() > deadline:
                raise Timeout("The server does not use the new environment yet. Build again.")
            await asyncio.sleep(0.2)

    async def _env(self, build: Build, action: str, *args: str) -> tuple[int, str]:
        """Run ``kernelsvc env``, which keeps the packages of an earlier build. Cancelling it leaves nothing.

        Returns:
            Its exit status and its last line.
        """
        build.log(" ".join(["kernelsvc env", action, build.name, *args]))
        command = [sys.executable, "-m", "kernelsvc", "env", action, build.name, *args, f"--owner={build.owner}"]
        pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(
            *command,
            "--data-dir",
            str(self._settings.data_path()),
            stdin=null,
            stdout=pipe,
            stderr=asyncio.subprocess.STDOUT,
        )
        last = ""
        try:
            assert process.stdout is not None
            async for line in process.stdout:
                last = line.decode("utf-8", "replace").rstrip() or last
                build.log(last)
            return await process.wait(), last
        except BaseException:  # Also a stop of the server, which the process must not outlive.
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await asyncio.shield(process.wait())
            raise

    def _owns_environment(self, who: Principal, name: str) -> bool:
        """Return whether the server has an environment of this name, and made it for a template of the caller.

        The template's own record does not say it: the caller may write to the workspace that has it.
        """
        return self._service.environment_owner(name) == who.name

    def server_templates(self) -> list[str]:
        """Return the names of the server's templates, without those that a build of E2B's made."""
        return [str(each["name"]) for each in self._service.templates()]

    # -- templates ---------------------------------------------------------------------------

    async def read(self, who: Principal, name: str) -> BuiltTemplate | None:
        """Return a template of the caller, or None if there is none."""
        return await self._read_file(who, record_path(name), BuiltTemplate, MAX_TEMPLATE)

    async def _read_file(self, who: Principal, path: bytes, kind: type[Kept], most: int) -> Kept | None:
        """Return the value of a file of the workspace, or None. The owner may have written anything into it."""
        try:
            reader = await self._service.workspaces.files.open(who, address(who), path)
        except KernelsvcError:
            return None
        try:
            data = await reader.read(0, most + 1)
            async with self._context.turn_of(who, "templates"):
                return msgspec.json.decode(data, type=kind) if len(data) <= most else None
        except (msgspec.MsgspecError, RecursionError):
            return None
        finally:
            reader.close()

    async def _base(self, who: Principal, name: str | None) -> BuiltTemplate:
        if not name:
            return BuiltTemplate()
        built = await self.read(who, recipes.template_name(name))
        if built is not None:
            return built
        return BuiltTemplate(environment=models.template_of(name, self.server_templates()))

    async def remove(self, who: Principal, name: str) -> bool:
        """Remove a template of the caller with its environment. Return False if there is none."""
        if await self.read(who, name) is None:
            return False
        if self._owns_environment(who, name):
            await self._env(Build(who.name, name), "remove")
        await self._service.workspaces.files.remove(who, address(who), name.encode(), recursive=True)
        return True

    async def furnish(self, who: Principal, session: str, name: str, made: BuiltTemplate) -> None:
        """Give a new sandbox the files of its template, and start its command. Cancelling leaves a part of them.

        Raises:
            KernelsvcError: the files can't be unpacked.
        """
        sandbox = TemplateSandbox(self._service, who, session)
        await sandbox.restore(name if made.home else None)
        if made.start:
            await sandbox.start(made, START_SECONDS, must=False)


async def _carry_out(sandbox: TemplateSandbox, build: Build, step: BuildStep, made: BuiltTemplate) -> BuiltTemplate:
    """Carry out a step, and return the template that it gives.

    Raises:
        BadRequest: a command failed.
        NotSupported: a path lies outside of the home directory.
    """
    if step.type == "ENV":
        return msgspec.structs.replace(made, env=made.env | dict(zip(step.args[::2], step.args[1::2], strict=False)))
    if step.type == "WORKDIR":
        made = msgspec.structs.replace(made, workdir=recipes.place(step.args[0], made.workdir))
        await sandbox.script('exec mkdir -p -- "$1"', path_in_sandbox(made.workdir))
    elif step.type == "RUN":
        status, said = await sandbox.run(["/bin/bash", "-c", step.args[0]], made.env, made.workdir, build.log)
        if status != 0:
            last = (said.strip().splitlines() or ["no output"])[-1][:500]
            raise BadRequest(f"failed to run command '{step.args[0][:200]}': exit status {status}: {last}")
    elif step.type == "COPY":
        source, target, *more = step.args
        inside = recipes.place(target, made.workdir).removeprefix(recipes.HOME).lstrip("/") or "."
        archive = await sandbox.receive(files_path(step.filesHash or ""))
        await sandbox.script(_COPY, archive, source, inside + "/" * target.endswith("/"), more[1] if more[1:] else "")
    return made


class TemplateSandbox:
    """A sandbox that gets files of templates, or makes some.

    Args:
        service: the service.
        who: its owner.
        session: its id.
    """

    def __init__(self, service: ServiceApi, who: Principal, session: str) -> None:
        self._service, self._who, self._session = service, who, session

    async def run(
        self,
        argv: list[str],
        env: Mapping[str, str],
        cwd: str = recipes.HOME,
        note: Callable[[str, str], None] | None = None,
    ) -> tuple[int | None, str]:
        """Run a program to its end. Return its exit status, None if a signal ended it, and the end of its output.

        Args:
            argv: the program and its arguments.
            env: further environment variables.
            cwd: its working directory, absolute.
            note: gets its output, with a level.
        """
        program, output = await self._service.programs.start(
            self._who, self._session, argv, env=env, cwd=working_directory(cwd), with_input=False, tag=INTERNAL_TAG
        )
        said = ""
        try:
            while (piece := await output.next()) is not None:
                text = piece[1].decode("utf-8", "replace")
                said = (said + text)[-8192:]
                if note is not None:
                    note(text, "warn" if piece[0] == "stderr" else "info")
        except BaseException:  # Also a time-out of the build, which the program must not outlive.
            with contextlib.suppress(KernelsvcError):
                self._service.programs.signal(self._who, self._session, program.id, signal.SIGKILL)
            raise
        finally:
            output.close()
        return None if output.status is None or output.status & 0x7F else output.status >> 8, said

    async def script(self, script: str, *args: str, allowed: tuple[int, ...] = (0,)) -> None:
        """Run a script in the home directory.

        Raises:
            BadRequest: it failed.
        """
        status, said = await self.run(["/bin/sh", "-c", script, "template", *args], {"LC_ALL": "C.UTF-8"})
        if status not in allowed:
            raise BadRequest(
                f"The files of the template can't be used: {said.strip()[-500:] or 'a program was killed'}"
            )

    async def receive(self, stored: bytes) -> str:
        """Copy a file of the workspace into the home directory, and return its name there.

        Raises:
            NotFound: it was not uploaded.
        """
        files, name = self._service.workspaces.files, temporary_name()
        reader = await files.open(self._who, address(self._who), stored)
        await copy_file(reader, await self._service.files.write(self._who, self._session, name, record=False))
        return name.decode()

    async def restore(self, name: str | None) -> None:
        """Unpack the files of a template, if there are some."""
        if name is not None:
            await self.script(_RESTORE, await self.receive(home_path(name)))

    async def save(self, name: str, made: BuiltTemplate) -> None:
        """Archive the home directory, and write the record last: it makes the template.

        Raises:
            TooLarge: the workspace has no room for the archive.
        """
        files, archive = self._service.workspaces.files, temporary_name()
        record = msgspec.json.encode(msgspec.structs.replace(made, home=True))
        if len(record) > MAX_TEMPLATE:
            raise TooLarge(f"The template's commands and variables have more than {MAX_TEMPLATE} bytes. Use files.")
        await self.script(_ARCHIVE, archive.decode(), allowed=(0, 1))  # tar(1): 1 if a file changed meanwhile
        reader = await self._service.files.open(self._who, self._session, archive)
        info = await self._service.workspaces.get(self._who, address(self._who))
        if info.max_bytes is not None and (info.used_bytes or 0) + reader.status.size > info.max_bytes:
            reader.close()
            raise TooLarge(f"The workspace {models.TEMPLATES!r} has no room for these files. Delete a template.")
        await copy_file(reader, await files.write(self._who, address(self._who), home_path(name)))
        await files.put(self._who, address(self._who), record_path(name), record)

    async def start(self, made: BuiltTemplate, seconds: float, *, must: bool) -> None:
        """Start the template's command, and wait until its ready command succeeds.

        Args:
            made: the template.
            seconds: most time to wait.
            must: whether it is an error if the ready command does not succeed in time.

        Raises:
            Timeout: it did not.
        """
        argv = ["/bin/bash", "-c", made.start]
        cwd = working_directory(made.workdir)
        _, output = await self._service.programs.start(
            self._who, self._session, argv, env=made.env, cwd=cwd, with_input=False
        )
        output.close()
        try:
            async with asyncio.timeout(seconds):
                while made.ready:
                    status, _ = await self.run(["/bin/bash", "-c", made.ready], made.env, made.workdir)
                    if status == 0:
                        return
                    await asyncio.sleep(READY_PAUSE)
        except TimeoutError:
            if must:
                message = f"The ready command did not succeed within {seconds:.0f} s: {made.ready[:200]}"
                raise Timeout(message) from None


def address(who: Principal) -> str:
    """Return the address of the workspace that has a principal's templates."""
    return models.templates_address(who.name)


def record_path(name: str) -> bytes:
    """Return the path of a template's record in its workspace."""
    return f"{name}/template.json".encode()


def home_path(name: str) -> bytes:
    """Return the path of a template's files in its workspace."""
    return f"{name}/home.tar.gz".encode()


def build_path(build: str) -> bytes:
    """Return the path of a build in its workspace."""
    return BUILDS + b"/" + build.encode()


def files_path(digest: str) -> bytes:
    """Return the path of an uploaded archive in its workspace. No template's name begins with a dot."""
    return f".files/{digest}".encode()


async def copy_file(reader: Any, writer: Any) -> None:
    """Copy an open file into an open upload, and close both."""
    try:
        offset = 0
        while data := await reader.read(offset, _PIECE):
            await writer.write(data)
            offset += len(data)
        await writer.commit()
    finally:
        reader.close()
        writer.close()
