"""TLS that the proxy ends: its authority, its certificates, and the verification of servers."""

import asyncio
import socket
import ssl
import stat

import pytest
from egress_servers import certificate

from kernelsvc.egress.authority import KEY_FILE, Authority, open_authority
from kernelsvc.egress.byte_channels import TlsChannel
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
    server, client = await asyncio.gather(accept(ours), connect(theirs), return_exceptions=True)
    ours.close()
    failed = [one for one in (client, server) if isinstance(one, BaseException)]
    for one in (server, client):
        if not isinstance(one, BaseException) and failed:
            one.abort()
    if failed:
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
            lambda sock, name=name: interception.accept(sock, name),
            lambda sock, name=name: TlsChannel.connect(sock, trusting, name),
        )
        assert got == [b"ping", b"pong", b""]
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        await talk(
            lambda sock: interception.accept(sock, "api.test"),
            lambda sock: TlsChannel.connect(sock, trusting, "other.test"),
        )


async def test_a_server_must_have_a_certificate_of_its_name_from_a_known_authority(tmp_path):
    authority, key = certificate(["api.test"])
    file, known = tmp_path / "server.pem", tmp_path / "authorities.pem"
    file.write_text(key + authority)
    known.write_text(authority)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(file)
    trusting = open_interception(EgressSettings(runtime_dir=str(tmp_path), ca_file=str(known)))
    accept = lambda sock: TlsChannel.accept(sock, serving)  # noqa: E731
    assert await talk(accept, lambda sock: trusting.connect(sock, "api.test")) == [b"ping", b"pong", b""]
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        await talk(accept, lambda sock: trusting.connect(sock, "other.test"))
    with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
        await talk(
            accept, lambda sock: open_interception(EgressSettings(runtime_dir=str(tmp_path))).connect(sock, "api.test")
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
