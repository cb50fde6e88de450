"""The server's side of the host protocol: find the kernel host or start one, ask it, hear from it.

When the host dies, its sessions run on; the client connects to the next one
(which systemd starts, or this client where there is no systemd), and names again
every kernel that the server holds.
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
    HostSettings,
    RegisterCopyRequest,
    SpawnRequest,
    StartProcessRequest,
)
from kernelsvc.linux import peer, seqpacket
from kernelsvc.linux.acceptor import inherited_descriptor_limits
from kernelsvc.linux.stopped_process import ResumeIfStopped
from kernelsvc.model.events import SandboxReport
from kernelsvc.model.exit_status import Exit, exit_of

log = logging.getLogger(__name__)

#: Seconds for a host to answer its first ``hello``: it probes the machine first.
CONNECT_SECONDS = 20.0
#: The same for one that is started just now: under emulation and load its interpreter alone took more than 20.
START_SECONDS = 60.0
#: Seconds for one request; a spawn waits for its template too.
REQUEST_SECONDS = 60.0
#: Largest environment of a session, as JSON; it travels in one datagram.
MAX_ENV_BYTES = 64 * 1024
_RETRY_SECONDS = 0.02, 1.0
#: How often what changes nothing, or only for the first time, is asked of the next host.
ATTEMPTS = 3

Ended = Callable[[Exit], None]


class HostGone(Internal):
    """The kernel host died while it was asked; try again."""


class KernelHandle(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel's process. Whoever gets it owns ``pidfd``."""

    pid: int
    pidfd: int
    sandbox: SandboxReport
    home: str = ""


