"""Which server in a session a request is for."""

from __future__ import annotations

import pytest
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from kernelsvc.errors import BadRequest
from kernelsvc.server.ports.target import HostForm, PortTarget, target_of, ticket_in_query

ID = "s_0123456789abcdef"
NAME = "3000-s-0123456789abcdef.example.org"


def request(uri: str, **headers: str) -> HTTPServerRequest:
    fields = HTTPHeaders({name.replace("_", "-"): value for name, value in headers.items()})
    fields.setdefault("Host", "localhost")
    return HTTPServerRequest(headers=fields, start_line=RequestStartLine("GET", uri, "HTTP/1.1"))


def test_paths_pass_as_they_were_sent() -> None:
    base = f"/v1/sessions/{ID}/ports/3000"
    for rest in ("/", "/a%2Fb/../c?x=/y", "//x"):
        assert target_of(request(base + rest), None, ID, "3000") == PortTarget(
            session=ID, port=3000, path=rest, base=base
        )
    found = target_of(request("/v1/ws", Host=NAME), None, None, None)
    assert found == PortTarget(session=ID, port=3000, path="/v1/ws", own_origin=True)


@pytest.mark.parametrize(
    ("headers", "matches"),
    [
        ({"Host": NAME}, True),
        ({"Host": NAME.upper()}, True),
        ({"Host": NAME.replace("3000", "49983")}, False),
        ({"Host": NAME.replace("3000", "49999")}, False),
        ({"Host": "3000-name.example.org"}, False),
        ({"E2b_Sandbox_Id": ID, "E2b_Sandbox_Port": "3000"}, True),
        ({"E2b_Sandbox_Port": "3000"}, False),
    ],
)
def test_host_names_of_ports(headers: dict[str, str], matches: bool) -> None:
    assert (HostForm().match(request("/", **headers)) is not None) is matches


@pytest.mark.parametrize("uri", ["*", "http://evil/v1/", f"/v1/%73essions/{ID}/ports/3000/"])
def test_other_targets_are_refused(uri: str) -> None:
    with pytest.raises(BadRequest):
        target_of(request(uri), None, ID, "3000")


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("/a?x=1", None),
        ("/a?kernelsvc_ticket=t", ("t", "/a")),
        ("/a?x=1&kernelsvc_ticket=t&y=2", ("t", "/a?x=1&y=2")),
        ("//evil?kernelsvc_ticket=t", ("t", "/evil")),
        ("/\\evil?kernelsvc_ticket=t", ("t", "/evil")),
    ],
)
def test_a_ticket_in_a_query(uri: str, found: tuple[str, str] | None) -> None:
    assert ticket_in_query(uri) == found
