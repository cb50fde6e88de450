"""The kernel host: the process that owns the fork servers, forks sessions and confines them.

It is small, has no network and outlives the server. The part that is restarted often is not the part that kernels
depend on, and the part that faces the network is not the part with privileges. The second half of
``docs/reference/wire.md`` specifies its protocol.

Everything here ends after a time. A container ends ``adoption_seconds`` after the last connected server that held one
of its kernels. A host without servers ends after the same time. If the host has ended, each session's init waits that
long on its control socket for the next host and then ends its session.
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
from kernelsvc.host import protocol
from kernelsvc.host.branch_cgroup import in_thread
from kernelsvc.host.container import Container, ContainerProcess, ContainerRecord, KernelExitedEarly
from kernelsvc.host.container_manager import ContainerManager
from kernelsvc.host.exec import exec_spec, fork_shim
from kernelsvc.host.forkserver import ForkServer, install_guest
from kernelsvc.host.port_sockets import fork_maker, namespaces_of
from kernelsvc.host.protocol import (
    ExecRequest,
    ForkServerSettings,
    HostSettings,
    RegisterCopyRequest,
    SocketsRequest,
    SpawnRequest,
    StartProcessRequest,
)
from kernelsvc.linux import peer, procfs, seqpacket
from kernelsvc.linux.acceptor import Acceptor, raise_descriptor_limit
from kernelsvc.linux.stopped_process import ResumeIfStopped
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.sandbox.manager import SandboxAllocation, SandboxManager
from kernelsvc.sandbox.rootfs_paths import python_prefixes
from kernelsvc.sandbox.uid_pool import UIDS

log = logging.getLogger(__name__)

#: Seconds for a fork server to be ready: less than a request may take. On a loaded machine its imports took over 20.
FORK_SERVER_SECONDS = 50.0
#: Seconds between two polls of the containers' cgroups, and the most kernels that one notice names.
POLL_SECONDS, MAX_KERNELS = 1.0, 1000
#: Attempts at a spawn when the fork server ends meanwhile.
SPAWN_ATTEMPTS = 3


Answer = tuple[dict[str, Any], list[int]]


class HostDaemon:
    """One running kernel host.

    Args:
        settings: see ``protocol.HostSettings``.
        descriptors: soft limit of open files that sessions start with.
    """

    def __init__(self, settings: HostSettings, descriptors: int) -> None:
        self.settings = settings
        self.descriptors = descriptors
        self.runtime = Path(settings.runtime_dir)
        self.sandbox = SandboxManager(
            policy=settings.sandbox,
            runtime_dir=settings.runtime_dir,
            hidden=[*settings.hidden, *settings.hidden_files],
            wheelhouse=settings.wheelhouse,
        )
        self._guest = install_guest(self.runtime)
        # Without a root of its own, a session needs the machine's paths.
        self._neutral = settings.sandbox != "off" and self.sandbox.probe.works("filesystem")
        self.fork_servers = {name: self._fork_server(name, one) for name, one in settings.templates.items()}
        self.manager = ContainerManager(
            self.runtime,
            self.sandbox,
            settings.adoption_seconds if settings.orphan_seconds is None else settings.orphan_seconds,
            self._exited,
            lambda: {fork_server.pid for fork_server in self.fork_servers.values()} | self._exec_shims,
        )
        self._exec_shims: set[int] = set()  # pids
        self.stopped = asyncio.Event()
        self._servers: dict[seqpacket.SeqpacketChannel, set[str]] = {}
        self._tasks = OwnedTasks()
        self._grace: asyncio.TimerHandle | None = None
        self._prewaiting = False
        self._loop = asyncio.get_running_loop()

    def _fork_server(self, name: str, settings: ForkServerSettings) -> ForkServer:
        return ForkServer(name, settings, self._guest, self._fork_server_changed, neutral=self._neutral)

    # -- start and stop ----------------------------------------------------------------

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until SIGTERM, SIGINT, a shutdown request, or the end of the grace time without a server.

        Args:
            ready: called when the host accepts connections.
        """
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.stopped.set)
        for fork_server in self.fork_servers.values():
            fork_server.start()
        self._tasks.start(logs.flush_regularly())
        await self.manager.recover()
        listener = self._listen()
        acceptor = Acceptor(listener, self._accept)
        ready()
        self._check_orphans()
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
        if os.getuid() == 0:  # unix(7): connecting needs write permission on the socket
            owner = self.runtime.stat()
            os.chown(path, owner.st_uid, owner.st_gid)
        listener.listen(16)
        return listener

    def _accept(self, sock: socket.socket, _: object) -> None:
        server: seqpacket.SeqpacketChannel

        def received(body: dict[str, Any], fds: list[int]) -> None:
            self._tasks.start(self._respond(server, body, fds))

        def closed() -> None:
            self._disconnected(server)

        server = seqpacket.SeqpacketChannel(sock, received, closed, fds=protocol.SPAWN_FDS)
        self._servers[server] = set()
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def _disconnected(self, server: seqpacket.SeqpacketChannel) -> None:
        self._servers.pop(server, None)
        self._check_orphans()

    def _check_orphans(self) -> None:
        """Start the grace time of the containers, and of the host itself, that no connected server needs."""
        self.manager.check_orphans({kernel for kernels in self._servers.values() for kernel in kernels})
        if not self._servers and not self.settings.persistent and self._grace is None:
            self._grace = self._loop.call_later(self.settings.adoption_seconds, self._grace_ended)

    def _grace_ended(self) -> None:
        self._grace = None
        self._tasks.start(self._end_without_servers())

    async def _end_without_servers(self) -> None:
        """End every kernel and the host after the grace time."""
        log.warning("no server connected for %g s. The host and its kernels end.", self.settings.adoption_seconds)
        await self.manager.end_all()
        self.stopped.set()

    async def _stop(self) -> None:
        for fork_server in self.fork_servers.values():
            fork_server.stop()
        (self.runtime / "host.sock").unlink(missing_ok=True)
        if not self.manager.containers:
            self.sandbox.close()
            shutil.rmtree(self.runtime / "guest", ignore_errors=True)
            shutil.rmtree(self.runtime / "view", ignore_errors=True)
        for server in list(self._servers):
            server.close()

    def _reap(self) -> None:
        for pid, _ in guest_init.ended_children():
            self._exec_shims.discard(pid)
            for fork_server in self.fork_servers.values():
                if fork_server.is_process(pid) and not self.stopped.is_set():
                    log.warning("the fork server of template %s has ended", fork_server.name)

    # -- notices -----------------------------------------------------------------------

    def _notify(self, body: dict[str, Any]) -> None:
        for server in list(self._servers):
            server.send(body)

    def _fork_server_changed(self, fork_server: ForkServer) -> None:
        self._notify({"notice": "template", **fork_server.describe()})

    def _poll_limits(self) -> None:
        """Report limits that Linux enforced without ending a kernel, once a second."""
        if self.stopped.is_set():
            return
        for limit, kernels in self.manager.poll_limits():
            self._notify({"notice": "struck", "limit": limit, "kernels": kernels[:MAX_KERNELS]})
        self._loop.call_later(POLL_SECONDS, self._poll_limits)

    def _exited(self, container: Container, process: ContainerProcess) -> None:
        self._notify({"notice": "exited", "kernel": process.kernel, "exit": msgspec.to_builtins(process.exit)})

    # -- the protocol ------------------------------------------------------------------

    async def _respond(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> None:
        number, owned_fds = body.get("id"), list(fds)
        result_fds: list[int] = []
        try:
            handler = self._HANDLERS.get(str(body.get("op")))
            if handler is None:
                raise BadRequest(f"The kernel host knows no operation {body.get('op')!r}.")
            result, result_fds = await handler(self, server, body, owned_fds)
            answer = {"id": number, "ok": result}
        except KernelsvcError as error:
            answer = {"id": number, "error": error.to_json()}
        except asyncio.CancelledError:
            answer = {"id": number, "error": KernelDead("The kernel was ended during its start.").to_json()}
        except (msgspec.ValidationError, KeyError, TypeError, ValueError) as error:
            answer = {"id": number, "error": BadRequest(f"The request is not valid: {error}").to_json()}
        except Exception:
            log.exception("the request %s failed", body.get("op"))
            answer = {"id": number, "error": Internal("The kernel host failed. Its log says why.").to_json()}
        finally:
            seqpacket.close_all(owned_fds)
        server.send(answer, result_fds)
        seqpacket.close_all(result_fds)

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
            "templates": [fork_server.describe() for fork_server in self.fork_servers.values()],
            "sandbox": msgspec.to_builtins(report),
        }, []

    async def _spawn(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        request = msgspec.convert(body, SpawnRequest)
        if len(fds) != protocol.SPAWN_FDS:
            raise BadRequest("spawn needs five descriptors.")
        _check_owner(_user_of(server), [request.workdir, *([request.group_dir] if request.group_dir else [])])
        self._check_binds(server, request)
        fork_server = self.fork_servers.get(request.template)
        if fork_server is None:
            raise NotFound(f"This kernel host has no template {request.template!r}.")
        with self.manager.reserve_id(request.kernel), ResumeIfStopped(lambda: fork_server.pid, _continue_fork_server):
            for attempt in range(1, SPAWN_ATTEMPTS + 1):
                await fork_server.wait_ready(FORK_SERVER_SECONDS)
                try:
                    container = await self._fork(fork_server, request, fds)
                    break
                except KernelExitedEarly:
                    if attempt == SPAWN_ATTEMPTS:
                        raise
        return await self._hold_started(server, container, request.kernel)

    def _check_binds(self, server: seqpacket.SeqpacketChannel, request: SpawnRequest | StartProcessRequest) -> None:
        """Check that the server may show these directories. This host's own settings name those of other users."""
        known = set(self.settings.mounts)
        asked = [bind.source for bind in request.binds if bind.writable or bind.source not in known]
        _check_owner(_user_of(server), asked)

    async def _fork(self, fork_server: ForkServer, request: SpawnRequest, fds: Sequence[int]) -> Container:
        allocation = self.sandbox.prepare(
            request.kernel,
            workdir=request.workdir,
            limits=request.limits,
            python=fork_server.python,
            env=fork_server.settings.environment(request.env),
            prefixes=fork_server.info.get("prefixes", []),
            moves=fork_server.moves,
            group_dir=request.group_dir or None,
            binds=request.binds,
        )
        spawn = {
            "plan": allocation.plan,
            "grace": self.settings.adoption_seconds,
            "descriptors": self.descriptors,
            "identity": {"kernel": request.kernel, "session": request.session},
            "imports": _imports(fork_server.settings),
        }

        def launch(host_end: socket.socket, guest_end: socket.socket, control_socket: socket.socket) -> None:
            socket.send_fds(host_end, [seqpacket.encode(spawn)], [fds[0], control_socket.fileno(), *fds[1:]])
            if not fork_server.fork(guest_end):
                raise KernelExitedEarly(
                    f"The fork server of template {fork_server.name!r} is restarting. Try again in a moment."
                )

        return await self.manager.create(_record(request, "forked", allocation), launch, listens=True)

    async def _start(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        request = msgspec.convert(body, StartProcessRequest)
        if len(fds) != protocol.START_FDS:
            raise BadRequest("start needs three descriptors.")
        _check_owner(_user_of(server), [request.cwd, request.share])
        self._check_binds(server, request)
        with self.manager.reserve_id(request.kernel):
            allocation = self.sandbox.prepare(
                request.kernel,
                workdir=request.cwd,
                limits=request.limits,
                python=request.program or request.argv[0],
                prefixes=python_prefixes(request.argv[0]) if request.program else [],
                env=request.env,
                share=[request.share],
                binds=request.binds,
            )

            def launch(host_end: socket.socket, guest_end: socket.socket, control_socket: socket.socket) -> None:
                if os.fork() == 0:
                    _run_confined(guest_end, control_socket, allocation, request, fds, self)

            container = await self.manager.create(_record(request, "cold", allocation), launch, listens=False)
        return await self._hold_started(server, container, request.kernel)

    async def _hold_started(self, server: seqpacket.SeqpacketChannel, container: Container, kernel: str) -> Answer:
        """Return the answer for a new kernel, or end the kernel if its server has disconnected meanwhile."""
        if server not in self._servers:
            await self.manager.end(kernel)
            raise Conflict("The server that requested this kernel has disconnected.")
        return self._hold(server, container, kernel)

    def _hold(self, server: seqpacket.SeqpacketChannel, container: Container, kernel: str) -> Answer:
        """Return the answer that passes a kernel to a server. The server holds the kernel from now on."""
        process = container.processes[kernel]
        if server in self._servers:
            self._servers[server].add(kernel)
            self.manager.cancel_grace(container)
        result = {
            "pid": process.pid,
            "home": process.home,
            "sandbox": msgspec.to_builtins(container.record.allocation.report),
        }
        egress = container.egress()
        if egress is None:
            return result, [os.dup(process.pidfd)]
        about, egress_fds = egress
        return result | {"egress": about | {"kernel": process.kernel}}, [os.dup(process.pidfd), *egress_fds]

    async def _find(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        container, process = self.manager.find(str(body["kernel"]))
        if process.attached is not None:
            await asyncio.shield(process.attached)
        if process.exit is not None:
            raise NotFound(f"The kernel {process.kernel!r} has ended.", exit=msgspec.to_builtins(process.exit))
        if process.kernel in container.record.copies:
            # A server asks for a checkpoint in order to resume it. Landlock forbids the copy to set its own score.
            procfs.set_oom_score(process.pidfd, confine.OOM_LIVE)
        return self._hold(server, container, process.kernel)

    async def _register_copy(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        if len(fds) != protocol.COPY_FDS:
            raise BadRequest("enlist needs one descriptor.")
        request = msgspec.convert(body, RegisterCopyRequest)
        process = self.manager.register_copy(request, fds[0])
        fds.clear()
        container = self.manager.containers[request.kernel]
        procfs.set_oom_score(process.pidfd, confine.OOM_PARKED)
        result, result_fds = self._hold(server, container, request.kernel)
        # The pages that a copy has written are private. To walk its page tables is exact and costs more than the fork.
        stat = procfs.stat(process.pid)
        return result | {
            "private_bytes": stat.faults * os.sysconf("SC_PAGE_SIZE") if stat is not None else None,
            "left": container.left_processes() if request.limits is not None else [],
        }, result_fds

    async def _exec(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        request = msgspec.convert(body, ExecRequest)
        if len(fds) != protocol.EXEC_FDS or not request.argv:
            raise BadRequest(f"exec needs a program and {protocol.EXEC_FDS} descriptors.")
        spec = exec_spec(request, *self.manager.find(request.kernel))
        self._exec_shims.add(fork_shim(spec, fds, self.descriptors))
        return {}, []

    async def _sockets(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        request = msgspec.convert(body, SocketsRequest)
        if len(fds) != protocol.SOCKETS_FDS:
            raise BadRequest("sockets needs one descriptor.")
        container, process = self.manager.find(request.kernel)
        namespaces = namespaces_of(container, process)
        self._exec_shims.add(fork_maker(process.pidfd, namespaces, request.count, fds[0]))
        return {}, []

    async def _announce_branch(
        self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]
    ) -> Answer:
        if not self._prewaiting:
            self._prewaiting = True
            try:
                await in_thread(self.sandbox.prewait_rcu)
            finally:
                self._prewaiting = False
        return {}, []

    async def _signal(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        container, process = self.manager.find(str(body["kernel"]))
        number = int(body["signum"])
        container.signal(process.kernel, number, everyone=bool(body.get("all")))
        if body.get("others"):
            container.signal_others(number)
        return {}, []

    async def _interrupt(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        container, process = self.manager.find(str(body["kernel"]))
        container.interrupt_children(process.kernel, float(body["seconds"]))
        return {}, []

    async def _end(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        kernel = str(body["kernel"])
        for kernels in self._servers.values():
            kernels.discard(kernel)
        ended = await self.manager.end(kernel)
        return {"exit": msgspec.to_builtins(ended)}, []

    async def _list(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        kernels = set().union(*self._servers.values())
        found = [
            {
                "kernel": kernel,
                "session": container.record.session,
                "pid": container.processes[kernel].pid,
                "held": kernel in kernels,
            }
            for kernel, container in self.manager.containers.items()
            if kernel in container.processes
        ]
        return {"kernels": found}, []

    async def _set_templates(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        """Start fork servers of new templates, and stop those that are gone or have changed. Sessions continue."""
        wanted = msgspec.convert(body["templates"], dict[str, ForkServerSettings])
        _check_may_name_programs(_user_of(server))
        for name, fork_server in list(self.fork_servers.items()):
            if wanted.get(name) != fork_server.settings:
                self.fork_servers.pop(name).stop()
        for name, one in wanted.items():
            if name not in self.fork_servers:
                self.fork_servers[name] = self._fork_server(name, one)
                self.fork_servers[name].start()
        self.settings = msgspec.structs.replace(self.settings, templates=wanted)
        return {}, []

    async def _shutdown(self, server: seqpacket.SeqpacketChannel, body: dict[str, Any], fds: list[int]) -> Answer:
        if body.get("end_kernels"):
            await self.manager.end_all()
        self._loop.call_soon(self.stopped.set)
        return {}, []

    _HANDLERS = {
        "hello": _hello,
        "spawn": _spawn,
        "start": _start,
        "find": _find,
        "enlist": _register_copy,
        "exec": _exec,
        "sockets": _sockets,
        "expect": _announce_branch,
        "signal": _signal,
        "interrupt": _interrupt,
        "end": _end,
        "list": _list,
        "templates": _set_templates,
        "shutdown": _shutdown,
    }


def _user_of(server: seqpacket.SeqpacketChannel) -> int:
    return peer.credentials(server.sock).uid


def _check_owner(user: int, directories: Sequence[str]) -> None:
    """Check that the directories belong to the server's user.

    A server that is not root must not make a root host open directories to sessions that the server itself can't open.

    Args:
        user: the server's user.
        directories: paths from its request.

    Raises:
        Forbidden: a directory belongs to a user that is neither the server's nor a session's.
    """
    if os.getuid() != 0 or user == 0:
        return
    for directory in directories:
        try:
            owner = os.stat(directory).st_uid
        except OSError:
            continue  # the next step reports that it is missing
        if owner != user and owner not in UIDS:
            raise Forbidden(
                f"The directory {directory} belongs to user {owner}. Give a session a directory of the server's "
                f"user, {user}."
            )


def _check_may_name_programs(user: int) -> None:
    """Check that a server may name fork servers' interpreters, which run with this host's rights.

    Raises:
        Forbidden: this host is root, and the server's user is not.
    """
    if os.getuid() == 0 and user != 0:
        raise Forbidden("This kernel host is root and its server is not. Name templates in the host's settings.")


def _record(request: SpawnRequest | StartProcessRequest, kind: str, allocation: SandboxAllocation) -> ContainerRecord:
    """Return a container's record. Its plan is cut to the parts that programs need, without the environment."""
    slim = msgspec.structs.replace(allocation, plan=confine.program_plan(allocation.plan, request.env))
    return ContainerRecord(
        kernel=request.kernel, session=request.session, kind=kind, allocation=slim, home=allocation.plan["home"]
    )


def _continue_fork_server(pid: int) -> None:
    """Continue a fork server that was stopped (SIGSTOP) while a session waits for it."""
    log.warning("the fork server with pid %d was stopped (SIGSTOP) and was sent SIGCONT", pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _imports(settings: ForkServerSettings) -> dict[str, Any] | None:
    if settings.allow_modules is None and not settings.deny_modules:
        return None
    return {"allow": settings.allow_modules, "deny": settings.deny_modules}


def _run_confined(
    guest_end: socket.socket,
    control_socket: socket.socket,
    allocation: SandboxAllocation,
    request: StartProcessRequest,
    fds: Sequence[int],
    host: HostDaemon,
) -> NoReturn:
    """Run in a fork of the host: confine this process, start the kernelspec kernel's program and become its init."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        for target, fd in enumerate(fds):
            os.dup2(fd, target)
        linux.close_others({0, 1, 2, guest_end.fileno(), control_socket.fileno()})
        guest_init.limit_descriptors(host.descriptors)
        guard = guest_init.Init(guest_end, control_socket, allocation.plan, grace=host.settings.adoption_seconds)

        def init(kernel: int, plan: dict[str, Any]) -> NoReturn:
            null = os.open(os.devnull, os.O_RDWR)
            for target in (0, 1, 2):
                os.dup2(null, target)
            guard.run(kernel)

        confine.exec_confined(allocation.plan, request.argv, request.env, init=init)
    except BaseException as error:
        guest_init.fail(guest_end, error)


@contextlib.contextmanager
def _exclusive(runtime: Path) -> Any:
    """Hold the lock of a runtime directory, so that one host at a time uses it."""
    runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (runtime / "host.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Conflict(f"A kernel host already runs in {runtime}.") from None
        yield


def run(settings: HostSettings, ready: Callable[[], None] = lambda: None) -> None:
    """Run a kernel host until SIGTERM, SIGINT or a shutdown request. SIGTERM leaves the kernels to the next host.

    Args:
        settings: see ``protocol.HostSettings``.
        ready: called when the host accepts connections.

    Raises:
        Conflict: another host uses this runtime directory.
    """
    # The usual soft limit of 1024 is enough for about 200 containers.
    descriptors = raise_descriptor_limit()

    async def main() -> None:
        await HostDaemon(settings, descriptors).run(ready)

    with _exclusive(Path(settings.runtime_dir)):
        asyncio.run(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run a host for ``python -m kernelsvc.host.daemon``. A server starts it and writes its settings to stdin."""
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
