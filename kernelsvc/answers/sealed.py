"""Reasoning that a client keeps and can't read: encrypted with a key of this server.

A client without stored responses (``store=false``) sends the items of earlier answers again. So a model gets its own
reasoning back, also where users must not see it.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kernelsvc.linux import atomic_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES, NONCE_BYTES = 32, 12


class ReasoningSeal:
    """AES-256-GCM with the key of a file.

    Args:
        path: The file of the key. Made with mode 0600 when the first text is encrypted.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def seal(self, principal: str, text: str) -> str:
        """Encrypt a text for a principal.

        Raises:
            OSError: The key can't be read or made.
        """
        # NIST SP 800-38D, section 8.3: random nonces are good for 2**32 texts with one key.
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._cipher().encrypt(nonce, _bytes(text), _bytes(principal))
        return base64.b64encode(nonce + sealed).decode()

    def open(self, principal: str, sealed: str) -> str:
        """Decrypt.

        Raises:
            ValueError: It is not a text that this server has encrypted for this principal.
            OSError: The key can't be read or made.
        """
        # Imported late: cryptography is slow to import.
        from cryptography.exceptions import InvalidTag

        data = base64.b64decode(sealed, validate=True)
        try:
            text = self._cipher().decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], _bytes(principal))
        except InvalidTag:
            raise ValueError("not encrypted by this server for this principal") from None
        return text.decode()

    def _cipher(self) -> AESGCM:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if not self._path.exists():
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            atomic_file.replace_bytes(self._path, os.urandom(KEY_BYTES), durable=True)
        return AESGCM(self._path.read_bytes())


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")
