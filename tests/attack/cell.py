"""What a cell of the attack suite is.

An attack is code that raises when it meets a wall and comes to its end when it
doesn't. The same text is run confined and, where that is safe, unconfined: an
attack that fails without the wall proves nothing. In a cell, ``C`` holds the
canaries (``canaries.py``), ``INIT`` is the pid of the session's init, ``call`` makes
a system call by name, ``need`` raises when something doesn't hold.

Verdicts: ``blocked`` (it raised), ``reached`` (it came through), ``works``
(harmless code that confinement must not break), ``died`` (the kernel's process was
ended).
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from typing import Any, Literal

from kernelsvc.sandbox.syscall_table import NUMBERS

Verdict = Literal["blocked", "reached", "works", "died"]
Who = Literal["root", "user"]
BOTH: tuple[Who, ...] = ("root", "user")
ROOT: tuple[Who, ...] = ("root",)
#: Never run without the wall.
UNSAFE: tuple[Who, ...] = ()

_PREAMBLE = """\
import ctypes, os, socket, struct, sys
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
def call(name, *arguments):
    wide = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)  # the seventh lies on the stack
    result = _libc.syscall(ctypes.c_long(NUMBERS[name]), *wide)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def need(ok, what):
    if not ok:
        raise AssertionError(what)
"""
#: A branch is its parent's child, and a resumed checkpoint an orphan; their init is that of the pid namespace.
_INIT = "INIT = 1 if C.get('copy') else os.getppid()\n"


@dataclass(frozen=True)
class Cell:
    """One hostile (or harmless) cell.

    Attributes:
        name: unique; becomes the test's id.
        layer: which wall is meant to hold it.
        code: the cell.
        confined: the verdict behind the wall.
        bare: who gets through without it; empty where trying that is unsafe.
        only: who has that wall at all on a machine like the tests'.
        needs: a canary's name; where the machine has none, even root can't do it bare.
        survives: the kernel still answers afterwards.
    """

    name: str
    layer: str
    code: str
    confined: Verdict = "blocked"
    bare: tuple[Who, ...] = BOTH
    only: tuple[Who, ...] = BOTH
    needs: str = ""
    survives: bool = True

    def source(self, facts: dict[str, Any]) -> str:
        """The whole text to run: helpers, canaries, cell."""
        wanted = re.findall(r"(?:call\(|NUMBERS\[)'(\w+)'", self.code)
        numbers = {name: NUMBERS[platform.machine()].get(name, -1) for name in wanted}
        return f"{_PREAMBLE}NUMBERS = {numbers!r}\nC = {facts!r}\n{_INIT}{self.code}\n"


def attack(layer: str, name: str, code: str, bare: tuple[Who, ...] = BOTH, needs: str = "") -> Cell:
    """A cell that must be blocked."""
    return Cell(name=name, layer=layer, code=code.strip("\n"), bare=bare, needs=needs)


def harmless(name: str, code: str, needs: str = "") -> Cell:
    """A cell that must work."""
    return Cell(name=name, layer="over-blocking", code=code.strip("\n"), confined="works", bare=UNSAFE, needs=needs)
