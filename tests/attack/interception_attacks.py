"""Attacks on requests that the proxy reads and on the operator's secrets, for one cell: it prints the verdicts as JSON.

The rules are those of ``egress_servers.READING_RULES``.
"""

from __future__ import annotations

#: Runs in the session. Each verdict is compared with ``EXPECTED``.
CODE = r"""
import base64, json, os, re, socket, ssl

# SSL_CERT_FILE names the proxy's authority. Each context reads 150 certificates.
named, unnamed = ssl.create_default_context(), ssl.create_default_context()
unnamed.check_hostname = False
named.set_alpn_protocols(["h2", "http/1.1"])

def connected(host, name=None):
    context = named if name == host else unnamed
    return context.wrap_socket(socket.create_connection((host, 443), 10), server_hostname=name)

def read_all(sock):
    data = b""
    try:
        while chunk := sock.recv(65536):
            data += chunk
    except OSError:
        pass
    return data

def send(host, *lines, name="", plain=False):
    data = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    try:
        tls = lambda: connected(host, host if name == "" else name)
        with socket.create_connection((host, 80), 10) if plain else tls() as sock:
            sock.sendall(data)
            return read_all(sock).decode("latin-1")
    except OSError as error:
        return f"{type(error).__name__} {getattr(error, 'reason', '')}".strip()

def status(answer):
    return " ".join(re.findall(r"HTTP/1\.1 (\d+)", answer)) or answer

def get(host, path="/echo", *fields, method="GET", named=None, **more):
    lines = [f"{method} {path} HTTP/1.1", f"Host: {named or host}", "Connection: close", *fields]
    return send(host, *lines, **more)

def basic(text):
    return "Authorization: Basic " + base64.b64encode(text.encode()).decode()

def seen(answer):
    # Whether the answer has the text of a key, or is that of a server that got one.
    got = "a key" if any(part in answer for part in ("0123456789", "ABCDEF-98765")) else "no key"
    return f"{status(answer)}, {got}, {'stars' if '*' * 20 in answer else 'no stars'}"

def write(path):
    try:
        with open(path, "a"):
            return "written"
    except OSError:
        return "refused"

def websocket(host, path="/ws", *fields, then=None):
    # The message that the server sends first has the headers that it got.
    upgrade = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", *(fields or ["Sec-WebSocket-Version: 13"]), *upgrade]
    try:
        with connected(host, host) as sock:
            sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            got = sock.recv(4096).decode("latin-1")
            if then is None:
                sock.sendall(b"\x88\x80abcd")
            else:
                sock.sendall(then)
            return got + read_all(sock).decode("latin-1")
    except OSError as error:
        return f"{type(error).__name__} {getattr(error, 'reason', '')}".strip()

def http_2_alone():
    context, outgoing = ssl.create_default_context(), ssl.MemoryBIO()
    context.set_alpn_protocols(["h2"])
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="api.test")
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    with socket.create_connection(("api.test", 443), 10) as sock:
        sock.sendall(outgoing.read())
        return f"alert {sock.recv(10)[6]}"

def alpn():
    with connected("api.test", "api.test") as sock:
        return str(sock.selected_alpn_protocol())

def forged():
    # An authority of the session's own can't stand in for the server's.
    context = ssl.create_default_context(cafile="/etc/ssl/certs/ca-certificates.crt")
    try:
        context.wrap_socket(socket.create_connection(("api.test", 443), 10), server_hostname="api.test")
    except ssl.SSLError as error:
        return error.reason
    return "connected"

first = "POST /echo HTTP/1.1\r\nHost: api.test\r\nContent-Length: 3\r\n\r\nabc"
verdicts = {
    "Host of another rule": status(get("api.test", "/attack", named="hub.test")),
    "Host without a rule": status(get("api.test", "/attack", named="evil.example")),
    "Host with a port of another": status(get("api.test", "/attack", named="api.test:80")),
    "two Hosts": status(get("api.test", "/attack", "Host: evil.example")),
    "server name of another rule": get("api.test", "/attack", name="hub.test"),
    "server name without a rule": get("api.test", "/attack", name="evil.example"),
    "no server name": seen(get("api.test", name=None)),
    "absolute target": status(get("api.test", "https://evil.example/attack")),
    "TRACE": status(get("api.test", "/attack", method="TRACE")),
    "CONNECT": status(get("api.test", "evil.example:443", method="CONNECT")),
    "two framings": status(get("api.test", "/attack", "Content-Length: 3", "Transfer-Encoding: chunked")),
    "two lengths": status(get("api.test", "/attack", "Content-Length: 3", "Content-Length: 4", method="POST")),
    "another coding": status(get("api.test", "/attack", "Transfer-Encoding: xchunked", method="POST")),
    "space before the colon": status(get("api.test", "/attack", "Transfer-Encoding : chunked", method="POST")),
    "a field with NUL": status(get("api.test", "/attack", "X: a\0b")),
    "a field with a bare CR": status(get("api.test", "/attack", "X: a\rHost: evil.example")),
    "a second request for another": status(send("api.test", first + "GET /attack HTTP/1.1", "Host: evil.example")),
    "split by the target": status(get("api.test", "/attack HTTP/1.1\r\nHost: evil.example\r\n\r\nGET /attack")),
    "h2c": seen(get("api.test", "/echo", "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAA")),
    "the preface of HTTP/2": status(send("api.test", "PRI * HTTP/2.0", "", "SM")),
    "HTTP/2 by ALPN": alpn(),
    "HTTP/2 alone by ALPN": http_2_alone(),
    "an incomplete WebSocket": seen(get("api.test", "/echo", "Upgrade: websocket", "Connection: Upgrade")),
    "a WebSocket": seen(websocket("api.test")),
    "a WebSocket with an account of its own": "mine" in websocket(
        "api.test", "/ws", "Sec-WebSocket-Version: 13", "Authorization: mine", "Sec-WebSocket-Protocol: a, key.mine"),
    "a WebSocket's placeholder": seen(websocket(
        "hub.test", "/ws", "Sec-WebSocket-Version: 13", "X-Key: kernelsvc-secret-hub")),
    "a WebSocket on a path without a rule": status(websocket("read.test", "/attack")),
    "requests after a WebSocket that was refused": status(websocket(
        "read.test", "/public/x", "Sec-WebSocket-Version: 12", then=b"GET /attack HTTP/1.1\r\nHost: x\r\n\r\n")),
    "plain HTTP": status(get("api.test", "/attack", plain=True)),
    "own account": seen(get("api.test", "/echo", "Authorization: Bearer mine", "X-Api-Key: mine", "X_Api_Key: mine")),
    "own account is gone": "mine" in get("api.test", "/echo", "Authorization: Bearer mine", "X_Api_Key: mine"),
    "a placeholder": seen(get("hub.test", "/echo", "Authorization: token kernelsvc-secret-hub")),
    "a placeholder in Basic": seen(get("hub.test", "/echo", basic("me:kernelsvc-secret-hub"))),
    "a placeholder of another secret": seen(get("hub.test", "/echo", "Authorization: token kernelsvc-secret-api")),
    "a placeholder for another host": seen(get("ok.test", "/echo", "Authorization: kernelsvc-secret-hub", plain=True)),
    "a placeholder in a field that is echoed": seen(get("hub.test", "/echo", "User-Agent: kernelsvc-secret-hub")),
    "a placeholder in a query": seen(get("hub.test", "/echo?kernelsvc-secret-hub")),
    "echo in small chunks": seen(get("api.test", "/echo-split")),
    "echo in a small chunk's placeholder": seen(get("hub.test", "/echo-split", "X-Key: kernelsvc-secret-hub")),
    "echo compressed": seen(get("api.test", "/echo-gzip")),
    "echo part by part": "range" in get("api.test", "/echo", "Range: bytes=0-0", "If-Range: x").lower(),
    "a redirect": status(get("api.test", "/redirect")),
    "a server without its certificate": status(get("unverified.test", "/attack")),
    "a method without a rule": status(get("read.test", "/public/attack", method="POST")),
    "another method by a field": "delete" in get("read.test", "/public/a", "X-HTTP-Method-Override: DELETE").lower(),
    "a path without a rule": status(get("read.test", "/attack")),
    "a path with dots": status(get("read.test", "/public/../attack")),
    "a path with encoded dots": status(get("read.test", "/public/%2e%2e/attack")),
    "a path by a field": status(get("read.test", "/public/b", "X-Original-URL: /attack")),
    "the authority's file": write("/etc/kernelsvc/certificates.pem"),
    "files beside it": os.listdir("/etc/kernelsvc"),
    "without trust": forged(),
    "keys in the environment": any("ABCDEF-98765" in value for value in os.environ.values()),
    "keys in the first environment": b"ABCDEF-98765" in open("/proc/self/environ", "rb").read(),
}
print(json.dumps(verdicts))
"""