class HostClient:
    """One server's connection to its kernel host.

    Attributes:
        templates: what the host says of each, by name.
        sandbox: what the host enforces.
        on_struck: called with kernels and the name of a limit of theirs that Linux held against something else of
            their sessions.
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
        self._ended: dict[str, Ended] = {}
        self.on_struck: Callable[[list[str], str], None] = lambda _kernels, _limit: None
        self._closed = False
        self._first = True
        self._process: subprocess.Popen[bytes] | None = None

    # -- connecting --------------------------------------------------------------------

    async def start(self) -> None:
        """Connect to the host, starting one where that is ours to do. Safe to cancel.

        Raises:
            Internal: there is none and none can be started.
            Conflict: it speaks another version.
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
            hint = f"see {log_path}" if self._may_start else "start kernelsvc-kernels.service, or set start_host"
            raise Internal(f"The kernel host does not answer; {hint}.") from None

    async def _connect(self) -> bool:
        """Try once; False if there is no host, or it ended before it could say anything."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            sock.connect(str(Path(self._settings.runtime_dir) / "host.sock"))
        except OSError:
            sock.close()
            return False
        self._channel = seqpacket.SeqpacketChannel(sock, self._received, self._gone, fds=1)
        try:
            said, _ = await self._ask("hello", version=VERSION)
        except (Internal, Timeout):
            self._let_go()
            return False
        except BaseException:
            self._let_go()
            raise
        if said.get("settings") != self._settings.digest() and not await self._keep_other(said):
            return False
        self.templates = {one["name"]: one for one in said["templates"]}
        if said.get("sandbox"):
            self.sandbox = msgspec.convert(said["sandbox"], SandboxReport)
        self._first = False
        self._connected.set()
        return True

    async def _keep_other(self, said: dict[str, Any]) -> bool:
        """A host runs that an earlier server has started with other settings: have ours take over its kernels."""
        if not (self._may_start and self._first):
            log.warning("the kernel host %s runs with other settings than this server's; restart it", said.get("pid"))
            return True
        log.info("the kernel host runs with other settings; the next one takes over its kernels")
        self._first = False
        with contextlib.suppress(KernelsvcError):
            await self._ask("shutdown", end_kernels=False)
        self._let_go()
        return False

    def _let_go(self) -> None:
        self._connected.clear()
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _start_host(self) -> None:
        """Start a host of our own, detached: it outlives this server."""
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
        # Sessions begin with the host's soft limit, and this process may have raised its own. The host raises its limit
        # once it has read its settings, which are not sent yet.
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(self._process.pid, resource.RLIMIT_NOFILE, inherited_descriptor_limits())
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(msgspec.json.encode(self._settings))
            self._process.stdin.close()

    def _gone(self) -> None:
        lost = self._connected.is_set()
        self._let_go()
        waiting, self._waiting = self._waiting, {}
        for one in waiting.values():
            if not one.done():
                one.set_exception(HostGone())
                one.exception()
        if lost and not self._closed:
            log.warning("the kernel host is gone; sessions run on, new ones wait for the next host")
            for about in self.templates.values():
                about["state"] = "starting"
            self._connecting = asyncio.ensure_future(self._reconnect())

    async def _reconnect(self) -> None:
        """Find the next host, and name to it every kernel that we hold."""
        while not self._connected.is_set():
            try:
                await self.start()
            except KernelsvcError as error:
                log.error("%s", error.message)
        for kernel in list(self._ended):
            try:
                os.close((await self.find(kernel)).pidfd)
            except NotFound as error:
                self._tell_ended(kernel, error.details.get("exit"))
            except KernelsvcError as error:
                log.error("kernel %s: %s", kernel, error.message)

    async def close(self) -> None:
        """Let go; the host and its kernels live on."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        self._let_go()
        if self._process is not None and self._process.poll() is None:
            self._process.returncode = 0  # it outlives us on purpose, of which ``Popen`` would complain
            self._process = None

    # -- asking -------------------------------------------------------------------------

    async def _ask(self, op: str, fds: Sequence[int] = (), **fields: Any) -> tuple[dict[str, Any], list[int]]:
        self._number += 1
        number = self._number
        answer: asyncio.Future[tuple[dict[str, Any], list[int]]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            if self._channel is None or not self._channel.send({"id": number, "op": op, **fields}, fds):
                raise HostGone("The kernel host can't be reached; try again in a moment.")
            async with asyncio.timeout(REQUEST_SECONDS):
                with ResumeIfStopped(self._host_pid, lambda pid: _go_on(pid, answer)):
                    return await answer
        except TimeoutError:
            raise Timeout("The kernel host did not answer in time; try again.") from None
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                seqpacket.close_all(answer.result()[1])  # it came at the last moment
            raise
        finally:
            self._waiting.pop(number, None)

    def _host_pid(self) -> int:
        return peer.credentials(self._channel.sock).pid if self._channel is not None and self._channel.is_open else 0

    async def ask(self, op: str, fds: Sequence[int] = (), **fields: Any) -> tuple[dict[str, Any], list[int]]:
        """One request; waits for the host to be there. Safe to cancel: the host goes on.

        Returns:
            The answer and the descriptors that came with it, which are the caller's.

        Raises:
            KernelsvcError: as the host says; ``Internal`` or ``Timeout`` when it can't be asked.
        """
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._connected.wait()
        except TimeoutError:
            raise Internal("There is no kernel host; see its log, and 'kernelsvc doctor'.") from None
        return await self._ask(op, fds, **fields)

    async def _ask_again(self, op: str, **fields: Any) -> tuple[dict[str, Any], list[int]]:
        """A request that may be made twice: the next host is asked where one dies meanwhile."""
        for _ in range(ATTEMPTS):
            with contextlib.suppress(HostGone):
                return await self.ask(op, **fields)
        return await self.ask(op, **fields)

    async def spawn(self, request: SpawnRequest, fds: Sequence[int]) -> KernelHandle:
        """Fork a kernel from a template, and wait until it listens.

        Args:
            request: see ``protocol.SpawnRequest``.
            fds: ``protocol.SPAWN_FDS`` descriptors, which the caller keeps.

        Raises:
            TooLarge: the environment does not fit into a request.
            KernelsvcError: the host's error; ``Internal`` or ``Timeout`` if no host answered.
        """
        return await self._start("spawn", request, fds)

    async def start_process(self, request: StartProcessRequest, fds: Sequence[int]) -> KernelHandle:
        """Start a kernelspec kernel's process. Raises the errors of ``spawn``."""
        return await self._start("start", request, fds)

    async def _start(self, op: str, request: SpawnRequest | StartProcessRequest, fds: Sequence[int]) -> KernelHandle:
        size = len(seqpacket.encode(request.env))
        if size > MAX_ENV_BYTES:
            raise TooLarge(f"The environment takes {size} bytes and may take {MAX_ENV_BYTES}; put data into a file.")
        return _handle(*await self.ask(op, fds, **msgspec.to_builtins(request)))

    async def find(self, kernel: str) -> KernelHandle:
        """Return a running kernel, which this server holds from now on.

        Raises:
            NotFound: the kernel has ended; ``details["exit"]`` if the host knows how.
            KernelsvcError: see ``spawn``.
        """
        return _handle(*await self._ask_again("find", kernel=kernel))

    async def register_copy(self, request: RegisterCopyRequest, pidfd: int) -> int | None:
        """Register a checkpoint or branch that a kernel has forked.

        Args:
            request: see ``protocol.RegisterCopyRequest``.
            pidfd: of its process. The caller closes it.

        Returns:
            Bytes of its private memory, computed from its page faults; None if unknown.
        """
        said, given = await self.ask("enlist", [pidfd], **msgspec.to_builtins(request))
        seqpacket.close_all(given)
        private = said.get("private_bytes")
        return private if isinstance(private, int) else None

    async def exec(self, request: ExecRequest, fds: Sequence[int]) -> None:
        """Have the host fork the exec shim of a program.

        Args:
            request: see ``protocol.ExecRequest``.
            fds: ``protocol.EXEC_FDS`` descriptors, which the caller keeps.
        """
        _, given = await self.ask("exec", fds, **msgspec.to_builtins(request))
        seqpacket.close_all(given)

    def expect(self) -> None:
        """Tell the host that a branch is about to be made; does not wait."""
        if self._channel is not None:
            self._channel.send({"id": None, "op": "expect"})

    async def kernels(self) -> list[str]:
        """Ids of all kernels of the host."""
        said, _ = await self.ask("list")
        return [str(one["kernel"]) for one in said["kernels"]]

    async def strays(self) -> list[str]:
        """Ids of the kernels that no server which is connected has started or found."""
        said, _ = await self.ask("list")
        return [str(one["kernel"]) for one in said["kernels"] if not one.get("held")]

    def signal(self, kernel: str, signum: int, *, everyone: bool = False) -> None:
        """Ask the host to send a signal; does not wait."""
        if self._channel is not None:
            self._channel.send({"id": None, "op": "signal", "kernel": kernel, "signum": signum, "all": everyone})

    async def end(self, kernel: str) -> None:
        """End a kernel and what it started, and free what it held."""
        self._ended.pop(kernel, None)
        await self._ask_again("end", kernel=kernel)

    async def shutdown(self, *, end_kernels: bool) -> None:
        """End the host."""
        self._closed = True
        with contextlib.suppress(KernelsvcError):
            await self._ask("shutdown", end_kernels=end_kernels)
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5.0):
                    while self._process.poll() is None:  # noqa: ASYNC110 - it is our own child and ends now
                        await asyncio.sleep(0.005)

    # -- hearing --------------------------------------------------------------------------

    def on_end(self, kernel: str, ended: Ended) -> None:
        """Call ``ended`` once when the host says that this kernel has ended."""
        self._ended[kernel] = ended

    def forget(self, kernel: str) -> None:
        """Call nobody any more."""
        self._ended.pop(kernel, None)

    def _tell_ended(self, kernel: str, said: Any) -> None:
        ended = self._ended.pop(kernel, None)
        if ended is not None:
            ended(msgspec.convert(said, Exit) if said else exit_of(None))

    def _received(self, body: dict[str, Any], fds: list[int]) -> None:
        waiting = self._waiting.get(body.get("id") or -1)
        if waiting is not None and not waiting.done():
            if "error" in body:
                waiting.set_exception(from_json(body["error"]))
            else:
                waiting.set_result((body.get("ok") or {}, fds))
                fds = []
        elif body.get("notice") == "struck":
            self.on_struck([str(kernel) for kernel in body.get("kernels") or []], str(body.get("limit")))
        elif body.get("notice") == "exited":
            self._tell_ended(str(body["kernel"]), body.get("exit"))
        elif body.get("notice") == "template":
            self.templates[str(body["name"])] = {k: v for k, v in body.items() if k != "notice"}
        seqpacket.close_all(fds)


