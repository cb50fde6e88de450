"""The proxies' blocks of docs/howto/deploy.md, in real proxies before a real server: TLS, WebSocket, events, files."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from served import Served, free_port
from waiting import wait_for

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "howto" / "deploy.md"
PROXIES = ("nginx", "caddy", "traefik")
FOUND = {name: shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") for name in PROXIES}

# One skip for the module: the number of skips in a run is limited.
MISSING = [name for name in ("openssl", "curl") if shutil.which(name) is None]
MISSING += [] if any(FOUND.values()) else [*PROXIES]
if MISSING:
    pytest.skip(f"this machine has no {' and no '.join(MISSING)}", allow_module_level=True)


@dataclass
class Proxy:
    """A running proxy.

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


def block(kind: str, *changes: tuple[str, str]) -> str:
    """Return a block of the page, with these texts replaced. Each must be there."""
    found = re.search(rf"^```{kind}\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found is not None
    text = found[1]
    for page, here in changes:
        assert page in text
        text = text.replace(page, here)
    return text


def nginx(directory: Path, upstream: str, port: int) -> list[str]:
    """Write the configuration of nginx with this machine's addresses, and return its command."""
    text = block(
        "nginx",
        ("127.0.0.1:8888", upstream),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("sessions.example.org;", "localhost;"),
        ("/etc/letsencrypt/live/sessions.example.org/fullchain.pem", str(directory / "cert.pem")),
        ("/etc/letsencrypt/live/sessions.example.org/privkey.pem", str(directory / "key.pem")),
        ("/var/log/nginx/kernelsvc.log", str(directory / "access.log")),
    )
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    (directory / "nginx.conf").write_text(
        f"daemon off; pid {directory}/nginx.pid; error_log {directory}/error.log; user root; events {{}}\n"
        f"http {{ {temporary}\n{text}\n}}\n"
    )
    return ["-e", str(directory / "error.log"), "-c", str(directory / "nginx.conf")]


def caddy(directory: Path, upstream: str, port: int) -> list[str]:
    """Write the configuration of Caddy with this machine's addresses, and return its command."""
    text = block(
        "caddy",
        ("127.0.0.1:8888", upstream.replace("unix:", "unix/")),
        ("sessions.example.org {", f"localhost:{port} {{"),
        ("/etc/caddy/fullchain.pem /etc/caddy/privkey.pem", f"{directory}/cert.pem {directory}/key.pem"),
        ("/var/log/caddy/kernelsvc.log", str(directory / "access.log")),
    )
    (directory / "Caddyfile").write_text(
        f"{{\n\tadmin off\n\tauto_https disable_redirects\n\tdefault_bind 127.0.0.1\n}}\n{text}"
    )
    return ["run", "--adapter", "caddyfile", "--config", str(directory / "Caddyfile")]


def traefik(directory: Path, upstream: str, port: int) -> list[str]:
    """Write the configuration of Traefik with this machine's addresses, and return its command."""
    routes = block(
        "yaml kernelsvc.yml",
        ("127.0.0.1:8888", upstream),
        ("sessions.example.org", "localhost"),
        ("/etc/traefik/fullchain.pem", str(directory / "cert.pem")),
        ("/etc/traefik/privkey.pem", str(directory / "key.pem")),
    )
    static = block(
        "yaml traefik.yml",
        (":443", f"127.0.0.1:{port}"),
        ("/etc/traefik/kernelsvc.yml", str(directory / "kernelsvc.yml")),
        ("/var/log/traefik/kernelsvc.log", str(directory / "access.log")),
    )
    (directory / "kernelsvc.yml").write_text(routes)
    (directory / "traefik.yml").write_text(f"{static}global:\n  checkNewVersion: false\n  sendAnonymousUsage: false\n")
    return [f"--configFile={directory}/traefik.yml"]


CONFIGURE: dict[str, Callable[[Path, str, int], list[str]]] = {"nginx": nginx, "caddy": caddy, "traefik": traefik}
#: Each proxy that this machine has, with the sockets that it can connect to.
PARAMETERS = [
    (name, where)
    for name in PROXIES
    for where in ("TCP", "Unix socket")
    if FOUND[name] and (name, where) != ("traefik", "Unix socket")
]


@pytest.fixture(scope="module", params=PARAMETERS, ids=[" over ".join(each) for each in PARAMETERS])
def proxy(request: pytest.FixtureRequest, served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    name, where = request.param
    directory = tmp_path_factory.mktemp("proxy")
    port = free_port()
    forwarder = None
    upstream = served.url.removeprefix("http://")
    if where == "Unix socket":
        path = directory / "http.sock"
        forwarder = forward(path, upstream)
        upstream = f"unix:{path}"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    key = ["-newkey", "rsa:2048", "-nodes", "-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")]
    subprocess.run(["openssl", "req", "-x509", *key, *subject], check=True, capture_output=True)
    program = FOUND[name]
    assert program is not None
    # Caddy keeps files below HOME.
    env = os.environ | {"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
    with (directory / "printed").open("w") as printed:
        process = subprocess.Popen(
            [program, *CONFIGURE[name](directory, upstream, port)], stdout=printed, stderr=printed, env=env
        )
    found = Proxy(f"https://localhost:{port}", directory / "cert.pem", directory / "access.log", served.token)
    try:
        wait_for(lambda: process.poll() is not None or accepts(port), what=name)
        assert process.poll() is None, (directory / "printed").read_text()
        yield found
    finally:
        process.terminate()
        process.wait(timeout=30)
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
        # A proxy must not decode a name, nor refuse one.
        for name in ("data", "100%25 of%3B a%3Fb%23c.csv".replace(" ", "%20")):
            proxy.curl(f"/v1/sessions/{session}/files/{name}", "-T", str(data))
            proxy.curl(f"/v1/sessions/{session}/files/{name}", "-o", f"{data}.back")
            assert Path(f"{data}.back").read_bytes() == data.read_bytes()
    finally:
        proxy.curl(f"/v1/sessions/{session}", "-X", "DELETE")


def test_a_page_of_the_proxys_own_origin_is_served_and_a_foreign_one_is_not(proxy: Proxy) -> None:
    own = proxy.curl("/v1/info", "-H", f"Origin: {proxy.url}")
    assert '"version"' in own
    assert "forbidden" in proxy.curl("/v1/info", "-H", "Origin: https://example.org")


def test_counts_are_for_the_machine_of_the_page_alone(proxy: Proxy) -> None:
    assert "kernelsvc_cells_total" in proxy.curl("/metrics")
    assert "kernelsvc_cells_total" not in proxy.curl("/metrics", "--interface", "127.0.0.2")


def test_no_token_is_in_the_access_log(proxy: Proxy) -> None:
    before = proxy.log.read_text().count("\n") if proxy.log.exists() else 0
    ticket = f"s-1.8000.1900000000.{'0' * 64}"
    for path in (
        f"/t/{proxy.token}/v1/healthz",
        f"/v1/info?token={proxy.token}",
        f"/v1/ports/{ticket}/lab",
        f"/v1/ports/{ticket}",
        f"/v1//ports/{ticket}/x?kernelsvc_ticket={ticket}",
    ):
        proxy.curl(path, "-H", f"X-API-Key: {proxy.token}", "-H", f"Referer: https://localhost{path}")
    wait_for(lambda: proxy.log.read_text().count("\n") >= before + 5, what="five lines in the log")
    logged = proxy.log.read_text()
    assert proxy.token not in logged
    assert ticket not in logged
    if "/v1/info" in logged:  # Traefik's lines have no path
        assert re.search("/t/[.]*/v1/healthz", logged)
        assert re.search("/v1/ports/[.]*/lab", logged)


def test_all_proxies_of_the_page_were_run() -> None:
    missing = [name for name in PROXIES if not FOUND[name]]
    if missing:
        pytest.skip(f"this machine has no {' and no '.join(missing)}: make test-proxies unpacks them")
