"""Rules of a session's network: what is valid, and what the server's rules allow."""

import ipaddress

import msgspec
import pytest

from kernelsvc.cli.cell_source import limits_of
from kernelsvc.errors import BadRequest, LimitTooHigh
from kernelsvc.model.limits import Limits, LimitsRequest
from kernelsvc.model.network.policy import NetworkPolicy, Refused
from kernelsvc.model.network.rules import MAX_PORTS, MAX_RULES, NetworkRules
from kernelsvc.settings import load


def rules(*allow, **more):
    return msgspec.convert({"allow": list(allow), **more}, NetworkRules)


@pytest.mark.parametrize(
    ("allow", "words"),
    [
        ("*.com", "many owners"),
        ("*.co.uk", "many owners"),
        ("*.*.test", "not the name"),
        ("a.*.test", "not the name"),
        ("*test.example", "not the name"),
        ("127.1", "an address and not a name"),
        ("2130706433", "an address and not a name"),
        ("0x7f000001", "an address and not a name"),
        ("a.test.", "final dot"),
        ("https://a.test", "not the name"),
        ("a.test/path", "not the name"),
        ("a.test:0", "not a port"),
        ("a.test:65536", "not a port"),
        ("a.test:53", "looked up outside"),
        ("", "not the name"),
        ("\u043ek.test", "A-labels"),
        ("10.0.0.0/8", "not public"),
        ("127.0.0.1", "not public"),
        ("169.254.169.254:80", "not public"),
        ("8.8.8.8/24", "not the name"),
        ({"host": "a.test:80", "ports": [80]}, "ports twice"),
        ({"host": "a.test", "ports": [53]}, "looked up outside"),
        ({"host": "a.test", "port": 80}, "unknown field"),
        ({"ports": [80]}, "host"),
        ({"host": "a.test", "ports": [80], "secrets": ["x"]}, "over TLS only"),
        ({"host": "a.test", "methods": ["get"]}, "upper case"),
        ({"host": "a.test", "methods": ["TRACE"]}, "never passed on"),
        ({"host": "a.test", "methods": ["GET, POST"]}, "not a method"),
        ({"host": "a.test", "methods": ["M" + "A" * n for n in range(17)]}, "16 methods"),
        ({"host": "a.test", "paths": ["v1"]}, "not a path"),
        ({"host": "a.test", "paths": ["/a/*/b"]}, "only at the end"),
        ({"host": "a.test", "paths": ["/a/../b"]}, "not a path"),
        ({"host": "a.test", "paths": ["/a?b=1"]}, "without a query"),
        ({"host": "a.test", "paths": ["/a/%2e%2e/b"]}, "not a path"),
        ({"host": "8.8.8.0/24", "methods": ["GET"]}, "need a name"),
        (7, "Expected"),
    ],
)
def test_a_rule_that_is_no_rule_is_refused_with_words(allow, words):
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.convert({"network": {"allow": [allow]}}, LimitsRequest)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"deny": ["127.1"]}, "an address"),
        ({"private": ["a.test"]}, "not a network"),
        ({"connections": 0}, ">= 1|> 0"),
        ({"bytes": -1}, ">= 1|> 0"),
        ({"speed": 1}, "unknown field"),
    ],
)
def test_other_fields_are_checked_too(more, words):
    with pytest.raises(msgspec.ValidationError, match=words):
        rules("a.test", **more)


def test_the_number_of_rules_and_ports_is_bounded():
    with pytest.raises(msgspec.ValidationError, match="more than"):
        rules(*(f"a{n}.test" for n in range(MAX_RULES + 1)))
    with pytest.raises(msgspec.ValidationError, match="ports"):
        rules(*(f"a.test:{1000 + n}" for n in range(MAX_PORTS + 1)))
    with pytest.raises(msgspec.ValidationError, match="bytes"):
        rules({"host": "a.test", "inject": {f"x-{n}": "a" * 1000 for n in range(100)}})


READ_ONLY = {"host": "api.test", "methods": ["GET", "HEAD"], "paths": ["/v1/*", "/status"]}
CEILING = rules(
    "*.example.com", {"host": "db.test", "ports": [5432]}, "8.8.0.0/16:53000", READ_ONLY, deny=["bad.example.com"]
)


@pytest.mark.parametrize(
    "allow",
    [
        "a.example.com",
        "a.example.com:443",
        "*.b.example.com",
        {"host": "db.test", "ports": [5432]},
        "8.8.8.8:53000",
        READ_ONLY,
        {"host": "api.test", "methods": ["GET"], "paths": ["/v1/models", "/v1/files/*"]},
        {"host": "a.example.com", "methods": ["GET"]},
    ],
)
def test_a_session_may_ask_for_less_than_the_server_allows(allow):
    got = Limits(network=CEILING).lowered(LimitsRequest(network=rules(allow))).network
    assert got.deny == ("bad.example.com",)
    assert got.summary() == rules(allow).summary()