def _handle(said: dict[str, Any], fds: list[int]) -> KernelHandle:
    seqpacket.close_all(fds[1:])
    report = msgspec.convert(said["sandbox"], SandboxReport)
    return KernelHandle(pid=int(said["pid"]), pidfd=fds[0], sandbox=report, home=str(said.get("home", "")))


def _host_environment(env: Mapping[str, str]) -> dict[str, str]:
    """The server's, without its tokens; and the way to this package, which may not be installed."""
    kept = {name: value for name, value in env.items() if not (name.startswith("KERNELSVC_") and "TOKEN" in name)}
    paths = [str(Path(kernelsvc.__file__).parent.parent), *filter(None, [env.get("PYTHONPATH")])]
    return kept | {"PYTHONPATH": os.pathsep.join(paths)}


def _go_on(pid: int, answer: asyncio.Future[tuple[dict[str, Any], list[int]]]) -> None:
    """The host was stopped while an answer is waited for: have it go on, or say who can."""
    try:
        os.kill(pid, signal.SIGCONT)
    except OSError:
        if not answer.done():
            answer.set_exception(Internal(f"The kernel host is stopped; let it go on with 'kill -CONT {pid}'."))
    else:
        log.warning("the kernel host was stopped (SIGSTOP) and told to go on")
