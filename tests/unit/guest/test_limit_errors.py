"""Which cap an exception tells of, with real exceptions where they can be had."""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
import sys

import pytest

from kernelsvc.guest import limit_errors


def test_by_kind_and_number() -> None:
    assert limit_errors.limit_of(None) is None
    assert limit_errors.limit_of(MemoryError()) == {"limit": "memory_bytes"}
    assert limit_errors.limit_of(OSError(errno.ENOMEM, "x")) == {"limit": "memory_bytes"}
    assert limit_errors.limit_of(OSError(errno.EFBIG, "x")) == {"limit": "disk_bytes"}
    assert limit_errors.limit_of(OSError(errno.EDQUOT, "x")) == {"limit": "disk_bytes"}
    assert limit_errors.limit_of(RuntimeError("can't start new thread")) == {"limit": "processes"}
    assert limit_errors.limit_of(ValueError("memory")) is None
    assert limit_errors.limit_of(OSError(errno.ENOENT, "x")) is None


def test_what_caused_it_counts_too() -> None:
    error = ValueError("no data")
    error.__cause__ = OSError(errno.EMFILE, "x")
    assert limit_errors.limit_of(error) == {"limit": "open_files"}


def test_a_chain_without_end_is_not_followed_for_ever() -> None:
    one, two = ValueError(), ValueError()
    one.__context__, two.__context__ = two, one
    assert limit_errors.limit_of(one) is None


def test_a_socket_without_data_is_no_cap() -> None:
    one, two = socket.socketpair()
    with one, two:
        one.setblocking(False)
        with pytest.raises(BlockingIOError) as told:
            one.recv(1)
        assert limit_errors.limit_of(told.value) is None


@pytest.mark.skipif(os.getuid() == 0, reason="root has no limit of processes")
def test_a_fork_without_room_is_one() -> None:
    code = (
        "import os, resource\nfrom kernelsvc.guest import limit_errors as caps\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))\n"
        "try:\n    os.fork()\nexcept BlockingIOError as error:\n    print(caps.limit_of(error)['limit'])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "processes\n"


def test_descriptors_that_run_out() -> None:
    code = (
        "import resource\nfrom kernelsvc.guest import limit_errors as caps\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        "try:\n    kept = [open('/dev/null') for _ in range(99)]\n"
        "except OSError as error:\n    print(caps.limit_of(error)['limit'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "open_files\n", done.stderr
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 40