@pytest.mark.parametrize(
    ("ceiling", "wanted", "named"),
    [
        (CEILING, "host", "host"),
        (CEILING, rules("example.com"), "example.com"),
        (CEILING, rules("a.example.com", "evil.test"), "evil.test"),
        (CEILING, rules("a.example.com:8080"), "a.example.com:8080"),
        (CEILING, rules("db.test"), "db.test"),
        (CEILING, rules("*"), "*"),
        (CEILING, rules("api.test"), "api.test"),
        (CEILING, rules({"host": "api.test", "methods": ["GET"]}), "api.test (GET)"),
        (CEILING, rules(READ_ONLY | {"methods": ["GET", "POST"]}), "api.test (GET, POST; /v1/*, /status)"),
        (CEILING, rules(READ_ONLY | {"paths": ["/*"]}), "api.test (GET, HEAD; /*)"),
        (CEILING, rules("8.8.8.8"), "8.8.8.8"),
        (CEILING, rules("10.0.0.1", private=["10.0.0.0/8"]), "10.0.0.1"),
        (rules("*"), rules("a.test", private=["10.0.0.0/8"]), "10.0.0.0/8"),
        ("none", rules("a.example.com"), "a.example.com"),
        ("none", "host", "host"),
    ],
)
def test_a_session_that_asks_for_more_gets_the_rule_that_is_too_wide(ceiling, wanted, named):
    with pytest.raises(LimitTooHigh) as raised:
        Limits(network=ceiling).lowered(LimitsRequest(network=wanted))
    assert raised.value.details["wanted"] == named
    assert "Ask for at most that" in raised.value.message


def test_quotas_and_private_networks_are_the_servers_at_most():
    ceiling = rules("*", connections=8, bytes=1000, private=["10.0.0.0/8"])
    got = Limits(network=ceiling).lowered(LimitsRequest(network=rules("a.test", connections=64))).network
    assert (got.connections, got.bytes, got.private) == (8, 1000, ("10.0.0.0/8",))
    less = rules("10.1.0.0/16", connections=2, bytes=10, private=["10.1.0.0/16"])
    with pytest.raises(LimitTooHigh):  # "*" is any name, not any address
        Limits(network=ceiling).lowered(LimitsRequest(network=less))
    assert Limits(network="host").lowered(LimitsRequest(network=less)).network == less


@pytest.mark.parametrize(
    "rule", [{"host": "api.test", "secrets": ["key"]}, {"host": "api.test", "inject": {"X-Key": "${key}"}}]
)
def test_a_network_without_rules_of_the_servers_gives_no_use_of_its_secrets(rule):
    wanted = LimitsRequest(network=rules("a.test", rule))
    with pytest.raises(LimitTooHigh, match=r"api\.test .*secret key.* uses secrets of this server"):
        Limits(network="host").lowered(wanted)
    assert Limits(network="host").lowered(wanted, any_secret=True).network == wanted.network
    literal = LimitsRequest(network=rules({"host": "api.test", "inject": {"X-Team": "blue"}}))
    assert Limits(network="host").lowered(literal).network == literal.network


def test_rules_that_are_too_many_with_the_servers_are_refused():
    server = rules("*", deny=[f"{n}.test" for n in range(200)])
    with pytest.raises(BadRequest, match="more than 256 rules"):
        Limits(network=server).lowered(LimitsRequest(network=rules("a.com", deny=[f"{n}.com" for n in range(100)])))


@pytest.mark.parametrize("ceiling", ["none", "host", CEILING])
def test_none_is_always_allowed(ceiling):
    assert Limits(network=ceiling).lowered(LimitsRequest(network="none")).network == "none"


def test_limits_with_rules_are_the_same_after_a_journal():
    limits = Limits(network=CEILING)
    assert msgspec.json.decode(msgspec.json.encode(limits), type=Limits) == limits


def test_settings_take_rules_from_each_source(tmp_path):
    wanted = {"allow": ["a.test", "*.example.com:443"], "connections": 3}
    text = msgspec.json.encode(wanted).decode()
    file = tmp_path / "server.toml"
    file.write_text('[limits.network]\nallow = ["a.test", "*.example.com:443"]\nconnections = 3\n')
    expected = rules(*wanted["allow"], connections=3)
    assert load({"limits_network": text}, {}).limits.network == expected
    assert load({}, {"KERNELSVC_LIMITS_NETWORK": text}).limits.network == expected
    assert load({"config": str(file)}, {}).limits.network == expected
    with pytest.raises(BadRequest, match="many owners"):
        load({"limits_network": '{"allow": ["*.com"]}'}, {})


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("none", "none"),
        ("host", "host"),
        ("pypi.org,*.example.com:443", {"allow": ["pypi.org", "*.example.com:443"]}),
        ('{"allow": ["a.test"], "bytes": 9}', {"allow": ["a.test"], "bytes": 9}),
    ],
)
def test_the_command_line_takes_a_word_hosts_or_json(text, network):
    assert limits_of([f"network={text}"]) == {"network": network}


def test_the_command_line_refuses_broken_json():
    with pytest.raises(BadRequest, match="not JSON"):
        limits_of(['network={"allow"'])


@pytest.mark.parametrize("hosts", ['{"a.test": "nowhere"}', '{"127.1": "10.0.0.1"}', '{"a b": "10.0.0.1"}'])
def test_settings_refuse_fixed_hosts_that_are_none(hosts):
    with pytest.raises(BadRequest, match="Write a name and an address"):
        load({"egress_hosts": hosts}, {})


def test_any_address_is_any_public_one():
    ceiling, policy = rules("*", "0.0.0.0/0", "::/0"), NetworkPolicy(rules("0.0.0.0/0"))
    assert ceiling.uncovered(rules("1.1.1.1", "[2606:4700::1]:443", "a.test")) is None
    assert policy.rules_for(ipaddress.ip_address("1.1.1.1"), 443)
    for private in ("10.0.0.1", "127.0.0.1", "169.254.169.254"):
        with pytest.raises(Refused, match="not a public address"):
            policy.check_address(private)
    with pytest.raises(Refused, match="no rule"):
        policy.rules_for("a.test", 443)
