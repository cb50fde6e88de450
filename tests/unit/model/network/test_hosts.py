"""Names, networks and addresses as the network's rules compare them."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.model.network.hosts import Host, clean_name, is_public, is_public_network, parse_host

PRIVATE = [
    *("127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "198.18.0.1"),
    *("224.0.0.1", "239.1.1.1", "255.255.255.255", "192.88.99.1", "192.0.2.1", "203.0.113.9", "240.0.0.1"),
    *("::1", "::", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "3fff::1", "5f00::1"),
    # IPv4 addresses in other clothes: mapped, NAT64, local NAT64, 6to4, Teredo.
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1"),
    "2001:0:808:808::f5ff:fffe",
    # IPv4-compatible and -translated, port control, benchmarks, and the agent of Azure's machines.
    *("::127.0.0.1", "::a9fe:a9fe", "::ffff:0:127.0.0.1", "192.0.0.9", "2001:1::1", "2001:2::1", "168.63.129.16"),
]
PUBLIC = ["8.8.8.8", "151.101.0.223", "2606:4700::6810:1", "64:ff9b::808:808", "2a00:1450::1"]


@pytest.mark.parametrize("text", PRIVATE)
def test_an_address_that_is_not_public_is_found_in_every_form(text):
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses(text):
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    ("text", "public"),
    [("8.8.8.0/24", True), ("10.0.0.0/8", False), ("0.0.0.0/0", False), ("10.0.0.0/7", False), ("::/0", False)],
)
def test_public_networks(text, public):
    assert is_public_network(ipaddress.ip_network(text, strict=False)) is public


@pytest.mark.parametrize(
    ("rule", "name", "matches"),
    [
        ("ok.test", "ok.test", True),
        ("ok.test", "OK.TEST.", True),
        ("ok.test", "ok.test.evil.test", False),
        ("ok.test", "notok.test", False),
        ("*.wild.test", "a.wild.test", True),
        ("*.wild.test", "a.b.wild.test", True),
        ("*.wild.test", "wild.test", False),
        ("*.wild.test", "awild.test", False),
        ("*", "any.test", True),
        ("8.8.8.0/24", "ok.test", False),
    ],
)
def test_names_are_compared_as_wholes(rule, name, matches):
    assert parse_host(rule)[0].matches(clean_name(name)) is matches


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "a..b", "-a.test", "a-.test", "a b.test", "a\0.test", "a/b", "a@b.test", "x" * 64 + ".test"),
        *("127.1", "2130706433", "0x7f000001", "0x7f.1", "1.2.3.4", "::1", "ok.test.1"),
        *("\u043ek.test", "\uff4f\uff4b.test", "ok\u3002test", "\u0444.test"),
    ],
)
def test_what_is_no_name_of_a_host_is_refused(text):
    with pytest.raises(ValueError, match="name"):
        clean_name(text)


@pytest.mark.parametrize(
    ("outer", "inner", "covers"),
    [
        ("*", "a.test", True),
        ("*", "*.a.test", True),
        ("*", "8.8.8.8", False),
        ("*.a.test", "b.a.test", True),
        ("*.a.test", "*.b.a.test", True),
        ("*.a.test", "a.test", False),
        ("*.a.test", "*.a.test", True),
        ("*.b.a.test", "*.a.test", False),
        ("a.test", "*.a.test", False),
        ("*.a.test", "ba.test", False),
        ("8.8.0.0/16", "8.8.8.0/24", True),
        ("8.8.8.0/24", "8.8.0.0/16", False),
        ("8.8.0.0/16", "2606:4700::/32", False),
        ("a.test", "8.8.8.8", False),
    ],
)
def test_one_rule_covers_another_only_if_it_allows_each_of_its_hosts(outer, inner, covers):
    assert parse_host(outer)[0].covers(parse_host(inner)[0]) is covers


NAMES = st.lists(st.sampled_from(["a", "b", "wild", "test", "x1"]), min_size=1, max_size=5).map(".".join)


@given(outer=NAMES, inner=NAMES, name=NAMES, stars=st.tuples(st.booleans(), st.booleans()))
def test_a_covered_rule_matches_nothing_that_its_cover_does_not(outer, inner, name, stars):
    first = Host(f"*.{outer}" if stars[0] else outer)
    second = Host(f"*.{inner}" if stars[1] else inner)
    if first.covers(second) and second.matches(name):
        assert first.matches(name)


@given(st.text("abAB09.-_*:\u00e9\u3002 ", max_size=80))
def test_a_clean_name_stays_what_it_is(text):
    try:
        name = clean_name(text)
    except ValueError:
        return
    assert clean_name(name) == name == name.lower()
    assert name.isascii()
    assert len(name) <= 253
