"""The server's side of the host protocol: find or start the kernel host, send requests, receive notices.

When the host ends, its sessions continue. The client connects to the next host, which systemd starts, or this client
where there is no systemd. It then claims again every kernel that the server holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

import kernelsvc
from kernelsvc.errors import Internal, KernelsvcError, NotFound, Timeout, TooLarge, from_json
from kernelsvc.host.protocol import (
    VERSION,
    ExecRequest,
    ForkServerSettings,
    HostSettings,
    RegisterCopyRequest,
    SocketsRequest,
    SpawnRequest,
    StartProcessRequest,
)
from kernelsvc.linux import peer, seqpacket
from kernelsvc.linux.acceptor import inherited_descriptor_limits
from kernelsvc.linux.readable import wait_readable
from kernelsvc.linux.stopped_process import ResumeIfStopped
from kernelsvc.model.events import SandboxReport
from kernelsvc.model.exit_status import Exit, exit_of
from kernelsvc.model.limits import Network
from kernelsvc.model.network.rules import MAX_PORTS

log = logging.getLogger(__name__)

#: Seconds for a host to answer the first ``hello``. It probes the machine before.
CONNECT_SECONDS = 20.0
#: The same for a host that this client starts. Under emulation and load its interpreter alone took more than 20.
START_SECONDS = 60.0
#: Seconds for one request. A spawn waits for its fork server, too.
REQUEST_SECONDS = 60.0
#: Largest environment of a session, in bytes of JSON. A request is one datagram.
MAX_ENV_BYTES = 64 * 1024
#: Descriptors of an answer: a kernel's pidfd, and for network rules its init's pidfd and its listeners.
MAX_ANSWER_FDS = 4 + MAX_PORTS
_RETRY_SECONDS = 0.02, 1.0
#: Attempts at an idempotent request, each with the next host.
ATTEMPTS = 3

OnExit = Callable[[Exit], None]
OnListeners = Callable[[dict[str, Any], list[int]], None]


class HostGone(Internal):
    """The kernel host ended during the request. Try again."""


class KernelHandle(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel's process.

    Attributes:
        pid: as seen by this process.
        pidfd: belongs to the receiver, who closes it.
        sandbox: the layers that confine it.
        home: the session's directory as seen inside.
    """

    pid: int
    pidfd: int
    sandbox: SandboxReport
    home: str = ""


