"""The order of measurements: in each round every subject in turn, so that other load affects all of them."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.counts import Counts
from benchmarks.figures import Samples
from benchmarks.sections import SECTIONS, Section
from benchmarks.subjects import Subject


@dataclass
class Bench:
    """One run of some sections."""

    counts: Counts
    sections: Sequence[Section] = SECTIONS
    samples: dict[str, Samples] = field(default_factory=dict)

    async def run(self, subjects: Sequence[Subject]) -> dict[str, Samples]:
        """Measure all subjects. A subject that can't start, or fails, is named and left out from then on."""
        self.samples = {subject.name: Samples() for subject in subjects}
        async with contextlib.AsyncExitStack() as stack:
            alive = [subject for subject in subjects if await self._started(subject, stack)]
            if not alive:
                return self.samples
            repeated = [section for section in self.sections if section.rounds]
            for number in range(self.counts.rounds if repeated else 0):
                say(f"round {number + 1} of {self.counts.rounds}")
                # Whoever goes first finds another machine than whoever goes last.
                for subject in turned(alive, number):
                    for section in repeated:
                        if number < getattr(self.counts, section.rounds):
                            await self._tried(section, subject)
            for section in self.sections:
                for subject in alive if not section.rounds else []:
                    await self._tried(section, subject)
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

    async def _tried(self, section: Section, subject: Subject) -> None:
        begun = time.perf_counter()
        try:
            await section.work(subject, self.samples[subject.name], self.counts)
        except Exception as error:  # A peer may break in any way; the others are still worth measuring.
            say(f"{subject.name}: {section.name} failed: {type(error).__name__}: {error}")
            self.samples[subject.name].missing[section.name] = f"{type(error).__name__}: {error}"
            await subject.recover()
            return
        say(f"  {subject.name:26} {section.name:10} {time.perf_counter() - begun:6.1f} s")


def turned(subjects: Sequence[Subject], number: int) -> list[Subject]:
    """Return the subjects in the order of a round."""
    first = number % len(subjects)
    return [*subjects[first:], *subjects[:first]]


def say(text: str) -> None:
    """Print progress to standard error, apart from the result."""
    print(text, file=sys.stderr, flush=True)
