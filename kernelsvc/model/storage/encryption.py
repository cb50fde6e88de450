"""Settings of an encrypted data directory, and the form of its key. Pure."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

#: Bytes of a key that are accepted: AES-256 needs 32, and Linux takes no more than 64.
MIN_KEY, MAX_KEY = 32, 64
_HEX = re.compile(rb"(?:[0-9A-Fa-f]{2}){%d,%d}" % (MIN_KEY, MAX_KEY))


class EncryptionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the key of an encrypted data directory is. Without one, the directory is not encrypted."""

    key_file: Path | None = None
    key_command: list[str] = []


HELP: dict[str, tuple[str, str | None]] = {
    "key_file": (
        "File with the key by which Linux encrypts data_dir: 64 to 128 hexadecimal digits. A new data_dir gets this "
        "key, and keeps it. Default: $CREDENTIALS_DIRECTORY/data-key (systemd's LoadCredential), or no encryption.",
        None,
    ),
    "key_command": ("Program and its arguments that print this key, instead of key_file.", None),
}


def check(settings: EncryptionSettings) -> None:
    """Check that the settings go together.

    Raises:
        ValueError: Both are set.
    """
    if settings.key_file is not None and settings.key_command:
        raise ValueError("set either encryption.key_file or encryption.key_command")


def parse_key(text: bytes) -> bytes:
    """Return the key that a file or a command holds.

    Raises:
        ValueError: It is not 64 to 128 hexadecimal digits. The message does not quote it.
    """
    if not _HEX.fullmatch(found := text.strip()):
        raise ValueError(
            f"a key is {2 * MIN_KEY} to {2 * MAX_KEY} hexadecimal digits. Make one with 'openssl rand -hex 64'"
        )
    return bytes.fromhex(found.decode("ascii"))