_HIDDEN = "200, no key, stars"
_NOT_SENT = "200, no key, no stars"

EXPECTED = {
    "Host of another rule": "403",
    "Host without a rule": "403",
    "Host with a port of another": "403",
    "two Hosts": "400",
    "server name of another rule": "SSLError TLSV1_ALERT_ACCESS_DENIED",
    "server name without a rule": "SSLError TLSV1_ALERT_ACCESS_DENIED",
    "no server name": _HIDDEN,
    "absolute target": "403",
    "TRACE": "403",
    "CONNECT": "403",
    "two framings": "400",
    "two lengths": "400",
    "another coding": "501",
    "space before the colon": "400",
    "a field with NUL": "400",
    "a field with a bare CR": "400",
    "a second request for another": "200 403",
    "split by the target": "403",
    "h2c": _HIDDEN,
    "the preface of HTTP/2": "403",
    "HTTP/2 by ALPN": "http/1.1",
    "HTTP/2 alone by ALPN": "alert 120",
    "an incomplete WebSocket": _HIDDEN,
    "a WebSocket": "101, no key, stars",
    "a WebSocket with an account of its own": False,
    "a WebSocket's placeholder": "101, no key, stars",
    "a WebSocket on a path without a rule": "403",
    "requests after a WebSocket that was refused": "200 403",
    "plain HTTP": "403",
    "own account": _HIDDEN,
    "own account is gone": False,
    "a placeholder": _HIDDEN,
    "a placeholder in Basic": _HIDDEN,
    "a placeholder of another secret": _NOT_SENT,
    "a placeholder for another host": _NOT_SENT,
    "a placeholder in a field that is echoed": _NOT_SENT,
    "a placeholder in a query": _NOT_SENT,
    "echo in small chunks": _HIDDEN,
    "echo in a small chunk's placeholder": _HIDDEN,
    "echo compressed": "502, no key, no stars",
    "echo part by part": False,
    "a redirect": "302",
    "a server without its certificate": "502",
    "a method without a rule": "403",
    "another method by a field": False,
    "a path without a rule": "403",
    "a path with dots": "403",
    "a path with encoded dots": "403",
    "a path by a field": "200",
    "the authority's file": "refused",
    "files beside it": ["certificates.pem"],
    "without trust": "CERTIFICATE_VERIFY_FAILED",
    "keys in the environment": False,
    "keys in the first environment": False,
}