class HostClient:
    """One server's connection to its kernel host.

    Args:
        settings: settings of the host.
        start: whether to start a host if none answers.

    Attributes:
        templates: the host's description of each template, by name.
        sandbox: the layers that the host enforces.
        on_limit_hit: called with ids of kernels and the name of a limit that Linux enforced against another process of
            their sessions.
        on_listeners: called when a kernel has network rules: with the container's id, session, first rules and (if it
            was found) present ones, and with a pidfd of its init and its listeners, which it owns.
    """

    def __init__(self, settings: HostSettings, *, start: bool = True) -> None:
        self.templates: dict[str, dict[str, Any]] = {
            name: {"name": name, "state": "starting", "preload": one.preload}
            for name, one in settings.templates.items()
        }
        self.sandbox = SandboxReport(policy=settings.sandbox)
        self._settings = settings
        self._may_start = start
        self._channel: seqpacket.SeqpacketChannel | None = None
        self._connected = asyncio.Event()
        self._connecting: asyncio.Task[None] | None = None
        self._number = 0
        self._waiting: dict[int, asyncio.Future[tuple[dict[str, Any], list[int]]]] = {}
        self._on_exit: dict[str, OnExit] = {}
        self.on_limit_hit: Callable[[list[str], str], None] = lambda _kernels, _limit: None
        self.on_listeners: OnListeners = lambda _about, fds: seqpacket.close_all(fds)
        self._closed = False
        self._first_connection = True
        self._process: subprocess.Popen[bytes] | None = None

    async def set_templates(self, templates: dict[str, ForkServerSettings]) -> None:
        """Let the host have these templates from now on, also a host that is started later. Sessions continue."""
        self._settings = msgspec.structs.replace(self._settings, templates=templates)
        for name in self.templates.keys() - templates.keys():
            del self.templates[name]
        for name, one in templates.items():
            self.templates.setdefault(name, {"name": name, "state": "starting", "preload": one.preload})
        await self._request("templates", templates=msgspec.to_builtins(templates))

    # -- connecting --------------------------------------------------------------------

    async def start(self) -> None:
        """Connect to the host, and start one if none answers and this client may. Safe to cancel.

        Raises:
            Internal: there is no host and none can be started.
            Conflict: the host speaks another version of the protocol.
        """
        pause, longest = _RETRY_SECONDS
        try:
            async with asyncio.timeout(START_SECONDS if self._may_start else CONNECT_SECONDS):
                while not await self._connect():
                    self._start_host()
                    await asyncio.sleep(pause)
                    pause = min(longest, pause * 1.5)
        except TimeoutError:
            log_path = Path(self._settings.runtime_dir) / "host.log"
            hint = f"See {log_path}" if self._may_start else "Start kernelsvc-kernels.service, or set start_host"
            raise Internal(f"The kernel host does not answer. {hint}.") from None

    async def _connect(self) -> bool:
        """Try to connect once. Return False if no host answers, or if the host ends before it answers."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            sock.connect(str(Path(self._settings.runtime_dir) / "host.sock"))
        except OSError:
            sock.close()
            return False
        self._channel = seqpacket.SeqpacketChannel(sock, self._received, self._connection_lost, fds=MAX_ANSWER_FDS)
        try:
            answer, _ = await self._request("hello", version=VERSION)
        except (Internal, Timeout):
            self._disconnect()
            return False
        except BaseException:
            self._disconnect()
            raise
        if answer.get("settings") != self._settings.digest() and not await self._accept_settings(answer):
            return False
        self.templates = {one["name"]: one for one in answer["templates"]}
        if answer.get("sandbox"):
            self.sandbox = msgspec.convert(answer["sandbox"], SandboxReport)
        self._first_connection = False
        self._connected.set()
        return True

    async def _accept_settings(self, answer: dict[str, Any]) -> bool:
        """Keep a host that runs with other settings, or end it so that the next host adopts its kernels."""
        if not (self._may_start and self._first_connection):
            log.warning(
                "the kernel host %s runs with other settings than this server. Restart the host to apply the server's.",
                answer.get("pid"),
            )
            return True
        log.info("the kernel host runs with other settings. The next host adopts its kernels.")
        self._first_connection = False
        with contextlib.suppress(KernelsvcError):
            await self._request("shutdown", end_kernels=False)
        self._disconnect()
        return False

    def _disconnect(self) -> None:
        self._connected.clear()
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _start_host(self) -> None:
        """Start a host, detached: it outlives this server."""
        running = self._process is not None and self._process.poll() is None
        if not self._may_start or running:
            return
        runtime = Path(self._settings.runtime_dir)
        runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (runtime / "host.log").open("ab") as log_file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kernelsvc.host.daemon"],
                stdin=subprocess.PIPE,
                stdout=log_file,
                stderr=log_file,
                env=_host_environment(os.environ),
                start_new_session=True,
                cwd="/",
            )
        # Sessions start with the host's soft limit, and this process may have raised its own. The host raises its limit
        # when it has read its settings, which are not sent yet.
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(self._process.pid, resource.RLIMIT_NOFILE, inherited_descriptor_limits())
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(msgspec.json.encode(self._settings))
            self._process.stdin.close()

    def _connection_lost(self) -> None:
        lost = self._connected.is_set()
        self._disconnect()
        waiting, self._waiting = self._waiting, {}
        for one in waiting.values():
            if not one.done():
                one.set_exception(HostGone())
                one.exception()
        if lost and not self._closed:
            log.warning("the kernel host has ended. Sessions continue, and new sessions wait for the next host.")
            for template in self.templates.values():
                template["state"] = "starting"
            self._connecting = asyncio.ensure_future(self._reconnect())

    async def _reconnect(self) -> None:
        """Connect to the next host, and claim every kernel of this server."""
        while not self._connected.is_set():
            try:
                await self.start()
            except KernelsvcError as error:
                log.error("%s", error.message)
        for kernel in list(self._on_exit):
            try:
                os.close((await self.find(kernel)).pidfd)
            except NotFound as error:
                self._report_exit(kernel, error.details.get("exit"))
            except KernelsvcError as error:
                log.error("kernel %s: %s", kernel, error.message)

    async def close(self) -> None:
        """Disconnect. The host and its kernels continue."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        self._disconnect()
        if self._process is not None and self._process.poll() is None:
            self._process.returncode = 0  # the host outlives this process, about which ``Popen`` would warn
            self._process = None

    # -- requests ----------------------------------------------------------------------

    async def _request(self, op: str, fds: Sequence[int] = (), **fields: Any) -> tuple[dict[str, Any], list[int]]:
        self._number += 1
        number = self._number
        answer: asyncio.Future[tuple[dict[str, Any], list[int]]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            if self._channel is None or not self._channel.send({"id": number, "op": op, **fields}, fds):
                raise HostGone("The kernel host can't be reached. Try again in a moment.")
            async with asyncio.timeout(REQUEST_SECONDS):
                with ResumeIfStopped(self._host_pid, lambda pid: _continue_host(pid, answer)):
                    return await answer
        except TimeoutError:
            raise Timeout("The kernel host did not answer in time. Try again.") from None
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                seqpacket.close_all(answer.result()[1])  # the answer came after the cancellation
            raise
        finally:
            self._waiting.pop(number, None)

    def _host_pid(self) -> int:
        return peer.credentials(self._channel.sock).pid if self._channel is not None and self._channel.is_open else 0

    async def request(self, op: str, fds: Sequence[int] = (), **fields: Any) -> tuple[dict[str, Any], list[int]]:
        """Send one request, after waiting for a host if there is none. Safe to cancel: the host completes the request.

        Args:
            op: name of the operation.
            fds: descriptors that go with it, which the caller keeps.
            fields: fields of the request.

        Returns:
            The answer, and the descriptors that came with it. The caller closes them.

        Raises:
            KernelsvcError: the host's error. ``Internal`` or ``Timeout`` if no host answered.
        """
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._connected.wait()
        except TimeoutError:
            raise Internal("There is no kernel host. See its log, and 'kernelsvc doctor'.") from None
        return await self._request(op, fds, **fields)

    async def _request_idempotent(self, op: str, **fields: Any) -> tuple[dict[str, Any], list[int]]:
        """Send a request that may be repeated: to the next host if one ends meanwhile."""
        for _ in range(ATTEMPTS):
            with contextlib.suppress(HostGone):
                return await self.request(op, **fields)
            # A send to a host that has just ended fails before this loop has read the end of the connection.
            await asyncio.sleep(0)
        return await self.request(op, **fields)

    async def spawn(self, request: SpawnRequest, fds: Sequence[int]) -> KernelHandle:
        """Fork a kernel from a template, and wait until it listens.

        Args:
            request: see ``protocol.SpawnRequest``.
            fds: ``protocol.SPAWN_FDS`` descriptors, which the caller keeps.

        Raises:
            TooLarge: the environment does not fit into a request.
            KernelsvcError: the host's error. ``Internal`` or ``Timeout`` if no host answered.
        """
        return await self._start("spawn", request, fds)

    async def start_process(self, request: StartProcessRequest, fds: Sequence[int]) -> KernelHandle:
        """Start a kernelspec kernel's process. Raises the errors of ``spawn``."""
        return await self._start("start", request, fds)

    async def _start(self, op: str, request: SpawnRequest | StartProcessRequest, fds: Sequence[int]) -> KernelHandle:
        size = len(seqpacket.encode(request.env))
        if size > MAX_ENV_BYTES:
            raise TooLarge(f"The environment takes {size} bytes and may take {MAX_ENV_BYTES}. Put data into a file.")
        return self._handle(*await self.request(op, fds, **msgspec.to_builtins(request)))

    async def find(self, kernel: str, network: Network = "none") -> KernelHandle:
        """Return a running kernel, which this server holds from now on.

        Args:
            kernel: its id.
            network: the present rules of its network. The host knows only the first ones.

        Raises:
            NotFound: the kernel has ended. ``details["exit"]`` if the host knows how.
            KernelsvcError: see ``spawn``.
        """
        answer, fds = await self._request_idempotent("find", kernel=kernel)
        if answer.get("egress") and not isinstance(network, str):
            answer["egress"]["present"] = msgspec.to_builtins(network)
        return self._handle(answer, fds)

    def _handle(self, answer: dict[str, Any], fds: list[int]) -> KernelHandle:
        report = msgspec.convert(answer["sandbox"], SandboxReport)
        if answer.get("egress"):
            self.on_listeners(answer["egress"], fds[1:])
        else:
            seqpacket.close_all(fds[1:])
        return KernelHandle(pid=int(answer["pid"]), pidfd=fds[0], sandbox=report, home=str(answer.get("home", "")))

    async def register_copy(self, request: RegisterCopyRequest, pidfd: int) -> tuple[int | None, list[str]]:
        """Register a checkpoint or branch that a kernel has forked.

        Args:
            request: see ``protocol.RegisterCopyRequest``.
            pidfd: of its process. The caller closes it.

        Returns:
            Bytes of its private memory, computed from its page faults, or None if unknown. For a branch: pid and name
            of each program that was left running in the sandbox.
        """
        answer, answer_fds = await self.request("enlist", [pidfd], **msgspec.to_builtins(request))
        seqpacket.close_all(answer_fds)
        private, left = answer.get("private_bytes"), answer.get("left")
        names = [str(name) for name in left] if isinstance(left, list) else []
        return private if isinstance(private, int) else None, names

    async def exec(self, request: ExecRequest, fds: Sequence[int]) -> None:
        """Have the host fork the exec shim of a program.

        Args:
            request: see ``protocol.ExecRequest``.
            fds: ``protocol.EXEC_FDS`` descriptors, which the caller keeps.
        """
        _, answer_fds = await self.request("exec", fds, **msgspec.to_builtins(request))
        seqpacket.close_all(answer_fds)

    async def sockets(self, kernel: str, count: int) -> list[socket.socket]:
        """Return new TCP sockets in the network namespace of a kernel, unconnected. Safe to cancel.

        Args:
            kernel: id of the kernel.
            count: how many, 64 at most.

        Raises:
            NotSupported: the session has no network namespace of its own.
            NotFound, KernelDead: the kernel has ended.
            Internal: they can't be made.
        """
        own, maker_end = seqpacket.pair()
        with own:
            own.setblocking(False)
            with maker_end:
                fields = msgspec.to_builtins(SocketsRequest(kernel=kernel, count=count))
                _, answer_fds = await self.request("sockets", [maker_end.fileno()], **fields)
                seqpacket.close_all(answer_fds)
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    await wait_readable(own.fileno())
                body, fds = seqpacket.receive(own, count) or ({}, [])
            except (TimeoutError, ValueError) as error:
                raise Internal("The kernel host made no sockets. Try again.") from error
        if not fds:
            log.error("no sockets for kernel %s: %s", kernel, body.get("failed"))
            raise Internal("The session's network can't be entered. The server's log says why.")
        made = [socket.socket(fileno=fd) for fd in fds]
        for one in made:
            one.setblocking(False)
        return made

    def announce_branch(self) -> None:
        """Tell the host that a branch will be forked, so that it prepares the move into a cgroup. Does not wait."""
        if self._channel is not None:
            self._channel.send({"id": None, "op": "expect"})

    async def kernels(self) -> list[str]:
        """Return the ids of all kernels of the host."""
        answer, _ = await self.request("list")
        return [str(one["kernel"]) for one in answer["kernels"]]

    async def orphans(self) -> list[str]:
        """Return the ids of the kernels that no connected server has started or found."""
        answer, _ = await self.request("list")
        return [str(one["kernel"]) for one in answer["kernels"] if not one.get("held")]

    def signal(self, kernel: str, signum: int, *, everyone: bool = False, others: bool = False) -> None:
        """Have the host send a signal. Does not wait.

        Args:
            kernel: id of the kernel.
            signum: number of the signal.
            everyone: send it to every process of the container.
            others: send it to the kernel, and to every process of the container that is no kernel.
        """
        if self._channel is not None:
            body = {"id": None, "op": "signal", "kernel": kernel, "signum": signum}
            self._channel.send(body | {"all": everyone, "others": others})

    def interrupt_children(self, kernel: str, seconds: float) -> None:
        """Have the host interrupt the processes that a kernel has started, and kill those that go on. Does not wait.

        Args:
            kernel: id of the kernel.
            seconds: how long ago the first of them started, at most.
        """
        if self._channel is not None:
            self._channel.send({"id": None, "op": "interrupt", "kernel": kernel, "seconds": seconds})

    async def end(self, kernel: str) -> None:
        """End a kernel and the processes it started, and free its resources."""
        self._on_exit.pop(kernel, None)
        await self._request_idempotent("end", kernel=kernel)

    async def shutdown(self, *, end_kernels: bool) -> None:
        """End the host.

        Args:
            end_kernels: end its kernels, too. Otherwise the next host adopts them.
        """
        self._closed = True
        with contextlib.suppress(KernelsvcError):
            await self._request("shutdown", end_kernels=end_kernels)
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5.0):
                    while self._process.poll() is None:  # noqa: ASYNC110 - a child of this process, about to end
                        await asyncio.sleep(0.005)

    # -- notices -----------------------------------------------------------------------

    def on_end(self, kernel: str, on_exit: OnExit) -> None:
        """Call ``on_exit`` once when the host reports the end of a kernel."""
        self._on_exit[kernel] = on_exit

    def forget(self, kernel: str) -> None:
        """Drop the callback of ``on_end``."""
        self._on_exit.pop(kernel, None)

    def _report_exit(self, kernel: str, answer: Any) -> None:
        on_exit = self._on_exit.pop(kernel, None)
        if on_exit is not None:
            on_exit(msgspec.convert(answer, Exit) if answer else exit_of(None))

    def _received(self, body: dict[str, Any], fds: list[int]) -> None:
        waiting = self._waiting.get(body.get("id") or -1)
        if waiting is not None and not waiting.done():
            if "error" in body:
                waiting.set_exception(from_json(body["error"]))
            else:
                waiting.set_result((body.get("ok") or {}, fds))
                fds = []
        elif body.get("notice") == "struck":
            self.on_limit_hit([str(kernel) for kernel in body.get("kernels") or []], str(body.get("limit")))
        elif body.get("notice") == "exited":
            self._report_exit(str(body["kernel"]), body.get("exit"))
        elif body.get("notice") == "template":
            self.templates[str(body["name"])] = {k: v for k, v in body.items() if k != "notice"}
        seqpacket.close_all(fds)


def _host_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return the host's environment: the server's without its tokens, with the path to this package."""
    kept = {name: value for name, value in env.items() if not (name.startswith("KERNELSVC_") and "TOKEN" in name)}
    paths = [str(Path(kernelsvc.__file__).parent.parent), *filter(None, [env.get("PYTHONPATH")])]
    return kept | {"PYTHONPATH": os.pathsep.join(paths)}


def _continue_host(pid: int, answer: asyncio.Future[tuple[dict[str, Any], list[int]]]) -> None:
    """Continue a host that was stopped (SIGSTOP) during a request. Fail the request if that is not allowed."""
    try:
        os.kill(pid, signal.SIGCONT)
    except OSError:
        if not answer.done():
            answer.set_exception(Internal(f"The kernel host is stopped. Continue it with 'kill -CONT {pid}'."))
    else:
        log.warning("the kernel host was stopped (SIGSTOP) and was sent SIGCONT")
