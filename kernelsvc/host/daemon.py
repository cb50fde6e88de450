"""The kernel host: the process that owns templates, forks sessions and confines them.

It is small, has no network, and outlives the server, so that the part that is
restarted often is not the part that kernels depend on, and the part that faces
the network is not the part with privileges. Its protocol is the second half of
``docs/reference/wire.md``.

Nothing here lives for ever. A sandbox of which no connected server holds a
kernel ends after ``adoption_seconds``, and a host without any server too; if the
host is gone, each session's init waits the same time at its door for the next
host and then ends its session.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from kernelsvc import __version__, logs
from kernelsvc.errors import BadRequest, Conflict, Forbidden, Internal, KernelDead, KernelsvcError, NotFound
from kernelsvc.guest.confine import confine, linux
from kernelsvc.guest.confine import init as guest_init
from kernelsvc.host import exec as keepers
from kernelsvc.host import protocol
from kernelsvc.host.branch_cgroup import in_thread
from kernelsvc.host.container import Container, ContainerProcess, ContainerRecord, KernelExitedEarly
from kernelsvc.host.container_manager import ContainerManager
from kernelsvc.host.forkserver import ForkServer, install_guest
from kernelsvc.host.protocol import (
    ExecRequest,
    ForkServerSettings,
    HostSettings,
    RegisterCopyRequest,
    SpawnRequest,
    StartProcessRequest,
)
from kernelsvc.linux import peer, procfs, seqpacket
from kernelsvc.linux.acceptor import Acceptor, raise_descriptor_limit
from kernelsvc.linux.stopped_process import ResumeIfStopped
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.sandbox.manager import SandboxAllocation, SandboxManager
from kernelsvc.sandbox.uid_pool import UIDS

log = logging.getLogger(__name__)

#: Seconds for a template to be ready.
TEMPLATE_SECONDS = 20.0
#: Between looks at what the sessions' cgroups have counted; and how many kernels one notice names.
LOOK_SECONDS, MOST_NAMED = 1.0, 1000
#: How often a spawn is tried when its template dies meanwhile.
SPAWN_ATTEMPTS = 3


Answer = tuple[dict[str, Any], list[int]]


class HostDaemon:
    """One running kernel host.

    Args:
        settings: what it does.
        descriptors: the soft limit of open files that sessions begin with.
    """

    def __init__(self, settings: HostSettings, descriptors: int) -> None:
        self.settings = settings
        self.descriptors = descriptors
        self.runtime = Path(settings.runtime_dir)
        self.sandbox = SandboxManager(policy=settings.sandbox, runtime_dir=settings.runtime_dir, hidden=settings.hidden)
        guest = install_guest(self.runtime)
        self.templates = {
            name: ForkServer(name, one, guest, self._template_changed) for name, one in settings.templates.items()
        }
        self.nursery = ContainerManager(
            self.runtime,
            self.sandbox,
            settings.adoption_seconds,
            self._exited,
            lambda: {template.pid for template in self.templates.values()} | self._keepers,
        )
        self._keepers: set[int] = set()  # of programs
        self.stopped = asyncio.Event()
        self._servers: dict[seqpacket.SeqpacketChannel, set[str]] = {}
        self._tasks = OwnedTasks()
        self._grace: asyncio.TimerHandle | None = None
        self._expecting = False
        self._loop = asyncio.get_running_loop()

    # -- life ----------------------------------------------------------------------------

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until told to stop."""
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.stopped.set)
        for template in self.templates.values():
            template.start()
        self._tasks.start(logs.flush_regularly())
        await self.nursery.recover()
        listener = self._listen()
        acceptor = Acceptor(listener, self._accept)
        ready()
        self._look_for_orphans()
        self._poll_limits()
        await self.stopped.wait()
        acceptor.close()
        listener.close()
        await self._stop()

    def _listen(self) -> socket.socket:
        path = self.runtime / "host.sock"
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        listener.bind(str(path))
        path.chmod(0o600)
        if os.getuid() == 0:  # a server that is not root has the runtime directory, and is to reach us
            owner = self.runtime.stat()
            os.chown(path, owner.st_uid, owner.st_gid)
        listener.listen(16)
        return listener

    def _accept(self, sock: socket.socket, _: object) -> None:
        server: seqpacket.SeqpacketChannel

        def received(body: dict[str, Any], fds: list[int]) -> None:
            self._tasks.start(self._answer(server, body, fds))

        def closed() -> None:
            self._left(server)

        server = seqpacket.SeqpacketChannel(sock, received, closed, fds=protocol.SPAWN_FDS)
        self._servers[server] = set()
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def _left(self, server: seqpacket.SeqpacketChannel) -> None:
        self._servers.pop(server, None)
        self._look_for_orphans()

    def _look_for_orphans(self) -> None:
        """Begin the grace time of what no server needs now."""
        self.nursery.look_for_orphans({kernel for held in self._servers.values() for kernel in held})
        if not self._servers and not self.settings.persistent and self._grace is None:
            self._grace = self._loop.call_later(self.settings.adoption_seconds, self._own_leaving)

    def _own_leaving(self) -> None:
        self._grace = None
        self._tasks.start(self._leave())

    async def _leave(self) -> None:
        """Nobody needs this host any more."""
        log.warning("no server for %g s: ending", self.settings.adoption_seconds)
        await self.nursery.end_all()
        self.stopped.set()

    async def _stop(self) -> None:
        for template in self.templates.values():
            template.stop()
        (self.runtime / "host.sock").unlink(missing_ok=True)
        if not self.nursery.wards:
            self.sandbox.close()
            shutil.rmtree(self.runtime / "guest", ignore_errors=True)
            shutil.rmtree(self.runtime / "view", ignore_errors=True)
        for server in list(self._servers):
            server.close()

    def _reap(self) -> None:
        for pid, _ in guest_init.ended_children():
            self._keepers.discard(pid)
            for template in self.templates.values():
                if template.reaped(pid) and not self.stopped.is_set():
                    log.warning("template %s ended", template.name)

    # -- notices ------------------------------------------------------------------------------

    def _tell(self, body: dict[str, Any]) -> None:
        for server in list(self._servers):
            server.send(body)

    def _template_changed(self, template: ForkServer) -> None:
        self._tell({"notice": "template", **template.describe()})

    def _poll_limits(self) -> None:
        """Tell of caps that nobody else would notice, once a second."""
        if self.stopped.is_set():
            return
        for limit, kernels in self.nursery.look():
            self._tell({"notice": "struck", "limit": limit, "kernels": kernels[:MOST_NAMED]})
        self._loop.call_later(LOOK_SECONDS, self._poll_limits)

    def _exited(self, ward: Container, member: ContainerProcess) -> None:
        self._tell({"notice": "exited", "kernel": member.kernel, "exit": msgspec.to_builtins(member.exit)})

    # -- the protocol -----------------------------------------------------------------------------

    async def _answer(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> None:
        number, given = body.get("id"), list(fds)
        result: list[int] = []
        try:
            handler = self._HANDLERS.get(str(body.get("op")))
            if handler is None:
                raise BadRequest(f"The kernel host knows no operation {body.get('op')!r}.")
            said, result = await handler(self, server, body, given)
            answer = {"id": number, "ok": said}
        except KernelsvcError as error:
            answer = {"id": number, "error": error.to_json()}
        except asyncio.CancelledError:
            answer = {"id": number, "error": KernelDead("The kernel was ended while it was started.").to_json()}
        except (msgspec.ValidationError, KeyError, TypeError, ValueError) as error:
            answer = {"id": number, "error": BadRequest(f"The request does not fit: {error}").to_json()}
        except Exception:
            log.exception("%s failed", body.get("op"))
            answer = {"id": number, "error": Internal("The kernel host failed; its log says why.").to_json()}
        finally:
            seqpacket.close_all(given)
        server.send(answer, result)
        seqpacket.close_all(result)

    async def _hello(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        if body.get("version") != protocol.VERSION:
            raise Conflict(
                f"This kernel host speaks version {protocol.VERSION} of the host protocol. "
                "Restart the host with the server's version of kernelsvc."
            )
        report = self.sandbox.report(self.settings.limits) if self.settings.sandbox != "required" else None
        if report is None:
            with contextlib.suppress(KernelsvcError):
                report = self.sandbox.report(self.settings.limits)
        return {
            "pid": os.getpid(),
            "version": __version__,
            "settings": self.settings.digest(),
            "templates": [template.describe() for template in self.templates.values()],
            "sandbox": msgspec.to_builtins(report),
        }, []

    async def _spawn(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        request = msgspec.convert(body, SpawnRequest)
        if len(fds) != protocol.SPAWN_FDS:
            raise BadRequest("spawn needs five descriptors.")
        _must_own(_user_of(server), [request.workdir, *([request.group_dir] if request.group_dir else [])])
        template = self.templates.get(request.template)
        if template is None:
            raise NotFound(f"This kernel host has no template {request.template!r}.")
        with self.nursery.reserve_id(request.kernel), ResumeIfStopped(lambda: template.pid, _go_on):
            for attempt in range(1, SPAWN_ATTEMPTS + 1):
                await template.wait_ready(TEMPLATE_SECONDS)
                try:
                    ward = await self._fork(template, request, fds)
                    break
                except KernelExitedEarly:
                    if attempt == SPAWN_ATTEMPTS:
                        raise
        return await self._hand_over(server, ward, request.kernel)

    async def _fork(self, template: ForkServer, request: SpawnRequest, fds: Sequence[int]) -> Container:
        ticket = self.sandbox.prepare(
            request.kernel,
            workdir=request.workdir,
            limits=request.limits,
            python=template.python,
            env=request.env,
            prefixes=template.about.get("prefixes", []),
            family=request.group_dir or None,
        )
        spawn = {
            "plan": ticket.plan,
            "grace": self.settings.adoption_seconds,
            "descriptors": self.descriptors,
            "identity": {"kernel": request.kernel, "session": request.session},
            "imports": _imports(template.settings),
        }

        def launch(ours: socket.socket, theirs: socket.socket, door: socket.socket) -> None:
            socket.send_fds(ours, [seqpacket.encode(spawn)], [fds[0], door.fileno(), *fds[1:]])
            if not template.fork(theirs):
                raise KernelExitedEarly(
                    f"The template {template.name!r} is being started again; try again in a moment."
                )

        return await self.nursery.make(_record(request, "forked", ticket), launch, listens=True)

    async def _start(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        request = msgspec.convert(body, StartProcessRequest)
        if len(fds) != protocol.START_FDS:
            raise BadRequest("start needs three descriptors.")
        _must_own(_user_of(server), [request.cwd, request.share])
        with self.nursery.reserve_id(request.kernel):
            ticket = self.sandbox.prepare(
                request.kernel,
                workdir=request.cwd,
                limits=request.limits,
                python=request.argv[0],
                env=request.env,
                share=[request.share],
            )

            def launch(ours: socket.socket, theirs: socket.socket, door: socket.socket) -> None:
                if os.fork() == 0:
                    _cold_child(theirs, door, ticket, request, fds, self)

            ward = await self.nursery.make(_record(request, "cold", ticket), launch, listens=False)
        return await self._hand_over(server, ward, request.kernel)

    async def _hand_over(self, server: seqpacket.SeqpacketChannel, ward: Container, kernel: str) -> Answer:
        """A kernel that was made, unless the server that asked for it is gone."""
        if server not in self._servers:
            await self.nursery.end(kernel)
            raise Conflict("The server that asked for this kernel is gone.")
        return self._held(server, ward, kernel)

    def _held(self, server: seqpacket.SeqpacketChannel, ward: Container, kernel: str) -> Answer:
        """The answer that hands a kernel to a server, which holds it from now on."""
        member = ward.members[kernel]
        if server in self._servers:
            self._servers[server].add(kernel)
            self.nursery.cancel_grace(ward)
        said = {"pid": member.pid, "home": member.home, "sandbox": msgspec.to_builtins(ward.record.ticket.report)}
        return said, [os.dup(member.pidfd)]

    async def _find(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        ward, member = self.nursery.find(str(body["kernel"]))
        if member.placed is not None:
            await asyncio.shield(member.placed)
        if member.exit is not None:
            raise NotFound(f"The kernel {member.kernel!r} has ended.", exit=msgspec.to_builtins(member.exit))
        return self._held(server, ward, member.kernel)

    async def _enlist(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        if len(fds) != protocol.COPY_FDS:
            raise BadRequest("enlist needs one descriptor.")
        request = msgspec.convert(body, RegisterCopyRequest)
        member = self.nursery.register_copy(request, fds[0])
        fds.clear()
        said, held = self._held(server, self.nursery.wards[request.kernel], request.kernel)
        # What a copy has written it has alone. To walk its page tables would tell better, and cost more than the copy.
        about = procfs.stat(member.pid)
        return said | {"private_bytes": about.faults * os.sysconf("SC_PAGE_SIZE") if about is not None else None}, held

    async def _exec(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        request = msgspec.convert(body, ExecRequest)
        if len(fds) != protocol.EXEC_FDS or not request.argv:
            raise BadRequest(f"exec needs a program and {protocol.EXEC_FDS} descriptors.")
        order = keepers.order_of(request, *self.nursery.find(request.kernel))
        self._keepers.add(keepers.launch(order, fds, self.descriptors))
        return {}, []

    async def _expect(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        if not self._expecting:
            self._expecting = True
            try:
                await in_thread(self.sandbox.prewait_rcu)
            finally:
                self._expecting = False
        return {}, []

    async def _signal(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        ward, member = self.nursery.find(str(body["kernel"]))
        ward.signal(member.kernel, int(body["signum"]), everyone=bool(body.get("all")))
        return {}, []

    async def _end(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        kernel = str(body["kernel"])
        for held in self._servers.values():
            held.discard(kernel)
        ended = await self.nursery.end(kernel)
        return {"exit": msgspec.to_builtins(ended)}, []

    async def _list(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        held = set().union(*self._servers.values())
        found = [
            {
                "kernel": kernel,
                "session": ward.record.session,
                "pid": ward.members[kernel].pid,
                "held": kernel in held,
            }
            for kernel, ward in self.nursery.wards.items()
            if kernel in ward.members
        ]
        return {"kernels": found}, []

    async def _shutdown(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        if body.get("end_kernels"):
            await self.nursery.end_all()
        self._loop.call_soon(self.stopped.set)
        return {}, []

    _HANDLERS = {
        "hello": _hello,
        "spawn": _spawn,
        "start": _start,
        "find": _find,
        "enlist": _enlist,
        "exec": _exec,
        "expect": _expect,
        "signal": _signal,
        "end": _end,
        "list": _list,
        "shutdown": _shutdown,
    }


def _user_of(server: seqpacket.SeqpacketChannel) -> int:
    return peer.credentials(server.sock).uid


def _must_own(user: int, directories: Sequence[str]) -> None:
    """A server that is not root must not have a host that is root open to sessions what is not the server's.

    Raises:
        Forbidden: one of the directories is somebody else's.
    """
    if os.getuid() != 0 or user == 0:
        return
    for directory in directories:
        try:
            owner = os.stat(directory).st_uid
        except OSError:
            continue  # what follows says so
        if owner != user and owner not in UIDS:
            raise Forbidden(
                f"The directory {directory} belongs to user {owner}. Give a session a directory of the server's "
                f"user, {user}."
            )


def _record(request: SpawnRequest | StartProcessRequest, kind: str, ticket: SandboxAllocation) -> ContainerRecord:
    """What is kept of a sandbox: of its plan what programs need, and nothing of the session's environment."""
    slim = msgspec.structs.replace(ticket, plan=confine.program_plan(ticket.plan, request.env))
    return ContainerRecord(
        kernel=request.kernel, session=request.session, kind=kind, ticket=slim, home=ticket.plan["home"]
    )


def _go_on(pid: int) -> None:
    """A template was stopped while a session waits for it."""
    log.warning("the template with pid %d was stopped (SIGSTOP) and told to go on", pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _imports(settings: ForkServerSettings) -> dict[str, Any] | None:
    if settings.allow_modules is None and not settings.deny_modules:
        return None
    return {"allow": settings.allow_modules, "deny": settings.deny_modules}


def _cold_child(
    theirs: socket.socket,
    door: socket.socket,
    ticket: SandboxAllocation,
    request: StartProcessRequest,
    fds: Sequence[int],
    host: HostDaemon,
) -> NoReturn:
    """In a fork of the host: become the middle of a cold kernel's sandbox."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        for target, fd in enumerate(fds):
            os.dup2(fd, target)
        linux.close_others({0, 1, 2, theirs.fileno(), door.fileno()})
        guest_init.limit_descriptors(host.descriptors)
        guard = guest_init.Init(theirs, door, ticket.plan, grace=host.settings.adoption_seconds)

        def init(kernel: int, plan: dict[str, Any]) -> NoReturn:
            null = os.open(os.devnull, os.O_RDWR)
            for target in (0, 1, 2):
                os.dup2(null, target)
            guard.run(kernel)

        confine.exec_confined(ticket.plan, request.argv, request.env, init=init)
    except BaseException as error:
        guest_init.fail(theirs, error)


@contextlib.contextmanager
def _only_one(runtime: Path) -> Any:
    """One host to a runtime directory."""
    runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (runtime / "host.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Conflict(f"A kernel host already runs in {runtime}.") from None
        yield


def run(settings: HostSettings, ready: Callable[[], None] = lambda: None) -> None:
    """Be a kernel host until told to stop (SIGTERM, SIGINT, ``shutdown``).

    SIGTERM leaves the kernels to the next host.

    Raises:
        Conflict: one runs there already.
    """
    # The usual soft limit holds about 200 sandboxes.
    descriptors = raise_descriptor_limit()

    async def main() -> None:
        await HostDaemon(settings, descriptors).run(ready)

    with _only_one(Path(settings.runtime_dir)):
        asyncio.run(main())


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m kernelsvc.host.daemon``: how a server starts one; settings come as JSON on standard input."""
    parser = argparse.ArgumentParser(description="A kernel host; 'kernelsvc kernel-host' is for people.")
    parser.parse_args(argv)
    logs.configure(logging.WARNING)
    settings = msgspec.json.decode(sys.stdin.buffer.read(), type=HostSettings)
    try:
        run(settings)
    except Conflict as error:
        log.warning("%s", error)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
