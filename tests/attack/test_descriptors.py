"""A session against its server, through the socket and the pipes that its kernel shares with it.

Each attack runs in one session of a real server. Meanwhile the cells of another session
must be answered. The server runs as whoever runs the tests, as an ordinary user, and as
an ordinary user with the kernel host as root. Every attack ends by itself.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Served
from waiting import wait_for

from attack.test_caps import events
from attack.unprivileged import UID, as_ordinary_user
from kernelsvc import Client
from kernelsvc.client import Session
from kernelsvc.model.limits import MiB

pytestmark = pytest.mark.timeout(180)

#: Seconds that an attack holds on, and seconds in which the other session's cell must be answered meanwhile.
HOLD, ANSWER = 8, 6
#: What a server may have more of after an attack, for its own reasons.
SOME_DESCRIPTORS, SOME_BYTES = 20, 32 * MiB


class Guarded(Served):
    """A server that an attack on memory ends before it harms the machine."""

    def command(self) -> list[str]:
        return ["choom", "-n", "900", "--", "prlimit", f"--as={8 << 30}", "--", *self.unguarded()]

    def unguarded(self) -> list[str]:
        """The server's own command."""
        return super().command()


class Ordinary(Guarded):
    """A server of an ordinary user."""

    def unguarded(self) -> list[str]:
        return as_ordinary_user(super().unguarded())


class Split(Ordinary):
    """A server of an ordinary user, and a kernel host that is root."""

    def __init__(self, root: Path, **options: Any) -> None:
        super().__init__(root, "--start-host", "false", **options)
        self.host: subprocess.Popen[bytes] | None = None

    def start(self) -> Served:
        if self.host is None:
            for directory in (self.runtime_dir, self.data_dir):
                directory.mkdir(mode=0o700)
                os.chown(directory, UID, UID)
            where = ["--data-dir", str(self.data_dir), "--runtime-dir", str(self.runtime_dir)]
            command = [*Served.command(self)[:3], "kernel-host", *where]
            with (self.root / "host.log").open("ab") as log:
                self.host = subprocess.Popen(command, stdout=log, stderr=log, env=self.env, start_new_session=True)
            wait_for(lambda: (self.runtime_dir / "host.sock").exists(), deadline=60, what="the kernel host")
        return super().start()

    def stop(self) -> int:
        try:
            return super().stop()
        finally:
            if self.host is not None:
                self.host.terminate()
                self.host.wait(30)


#: As root, every run makes all attacks on the server of the ordinary user. One with a root host reads the same wire
#: with the same rights. What its host does for it differs, so every run restarts it too (``SPLIT_TOO``).
_REPEATED = [pytest.mark.thorough] if os.geteuid() == 0 else []
SERVERS = [pytest.param("as we are", marks=_REPEATED), "ordinary user", pytest.param("split", marks=_REPEATED)]
SPLIT_TOO = pytest.mark.parametrize("server", [SERVERS[0], "ordinary user", "split"], indirect=True)


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Served]:
    if request.param != "as we are" and os.geteuid() != 0:
        pytest.skip("only root can become another user, or start a kernel host as root")
    made = {"as we are": Guarded, "ordinary user": Ordinary, "split": Split}[request.param]
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp", ignore_cleanup_errors=True) as root:
        if made is not Guarded:
            os.chown(root, UID, UID)
        served = made(Path(root), env={"HOME": root})
        try:
            yield served.start()
        finally:
            served.stop()


def descriptors(server: Served) -> int:
    return len(os.listdir(f"/proc/{server.pid}/fd"))


def memory(server: Served) -> int:
    with open(f"/proc/{server.pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))


class Bystander:
    """Another session, whose cells are run one after the other until the attack is over."""

    def __init__(self, server: Served) -> None:
        self._server = server
        self._over = threading.Event()
        self._failed: list[str] = []
        self.answered = 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Bystander:
        self._thread.start()
        wait_for(lambda: self.answered or self._failed, deadline=60, what="the first answer")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)
        assert not self._failed, self._failed

    def _run(self) -> None:
        try:
            session = self._server.call("POST", "/v1/sessions", {})["id"]
            while not self._over.is_set():
                cell = self._server.call(
                    "POST", f"/v1/sessions/{session}/cells", {"code": "print(6*7)"}, timeout=ANSWER
                )
                assert cell["text"] == "42\n", cell
                self.answered += 1
                self._over.wait(0.05)
            self._server.call("DELETE", f"/v1/sessions/{session}")
        except Exception as error:
            self._failed.append(repr(error))

    def wait(self, over: Callable[[], Any], *, what: str) -> Any:
        """Until ``over`` is true; the session must be answered all the while."""
        return wait_for(lambda: self._failed or over(), deadline=2 * HOLD + 30, what=what)


