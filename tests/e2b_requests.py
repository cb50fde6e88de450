"""Requests as E2B's clients send them, each over a connection of its own."""

from __future__ import annotations

import http.client
import json
from typing import Any

from served import Served


class E2bRequests:
    """A client of one server."""

    def __init__(self, served: Served) -> None:
        self.served = served

    def raw(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.served.url.removeprefix("http://"), timeout=60)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def control(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send a request with the key. Return its status and its JSON."""
        data = None if body is None else json.dumps(body).encode()
        status, said = self.raw(method, path, data, {"X-API-KEY": self.served.token})
        return status, json.loads(said) if said else None
