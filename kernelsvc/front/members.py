"""The nodes that are joined to a front, their state, and waiting for one that is away for a moment."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import msgspec
from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from kernelsvc import __version__
from kernelsvc.errors import AtCapacity, BadRequest, NodeUnreachable, SessionLost, Unauthenticated
from kernelsvc.model.cluster import reports
from kernelsvc.model.cluster.ids import node_of
from kernelsvc.model.cluster.placing import Candidate
from kernelsvc.model.cluster.reports import FrontQuestion, Hello, NodeMessage, NodeReport
from kernelsvc.server import auth
from kernelsvc.server.connections import connection_of
from kernelsvc.server.handler import BaseHandler, ServerContext
from kernelsvc.server.ws.client import endpoint

log = logging.getLogger(__name__)

#: Seconds for which a request waits for its node, and after which a silent node's sessions count as lost.
HOLD_SECONDS, LOST_SECONDS = 10.0, 600.0
#: Seconds between two checks for silent nodes, and for a node's answer to a question.
CHECK_SECONDS, ANSWER_SECONDS = 0.25, 2.0
#: The owner of the nodes' connections. No principal has an empty name.
OWNER_OF_CONNECTIONS = ""
#: Sessions whose node was found by asking, of which the oldest is forgotten first.
MAX_FOUND = 10_000


@dataclass(eq=False)
class Member:
    """One node.

    Attributes:
        hello: Its first message.
        url: Its address.
        candidate: Its last report, and the creations that were sent to it since.
        reported_at: Time of the last report, on the event loop's clock.
        lost_at: Time of the loss, on the event loop's clock. None: it reports.
        guests: Its open sessions whose ids do not name it.
        connections: Its open connections.
        on_lost: Called once each when it becomes unreachable.
    """

    hello: Hello
    url: str
    candidate: Candidate
    reported_at: float
    lost_at: float | None = None
    guests: frozenset[str] = frozenset()
    connections: set[JoinHandler] = field(default_factory=set)
    on_lost: set[Callable[[], None]] = field(default_factory=set)

    @property
    def name(self) -> str:
        """The node's name."""
        return self.hello.node

    @property
    def reachable(self) -> bool:
        """Whether it reports, and has reported once."""
        return self.lost_at is None and bool(self.candidate.report.max_sessions)