@contextlib.contextmanager
def attacking(server: Served, code: str) -> Iterator[tuple[Session, Bystander]]:
    """A session in which ``code`` runs in the background of its kernel, and one beside it."""
    with Client(server.url, token=server.token) as client, Bystander(server) as bystander:
        session = client.create_session()
        run(session, code)
        yield session, bystander
        with contextlib.suppress(Exception):
            session.close()


def run(session: Session, code: str) -> None:
    """Run an attack: it finds the wire in ``w``."""
    before = "import fcntl, os, socket, struct, termios, threading, time\nw = get_ipython().kernel.session.wire\n"
    cell = session.run(before + textwrap.dedent(code))
    assert cell.error is None, cell.text[:1000]


def deaths(server: Served, session: Session) -> list[dict[str, Any]]:
    return [one for one in events(server, session.id, "kernel_died") if one.get("cause") == "protocol"]


OVER = "import os; print('over:', os.path.exists('over'))"
HANG_UP = "threading.Thread(target=lambda: (time.sleep(.2), w._disconnect()), daemon=True).start()"


def test_a_read_of_the_server_can_not_be_made_to_block(server: Served) -> None:
    """The description's O_NONBLOCK is cleared, and a byte is taken back between the server's poll and its read."""
    code = f"""
    r, e = w._stdio.fds
    if os.fork() == 0:
        fcntl.fcntl(r, fcntl.F_SETFL, fcntl.fcntl(r, fcntl.F_GETFL) & ~os.O_NONBLOCK)
        b, d, end = bytearray(1), 1e-4, time.time() + {HOLD}
        while time.time() < end:
            t = time.perf_counter(); os.write(1, b"x")
            while time.perf_counter() - t < d: pass
            try: os.preadv(r, [b], -1, 8); d *= 1.05        # RWF_NOWAIT
            except OSError: d *= .95; time.sleep(.002); continue
            os.write(2, b"."); time.sleep(.05)
            if any(fcntl.ioctl(e, termios.FIONREAD, bytes(4))):
                time.sleep({HOLD}); os.write(1, b"x"); break
        open("over", "w").close()
        os._exit(0)
    """
    with attacking(server, code) as (session, bystander):
        bystander.wait(lambda: "over: True" in session.run(OVER).text, what="the attack's end")


def test_descriptors_can_not_be_discarded_at_the_cost_of_the_server(server: Served) -> None:
    """Closing the last reference of a TCP socket with SO_LINGER waits, also in a process that was only sent it."""
    code = f"""
    def lingering():
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock = socket.create_connection(listener.getsockname())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, {HOLD}))
        sock.setblocking(False)
        try:
            while True: sock.send(bytes(65536))
        except BlockingIOError: pass
        return listener, sock
    try:
        listener, sock = lingering()
        for _ in range(3): print("x" * 200_000)  # keeps the server busy until the socket is closed here
        frame = w.outbox.put(6, b'{{"request":0}}')  # a frame like any other, with a descriptor
        socket.send_fds(w._conn.sock, [frame], [sock.fileno()])
        sock.close()
    except OSError as error:
        open("over", "w").write(str(error))
    """
    with attacking(server, code) as (session, bystander):
        answered = bystander.answered
        bystander.wait(lambda: bystander.answered > answered + 20, what="answers")
        bystander.wait(
            lambda: "not permitted" in session.run("print(open('over').read())").text, what="the refusal in the session"
        )


def test_a_file_in_place_of_a_pipe_ends_its_kernel(server: Served) -> None:
    """48 MiB that take no disk: the server believed their size, and read them in one go."""
    code = f"""
    f = os.open("sparse", os.O_RDWR | os.O_CREAT); os.ftruncate(f, {48 * MiB})
    w._stdio.fds = [f, f]
    {HANG_UP}
    """
    before = memory(server)
    with attacking(server, code) as (session, bystander):
        (death,) = bystander.wait(lambda: deaths(server, session), what="the kernel's end")
        assert "not the pipe that the server made" in death["message"]
        assert session.run("print('restored')").text == "restored\n"
    assert memory(server) < before + SOME_BYTES


