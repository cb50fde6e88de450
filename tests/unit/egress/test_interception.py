"""TLS that the proxy ends: its authority, its certificates, and the verification of servers."""

import asyncio
import socket
import ssl
import stat

import pytest
from egress_servers import certificate

from kernelsvc.egress.authority import KEY_FILE, Authority, open_authority
from kernelsvc.egress.byte_channels import PlainChannel, TlsChannel
from kernelsvc.egress.interception import open_interception
from kernelsvc.egress.protocol import EgressSettings
from kernelsvc.model.network.trust import BUNDLE_FILE, CERTIFICATES_DIR


def client_context(bundle):
    context = ssl.create_default_context(cafile=str(bundle))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


async def talk(accept, connect):
    """Make a handshake over a socket pair, and send a line each way."""
    ours, theirs = socket.socketpair()
    for one in (ours, theirs):
        one.setblocking(False)
    plain = [PlainChannel(one) for one in (ours, theirs)]
    server, client = await asyncio.gather(accept(plain[0]), connect(plain[1]), return_exceptions=True)
    failed = [one for one in (client, server) if isinstance(one, BaseException)]
    if failed:
        for one in plain:
            one.close()
        raise failed[0]
    await client.send(b"ping")
    got = [await server.receive(10)]
    await server.send(b"pong")
    got.append(await client.receive(10))
    server.close()
    got.append(await client.receive(10))
    client.close()
    return got


async def test_a_session_that_trusts_the_bundle_reaches_the_proxy_by_each_name(tmp_path):
    interception = open_interception(EgressSettings(runtime_dir=str(tmp_path)))
    trusting = client_context(tmp_path / CERTIFICATES_DIR / BUNDLE_FILE)
    for name in ("api.test", "a.wild.test"):
        got = await talk(
            lambda plain, name=name: interception.accept(plain, name),
            lambda plain, name=name: TlsChannel.connect(plain, trusting, name),
        )
        assert got == [b"ping", b"pong", b""]
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        await talk(
            lambda plain: interception.accept(plain, "api.test"),
            lambda plain: TlsChannel.connect(plain, trusting, "other.test"),
        )


async def test_bytes_pass_in_both_directions_at_the_same_time_until_each_end(tmp_path):
    """More than a record and more than the sockets take, so that both ends send and receive in turns."""
    interception = open_interception(EgressSettings(runtime_dir=str(tmp_path)))
    trusting = client_context(tmp_path / CERTIFICATES_DIR / BUNDLE_FILE)
    size = 4 << 20

    async def receive_all(channel):
        got = 0
        while data := await channel.receive(65536):
            got += len(data)
        return got

    async def send_all(channel):
        await channel.send(b"x" * size)
        await channel.finish()

    pair = socket.socketpair()
    for one in pair:
        one.setblocking(False)
    ours, theirs = map(PlainChannel, pair)
    async with asyncio.timeout(20):
        ends = await asyncio.gather(interception.accept(ours, "a.test"), TlsChannel.connect(theirs, trusting, "a.test"))
        received = await asyncio.gather(*map(receive_all, ends), *map(send_all, ends))
    assert received[:2] == [size, size]
    for end in ends:
        end.close()


async def test_the_end_of_tls_is_sent_when_a_connection_is_closed(tmp_path):
    """OpenSSL reports a connection without it as an error (SSL_OP_IGNORE_UNEXPECTED_EOF), as a truncated answer."""
    interception = open_interception(EgressSettings(runtime_dir=str(tmp_path)))
    trusting = client_context(tmp_path / CERTIFICATES_DIR / BUNDLE_FILE)
    pair = socket.socketpair()
    pair[0].setblocking(False)

    def read_to_the_end():
        with trusting.wrap_socket(pair[1], server_hostname="a.test", suppress_ragged_eofs=False) as client:
            return client.recv(10)

    reading = asyncio.ensure_future(asyncio.to_thread(read_to_the_end))
    async with asyncio.timeout(20):
        (await interception.accept(PlainChannel(pair[0]), "a.test")).close()
        assert await reading == b""


@pytest.mark.parametrize("cut", [False, True])
async def test_an_end_without_the_end_of_tls_may_be_an_attackers(tmp_path, cut):
    interception = open_interception(EgressSettings(runtime_dir=str(tmp_path)))
    trusting = client_context(tmp_path / CERTIFICATES_DIR / BUNDLE_FILE)
    pair = socket.socketpair()
    for one in pair:
        one.setblocking(False)
    ours, theirs = map(PlainChannel, pair)
    server, client = await asyncio.gather(
        interception.accept(ours, "a.test"), TlsChannel.connect(theirs, trusting, "a.test")
    )
    if cut:
        ours.close()
    else:
        server.close()
    assert await client.receive(10) == b""
    assert client.is_cut() is cut
    client.close()


async def test_a_server_must_have_a_certificate_of_its_name_from_a_known_authority(tmp_path):
    authority, key = certificate(["api.test"])
    file, known = tmp_path / "server.pem", tmp_path / "authorities.pem"
    file.write_text(key + authority)
    known.write_text(authority)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(file)
    trusting = open_interception(EgressSettings(runtime_dir=str(tmp_path), ca_file=str(known)))
    accept = lambda plain: TlsChannel.accept(plain, serving)  # noqa: E731
    assert await talk(accept, lambda plain: trusting.connect(plain, "api.test")) == [b"ping", b"pong", b""]
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        await talk(accept, lambda plain: trusting.connect(plain, "other.test"))
    with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
        await talk(
            accept,
            lambda plain: open_interception(EgressSettings(runtime_dir=str(tmp_path))).connect(plain, "api.test"),
        )


def test_the_next_proxy_has_the_same_authority_and_no_one_else_its_key(tmp_path):
    first = open_authority(tmp_path, "")
    assert open_authority(tmp_path, "-----MORE-----\n") == first
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    shown = tmp_path / CERTIFICATES_DIR
    assert [path.name for path in shown.iterdir()] == [BUNDLE_FILE]
    assert stat.S_IMODE((shown / BUNDLE_FILE).stat().st_mode) == 0o644
    bundle = (shown / BUNDLE_FILE).read_bytes()
    assert b"PRIVATE" not in bundle
    assert b"-----MORE-----" in bundle


def test_a_certificate_is_made_once_for_a_name(tmp_path):
    authority = Authority(open_authority(tmp_path, ""))
    assert authority.context("a.test") is authority.context("a.test")
    assert authority.context("a.test") is not authority.context("b.test")
