"""A server as a node of a cluster: its reports to fronts, and its answers to their questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from kernelsvc.errors import Conflict, KernelsvcError
from kernelsvc.model.cluster.ids import node_of
from kernelsvc.model.cluster.reports import MAX_GUESTS, NodeReport, digest_of
from kernelsvc.model.objects import Principal
from kernelsvc.service.access.session_tokens import SessionTokens
from kernelsvc.service.api import Signed
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.settings import Settings


class NodeState:
    """Reads the state of one server for fronts.

    Args:
        settings: The server's settings. ``node`` is its name.
        registry: All sessions.
        callers: Returns the principals of all valid tokens.
        access: Finds the session of a signed address.
        templates: Returns the templates.
        ready: Returns whether sessions can be created.
        refusing: Returns whether new sessions are refused.
    """

    def __init__(
        self,
        settings: Settings,
        registry: SessionRegistry,
        callers: Callable[[], Sequence[Principal]],
        access: SessionTokens,
        templates: Callable[[], list[dict[str, Any]]],
        ready: Callable[[], bool],
        refusing: Callable[[], bool],
    ) -> None:
        self._settings, self._registry, self._access = settings, registry, access
        self._keys, self._callers, self._templates = registry.keys, callers, templates
        self._ready, self._refusing = ready, refusing

    def report(self) -> NodeReport:
        """Return the state now."""
        settings, found = self._settings, self._registry.open_sessions()
        return NodeReport(
            sessions=len(found),
            max_sessions=settings.max_sessions,
            promised_bytes=sum(each.limits.memory_bytes or 0 for each in found),
            memory_bytes=settings.max_total_memory_bytes,
            cells=sum(1 for each in found if each.unfinished),
            ready=self._ready(),
            draining=self._refusing(),
            templates=[str(each["name"]) for each in self._templates()],
            principals=dict(Counter(each.principal for each in found)),
            tokens=digest_of(each.token_sha256 for each in self._callers()),
            guests=[each.id for each in found if node_of(each.id) != settings.node][:MAX_GUESTS],
        )

    def knows_key(self, principal: str, key: str) -> bool:
        """Return whether this idempotency key has created a session here, or is about to."""
        try:
            return self._keys.get(principal, key) is not None
        except Conflict:
            return True

    def session_of_signed(self, purpose: str, signed: Signed) -> str | None:
        """Return the open session whose secret signed an address, or None."""
        try:
            return self._access.search(purpose, signed)[1]
        except KernelsvcError:
            return None