def test_a_welcome_without_end_brings_no_descriptors(server: Served) -> None:
    code = f"""
    def evil(self, guest, found):
        k = guest.sock; self._pending.remove(guest); self._unwatch(guest)
        def go():
            k.setblocking(True); k.send(struct.pack("<IBQ", 1000000, 1, 1))
            for _ in range(60):
                try: socket.send_fds(k, [b" "], [0] * 8)
                except OSError: time.sleep(.01)
            time.sleep({HOLD})
        threading.Thread(target=go, daemon=True).start()
    type(w)._welcome = evil
    {HANG_UP}
    """
    before = descriptors(server)
    with attacking(server, code) as (session, bystander):
        bystander.wait(lambda: deaths(server, session), what="the kernel's end")
        assert descriptors(server) < before + SOME_DESCRIPTORS


def test_an_incomplete_welcome_ends_the_kernel(server: Served) -> None:
    code = f"""
    def evil(self, guest, found):
        self._pending.remove(guest); self._unwatch(guest)
        guest.sock.setblocking(True)
        socket.send_fds(guest.sock, [struct.pack("<IBQ", 1000000, 1, 1)], self._stdio.fds)
        globals()["kept"] = guest
    type(w)._welcome = evil
    {HANG_UP}
    """
    with attacking(server, code) as (session, bystander):
        (death,) = bystander.wait(lambda: deaths(server, session), what="the kernel's end")
        assert "WELCOME was incomplete" in death["message"]


def test_a_kernel_that_disconnects_repeatedly_is_ended(server: Served) -> None:
    code = f"""
    original = type(w)._welcome
    def evil(self, guest, found): original(self, guest, found); self._disconnect()
    type(w)._welcome = evil
    {HANG_UP}
    """
    with attacking(server, code) as (session, bystander):
        (death,) = bystander.wait(lambda: deaths(server, session), what="the kernel's end")
        assert "connection ended more than" in death["message"]


def test_an_incomplete_frame_is_freed_with_its_session(server: Served) -> None:
    """Three times 60 MiB; some 64 MiB of large results the server keeps on purpose."""
    code = f"""
    def go():
        time.sleep(.3)
        k = w._conn.sock; w._conn = w._send_now = None; k.setblocking(True)
        k.sendall(struct.pack("<IBQ", {60 * MiB}, 2, w.outbox.last + 1)); part = bytes(1 << 20)
        for _ in range(59): k.sendall(part)
        open("over", "w").close()
        time.sleep({HOLD})
    threading.Thread(target=go, daemon=True).start()
    """
    before = memory(server)
    for _ in range(3):
        with attacking(server, code) as (session, bystander):
            home = f"/v1/sessions/{session.id}/files/"
            bystander.wait(lambda home=home: "over" in str(server.call("GET", home)), what="half a frame in the server")
    wait_for(lambda: memory(server) < before + 64 * MiB + SOME_BYTES, deadline=20, what="its memory")


@SPLIT_TOO
def test_descriptors_in_flight_keep_no_other_session_from_starting(server: Served) -> None:
    """Linux counts them for each user, and an ordinary user's sessions are one (unix(7), ETOOMANYREFS)."""
    code = """
    held = []
    while True:
        held += socket.socketpair()
        try:
            for _ in range(20): socket.send_fds(held[-1], [b"x"], [0] * 250, socket.MSG_DONTWAIT)
        except BlockingIOError: continue
        except OSError as error:
            assert error.errno == 109, error  # ETOOMANYREFS
            break
    """
    with Client(server.url, token=server.token) as client, client.create_session() as attacker:
        run(attacker, code)
        with client.create_session() as other:
            other.run("kept = 7")
            (branch,) = other.branch()
            assert branch.run("print(kept)").text == "7\n"


@SPLIT_TOO
def test_a_restarted_server_ends_a_hostile_kernel(server: Served) -> None:
    """What it hands over is no pipe, and nothing that can be polled."""
    with Client(server.url, token=server.token) as client:
        session = client.create_session()
        run(session, "f = os.open('sparse', os.O_RDWR | os.O_CREAT); w._stdio.fds = [f, f]")
        server.kill()
        server.start()
    with Client(server.url, token=server.token) as client, Bystander(server) as bystander:
        found = bystander.wait(lambda: deaths(server, session), what="the kernel's end")
        assert "not the pipe that the server made" in found[0]["message"]
        assert not any("sparse" in link for link in _links(server))
        again = client.session(session.id)
        assert again.run("print('restored')").text == "restored\n"
        again.close()


def _links(server: Served) -> list[str]:
    found = []
    for name in os.listdir(f"/proc/{server.pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{server.pid}/fd/{name}"))
    return found
