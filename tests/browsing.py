"""Debian's Chromium, driven by Playwright, for tests of the web console."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Served

SWITCHES = [
    "--no-sandbox",  # the tests may run as root, and open only pages of this machine
    *(
        f"--disable-{name}"
        for name in ("gpu", "quic", "background-networking", "component-update", "sync", "dev-shm-usage")
    ),
    "--no-first-run",
    "--enable-precise-memory-info",
    "--js-flags=--expose-gc",  # benchmarks collect garbage before they measure memory
]
WAIT = 20_000
#: A directory for pictures that a person looks at. Without it none is saved.
PICTURES = os.environ.get("KERNELSVC_PICTURES")


def browser_path() -> str:
    """A Chromium of this machine. Tests are skipped where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("needs a browser (Debian: apt-get install chromium)")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser for some tests. They are skipped where there is none."""
    path = browser_path()
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright (pip install '.[dev]')")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=SWITCHES)
        yield browser
        browser.close()


class ConsolePage:
    """One page of the console, which records everything that must not happen.

    Attributes:
        page: Playwright's page.
        faults: requests to other servers, errors of scripts, and violations of the console's policy.
    """

    def __init__(self, browser: Any, served: Served, **options: Any) -> None:
        self.served = served
        self.context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.faults: list[str] = []
        # A request that a policy refuses is an event, too, and ends at once.
        self.page.on("requestfinished", self._asked)
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.add_init_script(
            "if (window === top) { window.hits = []; window.violations = [];"
            "addEventListener('message', (e) => { if (e.data?.hit !== undefined) hits.push(e.data.hit); });"
            "addEventListener('securitypolicyviolation',"
            " (e) => violations.push(`${e.violatedDirective} ${e.blockedURI}`)); }"
        )

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.served.url, "blob:", "data:")):
            self.faults.append(f"asked: {request.url}")

    def open(self, route: str = "/", token: str | None = None) -> Any:
        """Open a screen, signed in."""
        quoted = json.dumps(token or self.served.token)
        self.context.add_init_script(
            f"if (window === top && !sessionStorage['kernelsvc.token']) sessionStorage['kernelsvc.token'] = {quoted}"
        )
        self.page.goto(f"{self.served.url}/console/#{route}")
        return self.page

    def violations(self) -> list[str]:
        """The violations of the console's own policy so far. None of an output's frame are among them."""
        return self.page.evaluate("violations")

    def picture(self, name: str) -> None:
        """Save what the page shows, if the run of tests saves pictures."""
        if PICTURES:
            Path(PICTURES).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=f"{PICTURES}/{name}.png")

    def close(self) -> None:
        """Close the page, and fail the test that used it if anything was recorded."""
        self.context.close()
        assert not self.faults, self.faults


class Collector:
    """A server that notes who asks it: connections over TCP, and packets over UDP.

    Attributes:
        host: ``127.0.0.1:PORT``.
        asked: the first lines of requests, "" for a connection without one.
        packets: how many came over UDP.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.packets = 0
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            timeout = 5

            def handle(self) -> None:
                place = len(outer.asked)
                outer.asked.append("")
                with contextlib.suppress(OSError):
                    outer.asked[place] = self.rfile.readline(4096).decode("latin-1").strip()
                    body = outer.pages.get(outer.asked[place].split(" ")[1] if outer.asked[place] else "", b"")
                    head = f"Content-Type: text/html\r\nContent-Length: {len(body)}\r\nConnection: close"
                    self.wfile.write(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode() + body)

        self.pages: dict[str, bytes] = {}
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", 0))
        self.udp = self._udp.getsockname()[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        with contextlib.suppress(OSError):
            while self._udp.recv(4096) != b"end":
                self.packets += 1

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._udp.sendto(b"end", self._udp.getsockname())
        self._udp.close()


def run_cells(served: Served, *codes: str, **request: Any) -> str:
    """A session in which these cells have run. Returns its id."""
    session = served.call("POST", "/v1/sessions", request)["id"]
    for code in codes:
        served.call("POST", f"/v1/sessions/{session}/cells", {"code": code})
    return session
