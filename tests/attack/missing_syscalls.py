"""A machine that can do less: programs for which some system calls of Linux's are not there.

A seccomp filter of the test's own answers for them, which every process that is
started inherits, as a container's or an older Linux would.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from served import Served

from attack.unprivileged import as_ordinary_user
from kernelsvc.sandbox.syscall_table import NUMBERS

_PROGRAM = """
import os, struct, sys
from kernelsvc.guest.confine import linux
linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
error, numbers = int(sys.argv[1]), [int(number) for number in sys.argv[2].split(",")]
code = [(0x20, 0, 0, 0)]
for number in numbers:
    code += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | error)]
code += [(0x06, 0, 0, 0x7FFF0000)]
linux.install_filter(b"".join(struct.pack("=HBBI", *one) for one in code))
os.execv(sys.argv[3], sys.argv[3:])
"""
#: So that the program finds the package wherever it is started.
PATHS = {"PYTHONPATH": str(Path(__file__).parents[2])}


def without(calls: list[str], error: int, command: list[str]) -> list[str]:
    """The command that runs ``command`` where these system calls fail with ``error``."""
    table = NUMBERS[platform.machine()]
    return [sys.executable, "-c", _PROGRAM, str(error), ",".join(str(table[name]) for name in calls), *command]


class MissingSyscalls(Served):
    """A server of an ordinary user on such a machine."""

    calls: tuple[str, ...] = ()
    error = 1

    def command(self) -> list[str]:
        command = without(list(self.calls), self.error, super().command())
        return as_ordinary_user(command) if os.geteuid() == 0 else command
