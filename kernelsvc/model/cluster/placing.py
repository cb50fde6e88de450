"""On which node a new session is made: a decision on the last reports. Randomness enters as an argument."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random

from kernelsvc.model.cluster.reports import NodeReport

#: Nodes that are tried for one creation.
MAX_TRIES = 3


@dataclass
class Candidate:
    """A reachable node.

    Attributes:
        node: Its name.
        report: Its last report.
        sent: Creations that were sent to it since that report.
        sent_for: The same, by principal.
    """

    node: str
    report: NodeReport
    sent: int = 0
    sent_for: Counter[str] = field(default_factory=Counter)

    def note_sent(self, principal: str) -> None:
        """Count a creation that is sent to it."""
        self.sent += 1
        self.sent_for[principal] += 1

    def renew(self, report: NodeReport) -> None:
        """Take a later report, which counts the earlier creations."""
        self.report, self.sent = report, 0
        self.sent_for.clear()

    @property
    def load(self) -> float:
        """Share of its sessions or its memory that is taken, whichever is larger. 1 is full."""
        report = self.report
        sessions = (report.sessions + self.sent) / max(1, report.max_sessions)
        if not report.memory_bytes:
            return sessions
        mean = report.promised_bytes / report.sessions if report.sessions else 0.0
        return max(sessions, (report.promised_bytes + mean * self.sent) / report.memory_bytes)


def choose(candidates: Iterable[Candidate], template: str | None, random: Random) -> list[Candidate]:
    """Return the nodes to try for a creation, the best first.

    The less loaded of two random nodes is first. With reports of up to a second ago, always the least loaded one would
    get all creations of that second from every front (the power of two choices, Mitzenmacher 2001).

    Args:
        candidates: The reachable nodes.
        template: The template that the session needs. None: the default one.
        random: The source of randomness.
    """
    fitting = _fitting(candidates, template)
    first = random.sample(fitting, min(2, len(fitting)))
    rest = [each for each in fitting if each not in first]
    return [*sorted(first, key=_load), *sorted(rest, key=_load)][:MAX_TRIES]


def choose_for_key(candidates: Iterable[Candidate], template: str | None, principal: str, key: str) -> list[Candidate]:
    """Return the nodes to try for a creation with an idempotency key: the same for each front, and for each repeat.

    They are the first by rendezvous hashing (Thaler and Ravishankar 1998), so a node that joins or leaves changes the
    choice for few keys. The caller asks all of them whether they know the key. If none does, the first is the right
    one: the less loaded of the first two.
    """
    ranked = rank(_fitting(candidates, template), f"{principal}\0{key}")[:MAX_TRIES]
    return [*sorted(ranked[:2], key=_load), *ranked[2:]]


def rank(candidates: Iterable[Candidate], key: str) -> list[Candidate]:
    """Return the nodes in an order that only the key and the names of the nodes decide."""
    return sorted(candidates, key=lambda each: hashlib.sha256(f"{each.node}\0{key}".encode()).digest())


def _fitting(candidates: Iterable[Candidate], template: str | None) -> list[Candidate]:
    return [
        each
        for each in candidates
        if each.report.ready
        and not each.report.draining
        and (template is None or not each.report.templates or template in each.report.templates)
    ]


def _load(candidate: Candidate) -> float:
    return candidate.load


def sessions_of(candidates: Sequence[Candidate], principal: str) -> int:
    """Return the number of a principal's open sessions on all reachable nodes: those reported, and those sent since."""
    return sum(each.report.principals.get(principal, 0) + each.sent_for[principal] for each in candidates)
