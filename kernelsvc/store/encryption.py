"""Encryption of a data directory by Linux (``linux.fscrypt``): its key, and whether the key is there.

The server opens logs, maps images of kernels and shows home directories to sessions, and so do the kernel host and the
commands. All of them read clear bytes once the key is in the file system, and the disk has only encrypted ones.

The key stays in Linux when the server stops, because sessions of the kernel host continue. ``lock`` removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from kernelsvc.errors import BadRequest, Conflict
from kernelsvc.linux import fscrypt
from kernelsvc.linux.command_output import output_of
from kernelsvc.model.storage.encryption import EncryptionSettings, parse_key

#: Most bytes of a file with a key, and seconds for a command that prints one.
_MOST_BYTES, COMMAND_SECONDS = 4096, 60.0
#: A file system that can't encrypt, or a kernel built without encryption.
_UNSUPPORTED = {errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS}


def unlock(directory: Path, settings: EncryptionSettings) -> bool:
    """Make the files of a data directory readable, and encrypt a new directory. Return whether it is encrypted.

    Call it before anything is written into the directory. It may wait for the command that prints the key.

    Args:
        directory: exists. If it is empty and the settings have a key, it is encrypted from now on.
        settings: of the key.

    Raises:
        BadRequest: the directory is encrypted and its key is missing or another one, or it has files in clear, or its
            file system can't encrypt. Nothing was changed.
    """
    with _opened(directory) as fd:
        identifier = _identifier(directory, fd)
        if settings.key_file is None and not settings.key_command:
            if identifier is not None and not fscrypt.is_unlocked(fd, identifier):
                raise BadRequest(
                    f"The data directory {directory} is encrypted, and its key is missing. Give the settings with "
                    "encryption.key_file or encryption.key_command (--config)."
                )
            return identifier is not None
        if identifier is None and (names := set(os.listdir(fd)) - {"lost+found"}):
            raise BadRequest(
                f"The data directory {directory} has files in clear, such as {min(names)!r}, and Linux encrypts only a "
                "new directory. Make a backup, and restore it with these settings into a new one "
                "('kernelsvc restore --config FILE')."
            )
        _add(directory, fd, identifier, _read_key(settings))
    return True


def lock(directory: Path) -> bool:
    """Remove the key of an encrypted data directory from Linux. Return whether all its files are locked now.

    Args:
        directory: of a server that has stopped.

    Raises:
        BadRequest: the directory is not encrypted.
        Conflict: another user added the key.
    """
    with _opened(directory) as fd:
        if (identifier := _identifier(directory, fd)) is None:
            raise BadRequest(f"The data directory {directory} is not encrypted.")
        if not fscrypt.is_unlocked(fd, identifier):
            return True
    # An open descriptor of the directory would count as a file in use. The root of a file system is never encrypted, so
    # the directory above is in the same one.
    with _opened(directory.resolve().parent) as fd:
        try:
            return fscrypt.remove_key(fd, identifier, of_all_users=os.geteuid() == 0)
        except OSError as error:
            if error.errno != errno.ENOKEY:
                raise
            raise Conflict("Another user added the key. Run this command as that user, or as root.") from None


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BadRequest(f"Can't open the data directory {directory}: {error.strerror}.") from None
    try:
        yield fd
    finally:
        os.close(fd)


def _identifier(directory: Path, fd: int) -> bytes | None:
    try:
        return fscrypt.key_of(fd)
    except OSError as error:
        raise BadRequest(f"Can't use the encryption of {directory}: {error.strerror}.") from None


def _add(directory: Path, fd: int, identifier: bytes | None, key: bytes) -> None:
    """Add the key, and encrypt the directory if it has no identifier yet."""
    try:
        added = fscrypt.add_key(fd, key)
        if identifier is None:
            fscrypt.encrypt(fd, added)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            raise BadRequest(
                f"The file system of {directory} can't encrypt directories. With ext4, switch it on "
                "('tune2fs -O encrypt DEVICE'). With another one, remove the setting and put the directory on an "
                "encrypted disk (LUKS)."
            ) from None
        if error.errno == errno.EPERM:
            raise BadRequest(
                f"Linux refuses to encrypt {directory}: it is the root of a file system, or belongs to another user. "
                "Choose a directory below it (data_dir)."
            ) from None
        raise BadRequest(f"Can't encrypt {directory}: {error.strerror}.") from None
    if identifier not in (None, added):
        with contextlib.suppress(OSError):
            fscrypt.remove_key(fd, added, of_all_users=False)
        raise BadRequest(
            f"The data directory {directory} is encrypted with another key ({identifier.hex()[:8]}…, not "
            f"{added.hex()[:8]}…). Give the key that it was made with."
        )


def _read_key(settings: EncryptionSettings) -> bytes:
    name = "encryption.key_file" if settings.key_file is not None else "encryption.key_command"
    try:
        return parse_key(_of_file(settings.key_file) if settings.key_file is not None else _of_command(settings))
    except ValueError as error:
        raise BadRequest(f"Setting {name}: {error}.", setting=name) from None
    except OSError as error:
        raise BadRequest(
            f"Setting {name}: can't read the key: {error.strerror} ({error.filename}). "
            "Let the server's user read it, and no other users.",
            setting=name,
        ) from None


def _of_file(path: Path) -> bytes:
    # O_NONBLOCK: open(2) of a FIFO would wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        if os.fstat(fd).st_mode & 0o007:
            raise ValueError(f"other users can read or write {path}. Give it the mode 600")
        return file.read(_MOST_BYTES)


def _of_command(settings: EncryptionSettings) -> bytes:
    words = settings.key_command
    try:
        return output_of(words, seconds=COMMAND_SECONDS, most_bytes=_MOST_BYTES)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{words[0]} did not end in {COMMAND_SECONDS:.0f} seconds") from None
    except subprocess.CalledProcessError as error:
        raise ValueError(f"{words[0]} ended with exit code {error.returncode}. Run it by hand to see why") from None
