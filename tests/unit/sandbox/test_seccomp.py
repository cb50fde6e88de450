"""The filters, run by the simulator against every number there is."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.sandbox import seccomp
from kernelsvc.sandbox.syscall_arguments import ALLOW, ENOSYS, EPERM, KILL, ArgumentCheck, Verdict, refuse
from kernelsvc.sandbox.syscall_table import AUDIT_ARCH, NUMBERS

ARCHES = sorted(NUMBERS)
POLICIES = {
    "kernel": seccomp.kernel_policy(inet=True, memfd=True),
    "kernel without network or memory files": seccomp.kernel_policy(inet=False, memfd=False),
    "kernel without a private root": seccomp.kernel_policy(inet=False, memfd=False, connect=False),
    "init": seccomp.init_policy(),
    "converter": seccomp.converter_policy(),
}


def simulate(program: bytes, number: int, arguments: tuple[int, ...] = (), *, arch: str = "x86_64") -> int:
    """Run the program as Linux does, and return the verdict for a call.

    Raises:
        IndexError: the program jumps out of itself or never returns.
        ValueError: it has an instruction that the assembler never emits.
    """
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("=IIQ6Q", number, AUDIT_ARCH[arch], 0, *(a & 0xFFFF_FFFF_FFFF_FFFF for a in padded))
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator = at = 0
    while True:
        operation, yes, no, operand = code[at]
        at += 1
        if operation == seccomp._LOAD:
            accumulator = struct.unpack_from("=I", data, operand)[0]
        elif operation == seccomp._AND:
            accumulator &= operand
        elif operation == seccomp._JUMP:
            at += operand
        elif operation == seccomp._JUMP_EQUAL:
            at += yes if accumulator == operand else no
        elif operation == seccomp._JUMP_GREATER_EQUAL:
            at += yes if accumulator >= operand else no
        elif operation == seccomp._RETURN:
            return int(operand)
        else:
            raise ValueError(f"instruction {operation:#x} at {at - 1}")


def expected(verdict: Verdict, arguments: tuple[int, ...]) -> int:
    """The policy's own meaning, told without the assembler."""
    while isinstance(verdict, ArgumentCheck):
        value = arguments[verdict.argument] >> (32 if verdict.high else 0) & verdict.mask
        verdict = verdict.match if value in verdict.values else verdict.other
    return verdict


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("name", POLICIES)
def test_every_call_gets_its_policy_and_every_other_number_is_absent(name: str, arch: str) -> None:
    policy = POLICIES[name]
    program = seccomp.assemble(policy, arch)
    by_number = {number: call for call, number in NUMBERS[arch].items()}
    for number in [*range(600), 0x40000000, 0x40000000 + 39, 0xFFFF_FFFF]:
        call = by_number.get(number)
        wanted = ENOSYS if call is None else expected(policy.get(call, EPERM), (0,) * 6)
        assert simulate(program, number, arch=arch) == wanted, call


@pytest.mark.parametrize("name", POLICIES)
@given(
    number=st.sampled_from(sorted(NUMBERS["x86_64"].values())),
    arguments=st.tuples(*[st.one_of(st.integers(0, 70), st.integers(0, 2**64 - 1))] * 6),
)
def test_arguments_decide_as_the_policy_says(name: str, number: int, arguments: tuple[int, ...]) -> None:
    program = seccomp.assemble(POLICIES[name], "x86_64")
    call = next(call for call, n in NUMBERS["x86_64"].items() if n == number)
    assert simulate(program, number, arguments) == expected(POLICIES[name].get(call, EPERM), arguments)


@pytest.mark.parametrize("arch", ARCHES)
def test_another_architecture_is_killed(arch: str) -> None:
    other = next(a for a in ARCHES if a != arch)
    assert simulate(seccomp.assemble(POLICIES["kernel"], arch), 0, arch=other) == KILL


def test_a_policy_names_only_calls_that_exist_somewhere() -> None:
    known = set(NUMBERS["x86_64"]) | set(NUMBERS["aarch64"])
    for policy in POLICIES.values():
        assert set(policy) <= known


