"""A node's connections to the fronts of its cluster: it says who it is, reports each second, and answers questions.

Nodes call fronts and not the other way round, so a front needs no list of nodes, and a program that starts nodes has
nothing to register. A name may stand for several fronts: a node connects to each address of it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
from tornado.iostream import StreamClosedError

from kernelsvc import __version__
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model.cluster import reports
from kernelsvc.model.cluster.reports import FrontQuestion, Hello, NodeMessage, NodeReport
from kernelsvc.protocol import e2b
from kernelsvc.server.ws import client

log = logging.getLogger(__name__)

PATH = "/v1/cluster/join"
#: Seconds between two lookups of the fronts' names, and the shortest and longest wait before another attempt.
LOOKUP_SECONDS, SHORTEST_WAIT, LONGEST_WAIT = 5.0, 0.05, 2.0
#: Most bytes of a front's question.
MAX_QUESTION = 64 * 1024


def check_addresses(*urls: str) -> None:
    """Check addresses of fronts, or of this node, before the server starts.

    Raises:
        BadRequest: One is neither ``http://HOST:PORT`` nor ``unix:/path``.
    """
    for each in urls:
        client.endpoint(each)


class NodeStateApi(Protocol):
    """The state that a node reports to its fronts (``service.node_state``)."""

    def report(self) -> NodeReport:
        """Return the state now."""

    def knows_key(self, principal: str, key: str) -> bool:
        """Return whether an idempotency key is known."""

    def session_of_signed(self, purpose: str, signed: e2b.SignedAddress) -> str | None:
        """Return the session of a signed address."""


class Membership:
    """Keeps a node joined to its fronts.

    Args:
        fronts: Addresses of the fronts.
        key: The cluster's key.
        node: The node's name.
        url: Address under which fronts reach this server.
        public_key: The server's key for signatures.
        state: The reported state.
        on_drain: Called when a front asks the node to drain, with the nodes that get its sessions: addresses by name.
    """

    def __init__(
        self,
        fronts: Sequence[str],
        key: str,
        node: str,
        url: str,
        public_key: str,
        state: NodeStateApi,
        on_drain: Callable[[dict[str, str]], None],
    ) -> None:
        self._fronts = fronts
        self._key = key
        self._state = state
        self._on_drain = on_drain
        self._hello = Hello(
            protocol=reports.PROTOCOL,
            node=node,
            instance=secrets.token_hex(8),
            url=url,
            version=__version__,
            public_key=public_key,
        )

    async def run(self) -> None:
        """Stay joined until cancelled."""
        tasks = OwnedTasks()
        found: dict[str, list[str]] = {}
        joined: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                for front in self._fronts:
                    if (urls := await _addresses(front)) is not None:
                        found[front] = urls
                    elif front not in found:
                        found[front] = []
                        log.warning("The front %s: its name can't be looked up now. The node tries again.", front)
                wanted = {url for urls in found.values() for url in urls}
                for url in joined.keys() - wanted:
                    joined.pop(url).cancel()
                for url in wanted:
                    if url not in joined or joined[url].done():
                        joined[url] = tasks.start(self._stay_joined(url), name=f"join {url}")
                await asyncio.sleep(LOOKUP_SECONDS)
        finally:
            tasks.cancel()

    async def _stay_joined(self, url: str) -> None:
        wait, before = SHORTEST_WAIT, ""
        while True:
            began = asyncio.get_running_loop().time()
            why = await self._join(url)
            if why != before:
                log.warning("The front %s: %s", url, why)
            before = why
            if asyncio.get_running_loop().time() - began > LONGEST_WAIT:
                wait = SHORTEST_WAIT
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(LONGEST_WAIT, wait * 2)

    async def _join(self, url: str) -> str:
        """Report to one front until the connection ends. Return why it ended."""
        ended = asyncio.Event()
        refused: list[str] = []
        replies: list[Callable[[bytes], object]] = []

        def on_message(data: bytes) -> None:
            try:
                question = reports.decode_question(data)
            except msgspec.MsgspecError:
                refused[:] = [_refusal(data)]
                return
            for send in replies:
                send(_encode(NodeMessage(answer=question.id, found=self._answer(question))))

        try:
            headers = [("Authorization", f"Bearer {self._key}")]
            front = await client.connect(url, PATH, headers, on_message, ended.set, MAX_QUESTION)
        except client.HandshakeRefused as error:
            if error.status == 401:
                return "It has another cluster key. Give this node and the front the same KERNELSVC_CLUSTER_KEY."
            return f"It is no front: {error}. Join the address of 'kernelsvc front'."
        except (OSError, TimeoutError) as error:
            return f"It does not answer ({error}). The node tries again."
        replies.append(front.send)
        try:
            front.send(_encode(NodeMessage(hello=self._hello)))
            guests: list[str] | None = None
            while not ended.is_set():
                report = self._state.report()
                guests, report.guests = report.guests, report.guests if report.guests != guests else None
                front.send(_encode(NodeMessage(report=report)))
                try:
                    async with asyncio.timeout(reports.REPORT_SECONDS):
                        await ended.wait()
                except TimeoutError:
                    continue
        except StreamClosedError:
            pass
        finally:
            front.close()
        return refused[-1] if refused else "The connection ended. The node joins again."

    def _answer(self, question: FrontQuestion) -> str | None:
        if question.key is not None:
            return "known" if self._state.knows_key(*question.key) else None
        if question.signed is not None:
            given, path, operation, user, expires = question.signed
            if operation not in ("read", "write"):
                return None
            signed = e2b.SignedAddress(given, path, operation, user, expires)  # type: ignore[arg-type]
            return self._state.session_of_signed(e2b.ENVD, signed)
        if question.drain:
            self._on_drain(dict(question.targets))
            return "draining"
        return None


_encode = msgspec.json.Encoder().encode


def _refusal(data: bytes) -> str:
    """Return the reason in a front's refusal: ``{"refused": "..."}``."""
    try:
        found: Any = msgspec.json.decode(data)
        return str(found["refused"])[:1000]
    except (msgspec.MsgspecError, KeyError, TypeError):
        return "It sent a message that this release can't read. Give nodes and fronts the same release."


async def _addresses(front: str) -> list[str] | None:
    """Return a URL for each address of a front's name. None: the name can't be looked up now."""
    where = client.endpoint(front)
    if isinstance(where, str):
        return [front]
    host, port = where
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        log.debug("%s can't be looked up: %s", host, error)
        return None
    hosts = {str(address[0]) for *_, address in found}
    return [f"http://[{each}]:{port}" if ":" in each else f"http://{each}:{port}" for each in hosts]
