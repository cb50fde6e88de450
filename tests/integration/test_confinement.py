"""The hooks in real forks: what a plan says is done, or the step that failed is named."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest

from kernelsvc.guest.confine import confine, linux
from kernelsvc.model.limits import Limits, MiB
from kernelsvc.sandbox.manager import SandboxAllocation, SandboxManager
from kernelsvc.sandbox.probe_result import Layer

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[SandboxManager]:
    run = tmp_path / "run"
    run.mkdir()
    made = SandboxManager(policy="best-effort", runtime_dir=str(run), hidden=[str(tmp_path / "data")])
    if made.report(Limits()).isolation != "full":
        pytest.skip(str(made.report(Limits()).not_enforced))
    yield made
    made.sweep([])
    eventually(lambda: made.sweep([]) == [])
    made.close()


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def spawn(plan: dict[str, Any], kernel: Callable[[], None], *, stay: bool = False) -> tuple[int, int]:
    """Run ``kernel`` under the plan.

    Returns:
        A descriptor to read what it says, and one that ends the init when it is closed.
    """
    reader, writer = os.pipe()
    lifeline, hold = os.pipe()
    middle = os.fork()
    if middle == 0:
        try:
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            os.dup2(lifeline, 3)
            linux.close_others({0, 1, 2, 3})
            confine.enter(plan)
            if os.fork():
                os._exit(0)
            confine.build(plan)
            pid = os.fork()
            if pid == 0:
                os.close(3)
                confine.seal(plan)
                kernel()
                os._exit(0)
            _init(pid, plan, stay=stay)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}".encode())
            os._exit(1)
    os.close(writer)
    os.close(lifeline)
    os.waitpid(middle, 0)
    return reader, hold


def _init(kernel: int, plan: dict[str, Any], *, stay: bool) -> NoReturn:
    confine.guard_init(plan)
    if stay:
        os.close(1)
        os.close(2)
        select.select([3], [], [])
        os._exit(0)
    while os.waitpid(-1, 0)[0] != kernel:
        continue
    os._exit(0)


def said_by(plan: dict[str, Any], kernel: Callable[[], None]) -> str:
    reader, hold = spawn(plan, kernel)
    try:
        with os.fdopen(reader, "rb") as f:
            return f.read().decode()
    finally:
        os.close(hold)


def prepare(sandbox: SandboxManager, workdir: Path, name: str = "k", **more: Any) -> SandboxAllocation:
    workdir.mkdir(parents=True, exist_ok=True)
    more.setdefault("limits", Limits(memory_bytes=512 * MiB))
    return sandbox.prepare(name, workdir=str(workdir), python=sys.executable, **more)


def say(text: object) -> None:
    os.write(1, f"{text}\n".encode())


def test_the_plan_is_what_happens(sandbox: SandboxManager, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()

    def kernel() -> None:
        say(os.getcwd())
        say(socket.gethostname())
        say(sorted(os.listdir("/home")))
        say([name for _, name in socket.if_nameindex()])
        Path("made").write_text("x")

    ticket = prepare(sandbox, tmp_path / "work", env={"GREETING": "hello"})
    assert said_by(ticket.plan, kernel).splitlines() == ["/home/user", "session", "['user']", "['lo']"]
    assert (tmp_path / "work" / "made").read_text() == "x"
    if ticket.uid is not None:
        assert (tmp_path / "work" / "made").stat().st_uid == ticket.uid
    eventually(lambda: sandbox.release(ticket))


def _spoil(plan: dict[str, Any], *path: str, value: Any) -> dict[str, Any]:
    target = plan
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return plan


@pytest.mark.parametrize(
    ("path", "value", "step"),
    [
        (("version",), 99, "plan"),
        (("cgroup",), ["/kernelsvc-absent/cgroup.procs"], "cgroup"),
        (("view", "readonly"), [["/kernelsvc-absent", "/kernelsvc-absent"]], "filesystem"),
        (("view", "root"), "/kernelsvc-absent", "filesystem"),
        (("home",), "/kernelsvc-absent", "home"),
        (("rlimits",), {"NOFILE": [10**9, 10**9]}, "rlimits"),
        (("landlock",), {"grants": [["/kernelsvc-absent", "read"]], "scope": True}, "landlock"),
        (("seccomp",), {"kernel": "00" * 8, "init": "00" * 8}, "init guard"),
        (("env",), {"BAD": None}, "environment"),
    ],
)
def test_a_step_that_fails_stops_the_start_and_is_named(
    sandbox: SandboxManager, tmp_path: Path, path: tuple[str, ...], value: Any, step: str
) -> None:
    ticket = prepare(sandbox, tmp_path / "work")
    text = said_by(_spoil(ticket.plan, *path, value=value), lambda: say("USER CODE RAN"))
    assert f"confinement: {step}: " in text
    assert "USER CODE RAN" not in text
    eventually(lambda: sandbox.release(ticket))


def test_a_directory_that_lies_in_what_is_shown_can_be_hidden(sandbox: SandboxManager, tmp_path: Path) -> None:
    shown, hidden = tmp_path / "shown", tmp_path / "shown" / "hidden"
    hidden.mkdir(parents=True)
    (hidden / "secret").write_text("x")
    (shown / "open").write_text("x")
    ticket = prepare(sandbox, tmp_path / "work")
    ticket.plan["view"]["readonly"].append([str(shown), str(shown)])
    ticket.plan["view"]["hidden"].append(str(hidden))
    text = said_by(ticket.plan, lambda: say([sorted(os.listdir(shown)), os.listdir(hidden)]))
    assert text.strip() == "[['hidden', 'open'], []]"
    eventually(lambda: sandbox.release(ticket))


def test_no_file_that_sessions_see_has_the_locks_of_the_machine(sandbox: SandboxManager, tmp_path: Path) -> None:
    ticket = prepare(sandbox, tmp_path / "work")
    if "own inodes" not in ticket.report.enforced:
        pytest.skip(str(ticket.report.not_enforced))
    shown = ticket.plan["view"]["readonly"]

    def kernel() -> None:
        for _, path in shown:
            fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Nor those of another session: these locks stay while the test starts one.
        say("locked")
        signal.pause()

    with contextlib.ExitStack() as held:
        for source, _ in shown:
            fd = os.open(source, os.O_RDONLY)
            held.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_SH)
        held.callback(eventually, lambda: sandbox.release(ticket))
        for number in range(2):
            other = prepare(sandbox, tmp_path / f"work{number}", f"k{number}")
            held.callback(eventually, lambda other=other: sandbox.release(other))
            reader, hold = spawn(other.plan, kernel, stay=True)
            held.callback(os.close, reader)
            held.callback(os.close, hold)
            assert os.read(reader, 4096) == b"locked\n"


def test_a_watch_shows_only_what_the_session_opens(sandbox: SandboxManager, tmp_path: Path) -> None:
    """Both directions in one test: an event of its own proves that the watch works."""
    ticket = prepare(sandbox, tmp_path / "work")
    if "own inodes" not in ticket.report.enforced:
        pytest.skip(str(ticket.report.not_enforced))
    libc, opened = ctypes.CDLL(None), 0x20

    def kernel() -> None:
        watch = libc.inotify_init1(os.O_NONBLOCK)
        libc.inotify_add_watch(watch, b"/usr/bin/env", opened)
        say("watching")
        eventually(lambda: os.path.exists("others opened it"))
        with contextlib.suppress(BlockingIOError):
            say(f"others: {len(os.read(watch, 4096))}")
        os.close(os.open("/usr/bin/env", os.O_RDONLY))
        say(f"own: {len(os.read(watch, 4096))}")

    reader, hold = spawn(ticket.plan, kernel)
    try:
        assert os.read(reader, 4096) == b"watching\n"
        os.close(os.open("/usr/bin/env", os.O_RDONLY))
        (tmp_path / "work" / "others opened it").touch()
        with os.fdopen(reader, "rb") as said:
            assert said.read() == b"own: 16\n"
    finally:
        os.close(hold)
    eventually(lambda: sandbox.release(ticket))


def test_the_hosts_network_for_those_who_ask(sandbox: SandboxManager, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()

        def kernel() -> None:
            socket.create_connection(address, 5).close()
            say("connected")

        ticket = prepare(sandbox, tmp_path / "work", limits=Limits(network="host"))
        assert ticket.report.isolation == "networked"
        assert said_by(ticket.plan, kernel) == "connected\n"
    eventually(lambda: sandbox.release(ticket))


#: Not 127.0.0.1: a resolver of the machine may listen there.
RESOLVER = "127.9.53.1"


def _answer_names(server: socket.socket) -> None:
    """Answer each query for an IPv4 address with 127.0.0.9 (RFC 1035, section 4), and any other without a record."""
    while query := server.recvfrom(512):
        data, sender = query
        if data == b"end":
            return
        question = data[12 : data.index(b"\0", 12) + 5]
        wanted = question[-4:-2] == b"\0\1"
        record = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4\x7f\0\0\x09" if wanted else b""
        server.sendto(data[:2] + b"\x81\x80\0\1\0" + bytes([wanted]) + b"\0\0\0\0" + question + record, sender)


@pytest.fixture
def resolver() -> Iterator[None]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        try:
            server.bind((RESOLVER, 53))
        except OSError as error:
            pytest.skip(f"port 53 of {RESOLVER} can't be bound: {error}")
        thread = threading.Thread(target=_answer_names, args=(server,))
        thread.start()
        yield
        server.sendto(b"end", (RESOLVER, 53))
        thread.join()


@pytest.mark.parametrize("network", ["host", "none"])
def test_names_resolve_on_the_hosts_network_only(
    sandbox: SandboxManager, resolver: None, network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"/etc/resolv.conf": f"nameserver {RESOLVER}\n", "/etc/hosts": "127.0.0.8 printer.test\n"}
    monkeypatch.setattr("kernelsvc.sandbox.manager.read_network_files", lambda: files)

    def kernel() -> None:
        for name in ("printer.test", "other.test", socket.gethostname()):
            try:
                say(socket.getaddrinfo(name, None, socket.AF_INET)[0][4][0])
            except OSError as error:
                say(type(error).__name__)

    limits = Limits(network=network)  # type: ignore[arg-type]
    allocation = prepare(sandbox, tmp_path / "work", limits=limits)
    found = said_by(allocation.plan, kernel).split()
    assert found == (["127.0.0.8", "127.0.0.9", "127.0.0.1"] if network == "host" else ["gaierror"] * 2 + ["127.0.0.1"])
    eventually(lambda: sandbox.release(allocation))


def test_abstract_sockets_stay_out_of_reach_on_the_hosts_network(sandbox: SandboxManager, tmp_path: Path) -> None:
    if sandbox.probe.landlock_abi < 6:
        pytest.skip("Landlock 6 is needed")
    name = f"\0kernelsvc-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()

        def kernel() -> None:
            try:
                socket.socket(socket.AF_UNIX).connect(name)
                say("connected")
            except PermissionError:
                say("refused")

        ticket = prepare(sandbox, tmp_path / "work", limits=Limits(network="host"))
        assert said_by(ticket.plan, kernel) == "refused\n"
    eventually(lambda: sandbox.release(ticket))


def test_nothing_outlives_the_init(sandbox: SandboxManager, tmp_path: Path) -> None:
    """A daemon that left its session and its parents goes with the namespace."""

    def kernel() -> None:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                say("up")
                time.sleep(600)
            os._exit(0)
        time.sleep(600)

    ticket = prepare(sandbox, tmp_path / "work")
    reader, hold = spawn(ticket.plan, kernel, stay=True)
    with os.fdopen(reader, "rb", buffering=0) as f:
        assert f.read(3) == b"up\n"
        os.close(hold)
        assert f.read() == b"", "the daemon held the pipe's other end until it died"
    eventually(lambda: sandbox.release(ticket))


@pytest.mark.needs_cgroup
def test_memory_in_many_processes_is_killed_and_told(sandbox: SandboxManager, tmp_path: Path) -> None:
    if "memory cgroup" not in sandbox.report(Limits()).enforced:
        pytest.skip("no memory cgroup here")

    def kernel() -> None:
        for _ in range(8):
            if os.fork() == 0:
                block = bytearray(64 * MiB)
                time.sleep(600)
                os._exit(len(block))
        for _ in range(8):
            say(os.wait()[1])
            break
        os.kill(0, signal.SIGKILL)

    ticket = prepare(sandbox, tmp_path / "work", limits=Limits(memory_bytes=200 * MiB))
    assert ticket.report.limits["memory_bytes"] == "hard"
    assert said_by(ticket.plan, kernel).split("\n")[0] == "9"
    assert ticket.group
    assert ticket.group.sample().oom_kills >= 1
    eventually(lambda: sandbox.release(ticket))


def test_a_greedy_allocation_is_an_error_with_the_variables_kept(sandbox: SandboxManager, tmp_path: Path) -> None:
    def kernel() -> None:
        kept = "kept"
        try:
            say(len(bytearray(1024 * MiB)))
        except MemoryError:
            say(kept)

    ticket = prepare(sandbox, tmp_path / "work", limits=Limits(memory_bytes=256 * MiB))
    assert said_by(ticket.plan, kernel) == "kept\n"
    eventually(lambda: sandbox.release(ticket))


def test_siblings_draw_different_numbers(sandbox: SandboxManager, tmp_path: Path) -> None:
    import random

    import numpy as np

    def kernel() -> None:
        say((random.random(), np.random.rand()))

    drawn = set()
    for name in ("a", "b"):
        ticket = prepare(sandbox, tmp_path / name, name)
        drawn.add(said_by(ticket.plan, kernel))
        eventually(lambda ticket=ticket: sandbox.release(ticket))
    assert len(drawn) == 2


def test_a_branch_can_read_its_relatives_and_write_only_its_own(sandbox: SandboxManager, tmp_path: Path) -> None:
    family = tmp_path / "family"
    for name in ("user", "user.d/b1"):
        (family / name).mkdir(parents=True)
        (family / name / "f").write_text(name)

    def branch() -> None:
        confine.restrict_writes(["/home/user.d/b1", "/tmp", "/dev/shm"], scope=True)
        os.chdir("/home/user.d/b1")
        say(Path("/home/user/f").read_text())
        Path("f").write_text("mine")
        Path("/tmp/t").write_text("x")
        Path("/dev/null").write_text("x")
        for act in (
            lambda: Path("/home/user/f").write_text("mine"),
            lambda: Path("/home/user/f").unlink(),
            lambda: Path("/home/user/new").mkdir(),
            lambda: Path("/home/new").mkdir(),
            lambda: os.rename("f", "/home/user/g"),
            lambda: os.link("f", "/home/user/g"),
        ):
            try:
                act()
                say("WRITTEN")
            except OSError:
                say("refused")

    def kernel() -> None:
        Path("/home/user/f").write_text("parent")
        if os.fork() == 0:
            branch()
            os._exit(0)
        os.wait()
        Path("/home/user/after").write_text("the parent may still write")

    ticket = prepare(sandbox, family / "user", group_dir=str(family))
    if ticket.uid is not None:
        for path in [family, *family.rglob("*")]:
            os.chown(path, ticket.uid, ticket.uid)
    assert ticket.plan["home"] == "/home/user"
    assert said_by(ticket.plan, kernel).split() == ["parent", *["refused"] * 6]
    assert (family / "user.d" / "b1" / "f").read_text() == "mine"
    assert (family / "user" / "after").exists()
    eventually(lambda: sandbox.release(ticket))


# --- programs of their own: cold kernels -----------------------------------------------


def start(plan: dict[str, Any], argv: list[str], env: dict[str, str]) -> str:
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        linux.close_others({0, 1, 2})

        def init(kernel: int, plan: dict[str, Any]) -> NoReturn:
            confine.guard_init(plan)
            status = 0
            with contextlib.suppress(ChildProcessError):
                while True:
                    pid, ended = os.waitpid(-1, 0)
                    status = ended if pid == kernel else status
            say(f"exit {os.waitstatus_to_exitcode(status)}")
            os._exit(0)

        try:
            confine.exec_confined(plan, argv, env, init=init)
        except BaseException as error:
            say(error)
            os._exit(1)
    os.close(writer)
    os.waitpid(middle, 0)
    with os.fdopen(reader, "rb") as f:
        return f.read().decode()


def test_a_program_runs_under_the_plan(sandbox: SandboxManager, tmp_path: Path) -> None:
    ticket = prepare(sandbox, tmp_path / "work", env={"A": "1"})
    script = (
        'echo "$A $B ${JPY_PARENT_PID-none} $HOME"; ls /home; (exec 3<>/dev/tcp/127.0.0.1/1) 2>/dev/null || echo alone'
    )
    text = start(ticket.plan, ["bash", "-c", script], {"B": "2", "JPY_PARENT_PID": "1"})
    assert text.split("\n") == ["1 2 none /home/user", "user", "alone", "exit 0", ""]
    eventually(lambda: sandbox.release(ticket))


def test_a_program_without_namespaces_is_concealed_until_it_runs(sandbox: SandboxManager, tmp_path: Path) -> None:
    """Other sessions of the same user see it then; before it execs it is a copy of the kernel host."""
    lost = Layer(name="mount namespace", ok=False, why="left out for the test")
    found = msgspec.structs.replace(sandbox.probe, layers=sandbox.probe.layers | {lost.name: lost})
    with contextlib.closing(SandboxManager(policy="best-effort", runtime_dir=str(tmp_path), found=found)) as lesser:
        ticket = prepare(lesser, tmp_path / "work")
        assert ticket.plan["namespaces"] == []
        script = "cat /proc/self/oom_score_adj; test -r /proc/self/environ && ls /proc/self/fd >/dev/null && echo own"
        assert start(ticket.plan, ["sh", "-c", script], {}).split("\n") == ["500", "own", "exit 0", ""]
        eventually(lambda: lesser.release(ticket))


def test_a_program_that_is_not_there(sandbox: SandboxManager, tmp_path: Path) -> None:
    ticket = prepare(sandbox, tmp_path / "work")
    assert "exit 127" in start(ticket.plan, ["no-such-program"], {})
    eventually(lambda: sandbox.release(ticket))


def test_a_shared_directory_carries_sockets_out(sandbox: SandboxManager, tmp_path: Path) -> None:
    """The way of a cold kernel's ipc sockets: made inside, reached from outside by the same path."""
    share = tmp_path / "run" / "share"
    share.mkdir()
    ticket = prepare(sandbox, tmp_path / "work", share=[str(share)])
    path = str(share / "s")

    def kernel() -> None:
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(path)
            s.listen()
            say("listening")
            peer, _ = s.accept()
            peer.sendall(b"hello")
            peer.close()

    reader, hold = spawn(ticket.plan, kernel, stay=True)
    with os.fdopen(reader, "rb", buffering=0) as f:
        assert f.read(10) == b"listening\n"
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(path)
            assert s.recv(10) == b"hello"
    os.close(hold)
    eventually(lambda: sandbox.release(ticket))


# --- the ticket ---------------------------------------------------------------------------


def test_a_failed_preparation_gives_everything_back(sandbox: SandboxManager, tmp_path: Path) -> None:
    from kernelsvc.errors import Internal

    with pytest.raises(Internal, match="prepared"):
        sandbox.prepare("k", workdir=str(tmp_path / "absent"), limits=Limits(), python=sys.executable)
    assert sandbox.sweep([]) == []


def test_a_crashed_hosts_groups_are_swept_but_not_the_living(sandbox: SandboxManager, tmp_path: Path) -> None:
    alive, dead = (prepare(sandbox, tmp_path / name, name) for name in ("alive", "dead"))
    if alive.group is None:
        pytest.skip("no cgroup here")
    assert sandbox.sweep(["alive"]) == ["dead"]
    assert sandbox.sweep(["alive"]) == []
    assert sandbox.release(alive)
    assert sandbox.release(dead), "releasing what was swept is no error"
