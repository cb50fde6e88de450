"""Signing in to the console: one-use tickets instead of tokens in addresses, and no cookies.

A cookie is bound to a host and not to a port (RFC 6265, section 8.5), so a browser would send it to every other server
on 127.0.0.1, also to one that runs in a session with the host's network. The page keeps the token in memory and in
``sessionStorage``, which is bound to scheme, host and port.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from typing import Literal

import msgspec
from msgspec import Struct

from kernelsvc.errors import Forbidden, Unauthenticated
from kernelsvc.protocol import jsonrpc
from kernelsvc.server.handler import ApiHandler

#: Seconds for which a ticket can be redeemed.
TICKET_SECONDS = 60.0
#: Most tickets of one principal at a time. Its oldest is dropped first.
MAX_TICKETS = 100
_MAX_BODY = 4096


class SignInTicket(Struct, kw_only=True):
    """A new ticket, and the seconds for which it can be redeemed."""

    ticket: str
    expires_in: float


class Redemption(Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of a request that redeems a ticket."""

    ticket: str


class SignedIn(Struct, kw_only=True):
    """The token that a ticket stands for."""

    token: str


class Me(Struct, kw_only=True):
    """What the page may do: the token's principal and scopes, and the settings of the console."""

    principal: str
    scopes: list[str]
    console: Literal["on", "read-only", "off"]
    scripts: bool


class Tickets:
    """Tickets that were not redeemed yet, each with its token, in memory only. Times are monotonic seconds."""

    def __init__(self) -> None:
        # By ticket, the oldest first: the token, its principal, and the end.
        self._tokens: OrderedDict[str, tuple[str, str, float]] = OrderedDict()

    def issue(self, token: str, principal: str, now: float) -> str:
        """Return a ticket that can be redeemed once for this token of a principal."""
        while self._tokens and next(iter(self._tokens.values()))[2] < now:
            self._tokens.popitem(last=False)
        own = [ticket for ticket, (_, owner, _) in self._tokens.items() if owner == principal]
        if len(own) >= MAX_TICKETS:
            del self._tokens[own[0]]
        ticket = secrets.token_urlsafe(32)
        self._tokens[ticket] = token, principal, now + TICKET_SECONDS
        return ticket

    def redeem(self, ticket: str, now: float) -> str | None:
        """Return the token of a ticket and forget both. None if it is unknown, was redeemed before or has expired."""
        token, _, until = self._tokens.pop(ticket, ("", "", 0.0))
        return token if token and now <= until else None


class TicketHandler(ApiHandler):
    """Handler of ``POST /console/tickets``: a ticket for the token of this request."""

    route = "/console/tickets"
    max_body_bytes = _MAX_BODY
    tickets: Tickets

    def post(self) -> None:
        """Serve POST.

        Raises:
            Forbidden: The request is for a user of a backend, who must not get the backend's token.
        """
        if self.who.backend:
            raise Forbidden(
                "A ticket gives the token of its request, here the backend's. Make a token for the user, or send the "
                "request without X-On-Behalf-Of."
            )
        ticket = self.tickets.issue(self.token() or "", self.who.name, time.monotonic())
        self.answer(SignInTicket(ticket=ticket, expires_in=TICKET_SECONDS), 201)


class RedeemHandler(ApiHandler):
    """Handler of ``POST /console/tickets/redeem``: the token of a ticket, once."""

    scope = None
    route = "/console/tickets/redeem"
    max_body_bytes = _MAX_BODY
    tickets: Tickets
    _body_decoder = msgspec.json.Decoder(Redemption)

    def post(self) -> None:
        """Serve POST."""
        given = jsonrpc.decode_json(self._body_decoder, self.body(), "body")
        token = self.tickets.redeem(given.ticket, time.monotonic())
        if token is None:
            raise Unauthenticated(
                "This ticket was used before or has expired. Run 'kernelsvc console' again for a new one."
            )
        self.answer(SignedIn(token=token))


class MeHandler(ApiHandler):
    """Handler of ``GET /console/me``."""

    route = "/console/me"

    def get(self) -> None:
        """Serve GET."""
        settings, who = self.context.settings, self.who
        scripts = settings.console_scripts == "ask"
        self.answer(Me(principal=who.name, scopes=sorted(who.scopes), console=settings.console, scripts=scripts))
