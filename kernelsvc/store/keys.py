"""The server's signing key: Ed25519 (RFC 8032), created at the first start, stored only in its file.

A signature shows that the server with this key created a journal head or a notebook. Any process that can read the key
file can sign too. The kernels can't read it. The file may be outside of the data directory (``SigningKey.load``), so
that a process that can write to the data directory can't read the key.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import stat
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from kernelsvc.errors import BadRequest, Internal
from kernelsvc.linux.atomic_file import sync_directory, write_all
from kernelsvc.model.audit import Audit, head_statement
from kernelsvc.model.events import JournalSigned
from kernelsvc.model.hash_chain import Head
from kernelsvc.model.objects import Deletion

NAME = "ed25519.pem"


class SigningKey:
    """A private key. Use ``load_or_create``."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def load_or_create(cls, directory: Path) -> SigningKey:
        """Load the key of this data directory (``keys/``), or create it.

        Two servers that start at the same time get the same key.

        Raises:
            OSError: The file can't be read or created.
            Internal: Other users can read it, or it is no Ed25519 key.
        """
        path = directory / NAME
        if not path.exists():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _create(path)
        return cls(_load(path))

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Load the key from a file, which must exist.

        Raises:
            BadRequest: It can't be read, other users can read it, or it is no Ed25519 key.
        """
        try:
            return cls(_load(path))
        except OSError as error:
            raise BadRequest(f"Setting signing_key: can't read {path}: {error.strerror}.") from None
        except Internal as error:
            raise BadRequest(f"Setting signing_key: {error.message}") from None

    @property
    def public(self) -> str:
        """The public key: base64 of its 32 raw bytes."""
        return base64.b64encode(self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()

    def secret(self, purpose: str) -> bytes:
        """Return 32 secret bytes that follow from the key and the purpose, and stay the same after a restart."""
        # HMAC as a key derivation: a secret reveals neither the key nor other secrets (RFC 2104).
        raw = self._key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        return hmac.new(raw, purpose.encode(), hashlib.sha256).digest()

    def sign(self, statement: bytes) -> str:
        """Return a signature in base64."""
        return base64.b64encode(self._key.sign(statement)).decode()

    def sign_head(self, session: str, head: Head) -> JournalSigned:
        """Return the event that signs a journal up to ``head``. Append it next, with no entry between."""
        signature = self.sign(head_statement(session, head))
        return JournalSigned(head=head.digest, key=self.public, signature=signature)

    def sign_audit(self, audit: Audit) -> Audit:
        """Return the audit with key and signature. A ``notebook_document.Signer``."""
        return msgspec.structs.replace(audit, key=self.public, signature=self.sign(audit.statement()))


def signed_deletion(key: SigningKey, deletion: Deletion) -> Deletion:
    """Return the record with key and signature."""
    return msgspec.structs.replace(deletion, key=key.public, signature=key.sign(deletion.statement()))


def is_good(statement: bytes, key: str, signature: str) -> bool:
    """Whether ``signature`` is a valid signature of ``statement`` by ``key``. False if anything is malformed."""
    try:
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key, validate=True))
        public.verify(base64.b64decode(signature, validate=True), statement)
    except (InvalidSignature, ValueError):
        return False
    return True


def _load(path: Path) -> Ed25519PrivateKey:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(fd, "rb") as file:
        # fstat of the open descriptor: a check by path could see another file.
        if stat.S_IMODE(os.fstat(fd).st_mode) & _forbidden(path):
            raise Internal(
                f"Others can read the signing key {path.parent.name}/{path.name}. Run chmod 600 on it, or remove it "
                "for a new one."
            )
        try:
            key = load_pem_private_key(file.read(), password=None)
        except ValueError:
            key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise Internal(
            f"{path.parent.name}/{path.name} is no Ed25519 key. Restore the right one, or remove it for a new one."
        )
    return key


def _forbidden(path: Path) -> int:
    """Return the permission bits that a key file must not have.

    systemd.exec(5), LoadCredential: only the unit's user has access. systemd may grant it by an ACL, and acl(5) shows
    the ACL's mask as the group's permissions.
    """
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    return 0o037 if credentials and path.parent == Path(credentials) else 0o077


def _create(path: Path) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        write_all(fd, pem)
        os.fsync(fd)
        # link(2) fails if the name exists: of two servers that start at the same time, the first one's key stays. A
        # rename would replace it.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        os.close(fd)
        temporary.unlink()
    sync_directory(path.parent)
