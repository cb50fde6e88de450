"""Encrypted directories of Linux's file systems (fscrypt). Linux encrypts contents and names of all files below one.

A directory has a policy, which names its key by an identifier that Linux computes from the key. A process adds the key
to the file system, and from then on every process that may open a file reads it in clear. Without the key, names are
shown in a coded form and no file can be opened (ENOKEY). ext4, f2fs, UBIFS and CephFS have it.

Source: Documentation/filesystems/fscrypt.rst of Linux (API, version 2 policies), and linux/fscrypt.h.
"""

from __future__ import annotations

import errno
import fcntl
import struct

# _IOC of asm-generic/ioctl.h: direction, size of the argument, type 'f', number.
_READ, _WRITE = 2 << 30, 1 << 30
_SPECIFIER, _POLICY = struct.Struct("=II32s"), struct.Struct("=BBBBB3x16s")
_ADD_KEY, _REMOVE_KEY, _KEY_STATUS = struct.Struct("=40sII32x"), struct.Struct("=40sI20x"), struct.Struct("=40s24xI60x")
_POLICY_SIZE = struct.Struct("=Q")


def _request(direction: int, number: int, size: int) -> int:
    return direction | size << 16 | ord("f") << 8 | number


_SET_POLICY = _request(_READ, 19, 12)  # The header states the size of a policy of version 1.
_GET_POLICY = _request(_READ | _WRITE, 22, _POLICY_SIZE.size + 1)
_ADD = _request(_READ | _WRITE, 23, _ADD_KEY.size)
_REMOVE = _request(_READ | _WRITE, 24, _REMOVE_KEY.size)
_REMOVE_OF_ALL_USERS = _request(_READ | _WRITE, 25, _REMOVE_KEY.size)
_STATUS = _request(_READ | _WRITE, 26, _KEY_STATUS.size)

_BY_IDENTIFIER, _VERSION_2, _AES_256_XTS, _AES_256_CTS, _PAD_32 = 2, 2, 1, 4, 3
_PRESENT, _FILES_BUSY, _OTHER_USERS = 2, 1, 2


def key_of(directory: int) -> bytes | None:
    """Return the identifier of a directory's key, 16 bytes, or None if the directory is not encrypted.

    Args:
        directory: a descriptor of it.

    Raises:
        OSError: EINVAL if it is encrypted by a policy of another form.
    """
    policy = bytearray(_POLICY_SIZE.pack(_POLICY.size) + bytes(_POLICY.size))
    try:
        fcntl.ioctl(directory, _GET_POLICY, policy, True)
    except OSError as error:
        # ENODATA: not encrypted. The others: the file system, or this kernel, has no encryption.
        if error.errno in (errno.ENODATA, errno.ENOTTY, errno.EOPNOTSUPP):
            return None
        raise
    version, *_, identifier = _POLICY.unpack_from(policy, _POLICY_SIZE.size)
    if version != _VERSION_2:
        raise OSError(errno.EINVAL, "the directory has an encryption policy of another version")
    return bytes(identifier)


def is_unlocked(directory: int, identifier: bytes) -> bool:
    """Return whether the file system of a directory has a key.

    Raises:
        OSError: the file system can't tell.
    """
    argument = bytearray(_KEY_STATUS.pack(_specifier(identifier), 0))
    fcntl.ioctl(directory, _STATUS, argument, True)
    return bool(_KEY_STATUS.unpack(argument)[1] == _PRESENT)


def add_key(directory: int, key: bytes) -> bytes:
    """Add a key to the file system of a directory. Return the key's identifier.

    It stays until it is removed, the file system is unmounted, or the machine stops. Any user may add keys, and has to
    remove them again.

    Args:
        directory: a descriptor of a directory of the file system.
        key: 32 bytes (AES-256) to 64 (FSCRYPT_MAX_KEY_SIZE).

    Raises:
        OSError: ENOTTY or EOPNOTSUPP if the file system has no encryption.
    """
    argument = bytearray(_ADD_KEY.pack(_specifier(b""), len(key), 0) + key)
    try:
        fcntl.ioctl(directory, _ADD, argument, True)
        return bytes(_SPECIFIER.unpack_from(argument)[2][:16])
    finally:
        argument[:] = bytes(len(argument))


def remove_key(directory: int, identifier: bytes, *, of_all_users: bool) -> bool:
    """Remove a key from the file system. Return whether all files are locked now.

    Args:
        directory: a descriptor of a directory of the file system.
        identifier: the key's.
        of_all_users: also if other users added it. Only root may do so.

    Raises:
        OSError: ENOKEY if the key is not there, or another user added it.

    False means that files are open, or that another user added the key, too. Call it again later.
    """
    argument = bytearray(_REMOVE_KEY.pack(_specifier(identifier), 0))
    fcntl.ioctl(directory, _REMOVE_OF_ALL_USERS if of_all_users else _REMOVE, argument, True)
    return not _REMOVE_KEY.unpack(argument)[1] & (_FILES_BUSY | _OTHER_USERS)


def encrypt(directory: int, identifier: bytes) -> None:
    """Have everything in an empty directory encrypted. The directory keeps this key for ever.

    Args:
        directory: a descriptor of it.
        identifier: of a key that this user added.

    Raises:
        OSError: ENOTEMPTY if it has entries, EPERM if it is the root of its file system or of another user.
    """
    policy = _POLICY.pack(_VERSION_2, _AES_256_XTS, _AES_256_CTS, _PAD_32, 0, identifier)
    fcntl.ioctl(directory, _SET_POLICY, policy)


def _specifier(identifier: bytes) -> bytes:
    return _SPECIFIER.pack(_BY_IDENTIFIER, 0, identifier)
