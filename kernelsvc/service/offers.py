"""Functions that clients offer to sessions: who offers which, and the way of a call to its provider and back.

A *provider* is one client process. It has an id and an ``instance`` that changes with each start of the process, so a
client that connects again is recognized. Offers are for one session, or for all sessions of the provider's principal.
If two providers offer one name, the newest offer counts.

When a provider's connection ends, its offers and calls stay for ``tools_grace_seconds``. If the same instance comes
back, it names the calls that it holds: those are waited for, and those that it does not hold never reached it and are
sent. After the grace its calls are ``lost``, or go to another provider if they are idempotent.

The log is the record. This module keeps what only the running server knows: connections, queues, and timers.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from kernelsvc.errors import BadRequest, Conflict, NotFound, QuotaExceeded, TooLarge
from kernelsvc.linux.turns import Turns
from kernelsvc.model import events as ev
from kernelsvc.model.objects import CallState, CellRequest, Principal, SessionState, ToolCallInfo
from kernelsvc.model.stimuli import CallAnswered, CallFailed, CallsDecided
from kernelsvc.model.tool_calls import offers as model
from kernelsvc.model.tool_calls.ledger import MAX_REUSED_BYTES, MAX_REUSED_ENTRIES, OpenCall
from kernelsvc.model.tool_calls.mcp_servers import PROVIDER
from kernelsvc.model.tool_calls.offers import Approval, Offer, OfferedTool, ProviderId
from kernelsvc.service.api import Blocks, ToolCallInfos
from kernelsvc.service.offer_directory import (
    DispatchedCall,
    KnownOffer,
    OfferDirectory,
    Provider,
    ProviderConnection,
    tool_view,
)
from kernelsvc.service.offer_directory import search as search_offers
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.session import Session
from kernelsvc.session.tool_calls import Answer, ResolvedTool
from kernelsvc.settings import Settings

# Named, because ``list`` means a method inside the class below.
Names = list[str]
#: Most providers of one principal.
MAX_PROVIDERS = 1000
#: Deepest nesting of calls: a function that runs a cell whose code calls a function.
MAX_NESTED = 8
#: Seconds between two progress events of one call.
PROGRESS_SECONDS = 1.0


class Offers:
    """The offers of all clients. Called from the event loop. Implements ``session.tool_calls.OfferPort``.

    Args:
        registry: finds sessions.
        settings: times and sizes.

    Attributes:
        in_use: whether any client has offered functions. Until then a cell does not come here.
    """

    def __init__(self, registry: SessionRegistry, settings: Settings) -> None:
        self._registry = registry
        self._settings = settings
        self._directory = OfferDirectory(registry)
        self._providers = self._directory.providers
        self._calls: dict[str, DispatchedCall] = {}
        self._order = 0
        self._turns = Turns()
        self.in_use = False

    # -- offering ------------------------------------------------------------------------

    def offer(
        self,
        who: Principal,
        offers: Sequence[Offer],
        *,
        session: str | None,
        provider: ProviderId,
        holding: Sequence[str],
        replace: bool,
        client: object,
    ) -> dict[str, Any]:
        """Offer functions. Repeating it changes nothing. See ``tool.offer``.

        Raises:
            BadRequest: names collide, an offer is too large, or the connection can't receive calls.
            Forbidden, NotFound, SessionClosed: there is no such open session of the caller.
        """
        notify = getattr(client, "notify", None)
        if notify is None:
            raise BadRequest(
                "Functions are offered over the WebSocket, on which their calls arrive. Connect to /v1/ws."
            )
        self._registry.require_scope(who, "run")
        if session is not None:
            self._registry.find_open(who, session)
        known = self._providers.get((who.name, provider.id))
        if known is not None and known.instance != provider.instance:
            self._end(known)  # the process was started anew, and has none of its calls
            known = None
        before = known.offers.get(session, {}) if known is not None else {}
        kept = {} if replace else before
        together = {**{name: each.offer for name, each in kept.items()}, **{each.tool: each for each in offers}}
        made = self._directory.known(who.name, provider.id, session, [*together.values()], self._next)
        model.check([*together.values()], self._directory.names_of_others(who.name, provider.id, session))
        if known is None:
            if sum(each.principal == who.name for each in self._providers.values()) >= MAX_PROVIDERS:
                raise QuotaExceeded(f"{MAX_PROVIDERS} clients offer functions already. Close one of them.")
            known = Provider(provider.id, provider.instance, who.name, self._audience(who, provider.id))
            self._providers[who.name, provider.id] = known
            self.in_use = True
        known.offers[session] = made
        self._directory.changed()
        cancelled = self._connect(known, client, holding)  # type: ignore[arg-type]
        gone = [name for name in before if name not in together]
        self._announce(known, session, [*made.values()], gone)
        self._retry(known)
        shown = [
            {"name": each.tool, "identifier": model.identifier(each.tool), "digest": made[each.tool].digest}
            for each in offers
        ]
        return {"offered": shown, "cancelled": cancelled}

    def _audience(self, who: Principal, provider: str) -> frozenset[str]:
        """Return the principals whose sessions may call a provider's functions, beside its own principal's."""
        about = self._settings.tools_mcp.get(provider.removeprefix(PROVIDER))
        operators = "provide" in who.scopes and provider.startswith(PROVIDER) and about is not None
        return frozenset(about.principals) if operators and about is not None else frozenset()

    def _next(self) -> int:
        self._order += 1
        return self._order

    def _connect(self, provider: Provider, connection: ProviderConnection, holding: Sequence[str]) -> Names:
        """Take a connection of a provider. Return the calls that it holds and that have ended."""
        again = provider.connection is not connection
        provider.set_connection(connection)
        held = set(holding)
        # Clients choose the names of their processes, and logs show them: another principal can use the same ones.
        served = [call for call in self._calls.values() if self._serves(provider, call)]
        for call in served:
            if call.holder != provider.key or not again:
                continue
            if call.call in held:  # it is at work, or has the answer
                self._stop_timer(call)
                call.set(provider=provider, sent=True)
                provider.took(call)
            elif call.sent:  # it never got it
                self._stop_timer(call)
                provider.lost(call)
                call.set(sent=False)
                self._redispatch(call)
        known = {call.call for call in served}
        return [call for call in holding if call not in known]

    def _serves(self, provider: Provider, call: DispatchedCall) -> bool:
        session = self._registry.get(call.session)
        return session is not None and provider.serves(session.principal)

    def _redispatch(self, call: DispatchedCall) -> None:
        session = self._registry.get(call.session)
        if session is not None:
            session.tool_calls.redispatch(call.call)

    def _announce(
        self, provider: Provider, session: str | None, offers: Sequence[KnownOffer], gone: Sequence[str]
    ) -> None:
        """Record the callable functions in the logs of the sessions that it is for, if that has changed."""
        if session is not None:
            found = self._registry.get(session)
            chosen = [found] if found is not None else []
        else:
            chosen = [each for each in self._registry.open_sessions() if provider.serves(each.principal)]
        for each in chosen:
            self._record(each, provider, offers, gone)
            each.tool_calls.changed()

    @staticmethod
    def _record(session: Session, provider: Provider, offers: Sequence[KnownOffer], gone: Sequence[str]) -> None:
        offered = session.machine.calls.offered
        new = [
            OfferedTool(name=o.tool, digest=each.digest, approval=o.approval, effects=o.effects)
            for each in offers
            if (known := offered.get((o := each.offer).tool)) is None or known.digest != each.digest
        ]
        withdrawn = [name for name in gone if name in offered]
        if new or withdrawn:
            session.try_record(
                ev.ToolsOffered(provider=provider.id, by=provider.principal, tools=new, withdrawn=withdrawn)
            )

    def withdraw(self, who: Principal, *, names: Sequence[str] | None, session: str | None, client: object) -> None:
        """Withdraw functions of this connection's providers. Their open calls go on."""
        self._registry.require_scope(who, "run")
        for provider in self._providers.values():
            if provider.principal != who.name or (provider.connection is not client and client is not None):
                continue
            offers = provider.offers.get(session, {})
            gone = [name for name in offers if names is None or name in names]
            for name in gone:
                del offers[name]
            self._directory.changed()
            self._announce(
                provider, session, [], [n for n in gone if not self._directory.offered(who.name, session, n)]
            )

    def client_gone(self, client: object) -> None:
        """Keep the offers and calls of a lost connection for the grace time."""
        for provider in self._providers.values():
            if provider.connection is client:
                loop = asyncio.get_running_loop()
                grace = loop.call_later(self._settings.tools_grace_seconds, self._end, provider)
                provider.set_connection(None, grace)
                self._directory.changed()

    def _end(self, provider: Provider) -> None:
        """End a provider: its calls are lost, or go to another one."""
        if self._providers.get((provider.principal, provider.id)) is provider:
            del self._providers[provider.principal, provider.id]
        self._directory.changed()
        if provider.grace is not None:
            provider.grace.cancel()
        for session, offers in provider.offers.items():
            gone = [name for name in offers if not self._directory.offered(provider.principal, session, name)]
            if gone:
                self._announce(provider, session, [], gone)
        for call in [*provider.sent.values(), *(each for queue in provider.queues.values() for each in queue)]:
            call.set(provider=None)
            if not call.sent:
                self._redispatch(call)
            else:
                self._lose(call)

    def _lose(self, call: DispatchedCall) -> None:
        session = self._registry.get(call.session)
        open_call = session.machine.calls.open.get(call.call) if session is not None else None
        if session is None or open_call is None:
            self._calls.pop(call.call, None)
            return
        if open_call.idempotent:  # also if its provider is only just starting again
            call.set(sent=False)
            self._redispatch(call)
            return
        text = f"The client that carried out {call.tool} is gone. The call may have been carried out."
        self._fail(call, "lost", text)

    def _fail(self, call: DispatchedCall, status: Literal["lost", "unavailable"], text: str) -> None:
        session = self._registry.get(call.session)
        if session is not None and session.state is not SessionState.CLOSED:
            session.handle(CallFailed(call.call, status, text))
        self.ended(call.call)

    # -- what a name means (OfferPort) -----------------------------------------------------

    def resolve(self, session: str, name: str, cells: Sequence[str | None]) -> ResolvedTool:
        """See ``OfferPort``."""
        found = self._registry.get(session)
        if found is None:
            return ResolvedTool(None, refusal="The session is not open.")
        best = self._directory.find(found, name, cells[0])
        if not self._directory.may_call(found, name if best is None else best.tool, cells):
            return ResolvedTool(None, refusal=self._directory.refusal(found, name, cells), forbidden=True)
        if best is not None:
            known_entry = found.machine.calls.offered.get(best.tool)
            if known_entry is None or known_entry.digest != best.digest:
                known_offer = KnownOffer(best.order, best.offer, best.digest, 0, best.redact)
                self._record(found, best.provider, [known_offer], [])
            connected = best.provider.key if best.provider.connection is not None else ""
            return ResolvedTool(best.offer, connected, approval=self._tightened(best.offer), redact=best.redact)
        known = self._directory.known_from_log(found, name)
        if known is not None and known.offer is not None:
            return dataclasses.replace(known, approval=self._tightened(known.offer))
        return ResolvedTool(None, refusal=self._directory.refusal(found, name, cells))

    def _tightened(self, offer: Offer) -> Approval:
        setting = self._settings.tools_approval
        ask = setting == "always" or (setting == "writes" and offer.effects != "read")
        return "always" if ask and offer.approval == "never" else offer.approval

    def describe(self, session: str, question: dict[str, Any], answer: Answer) -> None:
        """See ``OfferPort``."""
        self._turns.wait(lambda _: answer(self._directory.describe(self._registry.get(session), question)))

    async def list(
        self, who: Principal, session: str, *, search: str | None, detail: Literal["brief", "full"], limit: int
    ) -> dict[str, Any]:
        """Return the functions that a session may call."""
        visible = [*self._directory.visible(self._registry.find(who, session)).values()]

        def found() -> dict[str, Any]:
            chosen = search_offers(visible, search or "")
            return {"tools": [tool_view(each, full=detail == "full") for each in chosen[:limit]], "total": len(chosen)}

        return await asyncio.to_thread(found)

    # -- cells of providers ----------------------------------------------------------------

    def submitting(self, session: Session, cells: Sequence[CellRequest]) -> None:
        """Check the fields of cells about calls, before the session accepts them.

        Raises:
            NotFound: ``reuse_calls`` names no cell.
            TooLarge: that cell made too many or too large calls.
            Conflict: the call of ``within`` has ended, or waits for this session, or calls are nested too deep.
        """
        for cell in cells:
            if cell.cell in session.machine.cells:
                continue  # sent again
            if cell.reuse_calls is not None and cell.reuse_calls not in session.machine.cells:
                raise NotFound(f"There is no cell {cell.reuse_calls!r} whose calls can be used again. List the cells.")
            earlier = session.machine.calls.of_cell.get(cell.reuse_calls) if cell.reuse_calls is not None else None
            if earlier is not None and not earlier.reusable:
                raise TooLarge(
                    f"The calls of the cell {cell.reuse_calls!r} have {earlier.size} bytes in {len(earlier.entries)} "
                    f"entries of the log. To be used again, they may have {MAX_REUSED_BYTES} bytes and "
                    f"{MAX_REUSED_ENTRIES} entries. Run the cell without 'reuse_calls'."
                )
            if cell.within is not None:
                self._check_nesting(session, cell.within)

    def _check_nesting(self, session: Session, within: str) -> None:
        call: str | None = within
        for _ in range(MAX_NESTED):
            known = self._calls.get(call or "")
            at = self._registry.get(known.session) if known is not None else None
            open_call = at.machine.calls.open.get(call or "") if at is not None else None
            if at is None or open_call is None:
                raise Conflict(
                    f"The call {call!r} has ended, or is one of a session on another node of a cluster. A function "
                    "runs cells only while its own call is open, and in sessions of its node."
                )
            if at.id == session.id:
                raise Conflict(
                    f"A function that code calls can't run a cell in the same session, which waits for the function "
                    f"(call {call}). Use another session.",
                    call=call,
                )
            call = open_call.parent_call
            if call is None:
                return
        raise Conflict(f"Calls are nested deeper than {MAX_NESTED}. Let the function return instead.")

    def submitted(self, client: object, session: str, cells: Sequence[str]) -> None:
        """Note who submitted cells: their calls go to the same client, if it offers the function."""
        for provider in self._directory.of_connection(client):
            provider.submitted(session, cells)

    # -- the way of a call (OfferPort) ------------------------------------------------------

    def dispatch(self, session: str, call: OpenCall, arguments: Any) -> None:
        """See ``OfferPort``."""
        known = self._calls.get(call.id)
        if known is None:
            known = self._calls[call.id] = DispatchedCall(session, call.id, call.tool, arguments)
        known.set(arguments=arguments)
        self._stop_timer(known)
        self._place(known)

    def _place(self, call: DispatchedCall) -> None:
        session = self._registry.get(call.session)
        open_call = session.machine.calls.open.get(call.call) if session is not None else None
        cell = open_call.cell if open_call is not None else None
        best = self._directory.find(session, call.tool, cell) if session is not None else None
        if best is None or best.provider.connection is None:
            call.set(provider=best.provider if best is not None else None)
            if call.timer is None:
                loop = asyncio.get_running_loop()
                status: Literal["lost", "unavailable"] = "lost" if call.attempt else "unavailable"
                fate = "may have been" if call.attempt else "was not"
                text = f"No client that offers {call.tool} is connected. The call {fate} carried out."
                call.set(timer=loop.call_later(self._settings.tools_absent_seconds, self._fail, call, status, text))
            return
        provider = best.provider
        call.set(provider=provider)
        provider.queues.setdefault(call.tool, deque()).append(call)
        self._pump(provider, call.tool)

    def _pump(self, provider: Provider, tool: str) -> None:
        """Send the calls of one function that its limits allow now."""
        queue = provider.queues.get(tool)
        loop = asyncio.get_running_loop()
        while queue and provider.connection is not None:
            call = queue[0]
            session = self._registry.get(call.session)
            open_call = session.machine.calls.open.get(call.call) if session is not None else None
            found = self._directory.find(session, tool) if session is not None else None
            if session is None or open_call is None or found is None:
                queue.popleft()
                if open_call is None:
                    self._calls.pop(call.call, None)
                else:  # the offer was withdrawn meanwhile
                    self._place(call)
                continue
            offer, now = found.offer, loop.time()
            if provider.in_flight.get(tool, 0) >= offer.max_in_flight:
                return  # the end of one of them calls this again
            if offer.per_second is not None and now < (next_at := provider.next_at.get(tool, 0.0)):
                loop.call_at(next_at, self._pump, provider, tool)
                return
            queue.popleft()
            if offer.per_second is not None:
                provider.next_at[tool] = now + 1 / offer.per_second
            self._send(provider, call, session, open_call)
        if not queue:
            provider.queues.pop(tool, None)

    def _send(self, provider: Provider, call: DispatchedCall, session: Session, open_call: OpenCall) -> None:
        call.set(attempt=call.attempt + 1)
        call.set(sent=True)
        call.set(holder=provider.key)
        provider.took(call)
        assert provider.connection is not None
        provider.connection.notify(
            "tool.call",
            {
                "call": call.call,
                "session": session.id,
                "cell": open_call.cell,
                "tool": call.tool,
                "arguments": call.arguments,
                "deadline_seconds": round(max(0.0, open_call.deadline - asyncio.get_running_loop().time()), 3),
                "attempt": call.attempt,
                "key": f"{session.id}/{call.call}",
                "parent_call": open_call.parent_call,
                "offered_in": self._directory.offered_in(provider, session, call.tool),
            },
        )
        call.set(arguments=None)  # the log has them, or the session

    def _retry(self, provider: Provider) -> None:
        """Place the calls that wait for a provider."""
        for call in [*self._calls.values()]:
            found = self._registry.get(call.session)
            if call.timer is not None and not call.sent and found is not None and provider.serves(found.principal):
                best = self._directory.find(found, call.tool)
                if best is not None and best.provider.connection is not None:
                    self._stop_timer(call)
                    self._redispatch(call)

    @staticmethod
    def _stop_timer(call: DispatchedCall) -> None:
        if call.timer is not None:
            call.timer.cancel()
            call.set(timer=None)

    def cancel(self, session: str, call: str, why: str) -> None:
        """See ``OfferPort``."""
        known = self._calls.get(call)
        if known is not None and known.sent and known.provider is not None and known.provider.connection is not None:
            known.provider.connection.notify("tool.cancel", {"call": call, "session": session, "why": why})

    def resume(self, session: str, calls: Iterable[OpenCall]) -> None:
        """See ``OfferPort``: an earlier server gave these calls to providers that will come back, or not."""
        loop = asyncio.get_running_loop()
        for call in calls:
            if call.id in self._calls:
                continue
            known = self._calls[call.id] = DispatchedCall(
                session, call.id, call.tool, None, sent=bool(call.provider), holder=call.provider
            )
            # The other calls had no provider yet: they wait for one as long as they would have without the restart.
            settings = self._settings
            seconds = settings.tools_grace_seconds if known.sent else settings.tools_absent_seconds
            known.set(timer=loop.call_later(seconds, self._not_resumed, known))

    def _not_resumed(self, call: DispatchedCall) -> None:
        call.set(timer=None)
        if call.sent:
            self._lose(call)
        else:
            self._fail(call, "unavailable", f"No client that offers {call.tool} has connected again.")

    def ended(self, call: str) -> None:
        """Forget a call that has ended, and send the next one."""
        known = self._calls.pop(call, None)
        if known is None:
            return
        self._stop_timer(known)
        provider = known.provider
        if provider is not None:
            provider.lost(known)
            self._pump(provider, known.tool)

    # -- answers -----------------------------------------------------------------------------

    def answer(
        self,
        who: Principal,
        session: str,
        call: str,
        *,
        status: Literal["ok", "error"],
        value: Any,
        content: Blocks | None,
        error: dict[str, Any] | None,
    ) -> None:
        """Take the answer of a provider. See ``tool.return``.

        Raises:
            Conflict: the call has ended otherwise.
            NotFound, Forbidden: there is no such call.
        """
        found = self._find_called(who, session, call)
        found.require_writable()
        form: Literal["", "content", "rows"] = "content" if content is not None else _form(value)
        result = content if content is not None else value
        size = len(msgspec.json.encode(result)) if result is not None else 0
        bound = self._settings.tools_max_result_bytes
        if status == "ok" and size > bound:
            text = (
                f"The result has {size} bytes and may have {bound}. The function can write a file with "
                "call.upload(name, data), and return its name."
            )
            found.handle(CallFailed(call, "too_large", text))
            return
        found.handle(CallAnswered(call, status, result if status == "ok" else None, size, error, form))

    def _find_called(self, who: Principal, session: str, call: str) -> Session:
        """Return the session of a call. The bridge answers the calls that it got in sessions of others."""
        known = self._calls.get(call) if "provide" in who.scopes else None
        own = known is not None and known.provider is not None and known.provider.principal == who.name
        found = self._registry.get(session) if own and known is not None and known.session == session else None
        return found if found is not None else self._registry.find(who, session, "run")

    def progress(
        self, who: Principal, session: str, call: str, *, progress: float, total: float | None, message: str | None
    ) -> None:
        """Record how far a call is, at most once a second."""
        found = self._find_called(who, session, call)
        known, now = self._calls.get(call), asyncio.get_running_loop().time()
        if known is None or known.session != session or now < known.progress_at + PROGRESS_SECONDS:
            return
        known.set(progress_at=now)
        open_call = found.machine.calls.open.get(call)
        event = ev.ToolProgress(call=call, progress=progress, total=total, message=message)
        if open_call is not None and open_call.cell is not None:
            event.cell = open_call.cell
        found.record(event)

    async def decide(
        self,
        who: Principal,
        session: str,
        calls: Sequence[str],
        *,
        approve: bool,
        reason: str | None,
        remember: Literal["cell", "session"] | None,
    ) -> ToolCallInfos:
        """Approve or deny calls that wait for a person. See ``session.decide``."""
        found = self._registry.find(who, session, "approve")
        if found.state is SessionState.CLOSED:
            raise Conflict("The session is closed, and its calls have ended.")
        found.require_writable()
        if remember is None and approve:
            remember = self._remembered(found, calls)
        found.handle(CallsDecided(tuple(calls), approve, who.name, reason, remember))
        return await asyncio.to_thread(found.tool_calls.reader().find, calls, with_values=False)

    def _remembered(self, session: Session, calls: Sequence[str]) -> Literal["cell", "session"] | None:
        """Return for how long an approval holds, if all calls are of functions that ask once."""
        ledger, held = session.machine.calls, set()
        for call in calls:
            open_call = ledger.open.get(call)
            known = ledger.offered.get(open_call.tool) if open_call is not None else None
            held.add(known.approval if known is not None else "always")
        if held == {"once_per_session"}:
            return "session"
        return "cell" if held == {"once_per_cell"} else None

    async def calls(
        self, who: Principal, session: str, *, cell: str | None, state: CallState | None, offset: int, limit: int
    ) -> tuple[ToolCallInfos, int]:
        """Return a page of a session's calls without their results, and how many calls there are."""
        reader = self._registry.find(who, session).tool_calls.reader()
        return await asyncio.to_thread(reader.page, cell=cell, state=state, offset=offset, limit=limit)

    async def find_call(self, who: Principal, session: str, call: str) -> ToolCallInfo:
        """Return a call with its result."""
        reader = self._registry.find(who, session).tool_calls.reader()
        return (await asyncio.to_thread(reader.find, [call]))[0]


def _form(value: Any) -> Literal["", "rows"]:
    return "rows" if isinstance(value, list) and value and all(isinstance(each, dict) for each in value) else ""
