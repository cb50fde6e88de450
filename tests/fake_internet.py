"""A machine whose Internet is one process: a kernelsvc server and a program run in it, to test public addresses.

    python fake_internet.py PROGRAM ARGUMENT ...

It runs as root in network and mount namespaces of its own, in which every address is local (ip-route(8), type
``local``). One HTTPS server answers for all of them, with a certificate that all programs trust, and a name server
knows all names. Names of ports (``port_domain``) lead to the kernelsvc server.
"""

from __future__ import annotations

import http.client
import http.server
import os
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from egress_servers import chain
from served import Served

DOMAIN = "sandboxes.test"
#: Statuses by address or name. Any other answers with 200.
STATUSES = {"1.1.1.1": 301, "8.8.8.8": 302, "connectivitycheck.gstatic.com": 204}
NAMES = [*STATUSES, DOMAIN, f"*.{DOMAIN}"]
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers by the address that was connected to, or passes a request on to the kernelsvc server."""

    protocol_version = "HTTP/1.1"
    backend = ""

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").partition(":")[0]
        status, body = STATUSES.get(host, STATUSES.get(self.connection.getsockname()[0], 200)), b""
        if host.endswith(DOMAIN):
            connection = http.client.HTTPConnection(self.backend.removeprefix("http://"), timeout=20)
            connection.request("GET", self.path, headers=dict(self.headers.items()))
            answer = connection.getresponse()
            status, body = answer.status, answer.read()
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


class Names(socketserver.BaseRequestHandler):
    """Answers each question for an IPv4 address with 9.9.9.9, and others with nothing."""

    def handle(self) -> None:
        data, sock = self.request
        end = data.index(b"\0", 12) + 5
        found = data[end - 4 : end - 2] == b"\0\x01"
        record = b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04" + socket.inet_aton("9.9.9.9") if found else b""
        head = data[:2] + struct.pack("!HHHHH", 0x8180, 1, int(found), 0, 0)
        sock.sendto(head + data[12:end] + record, self.client_address)


def prepare(directory: Path, authority: str) -> None:
    """Make every address local, and let all programs look names up here and trust the authority."""
    for command in (
        "ip link set lo up",
        "ip route add local 0.0.0.0/0 dev lo",
        "ip address add 198.51.100.1/32 dev lo",
    ):
        subprocess.run(command.split(), check=True)
    for path, text in (("/etc/resolv.conf", "nameserver 127.0.0.1\n"), (BUNDLE, Path(BUNDLE).read_text() + authority)):
        shown = directory / Path(path).name
        shown.write_text(text)
        subprocess.run(["mount", "--bind", shown, path], check=True)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as root:
        directory = Path(root)
        authority, server = chain(NAMES)
        (directory / "server.pem").write_text(server)
        prepare(directory, authority)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "server.pem")
        https = http.server.ThreadingHTTPServer(("0.0.0.0", 443), Answer)
        https.socket = context.wrap_socket(https.socket, server_side=True, do_handshake_on_connect=False)
        names = socketserver.ThreadingUDPServer(("127.0.0.1", 53), Names)
        for each in (https, names):
            threading.Thread(target=each.serve_forever, daemon=True).start()
        (directory / "authority.pem").write_text(authority)
        env = {
            "KERNELSVC_PORT_DOMAIN": DOMAIN,
            "KERNELSVC_EGRESS_CA": str(directory / "authority.pem"),
            "KERNELSVC_PORTS": "open",
        }
        served = Served(directory / "served", env=os.environ | env).start()
        Answer.backend = served.url
        address = {"E2B_API_URL": served.url, "E2B_SANDBOX_URL": served.url, "E2B_DOMAIN": DOMAIN}
        program = os.environ | address | {"E2B_API_KEY": served.token, "SSL_CERT_FILE": BUNDLE}
        try:
            return subprocess.run(sys.argv[1:], env=program, check=False).returncode
        finally:
            served.stop()


if __name__ == "__main__":
    sys.exit(main())
