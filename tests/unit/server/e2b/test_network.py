"""E2B's ``network`` as the network of a session."""

import pytest

from kernelsvc.errors import BadRequest, NotSupported
from kernelsvc.model.network.rules import NetworkRule, NetworkRules
from kernelsvc.server.e2b.network import everything_of, is_public, network_of

ALL = "0.0.0.0/0"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, None),
        ({}, None),
        ({"allowPublicTraffic": False}, None),
        ({"denyOut": [ALL]}, "none"),
        ({"allowOut": ["pypi.org"], "denyOut": [ALL]}, NetworkRules(allow=("pypi.org",))),
        (
            {"allowOut": ["*.example.com", "8.8.8.8"], "denyOut": [ALL]},
            NetworkRules(allow=("*.example.com", "8.8.8.8")),
        ),
        ({"denyOut": ["8.8.8.8"]}, NetworkRules(allow=("*",), deny=("8.8.8.8",))),
        (
            {"allowOut": ["8.8.8.8"], "denyOut": ["8.8.8.8", "a.test"]},
            NetworkRules(allow=("8.8.8.8", "*"), deny=("a.test",)),
        ),
        ({"allowOut": [ALL]}, NetworkRules(allow=("*",))),
    ],
)
def test_allowed_destinations_go_before_denied_ones(asked, expected):
    assert network_of(asked, None) == expected
    assert network_of(asked, True) == expected
    assert network_of(asked, False) == "none"


@pytest.mark.parametrize(
    ("server", "addresses"),
    [
        ("none", False),
        ("host", True),
        (NetworkRules(allow=("*",)), False),
        (NetworkRules(allow=("*", ALL)), True),
        (NetworkRules(allow=(f"{ALL}:443",)), False),
    ],
)
def test_everything_has_addresses_only_if_the_server_allows_them(server, addresses):
    everything = everything_of(server)
    assert everything == (("*", ALL) if addresses else ("*",))
    assert network_of({"denyOut": ["8.8.8.8"]}, None, everything) == NetworkRules(allow=everything, deny=("8.8.8.8",))


def test_headers_of_a_rule_come_first_and_allow_nothing_more():
    rules = {
        "api.example.com": [{"transform": {"headers": {"Authorization": "Bearer ${e2b.secrets.models}", "X-A": "1"}}}],
        "other.example.org": [{"transform": {"headers": {"X-B": "2"}}}],
        "empty.example.org": [{"transform": {}}],
    }
    first = NetworkRule(host="api.example.com", inject={"Authorization": "Bearer ${models}", "X-A": "1"})
    second = NetworkRule(host="other.example.org", inject={"X-B": "2"})
    assert network_of({"rules": rules}, None) == NetworkRules(allow=(first, second, "*"))
    only = {"rules": rules, "allowOut": ["*.example.com"], "denyOut": [ALL]}
    assert network_of(only, None) == NetworkRules(allow=(first, "*.example.com"))
    exact = {"rules": rules, "allowOut": ["api.example.com", "pypi.org"], "denyOut": [ALL]}
    assert network_of(exact, None) == NetworkRules(allow=(first, "pypi.org"))
    assert network_of({"rules": rules, "denyOut": [ALL]}, None) == "none"
    assert network_of({"rules": {"a.test": []}}, None) is None
    with pytest.raises(BadRequest):  # headers are for exact names
        network_of({"rules": {"10.0.0.1": rules["other.example.org"]}}, None)


@pytest.mark.parametrize(
    "asked",
    [
        {"allowOut": "pypi.org"},
        {"maskRequestHost": "a\r\nX: 1"},
        {"maskRequestHost": "a/b"},
        {"allowOut": ["*.com"], "denyOut": [ALL]},
        {"rules": {"10.0.0.1": [{"transform": {"headers": {"X": "1"}}}]}},
    ],
)
def test_bad_destinations(asked):
    with pytest.raises(BadRequest):
        network_of(asked, None)


@pytest.mark.parametrize(
    "asked",
    [
        {"rules": {"a.test": [{"transform": {"headers": {"Authorization": "Bearer ${e2b.iam.token}"}}}]}},
        {"egressProxy": {"address": "a"}},
    ],
)
def test_what_is_missing_here_is_refused(asked):
    with pytest.raises(NotSupported):
        network_of(asked, None)


def test_a_sandboxs_own_servers_are_public_if_its_request_or_the_server_says_so():
    for otherwise in (False, True):
        assert is_public({"allowPublicTraffic": True}, otherwise)
        assert not is_public({"allowPublicTraffic": False}, otherwise)
        assert is_public(None, otherwise) is otherwise
