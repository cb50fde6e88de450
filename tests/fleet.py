"""A front and its nodes in one process: real servers over fake kernels, joined over real connections."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
from http_server import TOKENS, HttpServer
from tornado.httpclient import AsyncHTTPClient
from waiting import wait_until

from kernelsvc.front.app import Front
from kernelsvc.model.tokens import TokenRecord
from kernelsvc.server.app import Server
from kernelsvc.server.joining import Membership
from kernelsvc.service.access.principals import Principals
from kernelsvc.settings import Settings
from kernelsvc.store.token_file import TokenFile

KEY = "key-of-the-cluster-0123456789"


class FleetNode(HttpServer):
    """One node."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.joined: asyncio.Task[None] | None = None

    async def join(self, front: str, key: str = KEY) -> None:
        """Join a front, until ``leave``."""
        public_key = str(self.service.info()["public_key"])
        node = self.service.node_state()
        membership = Membership([front], key, self.settings.node, self.url, public_key, node, lambda _targets: None)
        self.joined = asyncio.create_task(membership.run())

    async def leave(self) -> None:
        """End the connection to the front."""
        if self.joined is not None:
            self.joined.cancel()
            await asyncio.gather(self.joined, return_exceptions=True)

    async def stop(self) -> None:
        await self.leave()
        await super().stop()


class Fleet(HttpServer):
    """A front with nodes. ``fetch``, ``json``, ``refused`` and ``socket`` call the front."""

    def __init__(self, root: Path, tokens: list[TokenRecord] | None = None, **settings: Any) -> None:
        self.root = root
        self.settings = Settings(
            port=0, data_dir=root / "front", tokens=TOKENS if tokens is None else tokens, **settings
        )
        self.nodes: list[FleetNode] = []
        self.http = AsyncHTTPClient(force_instance=True, max_clients=100)

    async def start(self, nodes: int = 2, *, hold_seconds: float = 5.0, lost_seconds: float = 600.0) -> Fleet:
        principals = Principals(self.settings.tokens, TokenFile(self.root / "no keys"))
        self.front = Front(self.settings, principals, KEY, hold_seconds=hold_seconds, lost_seconds=lost_seconds)
        self.server = Server(self.front, self.settings)
        self.url = self.server.start()[0]
        self.front.serve_tools_at(self.url)
        self.running = asyncio.create_task(self.front.run())
        for number in range(nodes):
            await self.add(f"{number:06x}")
        await self.joined(nodes)
        return self

    async def add(self, name: str, **more: Any) -> FleetNode:
        """Start another node and join it."""
        directory = self.root / name
        own = {"data_dir": directory / "data", "runtime_dir": directory / "run", "node": name, "port": 0}
        node = FleetNode(msgspec.structs.replace(self.settings, **{**own, **more}))
        self.nodes.append(node)
        await node.start()
        await node.join(self.url)
        return node

    async def joined(self, count: int) -> None:
        """Wait until so many nodes are reachable."""
        await wait_until(lambda: len(self.front.members.reachable()) == count, what=f"{count} nodes")

    def node(self, session: str) -> FleetNode:
        """The node of a session."""
        return next(each for each in self.nodes if session.removeprefix("s_").startswith(each.settings.node))

    def state(self, session: str) -> str:
        """The state of one of Alice's sessions."""
        return self.node(session).state(session)

    async def on_each(self, **more: Any) -> list[dict[str, Any]]:
        """Make one session on each node, by the node itself."""
        return [await node.json("POST", "/v1/sessions", more, status=201) for node in self.nodes]

    async def stop(self) -> None:
        self.http.close()
        await self.server.stop()
        for node in self.nodes:
            await node.stop()
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
