"""A receiver of OTLP over HTTP in this process, which can also misbehave."""

from __future__ import annotations

import gzip
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

#: Limits of New Relic, the strictest of the documented receivers: bytes of a request, characters of a value.
MAX_REQUEST, MAX_VALUE = 1_000_000, 4095


def attributes(pairs: list[KeyValue]) -> dict[str, Any]:
    """Attributes as a dictionary."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in pairs}


class Receiver:
    """What arrived, and how it answers.

    Attributes:
        url: its base address.
        spans: all accepted spans, in order, with repeats.
        resource: attributes of the last request's resource.
        headers: of the last request.
        respond: called with the handler and the request in place of an answer. None accepts.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resource: dict[str, Any] = {}
        self.headers: dict[str, str] = {}
        self.requests = 0
        self.respond: Callable[[BaseHTTPRequestHandler, ExportTraceServiceRequest], bool] | None = None
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.take(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def take(self, handler: BaseHTTPRequestHandler) -> None:
        """Serve one request."""
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        self.requests += 1
        if handler.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        if self.respond is not None and not self.respond(handler, request):
            return
        assert handler.path == "/v1/traces"
        assert len(body) <= MAX_REQUEST
        self.headers = dict(handler.headers)
        for resource in request.resource_spans:
            self.resource = attributes(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += scope.spans
        answer(handler, 200, b"", "application/x-protobuf")

    def by_id(self) -> dict[bytes, Span]:
        """The spans without repeats."""
        return {span.span_id: span for span in self.spans}

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def answer(
    handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", kind: str = "text/plain", **headers: str
) -> bool:
    """Write a whole answer. Returns False, for ``respond``."""
    handler.send_response(status)
    for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)
    return False


def drip(handler: BaseHTTPRequestHandler, _: ExportTraceServiceRequest) -> bool:
    """Answer a byte at a time, without an end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
    for _number in range(600):
        try:
            handler.wfile.write(b"x")
        except OSError:
            break
        if select.select([handler.connection], [], [], 0.05)[0]:
            break  # The client has closed the connection.
    return False


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A running receiver."""
    receiver = Receiver()
    try:
        yield receiver
    finally:
        receiver.close()