@pytest.mark.parametrize(
    ("call", "arguments", "wanted"),
    [
        ("clone", (0x003D_0F00,), ALLOW),  # what pthread_create passes
        ("clone", (0x1000_0011,), EPERM),  # a new user namespace
        ("clone", (0x1_0000_0000 | 0x11,), ALLOW),  # the kernel ignores the upper half too
        ("ioctl", (0, 0x5412), EPERM),
        ("ioctl", (0, 0xFFFF_FFFF_0000_5412), EPERM),  # it looks at 32 bits, so do we
        ("ioctl", (0, 0x401C5820), EPERM),
        ("ioctl", (0, 0x5401), ALLOW),
        ("ioctl", (0, 0x4008_6602), EPERM),  # FS_IOC_SETFLAGS
        ("ioctl", (0, 0x8008_6601), ALLOW),  # FS_IOC_GETFLAGS
        ("ioctl", (0, 0x8946), refuse(errno.EOPNOTSUPP)),  # SIOCETHTOOL, as psutil expects
        ("ioctl", (0, 0xC0DE_C0DE), refuse(errno.ENOTTY)),
        ("prctl", (4, 0), EPERM),  # PR_SET_DUMPABLE
        ("prctl", (4, 1), ALLOW),
        ("prctl", (15, 0), ALLOW),  # PR_SET_NAME
        ("prctl", (67, 1), refuse(errno.EINVAL)),  # PR_SET_MEMORY_MERGE
        ("fcntl", (0, 1030), ALLOW),  # F_DUPFD_CLOEXEC
        ("fcntl", (0, 1024), EPERM),  # F_SETLEASE
        ("fcntl", (0, 1026), EPERM),  # F_NOTIFY
        ("fcntl", (0, 1040), refuse(errno.EINVAL)),
        ("sched_setaffinity", (0,), ALLOW),
        ("sched_setaffinity", (7,), EPERM),
        ("sched_setscheduler", (7, 0), ALLOW),  # libzmq, for its own thread
        ("sched_setscheduler", (7, 5), EPERM),
        ("sched_setscheduler", (0, 5), ALLOW),
        ("setpriority", (0, 0, 10), ALLOW),
        ("setpriority", (0, 7, 10), EPERM),
        ("setpriority", (2, 0, 10), EPERM),  # PRIO_USER: all processes of the user
        ("setsockopt", (5, 1, 2), ALLOW),
        ("setsockopt", (5, 6, 13), ALLOW),
        ("setsockopt", (5, 1, 13), EPERM),  # SO_LINGER
        ("setsockopt", (5, 1, 26), refuse(errno.ENOPROTOOPT)),  # SO_ATTACH_FILTER
        ("setsockopt", (5, 6, 31), refuse(errno.ENOPROTOOPT)),  # TCP_ULP
        ("setsockopt", (5, 0, 64), refuse(errno.ENOPROTOOPT)),  # IPT_SO_SET_REPLACE
        ("setsockopt", (5, 41, 67), ALLOW),  # IPV6_TCLASS
        ("setsockopt", (5, 284, 1), refuse(errno.ENOPROTOOPT)),
        ("sendmsg", (5, 0, 0x4000), ALLOW),  # MSG_NOSIGNAL
        ("sendmsg", (5, 0, 0x4001), refuse(errno.EOPNOTSUPP)),
        ("socket", (2, 1), ALLOW),
        ("socket", (2, 0o2000001, 6), ALLOW),  # with SOCK_CLOEXEC
        ("socket", (2, 1, 262), refuse(errno.EPROTONOSUPPORT)),  # MPTCP
        ("socket", (2, 2, 136), refuse(errno.EPROTONOSUPPORT)),  # UDP-Lite
        ("socket", (2, 3, 6), EPERM),
        ("socket", (16, 3, 0), ALLOW),
        ("socket", (16, 3, 12), EPERM),
        ("socket", (40, 1), refuse(errno.EAFNOSUPPORT)),
        ("openat", (0, 0, 0o101, 0o644), ALLOW),
        ("openat", (0, 0, 0o101, 0o4755), EPERM),
        ("prlimit64", (0, 7, 1), ALLOW),
        ("prlimit64", (1, 7, 0), ALLOW),
        ("prlimit64", (1, 7, 1 << 32), EPERM),
        ("mknod", (0, 0o010644), ALLOW),
        ("mknod", (0, 0o060644), EPERM),
        ("clone3", (), ENOSYS),
        ("ptrace", (), EPERM),
    ],
)
def test_what_the_kernel_may(call: str, arguments: tuple[int, ...], wanted: int) -> None:
    program = seccomp.kernel_program("x86_64", inet=True, memfd=True)
    assert simulate(program, NUMBERS["x86_64"][call], arguments) == wanted


@pytest.mark.parametrize("call", ["execve", "socket", "connect", "clone", "fork", "unlink", "chmod", "memfd_create"])
def test_the_init_makes_nothing_new(call: str) -> None:
    assert simulate(seccomp.init_program("x86_64"), NUMBERS["x86_64"][call]) == EPERM


def test_a_far_jump_is_assembled_over_the_limit_of_conditional_ones() -> None:
    values = tuple(range(300))
    check = ArgumentCheck(0, values[:120], EPERM, ArgumentCheck(0, values[120:240], EPERM, ALLOW))
    policy = {name: check for i, name in enumerate(sorted(NUMBERS["x86_64"])) if i % 2}
    program = seccomp.assemble(policy, "x86_64")
    tested = sorted(NUMBERS["x86_64"])
    for name in (*tested[:6], *tested[6:-6:9], *tested[-6:]):  # the simulation of all takes seconds
        number = NUMBERS["x86_64"][name]
        assert simulate(program, number, (5,)) == EPERM
        assert simulate(program, number, (250,)) == (ALLOW if name in policy else EPERM)


def test_the_simulator_refuses_what_we_never_emit() -> None:
    with pytest.raises(ValueError, match="instruction"):
        simulate(bytes([0x99, 0, 0, 0, 0, 0, 0, 0]), 0)


def test_tables_are_frozen_for_both_architectures() -> None:
    assert NUMBERS["x86_64"]["execve"] == 59
    assert NUMBERS["aarch64"]["execve"] == 221
    assert set(AUDIT_ARCH) == set(NUMBERS)
