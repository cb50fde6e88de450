"""A server that may die and comes back behind one address, a client that saw everything, and a checker.

Each numbered cell notes in a file that it ran and prints numbers from 0 on. So
there are four accounts of it: the kernel's own (the file), the journal's, the
client's and the notebook's. ``check`` compares them: no number missing, none
twice, none out of order, no cell run twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import struct
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import leaks
import nbformat
import psutil
from faulty_proxy import FaultyProxy
from served import Served
from waiting import wait_until

from kernelsvc import AsyncClient
from kernelsvc.model import events as ev
from kernelsvc.store.verify import verify_journal


class Arena:
    """``async with``: a running server, its processes by name, and an end that leaves nothing.

    Attributes:
        served: the server that runs, or ran.
        url: what clients are given; stays the same when the server comes back on another port.
        temporary: where its processes put temporary files.
        proxy: the link between; cut it, or make it silent.
    """

    def __init__(self, root: Path, *args: str, env: dict[str, str] | None = None) -> None:
        self.temporary = root / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.served = Served(root, *args, env={"TMPDIR": str(self.temporary), **(env or {})})
        self.proxy = FaultyProxy(0)

    async def __aenter__(self) -> Arena:
        await asyncio.to_thread(self.served.start)
        self._find_port()
        await self.proxy.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            await self.stop()
        finally:
            await self.proxy.__aexit__(*exc)
            strays = self.processes()
            leaks.end(strays)
        if exc == (None, None, None):
            assert not strays, f"left behind: {[leaks.describe(one) for one in strays]}"

    def _find_port(self) -> None:
        self.proxy.target = urlsplit(self.served.url).port

    @property
    def url(self) -> str:
        """The proxy's."""
        return self.proxy.url

    def client(self, **more: float) -> AsyncClient:
        """A client of this server, patient enough for a restart on a busy machine."""
        return AsyncClient(self.url, self.served.token, **{"retry_seconds": 60.0, "connect_seconds": 30.0, **more})

    # -- processes ------------------------------------------------------------------

    def kill(self) -> None:
        """``kill -9`` of the server."""
        self.served.kill()

    async def start(self) -> None:
        """The next server, on another port."""
        await asyncio.to_thread(self.served.start)
        self._find_port()

    async def restart(self) -> None:
        """``kill -9`` and start."""
        self.kill()
        await self.start()

    def power_off(self) -> None:
        """The machine dies: every process of it at once."""
        self.kill()
        if self.host_pid():
            self.kill_host()
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    async def stop(self) -> None:
        """A clean stop; a server that is dead is started for it, so that it ends what the dead one left."""
        process = self.served.process
        if process is None or process.poll() is not None:
            await self.start()
        await asyncio.to_thread(self.served.stop)
        try:
            await wait_until(lambda: not self.processes(), deadline=10, what="the end of every process")
        except AssertionError:
            told = [leaks.describe(one) for one in self.processes()]
            raise AssertionError(f"left behind: {told}\n{self.served.output()}") from None

    def host_pid(self) -> int:
        """The kernel host, as Linux vouches for it (SO_PEERCRED); 0 if there is none."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            try:
                sock.connect(str(self.served.runtime_dir / "host.sock"))
            except OSError:
                return 0
            pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return int(pid)

    def template_pid(self) -> int:
        """The template: the host's child that runs our guest; 0 if there is none."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.host_pid()).children():
                if any("kernelsvc.guest.forking.forkserver" in part for part in child.cmdline()):
                    return int(child.pid)
        return 0

    def kill_host(self) -> int:
        """``kill -9`` of the kernel host; returns its pid."""
        pid = self.host_pid()
        os.kill(pid, signal.SIGKILL)
        return pid

    def processes(self) -> list[psutil.Process]:
        """Templates, inits, kernels and copies of this server: forks keep the command line of their template."""
        mark = str(self.served.runtime_dir).encode() + b"/"
        return [p for p in psutil.process_iter() if mark in _cmdline(p.pid) and p.status() != psutil.STATUS_ZOMBIE]

    # -- what it holds ------------------------------------------------------------------

    def runtime_files(self) -> set[str]:
        """Names in the runtime directory that belong to kernels."""
        return {p.name for p in self.served.runtime_dir.iterdir() if p.name.startswith("k")}

    def session_path(self, session: str) -> Path:
        """The session's directory."""
        return self.served.data_dir / "sessions" / session

    def mounts(self) -> list[str]:
        """Mounts that this machine sees below the server's directories."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line for line in lines if str(self.served.root) in line]

    def cgroups(self) -> set[str]:
        """Cgroups of this server's sessions, in whichever hierarchy; its kernel host names them after its directory."""
        tag = hashlib.sha256(os.path.realpath(self.served.runtime_dir).encode()).hexdigest()[:12]
        return {where for where, _, _ in os.walk("/sys/fs/cgroup") if f"kernelsvc.{tag}/k-" in where}


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def descriptors(pid: int) -> int:
    """How many a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident(pid: int) -> int:
    """Bytes of memory that are the process's alone."""
    return int(psutil.Process(pid).memory_full_info().uss)


