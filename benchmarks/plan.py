"""What is measured, in which order: round after round, each subject in turn, so that a busy moment hits all alike."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from benchmarks.figures import Samples
from benchmarks.processes import MiB, peak, pss, uss
from benchmarks.subjects import Kernelsvc, Session, Subject

CHECK = "import sys; print(all(name in sys.modules for name in ('numpy', 'pandas', 'matplotlib.pyplot')))"


@dataclass(frozen=True)
class Counts:
    """How much of everything. The defaults are for a run whose figures are published."""

    rounds: int = 5
    creates: int = 10
    slow_creates: int = 2
    cells: int = 100
    warmup: int = 5
    lines: int = 100_000
    delays: int = 40
    busy: int = 20
    busy_seconds: int = 3
    print_rounds: int = 3
    big_bytes: int = 100_000_000
    idle: int = 200
    slow_idle: int = 10

    @property
    def told(self) -> str:
        """In words, for the report."""
        return (
            f"{self.rounds} rounds of {self.creates} new sessions ({self.slow_creates} for the peers) and "
            f"{self.cells} cells each, {self.print_rounds} of {self.lines:,} lines, "
            f"{self.idle} idle sessions ({self.slow_idle} for the peers)"
        )


SMOKE = Counts(
    rounds=1,
    creates=2,
    slow_creates=1,
    cells=5,
    warmup=1,
    delays=3,
    busy=2,
    busy_seconds=1,
    lines=2000,
    print_rounds=1,
    big_bytes=2_000_000,
    idle=2,
)


@dataclass
class Bench:
    """One run."""

    counts: Counts
    samples: dict[str, Samples] = field(default_factory=dict)

    async def run(self, subjects: Sequence[Subject]) -> dict[str, Samples]:
        """Measure them all. A subject that can't start, or breaks, is named and left out of what follows."""
        self.samples = {subject.name: Samples() for subject in subjects}
        async with contextlib.AsyncExitStack() as stack:
            alive = [subject for subject in subjects if await self._started(subject, stack)]
            steps = [self._cells, self._creates, self._delays]
            for number in range(self.counts.rounds):
                say(f"round {number + 1} of {self.counts.rounds}")
                # Whoever goes first finds another machine than whoever goes last.
                order = alive[number % len(alive) :] + alive[: number % len(alive)]
                for subject in order:
                    for step in [*steps, *([self._prints] if number < self.counts.print_rounds else [])]:
                        await self._tried(step, subject)
            for step in (self._busy, self._big_print, self._idle):
                for subject in alive:
                    await self._tried(step, subject)
        return self.samples

    async def _started(self, subject: Subject, stack: contextlib.AsyncExitStack) -> bool:
        try:
            await subject.start()
        except (RuntimeError, OSError) as error:
            say(f"{subject.name}: not measured: {error}")
            self.samples[subject.name].missing["start"] = str(error)
            return False
        stack.push_async_callback(subject.stop)
        if subject.server is not None:
            self.samples[subject.name].add("service_start", subject.server.start_seconds)
        return True

    async def _tried(self, step, subject: Subject) -> None:
        name = step.__name__.lstrip("_")
        begun = time.perf_counter()
        try:
            await step(subject, self.samples[subject.name])
        except Exception as error:  # A peer may break in any way; the others are still worth measuring.
            say(f"{subject.name}: {name} failed: {type(error).__name__}: {error}")
            self.samples[subject.name].missing[name] = f"{type(error).__name__}: {error}"
            return
        say(f"  {subject.name:26} {name:10} {time.perf_counter() - begun:6.1f} s")

    async def _creates(self, subject: Subject, samples: Samples) -> None:
        for _ in range(self.counts.creates if is_ours(subject) else self.counts.slow_creates):
            begun = time.perf_counter()
            async with opened(subject) as session:
                samples.add("create", (time.perf_counter() - begun) * 1e3)
                samples.add("first_cell", (await session.run("1+1")).seconds * 1e3)
                samples.add("next_cell", (await session.run("1+1")).seconds * 1e3)
                # The figure is worth nothing if the imports were put off.
                assert (await session.run(CHECK, keep=True)).output == "True\n"
            samples.add("create_and_import", (time.perf_counter() - begun) * 1e3)

    async def _cells(self, subject: Subject, samples: Samples) -> None:
        async with opened(subject) as session:
            for _ in range(self.counts.warmup):
                await session.run("1+1")
            before = subject.server.cpu() if subject.server else 0
            for _ in range(self.counts.cells):
                samples.add("cell", (await session.run("1+1")).seconds * 1e3)
            if subject.server:
                samples.add("cell_cpu", (subject.server.cpu() - before) * 1e3 / self.counts.cells)

    async def _delays(self, subject: Subject, samples: Samples) -> None:
        code = f"import time\nfor _ in range({self.counts.delays}): print(time.time()); time.sleep(0.02)"
        async with opened(subject) as session:
            ran = await session.run(code, keep=True)
        for arrived, text in ran.parts:
            samples.add("delay", *((arrived - float(line)) * 1e3 for line in text.split()))

    async def _busy(self, subject: Subject, samples: Samples) -> None:
        async with contextlib.AsyncExitStack() as stack:
            begun = time.perf_counter()
            opening = [stack.enter_async_context(opened(subject)) for _ in range(self.counts.busy)]
            sessions = await asyncio.gather(*opening)
            samples.add("burst", time.perf_counter() - begun)
            end = time.perf_counter() + self.counts.busy_seconds

            async def work(session: Session) -> None:
                while time.perf_counter() < end:
                    samples.add("busy_cell", (await session.run("1+1")).seconds * 1e3)

            begun = time.perf_counter()
            await asyncio.gather(*(work(session) for session in sessions))
            samples.add("busy", len(samples.values["busy_cell"]) / (time.perf_counter() - begun))

    async def _prints(self, subject: Subject, samples: Samples) -> None:
        async with opened(subject) as session:
            ran = await session.run(f"for i in range({self.counts.lines}): print(i)")
            samples.add("prints", ran.seconds * 1e3)
            samples.add("prints_lost", self.counts.lines - ran.lines)
            samples.add("prints_end_lost", 0 if ran.ended else 1)

    async def _big_print(self, subject: Subject, samples: Samples) -> None:
        async with opened(subject) as session, peak(subject.server) as grown:
            ran = await session.run(f"print('x' * {self.counts.big_bytes})")
        samples.add("big_print", ran.seconds)
        samples.add("big_print_lost", max(0, self.counts.big_bytes + 1 - ran.text) / 1e6)
        if subject.server is not None:
            samples.add("big_print_memory", grown[0] / MiB)

    async def _idle(self, subject: Subject, samples: Samples) -> None:
        count = self.counts.idle if is_ours(subject) else min(self.counts.idle, self.counts.slow_idle)
        async with contextlib.AsyncExitStack() as stack:
            first = await stack.enter_async_context(opened(subject))
            await first.run("1+1")
            before = subject.server.rss() if subject.server else 0
            sessions = []
            for _ in range(count):
                session = await stack.enter_async_context(opened(subject))
                await session.run("1+1")
                sessions.append(session)
            for session in sessions:
                await session.learn_pids()
            samples.add("idle_kernel", uss([session.kernel for session in sessions]) / MiB / count)
            samples.add("idle_session", pss([pid for session in sessions for pid in session.pids]) / MiB / count)
            if subject.server is not None:
                samples.add("idle_server", (subject.server.rss() - before) / 1024 / count)


def is_ours(subject: Subject) -> bool:
    """Whether it is quick enough to be asked more often."""
    return isinstance(subject, Kernelsvc)


@contextlib.asynccontextmanager
async def opened(subject: Subject) -> AsyncIterator[Session]:
    """A session for the length of a block."""
    session = await subject.open()
    try:
        yield session
    finally:
        await session.close()


def say(text: str) -> None:
    """Progress, where it doesn't mix with the result."""
    print(text, file=sys.stderr, flush=True)
