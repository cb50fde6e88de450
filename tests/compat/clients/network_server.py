"""The servers that clients in a session reach by rules: HTTP/1.1, HTTP/2, WebSockets, gRPC, two databases.

    python network_server.py ADDRESS PEM DIRECTORY KEY

``PEM`` has the certificate and its key. Files of ``DIRECTORY`` are served. ``KEY`` is the Authorization that the proxy
adds: answers only say whether it was there.
"""

import asyncio
import json
import socketserver
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from hypercorn.asyncio import serve
from hypercorn.config import Config

ADDRESS, PEM, DIRECTORY, KEY = sys.argv[1:]
BUCKETS = """<?xml version="1.0"?><ListAllMyBucketsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
<Buckets><Bucket><Name>{}</Name></Bucket></Buckets></ListAllMyBucketsResult>"""


def answer(scope, headers, body):
    """Return the type and the content of an answer."""
    path, keyed = scope["path"], headers.get("authorization") == KEY
    file = Path(DIRECTORY) / path.lstrip("/")
    said = f"HTTP/{scope['http_version']}{', key' if keyed else ''}"
    if file.is_dir() and (file / "index.html").exists():
        return "text/html", (file / "index.html").read_bytes()
    if file.is_file():
        return "application/octet-stream", file.read_bytes()
    if path == "/npm/thing":
        tarball = f"{scope['scheme']}://{headers.get('host', '')}/npm/thing-1.0.0.tgz"
        version = {"name": "thing", "version": "1.0.0", "dist": {"tarball": tarball}}
        return "application/json", {"name": "thing", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    if path == "/v1/chat/completions":
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        return "application/json", {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
        }
    if path == "/v1/messages":
        block = {"type": "text", "text": said}
        usage = {"input_tokens": 1, "output_tokens": 1}
        return "application/json", {"id": "1", "type": "message", "role": "assistant", "model": "m", "content": [block],
                                    "stop_reason": "end_turn", "stop_sequence": None, "usage": usage}  # fmt: skip
    if path == "/s3/":
        return "application/xml", BUCKETS.format(said).encode()
    if path.startswith("/said"):
        return "text/plain", f"{said}, {len(body)} bytes" if body else said
    return None, b"not found"


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind.endswith("shutdown"):
                return
    headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] == "websocket.receive":
            # A message says whether the key came with the handshake.
            text = event.get("text", "") + (", key" if headers.get("authorization") == KEY else "")
            await send({"type": "websocket.send", "text": text})
        return
    body, more = b"", True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        body += event.get("body", b"")
        more = event.get("more_body", False)
    kind, content = answer(scope, headers, body)
    content = (
        content
        if isinstance(content, bytes)
        else (content if isinstance(content, str) else json.dumps(content)).encode()
    )
    fields = [(b"content-type", (kind or "text/plain").encode()), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200 if kind else 404, "headers": fields})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})


class Postgres(socketserver.StreamRequestHandler):
    """Refuses TLS and then each user, so that a client shows that it arrived."""

    def handle(self):
        while size := int.from_bytes(self.rfile.read(4)):
            if self.rfile.read(size - 4) != b"\x04\xd2\x16\x2f":  # SSLRequest
                break
            self.wfile.write(b"N")
        text = b"SFATAL\0C28000\0Mthe database was reached\0\0"
        self.wfile.write(b"E" + (len(text) + 4).to_bytes(4) + text)


class Redis(socketserver.StreamRequestHandler):
    """Answers each command with PONG."""

    def handle(self):
        while line := self.rfile.readline():
            for _ in range(int(line[1:])):
                self.rfile.readline()
                self.rfile.readline()
            self.wfile.write(b"+PONG\r\n")


def serve_grpc():
    """Run a gRPC server with one method that returns its request."""
    pem = Path(PEM).read_bytes()
    echo = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", {"Say": echo})])
    server.add_secure_port(f"{ADDRESS}:8443", grpc.ssl_server_credentials([(pem, pem)]))
    server.start()
    return server


async def main():
    running = [serve_grpc()]
    for port, handler in ((5432, Postgres), (6379, Redis)):
        socketserver.ThreadingTCPServer.allow_reuse_address = True
        socketserver.ThreadingTCPServer.daemon_threads = True
        server = socketserver.ThreadingTCPServer((ADDRESS, port), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
    config = Config()
    config.bind, config.insecure_bind = [f"{ADDRESS}:443"], [f"{ADDRESS}:80"]
    config.certfile = config.keyfile = PEM
    config.alpn_protocols = ["h2", "http/1.1"]
    config.accesslog = config.errorlog = None
    stopped = asyncio.Event()

    async def ready():
        await asyncio.sleep(0)
        print("ready", flush=True)
        await stopped.wait()

    await serve(app, config, shutdown_trigger=ready)


asyncio.run(main())
