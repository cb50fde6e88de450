"""The decisions of the network's rules."""

import ipaddress

import msgspec
import pytest

from kernelsvc.model.network.policy import NetworkPolicy, Refused, rule_for_request
from kernelsvc.model.network.rules import NetworkRules


def policy(*allow, **more):
    return NetworkPolicy(msgspec.convert({"allow": list(allow), **more}, NetworkRules))


POLICY = policy(
    "ok.test",
    "*.wild.test",
    {"host": "db.test", "ports": [5432]},
    "8.8.8.0/24:443",
    "2606:4700::/32",
    deny=["bad.wild.test", "half.wild.test:80", "8.8.8.9"],
)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("ok.test", True),
        ("a.wild.test", True),
        ("db.test", True),
        ("half.wild.test", True),
        ("bad.wild.test", False),
        ("wild.test", False),
        ("evil.test", False),
    ],
)
def test_a_name_is_looked_up_only_if_a_rule_has_it(name, allowed):
    assert POLICY.may_look_up(name) is allowed


@pytest.mark.parametrize(
    ("destination", "port", "rule"),
    [
        ("ok.test", 443, "ok.test"),
        ("ok.test", 80, "ok.test"),
        ("ok.test", 8080, None),
        ("a.wild.test", 443, "*.wild.test"),
        ("bad.wild.test", 443, None),
        ("half.wild.test", 443, "*.wild.test"),
        ("half.wild.test", 80, None),
        ("db.test", 5432, "db.test:5432"),
        ("db.test", 443, None),
        ("8.8.8.8", 443, "8.8.8.0/24:443"),
        ("8.8.8.9", 443, None),
        ("8.8.8.8", 80, None),
        ("8.8.9.8", 443, None),
        ("2606:4700::1", 443, "2606:4700::/32"),
        ("127.0.0.1", 443, None),
    ],
)
def test_the_first_rule_that_fits_decides(destination, port, rule):
    where = destination if destination.endswith(".test") else ipaddress.ip_address(destination)
    if rule is None:
        with pytest.raises(Refused):
            POLICY.rules_for(where, port)
    else:
        assert [one.text for one in POLICY.rules_for(where, port)] == [rule]


def test_rules_with_methods_or_paths_are_tried_in_order_for_each_request():
    reading = {"host": "api.up.test", "methods": ["GET", "HEAD"]}
    own = policy(reading, {"host": "*.up.test", "paths": ["/up/*"]}, "api.up.test:80", "api.up.test:80")
    rules = own.rules_for("api.up.test", 80)
    assert [rule.text for rule in rules] == ["api.up.test (GET, HEAD)", "*.up.test (/up/*)", "api.up.test:80"]
    assert rule_for_request(rules, "POST", "/up/x") is rules[1]
    assert rule_for_request(rules, "POST", "/x") is rules[2]
    over_tls = own.rules_for("api.up.test", 443)
    assert len(over_tls) == 2
    assert rule_for_request(over_tls, "GET", "/../x") is over_tls[0]
    with pytest.raises(Refused, match="no rule for POST /x"):
        rule_for_request(over_tls, "POST", "/x")
    with pytest.raises(Refused, match="two ways"):
        rule_for_request(over_tls, "POST", "/up/../x")
    with pytest.raises(Refused, match="never passed on"):
        rule_for_request(rules, "TRACE", "/")


def test_a_private_address_is_refused_after_the_look_up_unless_the_server_lists_it():
    own = policy("ok.test", private=["10.1.0.0/16", "fd00::/8"])
    for address in ("8.8.8.8", "10.1.2.3", "fd00::7"):
        own.check_address(address)
    for address in ("10.2.0.1", "127.0.0.1", "169.254.169.254", "::ffff:10.1.2.3", "fe80::1%eth0"):
        with pytest.raises(Refused, match="not a public address"):
            own.check_address(address)
    with pytest.raises(Refused):
        POLICY.check_address("10.1.2.3")


def test_a_denied_address_is_refused_after_the_look_up_too():
    with pytest.raises(Refused, match="denied"):
        POLICY.check_address("8.8.8.9")
