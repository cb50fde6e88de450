"""Servers on loopback addresses, and an environment in which a server's sessions may reach them by name.

They have the ports 80 and 443, so they need root or CAP_NET_BIND_SERVICE.
"""

from __future__ import annotations

import base64
import datetime
import gzip
import hashlib
import http.server
import ipaddress
import json
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

#: One for each process of a test run: ports 80 and 443 of an address can't be shared.
ADDRESS = f"127.77.0.{1 + int(os.environ.get('PYTEST_XDIST_WORKER', 'gw0')[2:])}"
#: Names that resolve to the servers, and names that resolve to addresses no rule may reach.
NAMES = (
    "ok.test",
    "other.test",
    "a.wild.test",
    "late.test",
    "read.test",
    "api.test",
    "hub.test",
    "packages.test",
    "models.test",
)
#: The servers' certificate is not for this name.
UNVERIFIED = "unverified.test"
HOSTS = dict.fromkeys((*NAMES, UNVERIFIED), ADDRESS) | {
    "metadata.test": "169.254.169.254",
    "intern.test": "10.1.2.3",
    "mapped.test": "::ffff:169.254.169.254",
}
RULES = {
    "allow": ["ok.test", "other.test", "*.wild.test", "metadata.test", "intern.test", "mapped.test"],
    "private": ["127.77.0.0/16"],
}
#: Rules for which the proxy reads requests, and the operator's secrets.
READ = {"host": "read.test", "methods": ["GET"], "paths": ["/public/*"]}
API = {"host": "api.test", "inject": {"Authorization": "Bearer ${api}"}}
HUB = {"host": "hub.test", "secrets": ["hub"], "methods": ["GET", "POST"]}
UNSAFE = {"host": UNVERIFIED, "inject": {"Authorization": "Bearer ${api}"}}
READING_RULES = RULES | {"allow": [*RULES["allow"], "ok.test:8765", READ, API, HUB, UNSAFE]}
REDIRECTS = {"/redirect": "https://other.test/landed", "/redirect-out": "http://evil.example/attack"}
API_KEY, HUB_KEY = "sk-api-0123456789/+abcdef", "hub-token-ABCDEF-98765"
needs_low_ports = pytest.mark.skipif(os.geteuid() != 0, reason="binding the ports 80 and 443 needs root")


def egress_environment(rules: object = RULES) -> dict[str, str]:
    """Settings of a server, as environment variables."""
    return {"KERNELSVC_LIMITS_NETWORK": json.dumps(rules), "KERNELSVC_EGRESS_HOSTS": json.dumps(HOSTS)}


def reading_environment(directory: Path, authority: str, rules: object = READING_RULES) -> dict[str, str]:
    """Settings of a server with secrets, and with rules for which the proxy reads requests.

    Args:
        directory: for files of secrets, which only the server's user may read.
        authority: the certificate of the test's servers.
        rules: the server's rules.
    """
    authorities, key = directory / "authorities.pem", directory / "api.key"
    authorities.write_text(authority)
    key.touch(0o600)
    key.write_text(f"{API_KEY}\n")
    secrets = {
        "api": {"hosts": ["api.test", UNVERIFIED], "file": str(key)},
        "hub": {"hosts": ["hub.test"], "env": "TEST_HUB_KEY"},
        "gone": {"hosts": ["api.test"], "command": ["false"]},
    }
    more = {"KERNELSVC_EGRESS_CA": str(authorities), "KERNELSVC_SECRETS": json.dumps(secrets), "TEST_HUB_KEY": HUB_KEY}
    return egress_environment(rules) | more


@dataclass
class Servers:
    """What the servers were asked (lines of requests, headers by path), and what they serve besides (by path)."""

    authority: str
    requests: list[str] = field(default_factory=list)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)


def certificate(names: list[str]) -> tuple[str, str]:
    """Return a self-signed certificate for these names, and its key, as PEM."""
    made, key = _signed(names, None)
    return _pem(made), _pem(key)


def chain(names: list[str]) -> tuple[str, str]:
    """Return the certificate of an authority, and a server's key and certificate that it signed, as PEM."""
    authority = _signed(["authority.test"], None)
    made, key = _signed(names, authority)
    return _pem(authority[0]), _pem(key) + _pem(made)