# -- cells ---------------------------------------------------------------------------


def counting(cell: str, count: int, pause: float = 0.0) -> str:
    """A cell that notes that it ran and prints 0 to ``count - 1``."""
    note = f"with open('ran', 'a') as ran:\n    ran.write({cell + chr(10)!r})\n"
    wait = f"    time.sleep({pause})\n" if pause else ""
    return f"import time\n{note}for n in range({count}):\n    print(n)\n{wait}"


class Witness:
    """A client that follows one session from its first event to its end, whatever happens to the link.

    Attributes:
        seen: every event, in the order in which it came.
    """

    def __init__(self, session) -> None:
        self.session = session
        self.seen: list[ev.Event] = []
        self._task = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        async with self.session.events(0) as events:
            async for event in events:
                self.seen.append(event)

    async def saw(self, kind: type[ev.Event], cell: str | None = None, *, deadline: float = 30.0) -> ev.Event:
        """Wait until it has seen such an event."""

        def found() -> ev.Event | None:
            if self._task.done() and not self._task.cancelled():
                self._task.result()
            return next((e for e in self.seen if isinstance(e, kind) and (cell is None or e.cell == cell)), None)

        return await wait_until(found, deadline=deadline, what=f"{kind.__name__} of {cell}")

    async def ended(self) -> None:
        """Wait for the session's end."""
        async with asyncio.timeout(30):
            await self._task

    def stop(self) -> None:
        """Look no more."""
        self._task.cancel()


# -- the checker ------------------------------------------------------------------------


def journal_of(path: Path) -> list[ev.Event]:
    """A session directory's journal."""
    return [ev.decode(line) for line in (path / "journal.jsonl").read_bytes().splitlines()]


def numbers(events: list[ev.Event], cell: str) -> list[int]:
    """What a cell printed, as numbers."""
    text = "".join(e.text for e in events if isinstance(e, ev.Stream) and e.cell == cell and e.name == "stdout")
    return [int(line) for line in text.split()]


def check(path: Path, cells: dict[str, int], witnesses: list[Witness] = (), *, broken: set[str] = frozenset()) -> None:
    """Compare the accounts of one session.

    Args:
        path: its directory.
        cells: how far each numbered cell counted.
        witnesses: clients that followed it.
        broken: cells that died on the way: what they printed must be a beginning.
    """
    events = journal_of(path)
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert verify_journal(path / "journal.jsonl").fault is None
    ended = Counter(e.cell for e in events if isinstance(e, ev.CellFinished))
    queued = Counter(e.cell for e in events if isinstance(e, ev.CellQueued))
    assert set(queued) == set(ended), "each accepted cell ends"
    assert set(ended.values()) <= {1}, "each cell ends once"
    assert set(queued.values()) <= {1}
    for cell, count in cells.items():
        told = numbers(events, cell)
        wanted = list(range(count))
        assert told == (wanted[: len(told)] if cell in broken else wanted), cell
    ran = Counter((path / "files" / "ran").read_text().split()) if (path / "files" / "ran").exists() else Counter()
    assert {cell: n for cell, n in ran.items() if n != 1} == {}, "no cell runs twice"
    assert set(ran) >= set(cells) - broken, "each cell that ended well ran"
    for witness in witnesses:
        assert witness.seen == events[: len(witness.seen)], "a client saw the log, no more, in order"
    check_notebook(path, events, cells)


def check_notebook(path: Path, events: list[ev.Event], cells: dict[str, int]) -> None:
    """The file beside the journal tells the same of each numbered cell."""
    if not (path / "notebook.ipynb").exists():
        return
    notebook = nbformat.read(path / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    texts = {}
    for cell in notebook.cells:
        outputs = [o for o in cell.get("outputs", []) if o.get("output_type") == "stream" and o.get("name") == "stdout"]
        name = cell.metadata.get("kernelsvc", {}).get("cell") or cell.id
        texts[name] = "".join(o["text"] for o in outputs).split()
    for cell in set(cells) & set(texts):
        assert [int(n) for n in texts[cell]] == numbers(events, cell), f"the notebook's {cell}"
