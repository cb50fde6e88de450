"""The system calls of the proxy."""

import platform

import pytest

from kernelsvc.egress.confinement import proxy_policy
from kernelsvc.sandbox import seccomp
from kernelsvc.sandbox.syscall_arguments import ALLOW
from kernelsvc.sandbox.syscall_table import NUMBERS

ARCH = platform.machine()
CLONE_VM, CLONE_THREAD = 0x100, 0x10000


@pytest.fixture(scope="module")
def program():
    return seccomp.assemble(proxy_policy(), ARCH)


def verdict(program, name, *arguments):
    return seccomp.simulate(program, NUMBERS[ARCH][name], arguments, arch=ARCH)


@pytest.mark.parametrize("name", ["execve", "kill", "setuid", "renameat2", "unlinkat", "mkdirat", "fchmod", "ptrace"])
def test_programs_files_and_processes_are_out_of_reach(program, name):
    assert verdict(program, name, 1, 1, 1, 1) != ALLOW


def test_threads_and_no_processes(program):
    assert verdict(program, "clone", CLONE_VM | CLONE_THREAD) == ALLOW
    assert verdict(program, "clone", 17) != ALLOW


@pytest.mark.parametrize("name", ["accept4", "recvmsg", "epoll_wait", "futex", "mmap", "close"])
def test_what_a_proxy_does_is_allowed(program, name):
    assert verdict(program, name) == ALLOW
