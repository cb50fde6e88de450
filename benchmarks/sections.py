"""The sections of the benchmark. Each measures one subject and adds its samples."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.counts import Counts
from benchmarks.distance import far
from benchmarks.figures import Samples
from benchmarks.processes import MiB, peak, pss, uss
from benchmarks.subjects import Kernelsvc, OurSession, Session, Subject

CHECK = "import sys; print(all(name in sys.modules for name in ('numpy', 'pandas', 'matplotlib.pyplot')))"
HTML = (
    "import numpy, pandas\nfrom IPython.display import HTML, display\n"
    "part = pandas.DataFrame(numpy.random.rand(2000, 8)).to_html()\n"
    "html = HTML((part * (1 + {size} // len(part)))[:{size}])"
)
PNG = (
    "import os\nfrom IPython.display import Image, display\n"
    "png = Image(data=b'\\x89PNG\\r\\n\\x1a\\n' + os.urandom({size} - 8), format='png')"
)


def is_ours(subject: Subject) -> bool:
    """Whether the subject is kernelsvc, which is fast enough for more samples."""
    return isinstance(subject, Kernelsvc)


@contextlib.asynccontextmanager
async def opened(subject: Subject) -> AsyncIterator[Session]:
    """Open a session for a block."""
    session = await subject.open()
    try:
        yield session
    finally:
        await session.close()


@contextlib.asynccontextmanager
async def many(subject: Subject, count: int) -> AsyncIterator[list[Session]]:
    """Open a number of sessions concurrently, and close a few at a time."""
    async with contextlib.AsyncExitStack() as stack:
        opening = [subject.open() for _ in range(count)]
        sessions = await asyncio.gather(*opening)
        stack.push_async_callback(_close, sessions)
        yield list(sessions)


async def _close(sessions: list[Session]) -> None:
    turns = asyncio.Semaphore(8)

    async def close(session: Session) -> None:
        async with turns:
            await session.close()

    await asyncio.gather(*(close(session) for session in sessions))


async def creates(subject: Subject, samples: Samples, counts: Counts) -> None:
    """Measure the creation of sessions, one at a time, and their first cells."""
    for _ in range(counts.creates if is_ours(subject) else counts.slow_creates):
        begun = time.perf_counter()
        async with opened(subject) as session:
            samples.add("create", (time.perf_counter() - begun) * 1e3)
            samples.add("first_cell", (await session.run("1+1")).seconds * 1e3)
            samples.add("next_cell", (await session.run("1+1")).seconds * 1e3)
            # The figure is worth nothing if the imports were put off.
            assert (await session.run(CHECK, keep=True)).output == "True\n"


async def cells(subject: Subject, samples: Samples, counts: Counts) -> None:
    """Measure the cells of one session without pauses, then with pauses like those of a user."""
    async with opened(subject) as session:
        for _ in range(counts.warmup):
            await session.run("1+1")
        before = subject.server.cpu() if subject.server else 0
        for _ in range(counts.cells):
            samples.add("cell", (await session.run("1+1")).seconds * 1e3)
        if subject.server:
            samples.add("cell_cpu", (subject.server.cpu() - before) * 1e3 / counts.cells)
        for _ in range(counts.thoughts):
            await asyncio.sleep(0.2)
            samples.add("thought_cell", (await session.run("1+1")).seconds * 1e3)


async def delays(subject: Subject, samples: Samples, counts: Counts) -> None:
    """Measure the time from ``print`` to the client, by the clock of the machine that both share."""
    async with opened(subject) as session:
        await _delays(session, "delay", samples, counts)


async def _delays(session: Session, name: str, samples: Samples, counts: Counts) -> None:
    ran = await session.run(
        f"import time\nfor _ in range({counts.delays}): print(time.time()); time.sleep(0.02)", keep=True
    )
    for arrived, text in ran.parts:
        samples.add(name, *((arrived - float(line)) * 1e3 for line in text.split()))


async def loaded(subject: Subject, samples: Samples, counts: Counts) -> None:
    """Measure the same while a session for each core computes."""
    seconds = counts.delays * 0.05 + 1
    burn = f"import time\nend = time.time() + {seconds}\nwhile time.time() < end: pass"
    async with many(subject, 1 + (os.cpu_count() or 1)) as (session, *others):
        burning = [asyncio.ensure_future(other.run(burn)) for other in others]
        await asyncio.sleep(0.3)
        await _delays(session, "delay_loaded", samples, counts)
        await asyncio.gather(*burning)


async def prints(subject: Subject, samples: Samples, counts: Counts) -> None:
    """Measure many short lines."""
    async with opened(subject) as session:
        ran = await session.run(f"for i in range({counts.lines}): print(i)")
        samples.add("prints", ran.seconds * 1e3)
        samples.add("lines", counts.lines / ran.seconds)
        samples.add("prints_lost", counts.lines - ran.lines)
        samples.add("prints_end_lost", 0 if ran.ended else 1)


async def burst(subject: Subject, samples: Samples, counts: Counts) -> None:
    """Measure the concurrent creation of many sessions."""
    begun = time.perf_counter()
    async with many(subject, counts.burst):
        samples.add("burst", time.perf_counter() - begun)


async def warm(subject: Subject, samples: Samples, counts: Counts) -> None:
    """Measure the same with a warm pool, in another server."""
    if not isinstance(subject, Kernelsvc):
        return
    with tempfile.TemporaryDirectory(prefix="kw", dir="/tmp") as place:
        pooled = Kernelsvc(sys.executable, Path(place), f"--warm-pool={counts.burst}")
        try:
            await pooled.start()
            for _ in range(counts.creates):
                await _filled(pooled, counts.burst)
                begun = time.perf_counter()
                async with opened(pooled) as session:
                    samples.add("warm_create", (time.perf_counter() - begun) * 1e3)
                    samples.add("warm_first_cell", (await session.run("1+1")).seconds * 1e3)
            await _filled(pooled, counts.burst)
            begun = time.perf_counter()
            async with many(pooled, counts.burst):
                samples.add("warm_burst", time.perf_counter() - begun)
        finally:
            await pooled.stop()


async def _filled(subject: Kernelsvc, count: int) -> None:
    """Wait until a number of kernels listen, then pause."""
    async with asyncio.timeout(120):
        while subject.listening() < count:
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)


async def busy(subject: Subject, samples: Samples, counts: Counts) -> None:
    """Measure sessions that all run cells. Most peers get few sessions, because each takes a second to start."""
    for count in counts.busy:
        if count <= counts.slow_busy or is_ours(subject) or subject.rival:
            await _busy(subject, samples, counts, count)


async def _busy(subject: Subject, samples: Samples, counts: Counts, count: int) -> None:
    async with many(subject, count) as sessions:
        for _ in range(3):  # warm-up: imports, caches, the first faults
            await asyncio.gather(*(session.run("1+1") for session in sessions))
        await asyncio.sleep(counts.busy_seconds / 2)
        begun = time.perf_counter()
        end = begun + counts.busy_seconds
        took: list[float] = []

        async def work(session: Session) -> None:
            while time.perf_counter() < end:
                took.append((await session.run("1+1")).seconds * 1e3)

        await asyncio.gather(*(work(session) for session in sessions))
        samples.add(f"busy_{count}", len(took) / (time.perf_counter() - begun))
        samples.add(f"busy_cell_{count}", *took)


async def big_print(subject: Subject, samples: Samples, counts: Counts) -> None:
    """Measure one large text, and the server's CPU time and memory for it."""
    before = subject.server.cpu() if subject.server else 0
    async with opened(subject) as session, peak(subject.server) as grown:
        ran = await session.run(f"print('x' * {counts.big_bytes})")
    arrived = min(ran.text, counts.big_bytes) / 1e6
    samples.add("big_print", ran.seconds)
    samples.add("big_print_lost", max(0, counts.big_bytes + 1 - ran.text) / 1e6)
    if arrived:
        samples.add("stream", arrived / ran.seconds)
    if subject.server is not None:
        samples.add("big_print_memory", grown[0] / MiB)
        if arrived:
            samples.add("stream_cpu", (subject.server.cpu() - before) * 1e3 / arrived)


