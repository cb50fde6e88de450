"""How a kernel ended, from what the machine saw."""

import signal

import pytest

from kernelsvc.model.exit_status import Cause, MiB, exit_of


@pytest.mark.parametrize(
    ("status", "oom", "cause", "words"),
    [
        (3 << 8, 0, Cause.EXITED, "status 3"),
        (0, 0, Cause.EXITED, "status 0"),
        (70 << 8, 0, Cause.EXITED, "could not go on"),
        (signal.SIGSEGV, 0, Cause.SIGNALLED, "segmentation fault"),
        (signal.SIGSEGV | 0x80, 0, Cause.SIGNALLED, "segmentation fault"),
        (signal.SIGABRT, 0, Cause.SIGNALLED, "abort"),
        (signal.SIGKILL, 0, Cause.SIGNALLED, "SIGKILL"),
        (signal.SIGKILL, 1, Cause.MEMORY, "512 MiB reached"),
        (signal.SIGTERM, 1, Cause.SIGNALLED, "SIGTERM"),
        (40, 0, Cause.SIGNALLED, "signal 40"),
        (None, 0, Cause.LOST, "status is unknown"),
        (None, 1, Cause.MEMORY, "OOM killer"),
    ],
)
def test_what_a_status_means(status, oom, cause, words):
    found = exit_of(status, oom_kills=oom, memory_bytes=512 * MiB)
    assert found.cause is cause
    assert words in found.message


def test_a_kill_is_never_blamed_on_memory_without_the_cgroups_word():
    assert exit_of(signal.SIGKILL, oom_kills=0, memory_bytes=1).cause is Cause.SIGNALLED
