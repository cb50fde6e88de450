"""Every cap, made to strike as a user would: the cause with its figure, an event, and a session that goes on.

Through the client and a real server. Where a cgroup holds a cap here, Linux strikes;
elsewhere the watchdog does, and says the same.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from served import Served
from waiting import wait_for

from attack.unprivileged import UID, as_ordinary_user
from kernelsvc import Client
from kernelsvc.errors import NotSupported
from kernelsvc.model.limits import MiB

pytestmark = pytest.mark.timeout(120)

LIMITS: dict[str, Any] = {
    "memory_bytes": 512 * MiB,
    "processes": 64,
    "open_files": 256,
    "disk_bytes": 200 * MiB,
    "cell_seconds": 60,
}
FLOOD = 4 * MiB
SETTINGS = {"KERNELSVC_MAX_CELL_OUTPUT_BYTES": str(FLOOD), "KERNELSVC_WATCH_SECONDS": "0.3"}


@dataclass(frozen=True)
class Strike:
    """A cell that runs into a cap.

    Attributes:
        reasons: how it may end; which, can be a matter of who strikes first.
        says: what the cell's end says.
        limit: of the ``limit_reached`` event.
        keeps: whether what the cell itself assigned before is still there.
    """

    name: str
    code: str
    limit: str
    reasons: tuple[str, ...]
    says: str
    limits: dict[str, Any] = field(default_factory=dict)
    keeps: bool = False


_HOG = "m = mmap.mmap(-1, 1 << 30)\nfor i in range(0, 1 << 30, 4096): m[i] = 1"
GUEST_LIMITS = [
    Strike(
        "an allocation", "kept = 42\nbytearray(1 << 30)", "memory_bytes", ("memory",), "512 MiB reached", keeps=True
    ),
    Strike("an array", "import numpy\nnumpy.ones(1 << 28)", "memory_bytes", ("memory",), "memory: 512 MiB reached"),
    Strike(
        "shared memory",
        f"import mmap, time\n{_HOG}\ntime.sleep(10)",  # a watchdog alone needs a moment to look
        "memory_bytes",
        ("memory",),
        "memory: 512 MiB reached",
    ),
    Strike(
        "a fork bomb",
        "kept = 42\nimport os, time\nwhile True:\n    if os.fork() == 0:\n        time.sleep(60)\n        os._exit(0)",
        "processes",
        ("error",),
        "processes: 64 reached",
        keeps=True,
    ),
    Strike(
        "too many threads",
        "import threading\nwait = threading.Event().wait\n"
        "for _ in range(500): threading.Thread(target=wait, args=(20,), daemon=True).start()",
        "processes",
        ("error",),
        "processes: 64 reached",
    ),
    Strike(
        "too many files",
        "kept = 42\nfiles = [open('/dev/null') for _ in range(10_000)]",
        "open_files",
        ("error",),
        "open files: 256 reached",
        keeps=True,
    ),
    Strike(
        "one large file",
        "with open('big', 'wb') as f:\n    while True: f.write(bytes(1 << 20))",
        "disk_bytes",
        ("error",),
        "disk: 200 MiB",
    ),
    Strike(
        "many files",
        "import time\nfor n in range(1_000):\n    open(f'f{n}', 'wb').write(bytes(8 << 20))\n    time.sleep(0.1)",
        "disk_bytes",
        ("interrupted", "error"),
        "disk: 200 MiB",
    ),
    Strike(
        "scratch space",
        "with open('/tmp/big', 'wb') as f:\n    while True: f.write(bytes(1 << 20))",
        "disk_bytes",
        ("error",),
        "scratch space reached",
    ),
    Strike("a busy loop", "while True: pass", "cpu_seconds", ("timeout",), "CPU: 1 s reached", {"cpu_seconds": 1}),
    Strike(
        "a busy loop that ignores the signal",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "cpu_seconds",
        ("timeout",),
        "CPU: 1 s reached",
        {"cpu_seconds": 1},
    ),
    Strike(
        "busy children",
        "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        while True: pass\ntime.sleep(60)",
        "cpu_seconds",
        ("timeout",),
        "CPU: 1 s reached",
        {"cpu_seconds": 1},
    ),
    Strike(
        "a flood of output",
        "while True: print('x' * 1000)",
        "max_cell_output_bytes",
        ("interrupted",),
        f"{FLOOD} bytes of output reached",
    ),
    Strike(
        "a cell that takes too long",
        "kept = 42\nimport time\ntime.sleep(60)",
        "cell_seconds",
        ("timeout",),
        "cell_seconds: 1 s reached",
        {"cell_seconds": 1},
        keeps=True,
    ),
    Strike(
        "C code that is stuck",
        "import ctypes, signal\nctypes.PyDLL(None).signal(2, 1)\nctypes.PyDLL(None).sleep(60)",
        "cell_seconds",
        ("timeout",),
        "cell_seconds: 1 s reached",
        {"cell_seconds": 1},
    ),
]


_WRITE = "    f = open({name}, 'wb')\n    f.write(bytes(1 << 20))\n    f.flush()\n    time.sleep(0.05)\n    {then}\n"


def _hidden(name: str, before: str, file: str, then: str) -> Strike:
    loop = "import os, time\nheld = []\n" + before + "\nfor n in range(400):\n" + _WRITE.format(name=file, then=then)
    says = "the use can't be compared" if name == "directories nested too deep" else "disk: 20 MiB reached"
    return Strike(name, loop, "disk_bytes", ("interrupted",), says, {"disk_bytes": 20 * MiB})


GUEST_LIMITS += [
    Strike(
        "empty files",
        "import os\nos.mkdir('e')\nfor n in range(60_000): os.close(os.open(f'e/{n}', os.O_CREAT))\n"
        "import time; time.sleep(10)",
        "files",
        ("interrupted",),
        "files: 20000 reached",
        {"files": 20_000},
    ),
    _hidden("deleted files that are open", "", "'f'", "os.unlink('f'); held.append(f)"),
    _hidden(
        "deleted files that are mapped",
        "import mmap",
        "'f'",
        "g = os.open('f', os.O_RDONLY); held.append(mmap.mmap(g, 0, prot=1)); os.close(g); os.unlink('f')",
    ),
    _hidden(
        "paths longer than PATH_MAX",
        "for _ in range(20): os.mkdir('d' * 250); os.chdir('d' * 250)",
        "str(n)",
        "f.close()",
    ),
    _hidden("directories nested too deep", "for _ in range(300): os.mkdir('d'); os.chdir('d')", "str(n)", "f.close()"),
    _hidden(
        "a directory without permissions",
        "os.mkdir('m'); os.chdir('m'); here = os.open('.', os.O_RDONLY)",
        "str(n)",
        "f.close(); os.chmod('.', 0); time.sleep(0.1); os.fchmod(here, 0o700)",
    ),
]


class OrdinaryServed(Served):
    """Of a user to whom no cgroup was delegated: rlimits and the watchdog are all there is."""

    def command(self) -> list[str]:
        return as_ordinary_user(super().command())


#: A thorough run has root's sessions, too: on most machines the same mechanisms hold them.
AS_WE_ARE = pytest.param("as we are", marks=[pytest.mark.thorough] if os.geteuid() == 0 else [])


@pytest.fixture(scope="module", params=[AS_WE_ARE, "ordinary user"])
def server(request: pytest.FixtureRequest) -> Iterator[Served]:
    ordinary = request.param == "ordinary user"
    if ordinary and os.geteuid() != 0:
        pytest.skip("not root: then every other test is this one")
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp", ignore_cleanup_errors=True) as root:
        made = OrdinaryServed if ordinary else Served
        if ordinary:
            os.chown(root, UID, UID)
        served = made(Path(root), env=SETTINGS | {"HOME": root})
        try:
            yield served.start()
        finally:
            served.stop()


def events(server: Served, session: str, kind: str) -> list[dict[str, Any]]:
    found, after = [], 0
    while True:
        page = server.call("GET", f"/v1/sessions/{session}/events?after={after}&limit=1000")["events"]
        if not page:
            return found
        found += [event for event in page if event["type"] == kind]
        after = page[-1]["seq"]


@pytest.mark.parametrize("strike", GUEST_LIMITS, ids=lambda strike: strike.name)
def test_a_limit_ends_the_cell_with_its_cause_and_the_session_continues(server: Served, strike: Strike) -> None:
    with Client(server.url, token=server.token) as client:
        session = client.create_session(limits=LIMITS | strike.limits)
        assert session.run("kept = 41").reason == "ok"
        wait_for(lambda: events(server, session.id, "checkpoint_made"), what="a checkpoint")
        cell = session.run(strike.code)
        said = server.call("GET", f"/v1/sessions/{session.id}/cells/{cell.id}")["message"]
        assert cell.reason in strike.reasons, (cell.reason, said, cell.text[-500:])
        assert strike.says in said
        assert strike.says in cell.text
        reached = [one for one in events(server, session.id, "limit_reached") if one.get("cell") == cell.id]
        assert [one["limit"] for one in reached] == [strike.limit]
        assert reached[0]["bound"]
        after = session.run("print(kept)")
        assert (after.reason, after.text) == ("ok", "42\n" if strike.keeps else "41\n")
        session.close()


UNNOTICED = {
    "memory_bytes": (
        f"import os, time\nif os.fork() == 0:\n    import mmap\n    {_HOG.replace(chr(10), chr(10) + '    ')}\n"
        "print(os.wait()[1])\ntime.sleep(4)",
        "memory: 512 MiB reached; a process of the session was killed by the OOM killer",
    ),
    "processes": (
        "import subprocess, time\n"
        "subprocess.run(['sh', '-c', 'for i in $(seq 200); do sleep 3 & done'], stderr=subprocess.DEVNULL)\n"
        "time.sleep(4)",
        "processes: 64 reached; another process or thread was refused",
    ),
}


@pytest.mark.parametrize("limit", UNNOTICED)
def test_a_limit_that_the_cell_does_not_notice_is_reported(server: Served, limit: str) -> None:
    code, says = UNNOTICED[limit]
    with Client(server.url, token=server.token) as client:
        session = client.create_session(limits=LIMITS)
        if server.call("GET", f"/v1/sessions/{session.id}")["sandbox"]["limits"]["memory_bytes"] != "hard":
            pytest.skip("no cgroup here that counts")
        cell = session.run(code)
        assert cell.reason == "ok", cell.text
        reached = events(server, session.id, "limit_reached")
        assert [(one["limit"], one["message"], one.get("cell")) for one in reached] == [(limit, says, cell.id)]
        assert server.call("GET", f"/v1/sessions/{session.id}/cells/{cell.id}")["message"] == says
        assert session.run("print('on')").text == "on\n"
        session.close()


OUT_OF_SIGHT = {
    "a process that can't be read": (
        "import os, shutil, subprocess, sys\n"
        "shutil.copy(os.path.realpath(sys.executable), 'hidden'); os.chmod('hidden', 0o111)\n"
        "code = 'import time; b = bytearray(300 << 20); time.sleep(20)'\n"
        "home = {**os.environ, 'PYTHONHOME': sys.base_prefix, 'LD_LIBRARY_PATH': sys.base_prefix + '/lib'}\n"
        "made = [subprocess.Popen(['./hidden', '-S', '-c', code], env=home) for _ in range(2)]\n"
        "print([one.wait() for one in made])",
        ("memory: 512 MiB reached", "a process hides its open files"),
    ),
    "buffers of sockets": (
        "import os, socket, time\n"
        "for _ in range(8):\n"
        "    if os.fork() == 0:\n"
        "        made = [socket.socketpair() for _ in range(80)]; time.sleep(20); os._exit(0)\n"
        "time.sleep(20)",
        ("memory: 512 MiB reached",),
    ),
    "page tables": (
        "import mmap, time\n"
        "m = mmap.mmap(-1, 600 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)\n"
        "m.madvise(mmap.MADV_NOHUGEPAGE)\n"
        "for at in range(0, 600 << 30, 2 << 20): m[at]\n"
        "time.sleep(20)",
        ("memory: 512 MiB reached",),
    ),
    "epoll watches": (
        "import os, select, time\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        files, made = [os.eventfd(0) for _ in range(100)], [select.epoll() for _ in range(100)]\n"
        "        for one in made:\n"
        "            for file in files: one.register(file)\n"
        "        time.sleep(20); os._exit(0)\n"
        "time.sleep(20)",
        ("memory: 512 MiB reached",),
    ),
}


@pytest.mark.parametrize("place", OUT_OF_SIGHT)
def test_hidden_memory_is_counted(server: Served, place: str) -> None:
    code, says = OUT_OF_SIGHT[place]
    with Client(server.url, token=server.token) as client:
        session = client.create_session(limits=LIMITS)
        if server.call("GET", f"/v1/sessions/{session.id}")["sandbox"]["limits"]["memory_bytes"] == "hard":
            pytest.skip("a cgroup counts it")
        cell = session.run(code)
        assert cell.reason in ("memory", "interrupted"), (cell.reason, cell.text)
        assert any(cause in cell.text for cause in says)
        session.close()


#: The kernel refuses to save its variables, and keeps the file that the server made for them.
REFUSES = """
import os, time
import kernelsvc.guest.forking.state_pickle as state_pickle
held = []
def answer(shell, body, fd):
    held.append(fd)
    return {"ok": False, "refused": ["no"]}