async def big_results(subject: Subject, samples: Samples, counts: Counts) -> None:
    """Measure a table and an image of 10 MB."""
    async with opened(subject) as session:
        for name, make in (("html", HTML), ("png", PNG)):
            await session.run(make.replace("{size}", str(counts.result_bytes)))
            for _ in range(counts.results):
                ran = await session.run(f"display({name})")
                if not ran.ended:
                    raise RuntimeError(f"the end of a cell with {name} never came")
                samples.add(name, ran.seconds * 1e3)


async def distance(subject: Subject, samples: Samples, counts: Counts) -> None:
    """Measure single cells, and cells in one request, with a round trip of 50 ms."""
    if subject.server is None:
        return
    async with far(subject.port) as port, subject.from_afar(port) as distant, opened(distant) as session:
        await session.run("1+1")
        for _ in range(counts.far_rounds):
            begun = time.perf_counter()
            for _ in range(20):
                await session.run("1+1")
            samples.add("far_trips", time.perf_counter() - begun)
            if isinstance(session, OurSession):
                begun = time.perf_counter()
                await session.batch(["1+1"] * 20)
                samples.add("far_batch", time.perf_counter() - begun)


async def copies(subject: Subject, samples: Samples, counts: Counts) -> None:
    """Measure checkpoint, branch and restore, which the peers do not have."""
    if not isinstance(subject, Kernelsvc):
        return
    async with opened(subject) as session:
        assert isinstance(session, OurSession)
        await session.run("import numpy; data = numpy.ones(25_000_000)")
        for number in range(counts.copies):
            begun = time.perf_counter()
            await subject.call("session.checkpoint", session=session.id, name=f"c{number}")
            samples.add("checkpoint", (time.perf_counter() - begun) * 1e3)
            begun = time.perf_counter()
            (branch,) = await subject.call("session.branch", session=session.id)
            await subject.call("session.execute", session=branch["id"], code="data.sum()")
            samples.add("branch", (time.perf_counter() - begun) * 1e3)
            await subject.call("session.close", session=branch["id"])
            await asyncio.sleep(0.3)
            await session.run("import os; os._exit(1)")
            begun = time.perf_counter()
            ran = await session.run("print(int(data.sum()))", keep=True)
            samples.add("restore", (time.perf_counter() - begun) * 1e3)
            assert ran.output.strip() == "25000000", ran.output
            await asyncio.sleep(0.3)


