"""Where spans go: the settings of traces, together with OpenTelemetry's own environment variables. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import unquote, urlsplit

from msgspec import Meta, Struct

from kernelsvc.errors import BadRequest
from kernelsvc.model.tracing.spans import Attributes, Content

#: Most seconds for one request to the receiver. Default and largest value.
REQUEST_SECONDS, MAX_REQUEST_SECONDS = 10.0, 60.0
#: Help of the settings ``telemetry.*``: text, unit.
HELP: dict[str, tuple[str, str | None]] = {
    "endpoint": (
        "Base address of a receiver of OTLP over HTTP, such as http://127.0.0.1:4318, or its whole address that ends "
        "with /v1/traces. Spans are sent there. Empty: $OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, then "
        "$OTEL_EXPORTER_OTLP_ENDPOINT, else there are no spans.",
        None,
    ),
    "headers_file": (
        "File with more headers for the receiver, such as a key: a line NAME=VALUE each. They come after those of "
        "$OTEL_EXPORTER_OTLP_HEADERS.",
        None,
    ),
    "content": (
        "Content that spans hold: none (off), the code of cells, the arguments of calls and the paths of requests "
        "(code), or also output and results (all).",
        None,
    ),
    "sample": ("Share of the traces without a caller that are sent. A caller's trace is sent if the caller records it.",
               None),
}  # fmt: skip


class TelemetrySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of traces. Without an endpoint there are no spans."""

    endpoint: str = ""
    headers_file: str = ""
    content: Content = "off"
    sample: Annotated[float, Meta(ge=0, le=1)] = 1.0


class SpanTarget(Struct, frozen=True, kw_only=True):
    """A receiver of spans.

    Attributes:
        url: where requests go.
        headers: of each request. They may hold secrets.
        seconds: for one request.
        compress: whether bodies are compressed with gzip.
        resource: attributes of the server, which all spans have.
    """

    url: str
    headers: dict[str, str] = {}
    seconds: float = REQUEST_SECONDS
    compress: bool = True
    resource: Attributes = {}


def find_endpoint(settings: TelemetrySettings, env: Mapping[str, str]) -> str:
    """Return the address that spans are sent to, or "" if there are none.

    Args:
        settings: the settings of traces.
        env: the environment, with OpenTelemetry's variables.

    Raises:
        BadRequest: the address is no HTTP address, or it holds a password.
    """
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return ""
    whole = env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
    base = settings.endpoint or (env.get("OTEL_EXPORTER_OTLP_ENDPOINT", "") if not whole else "")
    if not (base or whole):
        return ""
    # The specification: the general address gets the signal's path, the one for traces is used as it is.
    url = whole if not base else base if base.endswith("/v1/traces") else base.rstrip("/") + "/v1/traces"
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # Brackets that do not match, or a port that is none.
        valid = False
    if not valid:
        # An address that can't be split may have its password in any part.
        shown = ", which is not shown as it may hold a password," if "@" in url else f", {url!r},"
        raise BadRequest(
            f"The address of the receiver of spans{shown} is no HTTP address. Give one such as "
            "http://127.0.0.1:4318 as the setting telemetry.endpoint. OTLP over gRPC is not supported.",
            setting="telemetry.endpoint",
        )
    if "@" in parts.netloc:
        raise BadRequest(
            "The address of the receiver of spans holds a password, which would stand in logs. Put it into "
            "telemetry.headers_file.",
            setting="telemetry.endpoint",
        )
    return url


def target_of(
    settings: TelemetrySettings, env: Mapping[str, str], headers_text: str, *, instance: str, version: str, host: str
) -> SpanTarget | None:
    """Return the receiver of spans, or None if there is none.

    Args:
        settings: the settings of traces.
        env: the environment, with OpenTelemetry's variables.
        headers_text: the text of ``headers_file``.
        instance: what distinguishes this server from others of its name.
        version: of the server.
        host: name of the machine.

    Raises:
        BadRequest: a value is not valid. The message shows no header.
    """
    url = find_endpoint(settings, env)
    if not url:
        return None

    def of_traces(name: str) -> str:
        return env.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or env.get(f"OTEL_EXPORTER_OTLP_{name}", "")

    given = _pairs(env.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","), "OTEL_RESOURCE_ATTRIBUTES")
    headers = {
        **_pairs(of_traces("HEADERS").split(","), "OTEL_EXPORTER_OTLP_HEADERS"),
        **_pairs(headers_text.splitlines(), "telemetry.headers_file", encoded=False),
    }
    return SpanTarget(
        url=url,
        headers=headers,
        seconds=_seconds(of_traces("TIMEOUT")),
        compress=of_traces("COMPRESSION") != "none",
        resource={
            "service.name": env.get("OTEL_SERVICE_NAME") or given.get("service.name", "kernelsvc"),
            "service.version": version,
            "service.instance.id": instance,
            "host.name": host,
            **{name: value for name, value in given.items() if name != "service.name"},
        },
    )


def _pairs(texts: list[str], source: str, *, encoded: bool = True) -> dict[str, str]:
    found = {}
    for text in texts:
        if not text.strip():
            continue
        name, equals, value = text.partition("=")
        name, value = name.strip(), value.strip()
        value = unquote(value) if encoded else value
        if not equals or not name or not (name + value).isprintable():
            raise BadRequest(f"{source} is not a list of NAME=VALUE. Correct it.", setting="telemetry")
        found[name] = value
    return found


def _seconds(milliseconds: str) -> float:
    try:
        return min(MAX_REQUEST_SECONDS, max(0.1, float(milliseconds) / 1000))
    except ValueError:
        return REQUEST_SECONDS
