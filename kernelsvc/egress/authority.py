"""The certificate authority with which the proxy answers in the place of servers, so that it can read requests.

Its key is in the runtime directory, for the next proxy of the same server, and no other process reads it. Sessions
whose rules need requests to be read trust its certificate, by a file and by environment variables
(``model.network.trust``). Nothing else trusts it. The keys of the certificates that it signs are in memory.
"""

from __future__ import annotations

import datetime
import os
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kernelsvc.linux.atomic_file import replace, write_all
from kernelsvc.model.network.trust import BUNDLE_FILE, CERTIFICATES_DIR

KEY_FILE = "egress-ca.key"
#: Most certificates in memory. A further name replaces the oldest one.
MAX_LEAVES = 512
_AUTHORITY_DAYS, _LEAF_DAYS, _RENEW_DAYS = 5 * 365, 60, 30
#: A certificate is valid from so long before it was made.
_EARLY = datetime.timedelta(hours=1)
#: Where distributions have the certificates of public authorities, if OpenSSL does not say it.
_SYSTEM_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
_PEM = serialization.Encoding.PEM


class Authority:
    """Signs a certificate for each name, when it is first needed.

    Args:
        pem: its key and its certificate, from ``open_authority``.
    """

    def __init__(self, pem: bytes) -> None:
        key = serialization.load_pem_private_key(pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        self._certificate = x509.load_pem_x509_certificate(pem)
        # One key for all names: a key of its own for each would protect nothing, as all are in this memory.
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._leaves: dict[str, tuple[datetime.datetime, ssl.SSLContext]] = {}

    def context(self, name: str) -> ssl.SSLContext:
        """Return the context of a TLS server that has this name. It takes 0.5 ms at the first call for a name."""
        now = datetime.datetime.now(datetime.UTC)
        known = self._leaves.pop(name, None)
        # A clock that was set back makes a certificate one of the future.
        if known is None or not -_EARLY <= now - known[0] <= datetime.timedelta(days=_RENEW_DAYS):
            known = now, self._make_context(name, now)
        while len(self._leaves) >= MAX_LEAVES:
            del self._leaves[next(iter(self._leaves))]
        self._leaves[name] = known
        return known[1]

    def _make_context(self, name: str, now: datetime.datetime) -> ssl.SSLContext:
        builder = _certificate(x509.Name([]), self._certificate.subject, self._leaf_key, now, _LEAF_DAYS)
        signed = (
            builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # HTTP/2 is not read, and clients that offer it offer this one, too (RFC 7301).
        context.set_alpn_protocols(["http/1.1"])
        context.options |= ssl.OP_NO_RENEGOTIATION  # ``TlsChannel`` can't wait for bytes while it sends.
        # A ticket (RFC 8446, section 4.6.1) takes time, and connections are seldom resumed.
        context.num_tickets = 0
        # load_cert_chain takes a path. This one is of a file in memory (memfd_create(2)).
        memory = os.memfd_create("certificate", os.MFD_CLOEXEC)
        try:
            os.write(memory, signed.public_bytes(_PEM) + _key_pem(self._leaf_key))
            context.load_cert_chain(f"/proc/self/fd/{memory}")
        finally:
            os.close(memory)
        return context


def open_authority(runtime_dir: Path, more: str) -> bytes:
    """Return the key and the certificate of the authority. Make them for the first proxy in this directory.

    It writes the certificate for sessions, together with the public authorities.

    Args:
        runtime_dir: the directory of the proxy's socket.
        more: certificates of further authorities that sessions trust, as PEM.

    Raises:
        OSError: a file can't be read or written.
    """
    path = runtime_dir / KEY_FILE
    try:
        pem = path.read_bytes()
    except FileNotFoundError:
        pem = _make_authority()
        _write(path, pem, 0o600)
    shown = runtime_dir / CERTIFICATES_DIR
    shown.mkdir(mode=0o755, exist_ok=True)
    shown.chmod(0o755)
    certificate = pem[pem.index(b"-----BEGIN CERTIFICATE") :]
    _write(shown / BUNDLE_FILE, certificate + more.encode() + b"\n" + _public_authorities(), 0o644)
    return pem


def upstream_context(more: str) -> ssl.SSLContext:
    """Return the context of connections to servers. It verifies their certificates and names.

    Args:
        more: certificates of authorities, as PEM, besides the system's.
    """
    context = ssl.create_default_context()
    for path in _SYSTEM_BUNDLES:
        if not context.cert_store_stats()["x509_ca"] and os.path.exists(path):
            context.load_verify_locations(path)
    if more:
        context.load_verify_locations(cadata=more)
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION  # ``TlsChannel`` can't wait for bytes while it sends.
    return context


def _public_authorities() -> bytes:
    candidates = (ssl.get_default_verify_paths().cafile, *_SYSTEM_BUNDLES)
    found = next((path for path in candidates if path and os.path.exists(path)), None)
    return Path(found).read_bytes() if found else b""


def _write(path: Path, data: bytes, mode: int) -> None:
    """Replace a file as a whole: a session may be reading it."""

    def fill(fd: int) -> None:
        os.fchmod(fd, mode)  # The umask of a service takes bits away.
        write_all(fd, data)

    replace(path, fill, mode=mode)


def _make_authority() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kernelsvc egress proxy, for sessions of this server")])
    now = datetime.datetime.now(datetime.UTC)
    others = ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"]
    not_for = dict.fromkeys((*others, "decipher_only", "crl_sign"), False)
    made = (
        _certificate(name, name, key, now, _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=True, **not_for), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _key_pem(key) + made.public_bytes(_PEM)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLY)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