class Members:
    """The nodes of a cluster, as one front sees them.

    Args:
        key: The cluster's key.
        tokens: Returns the digest of the front's own tokens.
        hold_seconds: For which requests wait for a node.
        lost_seconds: Silence after which the sessions of a node count as lost.
    """

    def __init__(
        self,
        key: str,
        tokens: Callable[[], str],
        hold_seconds: float,
        lost_seconds: float,
    ) -> None:
        self.hold_seconds = hold_seconds
        self.tokens = tokens
        #: Whether some node has sessions whose ids don't name it.
        self.any_guests = False
        #: Called with a node that has become reachable.
        self.on_joined: set[Callable[[Member], None]] = set()
        self._key = key
        self._lost_seconds = lost_seconds
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._all: dict[str, Member] = {}
        self._refused: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._found: OrderedDict[str, str] = OrderedDict()

    # --- who is there ------------------------------------------------------------------------

    def known(self) -> list[Member]:
        """Return all nodes that have joined since the front started, by name."""
        return sorted(self._all.values(), key=lambda each: each.name)

    def reachable(self) -> list[Member]:
        """Return the nodes that answer."""
        return [each for each in self._all.values() if each.reachable]

    def unreachable(self) -> list[str]:
        """Return the names of the nodes that do not answer."""
        return [each.name for each in self.known() if not each.reachable]

    def get(self, node: str) -> Member | None:
        """Return a node, or None if it has never joined."""
        return self._all.get(node)

    def refusals(self) -> list[str]:
        """Return which nodes were refused since the front started, and why, the last reason of each node."""
        return [*self._refused.values()]

    def candidates(self) -> list[Candidate]:
        """Return the reachable nodes for a decision."""
        return [each.candidate for each in self.reachable()]

    def any(self, node: str | None = None) -> Member:
        """Return this node if it is reachable, else some ready node.

        Raises:
            AtCapacity: There is none.
        """
        if node is not None and (named := self._all.get(node)) is not None and named.reachable:
            return named
        found = self.reachable()
        if not found:
            raise AtCapacity("No node of this cluster answers now. Try again in a few seconds.")
        return min(found, key=lambda each: (not each.candidate.report.ready, each.candidate.load))

    async def wait_for_any(self) -> None:
        """Wait until a node is reachable, ``hold_seconds`` at most. Safe to cancel."""
        await self._wait(lambda: bool(self.reachable()))

    # --- whose a session is -----------------------------------------------------------------

    def owner(self, session: str) -> str | None:
        """Return the name of the node that has a session, by its id or by what nodes reported. None: not known."""
        if (name := self.moved(session)) is not None:
            return name
        return self._found.get(session) or node_of(session)

    def owner_answers(self, session: str) -> bool:
        """Return whether a session's node is known and reachable."""
        found = self._all.get(self.owner(session) or "")
        return found is not None and found.reachable

    def moved(self, session: str) -> str | None:
        """Return the name of the node that reports a session as a guest: its id names none, or another one."""
        for each in self._all.values():
            if session in each.guests:
                return each.name
        return None

    def remember(self, session: str, node: str) -> None:
        """Remember the node of a session that was found by asking."""
        self._found[session] = node
        self._found.move_to_end(session)
        while len(self._found) > MAX_FOUND:
            self._found.popitem(last=False)

    async def wait_for(self, node: str, session: str) -> Member:
        """Return a node, after a wait of at most ``hold_seconds`` for one that may be restarting. Safe to cancel.

        Raises:
            NodeUnreachable: It does not answer. One that has been away for ``hold_seconds`` already is not waited for.
            SessionLost: It has not answered for long, or has never joined.
        """

        def named() -> Member | None:
            return self._all.get(self.moved(session) or node)

        if self._silent(named()) <= self.hold_seconds:
            await self._wait(lambda: (found := named()) is not None and found.reachable)
        found = named()
        if found is not None and found.reachable:
            return found
        raise self.absent(node, session)

    def absent(self, node: str, session: str) -> NodeUnreachable | SessionLost:
        """Return the error for a session whose node does not answer."""
        found = self._all.get(node)
        silent = self._silent(found)
        if silent >= self._lost_seconds:
            never = "has not answered for" if found is not None else "has not joined this cluster for"
            return SessionLost(
                f"The node {node}, which has {session}, {never} {silent:.0f} s. Create a new session, or start the "
                "node's server again: it still has what its data directory has.",
                node=node,
            )
        soon = silent <= self.hold_seconds
        step = "Try again in a few seconds" if soon else f"Start its server again, it is away for {silent:.0f} s"
        return NodeUnreachable(
            f"The node {node}, which has {session}, does not answer. {step}. 'kernelsvc nodes' shows its state.",
            node=node,
        )

    def _silent(self, member: Member | None) -> float:
        """Return the seconds since a node was lost, or since the front started if it never joined. 0 if it reports."""
        if member is None:
            return self._loop.time() - self._started
        return 0.0 if member.lost_at is None else self._loop.time() - member.lost_at

    async def _wait(self, there: Callable[[], bool]) -> None:
        deadline = self._loop.time() + self.hold_seconds
        while not there() and (left := deadline - self._loop.time()) > 0:
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                return

    # --- joining and leaving ----------------------------------------------------------------

    def check_key(self, given: str | None) -> None:
        """Check the key of a node.

        Raises:
            Unauthenticated: It is another one.
        """
        if not hmac.compare_digest((given or "").encode("utf-8", "surrogatepass"), self._key.encode()):
            raise Unauthenticated("The cluster key is another one. Give nodes and fronts the same.")

    def join(self, connection: JoinHandler, hello: Hello, peer: str) -> Member | str:
        """Add a node, or one more connection of it. Return the node, or why it is refused."""
        why, url = self._objection(hello), hello.url
        try:
            url = reachable_url(hello.url, peer)
        except BadRequest as error:
            why = error.message
        if why:
            shown = f"the node {hello.node} at {url}: {why}"
            if self._refused.get(hello.node) != shown:  # it tries again every few seconds
                log.warning("Refused %s", shown)
            self._refused[hello.node] = shown
            return why
        self._refused.pop(hello.node, None)
        before = self._all.get(hello.node)
        if before is not None and before.lost_at is None and before.hello.instance == hello.instance:
            before.connections.add(connection)
            return before
        if before is not None:
            self._lose(before)
        member = Member(hello, url, Candidate(hello.node, NodeReport(max_sessions=0)), self._loop.time())
        member.connections.add(connection)
        self._all[hello.node] = member
        log.info("The node %s joined at %s (kernelsvc %s)", hello.node, url, hello.version)
        return member

    def _objection(self, hello: Hello) -> str | None:
        if hello.protocol != reports.PROTOCOL:
            return (
                f"The node speaks version {hello.protocol} of the cluster's protocol, this front version "
                f"{reports.PROTOCOL} (kernelsvc {__version__}). Give nodes and fronts the same release."
            )
        before = self._all.get(hello.node)
        if before is not None and before.lost_at is None and before.hello.instance != hello.instance:
            return (
                f"Another server is the node {hello.node} already, at {before.url}. Two servers use copies of one data "
                "directory: give each one of its own, without the file 'node'."
            )
        return None

    def take_report(self, member: Member, report: NodeReport) -> None:
        """Note a node's report."""
        back = not member.candidate.report.max_sessions
        if member.lost_at is not None and self._all.get(member.name) is member:
            member.lost_at, back = None, True
            log.info("The node %s answers again", member.name)
        member.candidate.renew(report)
        member.reported_at = self._loop.time()
        if report.guests is not None:
            member.guests = frozenset(report.guests)
            self.any_guests = any(each.guests for each in self._all.values())
            # A session may have moved here, for which requests wait.
            self._changed.set()
        if back and member.reachable:
            self._changed.set()
            for joined in [*self.on_joined]:
                joined(member)

    def leave(self, connection: JoinHandler, member: Member) -> None:
        """Note the end of a node's connection. Without another, the node is unreachable."""
        member.connections.discard(connection)
        if not member.connections and self._all.get(member.name) is member:
            self._lose(member)

    def _suspect(self, member: Member) -> None:
        """Note that a node does not answer. Its connections stay, because it may only be slow."""
        if member.lost_at is None:
            member.lost_at = self._loop.time()
            log.warning("The node %s does not answer any more", member.name)
            self._changed.set()

    def _lose(self, member: Member) -> None:
        """Note that a node does not answer, and cut all connections to it."""
        self._suspect(member)
        for connection in [*member.connections]:
            connection.close(1001, "this node was silent")
        for lost in [*member.on_lost]:
            lost()
        member.on_lost.clear()

    async def watch(self) -> None:
        """Look for nodes that are silent, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            now = self._loop.time()
            for member in self.known():
                silent = now - member.reported_at
                if silent > reports.CUT_SECONDS and (member.connections or member.on_lost):
                    self._lose(member)
                elif silent > reports.SILENT_SECONDS:
                    self._suspect(member)

    async def close(self) -> None:
        """Close the connections of all nodes. Requests that still run at them end."""
        for member in self.known():
            self._lose(member)

    # --- what is shown ----------------------------------------------------------------------

    def describe(self) -> list[dict[str, Any]]:
        """Return the nodes for ``GET /v1/nodes``."""
        return [self._describe(each) for each in self.known()]

    def _describe(self, member: Member) -> dict[str, Any]:
        report, now = member.candidate.report, self._loop.time()
        state = "ready" if report.ready else "starting"
        if member.lost_at is not None:
            lost = now - member.lost_at >= self._lost_seconds
            state = "lost" if lost else "unreachable"
        elif report.draining:
            state = "draining"
        warnings = []
        if member.hello.version != __version__:
            warnings.append(f"it has kernelsvc {member.hello.version}, this front {__version__}")
        if report.tokens and report.tokens != self.tokens():
            warnings.append("its tokens are others than this front's: some requests get 401")
        return {
            "node": member.name,
            "url": member.url,
            "state": state,
            "version": member.hello.version,
            "sessions": report.sessions,
            "max_sessions": report.max_sessions,
            "cells": report.cells,
            "promised_bytes": report.promised_bytes,
            "memory_bytes": report.memory_bytes,
            "silent_seconds": round(now - member.reported_at, 1),
            "warnings": warnings,
        }


def reachable_url(url: str, peer: str) -> str:
    """Return a node's address, with the address that it connects from in place of 0.0.0.0 or [::].

    Raises:
        BadRequest: It is no address of a server.
    """
    where = endpoint(url)
    if isinstance(where, str):
        return url
    try:
        unspecified = ipaddress.ip_address(where[0]).is_unspecified
    except ValueError:
        unspecified = False
    if not unspecified:
        return url
    host = f"[{peer}]" if ":" in peer else peer
    return f"http://{host}:{urlsplit(url).port or 80}"


class JoinHandler(BaseHandler, WebSocketHandler):
    """Handler of ``/v1/cluster/join``, the connection of a node."""

    scope = None
    own_authentication = True
    credential = "cluster key"
    transport = "cluster"
    route = "/v1/cluster/join"
    members: Members
    _member: Member | None = None

    def initialize(self, context: ServerContext, **more: Any) -> None:
        """Tornado's hook."""
        super().initialize(context, **more)
        self._asked: dict[int, asyncio.Future[str | None]] = {}
        self._number = 0

    async def prepare(self) -> None:
        """Tornado's hook: check the key before the upgrade."""
        await self.admit_request()

    def authenticate_request(self) -> None:
        """Check the cluster's key.

        Raises:
            Unauthenticated: It is another one.
            AtCapacity: Nodes have as many connections as one principal may have.
        """
        self.members.check_key(auth.bearer(self.request.headers.get("Authorization")))
        # Unauthenticated connections are closed after a time, and before others when there are too many.
        if (connection := connection_of(getattr(self.request.connection, "stream", None))) is not None:
            connection.claim(OWNER_OF_CONNECTIONS, "")

    def check_origin(self, origin: str) -> bool:
        """Tornado's hook: no page in a browser has the key."""
        return True

    def open(self, *args: str, **kwargs: str) -> None:
        """Tornado's hook."""
        if self.context.stopping:
            self.close(1001, "the front stops")

    def on_message(self, message: str | bytes) -> None:
        """Tornado's hook: a node's message."""
        try:
            found: NodeMessage = reports.decode_message(message)
        except (msgspec.MsgspecError, RecursionError) as error:
            self._refuse(f"The front can't read the node's message: {error}")
            return
        if found.hello is not None:
            joined = self.members.join(self, found.hello, str(self.request.remote_ip))
            if isinstance(joined, str):
                self._refuse(joined)
                return
            self._member = joined
        if self._member is None:
            self._refuse("A node says who it is first.")
            return
        if found.report is not None:
            self.members.take_report(self._member, found.report)
        if found.answer is not None and (future := self._asked.pop(found.answer, None)) and not future.done():
            future.set_result(found.found)

    def _refuse(self, why: str) -> None:
        with_reason = msgspec.json.encode({"refused": why})
        try:
            self.write_message(with_reason)
        except (WebSocketClosedError, StreamClosedError):
            return
        self.close(1008, "refused")

    async def ask(self, **question: Any) -> str | None:
        """Ask the node. Return its answer. Safe to cancel.

        Raises:
            TimeoutError, OSError: It does not answer.
        """
        self._number += 1
        number = self._number
        future: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                try:
                    await self.write_message(msgspec.json.encode(FrontQuestion(id=number, **question)))
                except (WebSocketClosedError, StreamClosedError):
                    raise ConnectionResetError("the node's connection ended") from None
                return await future
        finally:
            self._asked.pop(number, None)

    def on_close(self) -> None:
        """Tornado's hook: the connection ended."""
        for future in self._asked.values():
            if not future.done():
                # No cancellation: it would end the request that asked, without a response.
                future.set_exception(ConnectionResetError("the node's connection ended"))
        if self._member is not None:
            self.members.leave(self, self._member)


async def ask(member: Member, **question: Any) -> str | None:
    """Ask a node. Return its answer, or None if it does not answer. Safe to cancel."""
    for connection in [*member.connections]:
        try:
            return await connection.ask(**question)
        except (OSError, TimeoutError):
            continue
    return None