async def long(subject: Subject, samples: Samples, counts: Counts) -> None:
    """Measure a session with many cells, to see whether later cells are slower."""
    if not isinstance(subject, Kernelsvc) or subject.server is None:
        return
    part = counts.long // 10
    async with opened(subject) as session:
        for number in range(10):
            before, written = subject.server.cpu(), subject.server.written()
            for _ in range(part):
                await session.run("1+1")
            if number in (0, 9):
                name = "first" if number == 0 else "last"
                samples.add(f"long_{name}", (subject.server.cpu() - before) * 1e3 / part)
                samples.add(f"long_bytes_{name}", (subject.server.written() - written) / part)


async def idle(subject: Subject, samples: Samples, counts: Counts) -> None:
    """Measure the memory of idle sessions, by process."""
    count = counts.idle if is_ours(subject) else min(counts.idle, counts.slow_idle)
    async with many(subject, 1) as (first,):
        await first.run("1+1")
        before = subject.server.rss() if subject.server else 0
        async with many(subject, count) as sessions:
            for session in sessions:
                await session.run("1+1")
            for session in sessions:
                await session.learn_pids()
            samples.add("idle_kernel", uss([session.kernel for session in sessions]) / MiB / count)
            samples.add("idle_session", pss([pid for session in sessions for pid in session.pids]) / MiB / count)
            if subject.server is not None:
                samples.add("idle_server", (subject.server.rss() - before) / 1024 / count)


async def density(subject: Subject, samples: Samples, counts: Counts) -> None:
    """Measure how many idle sessions fit, and their memory. Stop at the goal, the memory limit or the time limit."""
    if not isinstance(subject, Kernelsvc):
        return
    end = time.perf_counter() + counts.dense_seconds
    base = _available()
    sessions: list[Session] = []
    try:
        for goal in (10, 100, 500, 1000, 1500, 2000):
            if goal <= counts.dense and await _fill(subject, sessions, goal, end):
                await asyncio.sleep(1.0)
                each = (base - _available()) / goal
                samples.add(f"dense_{goal}", each / 1e6)
                if goal == 1000:
                    samples.add("dense_total", each * goal / 1e9)
                    await _beside(subject, samples)
        samples.add("dense_count", len(sessions))
        samples.add("dense_all", (base - _available()) / max(1, len(sessions)) / 1e6)
    finally:
        await _close(sessions)


async def _fill(subject: Subject, sessions: list[Session], goal: int, end: float) -> bool:
    """Open sessions up to ``goal`` and run a cell in each. Return False at the memory limit or the time limit."""
    while len(sessions) < goal:
        if time.perf_counter() > end or _available() < 1e9:
            return False
        some = await asyncio.gather(*(subject.open() for _ in range(min(5, goal - len(sessions)))))
        sessions += some
        await asyncio.gather(*(session.run("x = 1") for session in some))
    return True


async def _beside(subject: Subject, samples: Samples) -> None:
    for _ in range(10):
        begun = time.perf_counter()
        async with opened(subject) as session:
            samples.add("dense_create", (time.perf_counter() - begun) * 1e3)
            await session.run("1+1")
            for _ in range(10):
                samples.add("dense_cell", (await session.run("1+1")).seconds * 1e3)


def _available() -> int:
    """Return the available bytes of the machine (proc(5), MemAvailable)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable. Linux 3.14 or later is needed")


Work = Callable[[Subject, Samples, Counts], Awaitable[None]]


@dataclass(frozen=True)
class Section:
    """A part of the benchmark that can run by itself.

    Attributes:
        name: name for ``--only``.
        work: function that measures it.
        rounds: name of the field of ``Counts`` with its number of rounds. Empty means one round.
    """

    name: str
    work: Work
    rounds: str = ""


SECTIONS = (
    Section("cells", cells, "rounds"),
    Section("creates", creates, "rounds"),
    Section("delays", delays, "rounds"),
    Section("prints", prints, "print_rounds"),
    Section("loaded", loaded),
    Section("results", big_results),
    Section("distance", distance),
    Section("stream", big_print),
    Section("copies", copies),
    Section("burst", burst),
    Section("warm", warm),
    Section("busy", busy),
    Section("idle", idle),
    Section("long", long),
    Section("density", density),
)
