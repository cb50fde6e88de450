"""Which functions clients offer to sessions: providers, their offers, and the meaning of a name in a session.

A *provider* is one client process. Its offers are for one session, or for all sessions of its principal. An operator's
provider (``everywhere``) offers to the sessions of several principals. If several providers offer one name, the choice
is: a connected one, the one that submitted the cell, a client before an operator's provider, the newest offer.

A name is looked up for each call, so the answers are kept until an offer or a connection changes. Code may call any
number of names that do not exist, so each of these costs no walk over all offers.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import msgspec

from kernelsvc.errors import QuotaExceeded
from kernelsvc.model.tool_calls import offers as model
from kernelsvc.model.tool_calls.offers import Approval, Offer
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.session import Session
from kernelsvc.session.tool_calls import ResolvedTool

# Named, because ``list`` means a method in other modules of the service.
Names = list[str]
Views = list[dict[str, Any]]
#: Most functions in one description, and its largest size as JSON, in bytes.
MAX_DESCRIBED, MAX_DESCRIPTION_BYTES = 200, 4 * 1024 * 1024
#: Sessions through which a branch inherits offers. Branches can be nested 16 deep.
MAX_ANCESTORS = 16
#: Names whose meaning is kept, and sessions whose names are. A kernel may ask for any number of names.
MAX_KEPT, MAX_SESSIONS_KEPT = 10_000, 200
#: Refused calls of one cell that get the names which resemble theirs.
MAX_HINTS = 10
#: Most offers of all providers of a principal for one session (or for all), and for all sessions together. Most bytes
#: of the different ones as JSON. As objects they have up to twenty times as many.
MAX_IN_SCOPE, MAX_OFFERED, MAX_OFFERED_BYTES = 2000, 50_000, 16 << 20
#: Cells of a client that are known for the choice of the provider.
MAX_CELLS = 1000


class ProviderConnection(Protocol):
    """The connection of a provider."""

    def notify(self, method: str, params: dict[str, Any]) -> None:
        """Send a notification without a delay. Does nothing on a closed connection."""


@dataclass(eq=False)
class DispatchedCall:
    """A call that a provider has, or that waits for one. The session's machine has everything else about it."""

    session: str
    call: str
    tool: str
    arguments: Any
    provider: Provider | None = None
    holder: str = ""  # key of the provider that got it last, perhaps from an earlier server
    attempt: int = 0
    sent: bool = False
    timer: asyncio.TimerHandle | None = None
    progress_at: float = float("-inf")

    def set(self, **changes: Any) -> None:
        """Change fields. Only ``Offers`` does."""
        for name, value in changes.items():
            setattr(self, name, value)


class KnownOffer(NamedTuple):
    """An offer of a provider. Providers of a principal that make the same offer share one object.

    Attributes:
        order: of the creation of all offers.
        size: as JSON, in bytes.
        redact: JSON pointers of the arguments that no log may contain.
    """

    order: int
    offer: Offer
    digest: str
    size: int
    redact: tuple[str, ...]


@dataclass(eq=False)
class Provider:
    """One client process that carries out calls.

    Attributes:
        everywhere: principals whose sessions may call its functions, for an operator's provider. ``*`` is everyone.
        offers: by session (None: all sessions of the principal) and full name.
        connection: None while it is lost.
        sent: calls that it has, and how many of each function.
        queues: calls that wait for room, by function.
        cells: session and id of the last cells that it submitted.
    """

    id: str
    instance: str
    principal: str
    everywhere: frozenset[str] = frozenset()
    offers: dict[str | None, dict[str, KnownOffer]] = field(default_factory=dict)
    connection: ProviderConnection | None = None
    sent: dict[str, DispatchedCall] = field(default_factory=dict)
    in_flight: dict[str, int] = field(default_factory=dict)
    queues: dict[str, deque[DispatchedCall]] = field(default_factory=dict)
    next_at: dict[str, float] = field(default_factory=dict)  # per_second: when the next call may be sent
    grace: asyncio.TimerHandle | None = None
    cells: OrderedDict[tuple[str, str], None] = field(default_factory=OrderedDict)

    def set_connection(self, connection: ProviderConnection | None, grace: asyncio.TimerHandle | None = None) -> None:
        """Take a connection, or wait for another one until ``grace`` fires."""
        if self.grace is not None:
            self.grace.cancel()
        self.connection, self.grace = connection, grace

    def took(self, call: DispatchedCall) -> None:
        """Note that the provider has a call."""
        if call.call not in self.sent:
            self.sent[call.call] = call
            self.in_flight[call.tool] = self.in_flight.get(call.tool, 0) + 1

    def lost(self, call: DispatchedCall) -> None:
        """Note that the provider does not have a call, or has it no more."""
        if self.sent.pop(call.call, None) is not None:
            self.in_flight[call.tool] -= 1
            if not self.in_flight[call.tool]:
                del self.in_flight[call.tool]

    def submitted(self, session: str, cells: Sequence[str]) -> None:
        """Note that the provider's client submitted cells: their calls go to it first."""
        for cell in cells:
            self.cells[session, cell] = None
        while len(self.cells) > MAX_CELLS:
            self.cells.popitem(last=False)

    def serves(self, principal: str) -> bool:
        """Return whether sessions of a principal may call its functions."""
        return principal == self.principal or principal in self.everywhere or "*" in self.everywhere

    @property
    def key(self) -> str:
        """The name of this process in the log."""
        return f"{self.id}/{self.instance}"


