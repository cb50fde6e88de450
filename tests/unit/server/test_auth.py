"""Decisions on header values."""

from __future__ import annotations

import pytest

from kernelsvc.errors import Forbidden
from kernelsvc.model.objects import Principal
from kernelsvc.server.auth import bearer, host_allowed, origin_allowed, require_scope, subprotocol_bearer


@pytest.mark.parametrize(
    ("header", "token"),
    [
        (None, None), ("", None), ("Bearer", None), ("Bearer ", None), ("Basic abc", None), ("abc", None),
        ("Bearer abc", "abc"), ("bearer abc", "abc"), ("BEARER  abc ", "abc"), ("Bearer a b", "a b"),
    ],
)  # fmt: skip
def test_bearer(header, token):
    assert bearer(header) == token


@pytest.mark.parametrize(
    ("header", "token"),
    [
        (None, None), ("", None), ("kernelsvc.v1", None), ("kernelsvc.bearer.", None), ("kernelsvc.bearer.!!!", None),
        ("kernelsvc.bearer._w", None), ("kernelsvc.v1, kernelsvc.bearer.YWJj", "abc"), ("kernelsvc.bearer.YQ", "a"),
        ("kernelsvc.bearer.w6TDtj8_,x", "äö??"),
    ],
)  # fmt: skip
def test_a_token_in_a_subprotocol(header, token):
    assert subprotocol_bearer(header) == token


@pytest.mark.parametrize(
    ("origin", "host", "allowed", "good"),
    [
        (None, "h:1", [], True),
        ("http://h:1", "h:1", [], True),
        ("https://h:1", "H:1", [], True),
        ("http://h:2", "h:1", [], False),
        ("http://evil", "h:1", [], False),
        ("http://h:1.evil", "h:1", [], False),
        ("http://evil/h:1", "h:1", [], False),
        ("http://user@h:1", "h:1", [], False),
        ("null", "h:1", [], False),
        ("", "", [], False),
        ("", None, [], False),
        ("https://a.example", "h:1", ["https://a.example/"], True),
        ("HTTPS://A.example", "h:1", ["https://a.example"], True),
        ("http://a.example", "h:1", ["https://a.example"], False),
        ("https://b.a.example", "h:1", ["https://a.example"], False),
        ("null", "h:1", ["*"], True),
    ],
)
def test_origins(origin, host, allowed, good):
    assert origin_allowed(origin, host, allowed) is good


def test_scopes():
    require_scope(Principal(name="a", scopes=frozenset({"read"})), "read")
    with pytest.raises(Forbidden, match="'run'"):
        require_scope(Principal(name="a", scopes=frozenset({"read"})), "run")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8888", "[::1]:8888", "localhost", "LOCALHOST:1", "x.localhost", "192.0.2.7:80"]
)
def test_addresses_and_localhost_are_hosts_of_a_server_on_loopback(host):
    assert host_allowed(host, [])


@pytest.mark.parametrize(
    "host", [None, "", "evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "[::1", "a b"]
)
def test_other_names_are_not(host):
    assert not host_allowed(host, [])
    assert not host_allowed(host, ["good.example", "*.good.example"])


@pytest.mark.parametrize("host", ["good.example", "GOOD.example.:80", "49999-s_1.good.example"])
def test_configured_names_are(host):
    assert host_allowed(host, ["Good.Example", "*.good.example"])
    assert host_allowed(host, ["*"])
    assert not host_allowed(host, ["ood.example", "*.d.example"])