_Signed = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def _signed(names: list[str], authority: _Signed | None) -> _Signed:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    now = datetime.datetime.now(datetime.UTC)
    signer = authority[1] if authority else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority[0].subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    # Python 3.13 wants these (X509_V_FLAG_X509_STRICT): RFC 5280, sections 4.2.1.1 and 4.2.1.3.
    if authority:
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = builder.add_extension(issuer, critical=False)
    else:
        uses = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
        uses |= dict.fromkeys(("encipher_only", "decipher_only", "crl_sign"), False)
        usage = x509.KeyUsage(digital_signature=True, key_cert_sign=True, **uses)
        builder = builder.add_extension(usage, critical=True)
    return builder.sign(signer, hashes.SHA256()), key


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(item: x509.Certificate | ec.EllipticCurvePrivateKey) -> str:
    encoding = serialization.Encoding.PEM
    if isinstance(item, x509.Certificate):
        return item.public_bytes(encoding).decode()
    return item.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


def _handler(servers: Servers) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            servers.requests.append(f"{self.command} {self.path}")
            servers.headers[self.path] = dict(self.headers.items())
            echo = f"{self.command} {self.path} {len(body)}".encode()
            if self.path.startswith("/ws") and self.headers.get("Upgrade") == "websocket":
                self.accept_websocket()
                return
            kind, said = servers.files.get(self.path, ("text/plain", echo))
            if self.path.startswith("/echo"):
                said = self.answer_headers()
                if "split" in self.path:
                    self.send_pieces(said)
                    return
            else:
                self.send_response(302 if self.path in REDIRECTS else 200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(said)

        def answer_headers(self) -> bytes:
            """Begin an answer that has the request's headers in its reason, in a header and in its body."""
            credentials = self.headers.get("Authorization", "none")
            self.send_response(200, f"OK {credentials}")
            self.send_header("X-Echo", credentials)
            text = "".join(f"{name}: {value}\n" for name, value in self.headers.items()).encode()
            if "gzip" in self.path:
                self.send_header("Content-Encoding", "gzip")
                text = gzip.compress(text)
            return text

        def send_pieces(self, data: bytes) -> None:
            """Send a body of many chunks, none of which has a whole secret."""
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, len(data), 7):
                piece = data[at : at + 7]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()
            self.wfile.write(b"0\r\nX-Trailer: %s\r\n\r\n" % self.headers.get("Authorization", "").encode())

        def accept_websocket(self) -> None:
            """Send the request's headers as a message, and then each message back."""
            key = f"{self.headers['Sec-WebSocket-Key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            self.send_response(101)
            self.send_header("Connection", "Upgrade")
            self.send_header("Upgrade", "websocket")
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
            self.end_headers()
            text = "".join(f"{name}: {value}\n" for name, value in self.headers.items()).encode()
            self.wfile.write(b"\x81\x7e" + len(text).to_bytes(2) + text)
            while head := self.rfile.read(2):  # messages of a test have less than 126 bytes
                mask = self.rfile.read(4)
                data = bytes(byte ^ mask[at % 4] for at, byte in enumerate(self.rfile.read(head[1] & 0x7F)))
                self.wfile.write(bytes([head[0], len(data)]) + data)
                if head[0] == 0x88:  # Close
                    break
            self.close_connection = True

        def send_header(self, keyword: str, value: str) -> None:
            if keyword == "Content-Type" and self.path in REDIRECTS:
                super().send_header("Location", REDIRECTS[self.path])
            super().send_header(keyword, value)

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = answer

        def log_message(self, *args: object) -> None:
            pass

    return Handler


@contextmanager
def egress_servers(directory: Path) -> Iterator[Servers]:
    """Run an HTTP server on port 80 and an HTTPS server on port 443."""
    authority, key = certificate([name for name in HOSTS if name != UNVERIFIED])
    pem = directory / "server.pem"
    pem.write_text(key + authority)
    servers = Servers(authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    plain, tls = (http.server.ThreadingHTTPServer((ADDRESS, port), _handler(servers)) for port in (80, 443))
    tls.socket = context.wrap_socket(tls.socket, server_side=True, do_handshake_on_connect=False)
    running = [threading.Thread(target=one.serve_forever, args=(0.05,), daemon=True) for one in (plain, tls)]
    for thread in running:
        thread.start()
    try:
        yield servers
    finally:
        for server in (plain, tls):
            server.shutdown()
            server.server_close()
        for thread in running:
            thread.join()
