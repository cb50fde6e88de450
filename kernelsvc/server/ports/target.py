"""The server in a session that a request is for, from its path, its host name or E2B's headers."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import msgspec
from tornado.httputil import HTTPServerRequest
from tornado.routing import Matcher

from kernelsvc.errors import BadRequest, NotFound
from kernelsvc.model.cluster.ids import DIGITS
from kernelsvc.model.network.ports import TICKET_QUERY, parse_ticket
from kernelsvc.protocol import e2b

#: Ports that this server answers itself, as E2B's clients expect.
_OF_E2B = frozenset({None, e2b.FILES_PORT, e2b.INTERPRETER_PORT})
_BASE = re.compile(r"/v1/(?:sessions/[^/]+/ports/[0-9]+|ports/[^/]+)")
_SESSION = re.compile(rf"s_{DIGITS}")
_QUERY = re.compile(rf"(?:^|&){TICKET_QUERY}=([^&]*)")


class PortTarget(msgspec.Struct, frozen=True, kw_only=True):
    """A port of a session, and the request for its server.

    Attributes:
        session: the session's id.
        port: the port.
        path: path and query for the session's server, as the client sent them.
        base: the path of the port on this service, "" without one.
        own_origin: whether the address is a host name of the port's own.
        ticket: the ticket in the path, or "".
    """

    session: str
    port: int
    path: str
    base: str = ""
    own_origin: bool = False
    ticket: str = ""


class HostForm(Matcher):
    """Matches requests that name a sandbox and a port of its own by host name or E2B's headers, whatever the path."""

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        """Tornado's hook: return no arguments, or None for other requests."""
        session, port = e2b.address(request.headers)
        # The service's own host name may look like one, for example 8888-name.example.org.
        named = session is not None and _SESSION.fullmatch(session) is not None
        return {} if named and port not in _OF_E2B else None


def target_of(request: HTTPServerRequest, ticket: str | None, session: str | None, port: str | None) -> PortTarget:
    """Return the target of a request.

    Args:
        request: the request.
        ticket: the ticket in the path.
        session: the session in the path.
        port: the port in the path.

    Raises:
        BadRequest: the path is not valid.
        NotFound: the ticket is no ticket.
    """
    uri = request.uri or ""
    if not uri.startswith("/"):  # RFC 9112, section 3.2: absolute-form and asterisk-form are for proxies
        raise BadRequest("The request's target must be a path.")
    uri = quote(uri, safe="".join(map(chr, range(33, 127))))
    if session is not None and port is not None:
        base = _base(uri)
        return PortTarget(session=e2b.session_id(session), port=int(port), path=uri[len(base) :], base=base)
    if ticket is not None:
        parsed = parse_ticket(ticket)
        if parsed is None:
            raise NotFound("This is no address of a port. Ask the session's owner for one.")
        base = _base(uri)
        return PortTarget(session=parsed.session, port=parsed.port, path=uri[len(base) :], base=base, ticket=ticket)
    named, number = e2b.address(request.headers)
    own = "E2b-Sandbox-Id" not in request.headers
    return PortTarget(session=named or "", port=number or 0, path=uri, own_origin=own)


def _base(uri: str) -> str:
    found = _BASE.match(uri)
    if found is None:  # the router has decoded a part that the client encoded
        raise BadRequest("Write session and port in the path without percent-encoding.")
    return found[0]


def ticket_in_query(uri: str) -> tuple[str, str] | None:
    """Return the ticket in a query, and path and query without it. None if there is none."""
    path, _, query = uri.partition("?")
    found = _QUERY.search(query)
    if found is None:
        return None
    rest = _QUERY.sub("", query).lstrip("&")
    # A browser reads "//name" and "/\\name" in Location as another host.
    return found[1], "/" + path.lstrip("/\\") + (f"?{rest}" if rest else "")
