"""The nginx block of docs/howto/deploy.md, in a real nginx before a real server: TLS, WebSocket, events, files."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from served import Served, free_port
from waiting import wait_for

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "howto" / "deploy.md"
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

# One skip for the module: the number of skips in a run is limited.
MISSING = [name for name in ("openssl", "curl") if shutil.which(name) is None] + ([] if NGINX else ["nginx"])
if MISSING:
    pytest.skip(f"this machine has no {' and no '.join(MISSING)}", allow_module_level=True)


@dataclass
class Proxy:
    """A running nginx.

    Attributes:
        url: Its HTTPS address.
        certificate: Signed by itself, for clients to trust.
        log: Its access log.
        token: The server's.
    """

    url: str
    certificate: Path
    log: Path
    token: str

    def curl(self, path: str, *options: str) -> str:
        """Return the body of an answer."""
        header = f"Authorization: Bearer {self.token}"
        command = ["curl", "-sS", "--cacert", str(self.certificate), "-H", header, *options, f"{self.url}{path}"]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout

    def kernelsvc(self, *words: str, stdin: str = "") -> str:
        """Return the output of a command of the client."""
        env = os.environ | {
            "KERNELSVC_URL": self.url,
            "KERNELSVC_TOKEN": self.token,
            "SSL_CERT_FILE": str(self.certificate),
        }
        command = [sys.executable, "-m", "kernelsvc", *words]
        done = subprocess.run(command, env=env, input=stdin, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout


def configuration(directory: Path, upstream: str, port: int) -> str:
    """Return the page's block as a whole configuration file, with this machine's addresses."""
    block = re.search(r"^```nginx\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert block is not None
    text = block[1]
    for page, here in (
        ("127.0.0.1:8888", upstream),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("sessions.example.org;", "localhost;"),
        ("/etc/letsencrypt/live/sessions.example.org/fullchain.pem", str(directory / "cert.pem")),
        ("/etc/letsencrypt/live/sessions.example.org/privkey.pem", str(directory / "key.pem")),
        ("/var/log/nginx/kernelsvc.log", str(directory / "access.log")),
    ):
        assert page in text
        text = text.replace(page, here)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    return (
        f"daemon off; pid {directory}/nginx.pid; error_log {directory}/error.log; user root; events {{}}\n"
        f"http {{ {temporary}\n{text}\n}}\n"
    )


@pytest.fixture(params=["TCP", "Unix socket"])
def proxy(request: pytest.FixtureRequest, served: Served, tmp_path: Path, short_tmp: Path) -> Iterator[Proxy]:
    port = free_port()
    forwarder = None
    upstream = served.url.removeprefix("http://")
    if request.param == "Unix socket":
        path = short_tmp / "http.sock"
        forwarder = forward(path, upstream)
        upstream = f"unix:{path}"
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    key = ["-newkey", "rsa:2048", "-nodes", "-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run(["openssl", "req", "-x509", *key, *name], check=True, capture_output=True)
    (tmp_path / "nginx.conf").write_text(configuration(tmp_path, upstream, port))
    assert NGINX is not None
    command = [NGINX, "-e", str(tmp_path / "error.log"), "-c", str(tmp_path / "nginx.conf")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    found = Proxy(f"https://localhost:{port}", tmp_path / "cert.pem", tmp_path / "access.log", served.token)
    try:
        wait_for(lambda: process.poll() is not None or accepts(port), what="nginx")
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        yield found
    finally:
        process.terminate()
        process.communicate(timeout=10)
        if forwarder is not None:
            forwarder.terminate()
            forwarder.wait(10)


def accepts(address: str | int) -> bool:
    """Whether a Unix socket or a port of this machine accepts connections."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as probe:
        return probe.connect_ex(address if isinstance(address, str) else ("127.0.0.1", address)) == 0


FORWARD = """
import asyncio, sys
async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data); await writer.drain()
    except ConnectionError:
        pass
    writer.close()
async def serve(reader, writer):
    host, port = sys.argv[2].rsplit(":", 1)
    there = await asyncio.open_connection(host, int(port))
    await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))
async def main():
    async with await asyncio.start_unix_server(serve, sys.argv[1]) as server:
        await server.serve_forever()
asyncio.run(main())
"""


def forward(path: Path, upstream: str) -> subprocess.Popen[bytes]:
    """Start a process that forwards a Unix socket to the shared server, which listens on TCP."""
    process = subprocess.Popen([sys.executable, "-c", FORWARD, str(path), upstream])
    wait_for(lambda: accepts(str(path)), what="the Unix socket")
    return process


def test_a_cell_over_the_websocket(proxy: Proxy) -> None:
    assert proxy.kernelsvc("run", "-", stdin="print(6 * 7)").endswith("42\n")


def test_events_arrive_while_the_cell_runs_and_files_pass_unchanged(proxy: Proxy) -> None:
    session = re.findall(r"s_\w{16}", proxy.curl("/v1/sessions", "-X", "POST", "-d", "{}"))[0]
    try:
        body = '{"code": "import time\\nprint(1, flush=True)\\ntime.sleep(600)"}'
        options = ["-N", "-H", "Accept: text/event-stream", "-H", "Content-Type: application/json", "-d", body]
        header = f"Authorization: Bearer {proxy.token}"
        command = ["curl", "-sS", "--cacert", str(proxy.certificate), "-H", header, *options]
        with subprocess.Popen(
            [*command, f"{proxy.url}/v1/sessions/{session}/cells"], stdout=subprocess.PIPE, text=True
        ) as stream:
            assert stream.stdout is not None
            # A buffering proxy would keep the line until the cell's end, ten minutes later.
            assert any('"text":"1' in line for line in stream.stdout)
            stream.terminate()
        proxy.curl(f"/v1/sessions/{session}/interrupt", "-X", "POST")
        data = Path(proxy.certificate).with_name("data")
        data.write_bytes(os.urandom(3_000_000))
        proxy.curl(f"/v1/sessions/{session}/files/data", "-T", str(data))
        proxy.curl(f"/v1/sessions/{session}/files/data", "-o", f"{data}.back")
        assert Path(f"{data}.back").read_bytes() == data.read_bytes()
    finally:
        proxy.curl(f"/v1/sessions/{session}", "-X", "DELETE")


def test_a_page_of_the_proxys_own_origin_is_served_and_a_foreign_one_is_not(proxy: Proxy) -> None:
    own = proxy.curl("/v1/info", "-H", f"Origin: {proxy.url}")
    assert '"version"' in own
    assert "forbidden" in proxy.curl("/v1/info", "-H", "Origin: https://example.org")


def test_no_token_is_in_the_access_log(proxy: Proxy) -> None:
    proxy.curl(f"/t/{proxy.token}/v1/healthz")
    proxy.curl(f"/v1/info?token={proxy.token}")
    ticket = f"s-1.8000.1900000000.{'0' * 64}"
    for path in (f"/v1/ports/{ticket}/lab", f"/v1/ports/{ticket}", f"/v1//ports/{ticket}/x?kernelsvc_ticket={ticket}"):
        proxy.curl(path)
    wait_for(lambda: proxy.log.read_text().count("\n") >= 5, what="five lines in the log")
    logged = proxy.log.read_text()
    assert "/t/.../v1/healthz" in logged
    assert "/v1/ports/.../lab" in logged
    assert proxy.token not in logged
    assert ticket not in logged
