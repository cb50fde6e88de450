"""DNS questions of hostile code, and answers."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import mutations

from kernelsvc.protocol.egress import dns


def query(*labels: bytes, kind=1, group=1, flags=0x0100, count=1, tail=b"") -> bytes:
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return struct.pack("!HHHHHH", 7, flags, count, 0, 0, 0) + name + struct.pack("!HH", kind, group) + tail


def test_a_question_and_its_answer():
    question = dns.parse_query(query(b"ok", b"test", tail=b"\0\0\x29\x04\xd0\0\0\0\0\0\0"))
    assert (question.name, question.kind, question.id) == ("ok.test", dns.TYPE_A, 7)
    answer = dns.build_answer(question, dns.NO_ERROR, b"\xc6\x12\x01\x02")
    assert answer[:12] == struct.pack("!HHHHHH", 7, 0x8180, 1, 1, 0, 0)
    assert answer.endswith(b"\xc0\x0c\0\x01\0\x01" + struct.pack("!IH", dns.TTL_SECONDS, 4) + b"\xc6\x12\x01\x02")
    refused = dns.build_answer(question, dns.NAME_ERROR)
    assert struct.unpack_from("!HH", refused, 2) == (0x8183, 1)
    assert refused[12:] == question.raw


@pytest.mark.parametrize(
    "data",
    [
        b"",
        query(b"ok", b"test")[:-1],
        query(b"ok", flags=0x8100),  # an answer
        query(b"ok", flags=0x2800),  # an update
        query(b"ok", count=0),
        query(b"ok", count=2),
        query(b"ok", group=3),  # CHAOS
        struct.pack("!HHHHHH", 7, 0, 1, 0, 0, 0) + b"\xc0\x0c\0\x01\0\x01",  # a pointer to itself
        struct.pack("!HHHHHH", 7, 0, 1, 0, 0, 0) + b"\x40" + b"a" * 64 + b"\0\0\x01\0\x01",
        struct.pack("!HHHHHH", 7, 0, 1, 0, 0, 0) + b"\x3fabc",
    ],
)
def test_other_datagrams_get_no_answer(data):
    with pytest.raises(dns.InvalidQuery):
        dns.parse_query(data)


@pytest.mark.parametrize("label", [b"ok.test", b"attacker\0", b"\xff", b"."])
def test_bytes_of_a_label_do_not_become_labels(label):
    assert dns.parse_query(query(label, b"test")).name not in ("ok.test.test", "ok.test", "..test")


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("2.1.18.198.in-addr.arpa", "198.18.1.2"),
        ("2.1.18.198.IN-ADDR.ARPA", "198.18.1.2"),
        ("1.18.198.in-addr.arpa", None),
        ("x.1.18.198.in-addr.arpa", None),
        ("2.1.18.198.example", None),
    ],
)
def test_reverse_names(name, address):
    assert dns.reverse_address(name) == address


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda tail: query(b"ok", b"test")[:14] + tail))
def test_any_datagram_is_parsed_or_refused(data):
    try:
        question = dns.parse_query(data)
    except dns.InvalidQuery:
        return
    assert len(question.raw) <= len(data)
    assert len(dns.build_answer(question, dns.NAME_ERROR)) <= len(data)


def test_damaged_questions_are_parsed_or_refused():
    whole = [query(b"ok", b"test"), query(b"a" * 63, b"b" * 63, b"test", tail=b"\0\0\x29\x04\xd0\0\0\0\0\0\0")]
    parsed = refused = 0
    for data in mutations(whole, 10_000):
        try:
            question = dns.parse_query(data)
        except dns.InvalidQuery:
            refused += 1
        else:
            parsed += 1
            assert len(dns.build_answer(question, dns.NO_ERROR, b"\xc6\x12\x01\x02")) <= len(data) + 16
    assert parsed
    assert refused
