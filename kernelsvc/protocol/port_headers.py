"""Headers of requests to a session's own servers, and of their responses: what passes in each direction. Pure.

The server in a session is hostile. Its requests must hold nothing that gives rights on this service, and its responses
must not act on this service's origin, on other sessions' pages, or on a proxy in front.

A request has one of two forms. In the *host form* the port has a host name, and so a web origin, of its own. In the
*path form* its pages come from this service's origin, so a browser is told to treat them as an origin of no site
(CSP ``sandbox``), and no cookie passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

Headers = list[tuple[str, str]]

#: The cookie that holds a ticket. RFC 6265bis: a cookie with the prefix ``__Host-`` can't come from a sibling domain.
COOKIE, SECURE_COOKIE = "kernelsvc-port", "__Host-kernelsvc-port"

#: RFC 9110, section 7.6.1: fields that an intermediary removes, besides those that ``Connection`` names.
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization"}
    | {"te", "trailer", "transfer-encoding", "upgrade", "expect"}
)
#: Fields in which this service's clients send secrets, or name a sandbox or a user.
_OF_SERVICE = frozenset(
    {"x-api-key", "x-access-token", "e2b-traffic-access-token", "e2b-sandbox-id", "e2b-sandbox-port"}
    | {"x-on-behalf-of"}
)
#: Fields that this service sets itself, so that nobody else can.
_FORWARDED = frozenset(
    {"forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-port", "x-forwarded-prefix"}
    | {"x-real-ip", "x-forwarded-server", "x-kernelsvc-on-loopback", "via", "host"}
)
#: Fields by which a response gives orders to a proxy in front (nginx, lighttpd, Apache), or to a browser for the time
#: after it, or for other hosts.
_ORDERS = frozenset(
    {"x-sendfile", "x-lighttpd-send-file", "x-reproxy-url", "x-litespeed-location", "alt-svc", "public-key-pins"}
    | {"strict-transport-security", "expect-ct", "report-to", "reporting-endpoints", "nel", "via"}
)
_ORDER_PREFIXES = ("x-accel-", "x-lua-", "surrogate-", "cdn-", "proxy-")
#: Fields by which a response in the path form would act on this service's origin.
_ON_ORIGIN = frozenset(
    {
        "set-cookie",
        "set-cookie2",
        "clear-site-data",
        "service-worker-allowed",
        "www-authenticate",
        "origin-agent-cluster",
    }
    | {"referrer-policy", "x-content-type-options", "cross-origin-resource-policy", "cross-origin-opener-policy"}
    | {"cross-origin-embedder-policy", "cache-control", "expires", "pragma", "document-policy", "permissions-policy"}
)
_SANDBOX = "sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts"
#: Fields of each response in the path form.
PATH_FORM: Headers = [
    ("Content-Security-Policy", _SANDBOX),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
    # Pages in the sandbox have an origin of their own, for which their own pictures and scripts are foreign.
    ("Cross-Origin-Resource-Policy", "cross-origin"),
]


def end_to_end(headers: Iterable[tuple[str, str]]) -> Headers:
    """Return the fields of a message that an intermediary passes on: not those of one hop (RFC 9110, section 7.6.1)."""
    given = list(headers)
    listed = ",".join(value for name, value in given if name.lower() == "connection")
    # A message must not use this to remove a field that an intermediary relies on.
    dropped = {part.strip().lower() for part in listed.split(",")} - {"host", "content-length"} | _HOP_BY_HOP
    return [(name, value) for name, value in given if name.lower() not in dropped]


def for_session(
    headers: Iterable[tuple[str, str]],
    *,
    local: str,
    host: str,
    scheme: str,
    own_origin: bool,
    keep_authorization: bool,
    upgrade: bool,
) -> Headers:
    """Return the headers of the request to the session's server.

    Args:
        headers: the client's, each field once for each line.
        local: the ``Host`` that the session's server gets.
        host: the client's ``Host``.
        scheme: ``http`` or ``https``.
        own_origin: whether the request has the host form.
        keep_authorization: whether ``Authorization`` is for the session's server.
        upgrade: whether the client asks for a WebSocket.
    """
    dropped = _OF_SERVICE | _FORWARDED
    if not (keep_authorization and own_origin):
        dropped |= {"authorization"}
    if not own_origin:
        dropped |= {"cookie", "referer"}  # both may hold what is this service's: a path with a ticket
    found: Headers = [("Host", local), ("X-Forwarded-Host", host), ("X-Forwarded-Proto", scheme)]
    for name, value in end_to_end(headers):
        lower = name.lower()
        # Some servers read X_Y and X-Y as one name (RFC 3875, section 4.1.18), so that X_Y could replace a field above.
        if lower in dropped or "_" in name:
            continue
        if lower == "cookie":
            value = _other_cookies(value)
            if not value:
                continue
        if lower in ("origin", "referer"):
            value = _as_local(value, host, local)
        found.append((name, value))
    found.append(("Connection", "Upgrade" if upgrade else "close"))
    if upgrade:
        found.append(("Upgrade", "websocket"))
    return found


def for_client(headers: Iterable[tuple[str, str]], *, port: int, host: str, base: str, own_origin: bool) -> Headers:
    """Return the headers of the response to the client.

    Args:
        headers: those of the session's server.
        port: the session's port.
        host: the client's ``Host``.
        base: the path of the port on this service, "" in the host form.
        own_origin: whether the request has the host form.
    """
    dropped = _ORDERS
    if not own_origin:
        dropped |= _ON_ORIGIN
    found: Headers = []
    for name, value in end_to_end(headers):
        lower = name.lower()
        if lower in dropped or lower.startswith(_ORDER_PREFIXES):
            continue
        if not own_origin and lower.startswith("access-control-"):
            continue
        if lower == "set-cookie":
            value = _host_only(value)
            if not value:
                continue
        elif lower in ("location", "content-location"):
            value = _moved(value, port, base)
        found.append((name, value))
    return found if own_origin else found + PATH_FORM


def tickets_of(cookies: str | None) -> list[str]:
    """Return the tickets in a ``Cookie`` header."""
    parts = [part.strip().partition("=") for part in (cookies or "").split(";")]
    return [value for name, _, value in parts if name in (COOKIE, SECURE_COOKIE)]


def comes_from_other_site(headers: Mapping[str, str], method: str, host: str) -> bool:
    """Return whether a page of another origin sent this request, apart from links that a person follows.

    A browser sends a ticket's cookie also to requests of pages below the same domain, which may be other sessions'.
    """
    origin = headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return True
    site = headers.get("Sec-Fetch-Site")  # W3C Fetch Metadata
    if site in (None, "same-origin", "none"):
        return False
    follows = headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"
    return not (follows and method in ("GET", "HEAD"))


def _other_cookies(value: str) -> str:
    return "; ".join(part.strip() for part in value.split(";") if part.strip() and not _is_own(part.partition("=")[0]))


def _is_own(name: str) -> bool:
    # A nameless cookie "=a=b" is sent as "a=b" by some browsers.
    return name.strip().lstrip("=").strip().lower() in (COOKIE, SECURE_COOKIE.lower())


def _host_only(value: str) -> str:
    """Return a cookie without its domain, so that it is sent to this port alone. "" for this service's own cookie."""
    first, *attributes = value.split(";")
    if _is_own(first.strip().lstrip("=").partition("=")[0]):
        return ""
    kept = [each for each in attributes if each.partition("=")[0].strip().lower() != "domain"]
    return ";".join([first, *kept])


def _as_local(value: str, host: str, local: str) -> str:
    """Return an origin or address of the port's own pages as the session's server knows them."""
    if value == "null":
        return f"http://{local}"
    try:
        parts = urlsplit(value)
    except ValueError:
        return value
    if parts.netloc.lower() != host.lower():
        return value
    return parts._replace(scheme="http", netloc=local).geturl()


def _moved(value: str, port: int, base: str) -> str:
    """Return a redirect of the session's server to itself as a redirect to the port's address here."""
    try:
        parts = urlsplit(value)
        own = parts.hostname in ("localhost", "127.0.0.1", "::1", "0.0.0.0") and (parts.port or 80) == port
    except ValueError:
        return value
    if own and parts.scheme in ("http", "https", ""):
        value = parts._replace(scheme="", netloc="", path="/" + parts.path.lstrip("/")).geturl()
    return base + value if value.startswith("/") and not value.startswith("//") else value
