"""Requests of fscrypt. tests/acceptance/test_encryption.py has a file system that encrypts; memory never does."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernelsvc.linux import fscrypt


@pytest.fixture
def memory() -> Iterator[int]:
    path = Path("/dev/shm", f"kernelsvc-fscrypt-{os.getpid()}")
    path.mkdir()
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)
    path.rmdir()


def test_a_file_system_without_encryption_has_no_key_and_takes_none(memory: int) -> None:
    assert fscrypt.key_of(memory) is None
    for request in (
        lambda: fscrypt.add_key(memory, bytes(64)),
        lambda: fscrypt.encrypt(memory, bytes(16)),
        lambda: fscrypt.remove_key(memory, bytes(16), of_all_users=False),
        lambda: fscrypt.is_unlocked(memory, bytes(16)),
    ):
        with pytest.raises(OSError, match=r"Inappropriate ioctl|not supported") as raised:
            request()
        assert raised.value.errno in (errno.ENOTTY, errno.EOPNOTSUPP)


def test_the_requests_are_those_of_the_header() -> None:
    # _IOC of linux/fscrypt.h, as a C compiler computes them. They are the same on x86 and ARM.
    assert (fscrypt._SET_POLICY, fscrypt._GET_POLICY) == (0x800C6613, 0xC0096616)
    assert (fscrypt._ADD, fscrypt._REMOVE, fscrypt._REMOVE_OF_ALL_USERS) == (0xC0506617, 0xC0406618, 0xC0406619)
    assert fscrypt._STATUS == 0xC080661A