state_pickle.answer = answer
"""
FILLS = """
for n in range(15 * len(held)):
    os.pwrite(held[n % len(held)], bytes(1 << 20), n // len(held) << 20)
    time.sleep(0.05)
time.sleep(10)
"""


def test_files_that_a_kernel_keeps_from_refused_saves_are_counted(server: Served) -> None:
    """One file for hibernation, one for a branch with a sandbox of its own. Each may hold 20 MiB."""
    with Client(server.url, token=server.token) as client:
        session = client.create_session(limits=LIMITS | {"disk_bytes": 20 * MiB})
        session.run(REFUSES)
        with pytest.raises(NotSupported):
            session.hibernate()
        with pytest.raises(NotSupported):
            session.branch(isolate=True)
        assert session.run("print(len(held))").text == "2\n"
        cell = session.run(FILLS)
        assert (cell.reason, "disk: 20 MiB reached" in cell.text) == ("interrupted", True), cell.text
        session.close()


_HOGS = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            held = b"x" * (300 << 20)
            time.sleep(60)
        os._exit(0)
time.sleep(60)
"""


def test_processes_that_left_their_kernel_end_with_it_at_the_limit(server: Served) -> None:
    with Client(server.url, token=server.token) as client:
        session = client.create_session(limits=LIMITS)
        if server.call("GET", f"/v1/sessions/{session.id}")["sandbox"]["limits"]["memory_bytes"] == "hard":
            pytest.skip("a cgroup counts it")
        session.run("kept = 7")
        # Without one, the container ends with the kernel.
        wait_for(lambda: events(server, session.id, "checkpoint_made"), what="a checkpoint")
        assert session.run(_HOGS).reason == "memory"
        count = "import os; print(sum(name.isdigit() for name in os.listdir('/proc')))"
        # The init, the kernel, its checkpoints, and none that was started here.
        wait_for(lambda: int(session.run(count).text) <= 5, deadline=20, what="the daemons' end")
        assert session.run("print(kept)").text == "7\n"
        session.close()


def test_programs_of_clients_count(server: Served) -> None:
    line = "for n in 1 2 3; do python -c 'import time; held = bytes(1) * (300 << 20); time.sleep(30)' & done; wait"
    with Client(server.url, token=server.token) as client:
        session = client.create_session(limits=LIMITS)
        if server.call("GET", f"/v1/sessions/{session.id}")["sandbox"]["limits"]["memory_bytes"] == "hard":
            pytest.skip("a cgroup counts it")
        session.run("1")
        assert session.command(line).exit_code == -9
        (reached,) = events(server, session.id, "limit_reached")
        assert reached["message"].startswith("memory: 512 MiB reached")
        session.close()


def test_cells_that_add_no_files_run_while_files_are_over_the_limit(server: Served, tmp_path: Path) -> None:
    with Client(server.url, token=server.token) as client:
        session = client.create_session(limits=LIMITS)
        session.run("for n in range(40): open(f'f{n}', 'wb').write(bytes(8 << 20))")
        wait_for(lambda: events(server, session.id, "limit_reached"), what="the watchdog's word")
        struck = len(events(server, session.id, "limit_reached"))
        slow = session.run("import time\nfor n in range(25): time.sleep(0.1)\nprint('slept')")
        assert (slow.reason, slow.text) == ("ok", "slept\n")
        clean = session.run("import os\nfor name in os.listdir(): os.remove(name)\nprint(len(os.listdir()))")
        assert (clean.reason, clean.text) == ("ok", "0\n")
        assert len(events(server, session.id, "limit_reached")) == struck
        session.close()


def test_files_of_a_branch_are_not_counted_for_its_parent(server: Served) -> None:
    def used(session: str) -> int:
        return server.call("GET", f"/v1/sessions/{session}")["usage"]["disk_bytes"] or 0

    with Client(server.url, token=server.token) as client:
        session = client.create_session(limits=LIMITS)
        session.run("open('f', 'wb').write(bytes(8 << 20))")
        (branch,) = session.branch()
        branch.run("open('g', 'wb').write(bytes(8 << 20))")
        wait_for(lambda: used(branch.id) >= 16 * MiB, what="the branch's files")
        assert used(session.id) < 12 * MiB
        branch.close()
        session.run("open('h', 'wb').write(bytes(1 << 20))")
        wait_for(lambda: used(session.id) >= 9 * MiB, what="the parent's files")
        assert used(session.id) < 12 * MiB
        session.close()
