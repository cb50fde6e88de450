"""A web application in a session that has no network, seen from outside."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from served import Served
from waiting import wait_for
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from kernelsvc import Client
from kernelsvc.client.sync_client import Session
from kernelsvc.model.events import PortShared, PortUnshared

APP = """
import asyncio, threading
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler

class Page(RequestHandler):
    def get(self):
        self.write(f"page {self.request.uri} for {self.request.host}")

class Echo(WebSocketHandler):
    def on_message(self, message):
        self.write_message(message[::-1])

async def serve():
    Application([("/echo", Echo), ("/.*", Page)]).listen(3000, "127.0.0.1")
    started.set()
    await asyncio.Event().wait()

started = threading.Event()
threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()
started.wait(30)
"""


@dataclass
class App:
    """A session with a web application, and its server."""

    served: Served
    session: Session

    def get(self, url: str, **headers: str) -> tuple[int, str]:
        request = urllib.request.Request(url if "://" in url else self.served.url + url, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture(scope="module")
def app(served: Served) -> Iterator[App]:
    with Client(served.url, served.token) as client:
        if client.info()["sandbox"]["isolation"] not in ("full", "filtered"):
            pytest.skip("this machine gives sessions no network namespace")
        with client.create_session() as session:
            session.run(APP).raise_for_error()
            yield App(served, session)


def test_a_web_application_answers_by_http_and_websocket_until_its_owner_closes_it(app: App) -> None:
    address = app.session.share_port(3000)
    host = "localhost:3000"
    assert app.get(f"{address}a/b?c=1") == (200, f"page /a/b?c=1 for {host}")
    with connect(address.replace("http", "ws") + "echo", compression=None) as socket:
        socket.send("abc")
        assert socket.recv(30) == "cba"
        app.session.unshare_port(3000)
        with pytest.raises(ConnectionClosed):
            socket.recv(30)
    assert app.get(address)[0] == 401
    token = f"Bearer {app.served.token}"
    path = f"/v1/sessions/{app.session.id}/ports/3000/x"
    assert app.get(path, Authorization=token) == (200, f"page /x for {host}")
    kinds = [type(event) for event in app.session.events(follow=False)]
    assert kinds.count(PortShared) == kinds.count(PortUnshared) == 1
    name = f"3000-{app.session.id.replace('_', '-')}.example.org"
    assert app.get("/v1/info", Host=name, Authorization=token) == (200, f"page /v1/info for {host}")


def test_a_port_of_the_machine_is_none_of_the_sessions(app: App) -> None:
    machine = app.served.url.rpartition(":")[2]
    path = f"/v1/sessions/{app.session.id}/ports/{machine}/healthz"
    status, body = app.get(path, Authorization=f"Bearer {app.served.token}")
    assert (status, json.loads(body)["code"]) == (502, "port_unreachable")


def test_a_branch_has_its_parents_network_and_none_of_its_addresses(app: App) -> None:
    app.session.share_port(3000, public=True)
    try:
        assert app.get(f"/v1/sessions/{app.session.id}/ports/3000/")[0] == 200
        with app.session.branch(force=True)[0] as branch:
            assert app.get(f"/v1/sessions/{branch.id}/ports/3000/")[0] == 401
    finally:
        app.session.unshare_port(3000)


def test_a_paused_sandbox_is_resumed_by_a_request(app: App) -> None:
    made = app.served.call("POST", "/sandboxes", {"templateID": "base", "autoResume": {"enabled": True}})
    box = made["sandboxID"]
    path = f"/v1/sessions/{box}/ports/8000/"
    key = {"Authorization": f"Bearer {app.served.token}"}
    with Client(app.served.url, app.served.token) as client:
        client.session(box.replace("-", "_", 1)).run(
            "import subprocess, sys\n"
            "server = subprocess.Popen([sys.executable, '-m', 'http.server', '8000'], stderr=subprocess.DEVNULL)"
        ).raise_for_error()
    wait_for(lambda: app.get(path, **key)[0] == 200)
    app.served.call("POST", f"/sandboxes/{box}/pause", {})
    assert app.get(path, **key)[0] in (200, 502)  # the variables may be on disk already, and its server gone with them
    assert app.served.call("GET", f"/sandboxes/{box}")["state"] == "running"
    app.served.call("DELETE", f"/sandboxes/{box}")