@dataclass(frozen=True)
class FoundOffer:
    """An offer that a session may call, with what each of its calls needs."""

    offer: Offer
    provider: Provider
    order: int
    tool: str
    digest: str
    redact: tuple[str, ...]

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """The larger, the better."""
        return self.provider.connection is not None, not self.provider.everywhere, self.order


class OfferDirectory:
    """The providers of one server, and the meaning of names. Called from the event loop.

    Args:
        registry: finds sessions, for the offers that a branch inherits.

    Attributes:
        providers: by principal and id. Call ``changed`` after each change of one.
    """

    def __init__(self, registry: SessionRegistry) -> None:
        self.providers: dict[tuple[str, str], Provider] = {}
        self._registry = registry
        self._found: dict[tuple[str, str], Sequence[FoundOffer]] = {}
        self._names: dict[str, tuple[_Named, _Named]] = {}
        self._hints: dict[str, tuple[str | None, int]] = {}

    def changed(self) -> None:
        """Forget the meaning of names."""
        self._found.clear()
        self._names.clear()

    def known(
        self, principal: str, provider: str, session: str | None, offers: Sequence[Offer], order: Callable[[], int]
    ) -> dict[str, KnownOffer]:
        """Return the offers that a provider has in a session from now on, by name.

        Args:
            principal: the provider's.
            provider: its id.
            session: the session, or None for all.
            offers: all that it has there.
            order: returns the order of a new one.

        Raises:
            QuotaExceeded: the principal has too many.
            BadRequest: an offer has too many secret arguments.
        """
        before: dict[str, KnownOffer] = {}
        same: dict[str, KnownOffer] = {}
        count = in_scope = 0
        for each in self.providers.values():
            for scope, named in each.offers.items() if each.principal == principal else ():
                if each.id == provider and scope == session:
                    before = named
                else:
                    count += len(named)
                    in_scope += len(named) if scope == session else 0
                    same |= {found.digest: found for found in named.values()}
        if in_scope + len(offers) > MAX_IN_SCOPE or count + len(offers) > MAX_OFFERED:
            raise QuotaExceeded(
                f"Your clients may have {MAX_IN_SCOPE} offers in a session and {MAX_OFFERED} in all. Withdraw some."
            )
        kept = {found.digest: found for found in before.values()} | same
        made: dict[str, KnownOffer] = {}
        for offer in offers:
            data = model.encoded(offer)
            digest = model.digest_of(data)
            found = kept.get(digest)
            if found is None:
                found = kept[digest] = KnownOffer(0, offer, digest, len(data), tuple(model.redactions(offer)))
            same[digest] = found
            old = before.get(offer.tool)
            made[offer.tool] = (
                old
                if old is not None and old.digest == digest
                else KnownOffer(order(), found.offer, digest, found.size, found.redact)
            )
        if sum(found.size for found in same.values()) > MAX_OFFERED_BYTES:
            raise QuotaExceeded(
                f"The different offers of your clients may have {MAX_OFFERED_BYTES >> 20} MiB together. Shorten "
                "descriptions and schemas, or withdraw some."
            )
        return made

    def of_connection(self, client: object) -> Iterator[Provider]:
        """Return the providers of a connection."""
        return (each for each in self.providers.values() if each.connection is client)

    def offered(self, principal: str, session: str | None, name: str) -> bool:
        """Return whether any provider of a principal offers a name."""
        return any(
            name in each.offers.get(session, ()) for each in self.providers.values() if each.principal == principal
        )

    def names_of_others(self, principal: str, provider: str, session: str | None) -> set[str]:
        """Return the names that a principal's other providers offer."""
        return {
            name
            for each in self.providers.values()
            if each.principal == principal and each.id != provider
            for name in each.offers.get(session, ())
        }

    # -- what a name means -------------------------------------------------------------------

    def visible(self, session: Session, cells: Sequence[str | None] = ()) -> dict[str, Offer]:
        """Return the offers that the code of these cells of a session may call, by name."""
        found: dict[str, tuple[tuple[bool, bool, int], Offer]] = {}
        for provider, name, known in self._all(session):
            rank = (provider.connection is not None, not provider.everywhere, known.order)
            if (name not in found or rank > found[name][0]) and _permitted(session, name, cells):
                found[name] = rank, known.offer
        return {name: offer for name, (_, offer) in found.items()}

    def _all(self, session: Session) -> Iterator[tuple[Provider, str, KnownOffer]]:
        scopes = [None, session.id, *self._ancestors(session)] if self.providers else []
        for provider in self.providers.values():
            if provider.serves(session.principal):
                for at, scope in enumerate(scopes):
                    for name, known in provider.offers.get(scope, {}).items():
                        if at < 2 or known.offer.inherit:
                            yield provider, name, known

    def offered_in(self, provider: Provider, session: Session, tool: str) -> str | None:
        """Return for which session a provider offers what this session calls, the newest offer first. None: for all.

        A client may offer functions of one name for several sessions, and a branch inherits those of one of them.
        """
        mine = [
            (provider.offers[scope][tool].order, scope)
            for at, scope in enumerate((None, session.id, *self._ancestors(session)))
            if tool in provider.offers.get(scope, {}) and (at < 2 or provider.offers[scope][tool].offer.inherit)
        ]
        return max(mine, key=lambda each: each[0])[1] if mine else session.id

    def _ancestors(self, session: Session) -> Names:
        """Return the sessions whose offers a session inherits: those it was forked from, and that of a sidecar."""
        found: Names = []
        at: Session | None = session
        while at is not None and len(found) < MAX_ANCESTORS:
            parent = (at.spec.parent or {}).get("session") or at.spec.beside
            if not isinstance(parent, str):
                break
            found.append(parent)
            at = self._registry.get(parent)
        return found

    def find(self, session: Session, name: str, cell: str | None = None) -> FoundOffer | None:
        """Return the offer that a name, or an identifier in code, means for a cell. Filters are not considered."""
        found = self._found.get((session.id, name))
        if found is None:
            if len(self._found) >= MAX_KEPT:
                self._found.clear()
            found = self._found[session.id, name] = self._look_up(session, name)
        if len(found) < 2:
            return found[0] if found else None
        # The cell's own client may be the newest offer's rival: "my function" means that of the program that runs it.
        mine = (
            each for each in found if (session.id, cell) in each.provider.cells and each.rank[:2] == found[0].rank[:2]
        )
        return next(mine, found[0])

    def _named(self, session: Session) -> tuple[_Named, _Named]:
        """Return the offers for a session by name, and by identifier in code."""
        found = self._names.get(session.id)
        if found is None:
            if len(self._names) >= MAX_SESSIONS_KEPT:
                self._names.clear()
            by_name: _Named = {}
            for provider, name, known in self._all(session):
                by_name.setdefault(name, []).append((provider, known))
            by_identifier: _Named = {}
            for name, offers in by_name.items():
                by_identifier.setdefault(model.identifier(name), offers)
            found = self._names[session.id] = by_name, by_identifier
        return found

    def _look_up(self, session: Session, name: str) -> Sequence[FoundOffer]:
        by_name, by_identifier = self._named(session)
        found = [
            FoundOffer(known.offer, provider, known.order, known.offer.tool, known.digest, known.redact)
            for provider, known in by_name.get(name) or by_identifier.get(name) or ()
        ]
        return sorted(found, key=lambda each: each.rank, reverse=True)

    def refusal(self, session: Session, name: str, cells: Sequence[str | None]) -> str:
        """Return why a name can't be called, with the names that resemble it."""
        near = self._resembling(session, name, cells)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else " tools.search('') lists what there is."
        if self.find(session, name) is not None:
            return f"The session or the cell may not call {name!r}.{hint}"
        return f"There is no tool {name!r} in this session.{hint}"

    def _resembling(self, session: Session, name: str, cells: Sequence[str | None]) -> Names:
        """Return at most three names of functions that may be called. None after ``MAX_HINTS`` for a running cell."""
        cell, count = self._hints.pop(session.id, (None, 0))
        count = 1 if cell != session.running else count + 1
        self._hints[session.id] = session.running, count
        if len(self._hints) > MAX_KEPT:
            del self._hints[next(iter(self._hints))]
        if count > MAX_HINTS:
            return []
        return [each for each in model.nearest(name, self._named(session)[0]) if _permitted(session, each, cells)][:3]

    def may_call(self, session: Session, tool: str, cells: Sequence[str | None]) -> bool:
        """Return whether the filters of a session and of these cells allow a function."""
        return _permitted(session, tool, cells)

    def known_from_log(self, session: Session, name: str) -> ResolvedTool | None:
        """Return a function that an earlier server knew, and whose provider has not come back yet."""
        offered = session.machine.calls.offered
        tool = next((each for each in offered if name in (each, model.identifier(each))), None)
        if tool is None:
            return None
        facts = msgspec.convert(msgspec.to_builtins(offered[tool]), _LoggedOffer)
        # Its redactions are not known, so that nothing of the arguments may be written.
        offer = Offer(name=tool, approval=facts.approval, effects=facts.effects)
        return ResolvedTool(offer, approval=offer.approval, redact=("",))

    # -- descriptions ------------------------------------------------------------------------

    def describe(self, session: Session | None, question: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to code that looks at functions. The question is not trusted."""
        visible = self.visible(session, [session.running]) if session is not None else {}
        names, query, limit = question.get("names"), question.get("query"), question.get("limit")
        chosen = [*visible.values()]
        if isinstance(names, list):
            wanted = {each for each in names if isinstance(each, str)}
            chosen = [each for each in chosen if each.tool in wanted or model.identifier(each.tool) in wanted]
        else:
            chosen = search(chosen, query if isinstance(query, str) else "")
        most = limit if isinstance(limit, int) and 0 < limit <= MAX_DESCRIBED else MAX_DESCRIBED
        tools: Views = []
        size = 0
        for offer in chosen[:most]:
            tool = tool_view(offer, full=question.get("detail") == "full")
            size += len(msgspec.json.encode(tool))
            if size > MAX_DESCRIPTION_BYTES:
                break
            tools.append(tool)
        return {"tools": tools, "total": len(chosen)}


#: Offers by name.
_Named = dict[str, list[tuple[Provider, KnownOffer]]]


class _LoggedOffer(msgspec.Struct):
    approval: Approval = "always"
    effects: model.Effects = "unknown"


def _permitted(session: Session, tool: str, cells: Sequence[str | None]) -> bool:
    return session.spec.permits_tool(tool) and session.machine.calls.permits(tool, cells)


def search(offers: Sequence[Offer], query: str) -> list[Offer]:
    """Return the listed offers by name, or those that match the words of a query, the best first."""
    words = query.lower()[:400].split()
    listed = [offer for offer in offers if offer.listed]
    if not words:
        return sorted(listed, key=lambda each: each.tool)
    ranked = [(-rank, each.tool, each) for each in offers if (rank := model.rank(each, words))]
    return [each for _, _, each in sorted(ranked, key=lambda found: found[:2])]


def tool_view(offer: Offer, *, full: bool) -> dict[str, Any]:
    """Return an offer as code and clients see it."""
    brief = {
        "name": offer.tool,
        "identifier": model.identifier(offer.tool),
        "signature": model.signature(offer),
        "summary": offer.description.strip().partition("\n")[0][:200],
    }
    if not full:
        return brief
    return {
        **brief,
        "documentation": model.docstring(offer),
        "names": model.parameter_names(offer),
        "parameters": offer.parameters,
        "returns": offer.returns,
        "effects": offer.effects,
        "approval": offer.approval,
        "timeout_seconds": offer.timeout_seconds,
        "idempotent": offer.idempotent,
    }
