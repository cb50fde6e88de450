"""ClientHellos: of OpenSSL, in pieces, and of hostile code."""

import ssl
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import mutations

from kernelsvc.protocol.egress.client_hello import MAX_RECORDS, ClientHello, InvalidHello, alert, parse_client_hello


def real_hello(name: str | None, *protocols: str) -> bytes:
    context = ssl.create_default_context()
    if protocols:
        context.set_alpn_protocols(list(protocols))
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def server_name(*names: bytes, kind=0) -> bytes:
    listed = b"".join(struct.pack("!BH", kind, len(name)) + name for name in names)
    value = struct.pack("!H", len(listed)) + listed
    return struct.pack("!HH", 0, len(value)) + value


def hello(extensions: bytes, *, message=1, record=22) -> bytes:
    body = b"\x03\x03" + b"r" * 32 + b"\0" + b"\0\x02\x13\x01" + b"\x01\0"
    body += struct.pack("!H", len(extensions)) + extensions
    body = bytes([message]) + len(body).to_bytes(3) + body
    return struct.pack("!BHH", record, 0x0301, len(body)) + body


REAL = real_hello("ok.test")


def test_the_hello_of_openssl():
    assert parse_client_hello(REAL) == ClientHello("ok.test", encrypted=False)
    assert parse_client_hello(real_hello(None)) == ClientHello(None, encrypted=False)


@pytest.mark.parametrize("offered", [["h2"], ["h2", "http/1.1"], []])
def test_the_protocols_that_are_offered(offered):
    found = parse_client_hello(real_hello("ok.test", *offered))
    assert found == ClientHello("ok.test", encrypted=False, protocols=tuple(name.encode() for name in offered))


def test_a_part_of_a_hello_needs_more():
    assert all(parse_client_hello(REAL[:size]) is None for size in range(len(REAL)))


@pytest.mark.parametrize("size", [9, 100])
def test_a_hello_may_be_split_over_records(size):
    body = REAL[5:]
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    data = b"".join(struct.pack("!BHH", 22, 0x0301, len(piece)) + piece for piece in pieces)
    assert parse_client_hello(data) == ClientHello("ok.test", encrypted=False)


def test_many_records_or_extensions_cost_no_more_than_their_bytes():
    tiny = b"".join(b"\x16\x03\x01\0\x01" + bytes([each]) for each in REAL[5:])
    assert parse_client_hello(tiny[: 6 * MAX_RECORDS - 1]) is None
    with pytest.raises(InvalidHello, match="records"):
        parse_client_hello(tiny)
    empty = b"".join(struct.pack("!HH", number, 0) for number in range(1000, 5000))
    assert parse_client_hello(hello(empty)) == ClientHello(None, encrypted=False)


def test_an_encrypted_hello_is_seen():
    ech = struct.pack("!HH", 0xFE0D, 3) + b"abc"
    assert parse_client_hello(hello(server_name(b"ok.test") + ech)) == ClientHello("ok.test", encrypted=True)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"\x16\x02\x00",
        hello(b"", message=2),
        hello(b"", record=23),
        hello(server_name(b"a.test", b"b.test")),
        hello(server_name(b"a.test") + server_name(b"b.test")),
        hello(server_name()),
        hello(server_name(b"")),
        hello(server_name(b"a.test", kind=1)),
        hello(server_name("\u0444.test".encode())),
        hello(b"\0\0\0\xff"),
        hello(struct.pack("!HHH", 16, 3, 9) + b"x"),
        struct.pack("!BHH", 22, 0x0301, 0),
        struct.pack("!BHH", 22, 0x0301, 16385) + b"\x01" * 4,
    ],
)
def test_what_is_no_hello_or_has_two_names_is_refused(data):
    with pytest.raises(InvalidHello):
        parse_client_hello(data)


@given(st.binary(max_size=200) | st.tuples(st.integers(0, len(REAL) - 1), st.binary(max_size=40)))
def test_any_bytes_are_parsed_or_refused(given_bytes):
    if isinstance(given_bytes, tuple):
        at, patch = given_bytes
        given_bytes = REAL[:at] + patch + REAL[at + len(patch) :]
    try:
        parse_client_hello(given_bytes)
    except InvalidHello:
        return


def test_damaged_hellos_are_parsed_or_refused():
    kinds = {"name": 0, "more": 0, "refused": 0}
    for data in mutations([REAL, real_hello("ok.test", "h2", "http/1.1"), hello(server_name(b"ok.test"))], 4_000):
        try:
            found = parse_client_hello(data)
        except InvalidHello:
            kinds["refused"] += 1
        else:
            kinds["more" if found is None else "name"] += 1
            assert found is None or found.server_name is None or found.server_name.isascii()
    assert all(kinds.values()), "the damage is too small or too great to say anything"


def test_an_alert():
    assert alert(49) == b"\x15\x03\x03\x00\x02\x02\x31"
