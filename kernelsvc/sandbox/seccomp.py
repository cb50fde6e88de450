"""System calls that a kernel and its init may make, assembled into a BPF filter.

Theory of operation. The policy is an allow-list by name (``_FILES``, ``_MEMORY`` and so on). A known call that is not
on the list fails with ``EPERM``. A number that the frozen tables don't have fails with ``ENOSYS``, so that programs
fall back as on an older Linux. Another architecture's calls kill the process. Some calls are allowed by argument
(``syscall_arguments``): no new namespace through ``clone``, no set-uid bit through any call that takes a mode, only the
loopback's socket families and protocols, allow-lists of ioctl, prctl, fcntl and setsockopt.

seccomp(2): a filter can't dereference pointers. Calls whose arguments lie in memory and would have to be checked
(``clone3``, ``openat2``) fail with ``ENOSYS``: the C library then uses the older call, which can be checked.

The program is a binary search over runs of numbers with one verdict each, seven comparisons deep. Linux caches, by
number, the calls that are allowed whatever their arguments, so most calls cost nothing. Everything here is pure. The
guest only installs the bytes.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping

from kernelsvc.sandbox import syscall_arguments
from kernelsvc.sandbox.syscall_arguments import ALLOW, ENOSYS, EPERM, KILL, ArgumentCheck, Verdict
from kernelsvc.sandbox.syscall_table import AUDIT_ARCH, NUMBERS

_FILES = """
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 close close_range lseek stat fstat lstat
newfstatat statx access faccessat faccessat2 readlink readlinkat getdents getdents64 getcwd chdir fchdir rename
renameat renameat2 rmdir link linkat unlink unlinkat symlink symlinkat chown fchown lchown fchownat umask truncate
ftruncate fallocate fadvise64 readahead cachestat fsync fdatasync syncfs sync_file_range sendfile splice tee vmsplice
copy_file_range dup dup2 dup3 flock pipe pipe2 utime utimes utimensat futimesat statfs fstatfs getxattr
lgetxattr fgetxattr listxattr llistxattr flistxattr setxattr lsetxattr fsetxattr removexattr lremovexattr
fremovexattr inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
"""
_MEMORY = """
mmap mprotect munmap mremap brk madvise mincore msync mlock mlock2 munlock mlockall munlockall pkey_alloc pkey_free
pkey_mprotect membarrier get_mempolicy mseal map_shadow_stack
"""
_PROCESS = """
fork vfork execve execveat exit exit_group wait4 waitid kill tkill tgkill getpid getppid gettid getpgid getpgrp
setpgid getsid setsid getuid geteuid getgid getegid getgroups setgroups setuid setgid setreuid setregid setresuid
setresgid getresuid getresgid setfsuid setfsgid capget capset arch_prctl set_tid_address set_robust_list
get_robust_list futex futex_waitv futex_wait futex_wake futex_requeue rseq getrlimit setrlimit getrusage sched_yield
sched_getaffinity sched_getparam sched_getscheduler sched_get_priority_max sched_get_priority_min
sched_rr_get_interval sched_getattr getpriority ioprio_get pidfd_open pidfd_send_signal times getcpu
uname sysinfo getrandom restart_syscall landlock_create_ruleset landlock_add_rule landlock_restrict_self
"""
_SIGNALS_AND_TIME = """
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_tgsigqueueinfo
rt_sigsuspend sigaltstack signalfd signalfd4 pause alarm setitimer getitimer timer_create timer_settime timer_gettime
timer_getoverrun timer_delete timerfd_create timerfd_settime timerfd_gettime clock_gettime clock_getres
clock_nanosleep nanosleep gettimeofday time poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl
epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2
"""
_SOCKETS = """
bind listen accept accept4 getsockname getpeername recvfrom recvmsg recvmmsg getsockopt shutdown
"""
#: Calls of an init: it waits, reads its channel, sends signals and reports. No exec, no new socket.
_INIT = """
read write readv writev close close_range lseek stat fstat lstat newfstatat statx access faccessat faccessat2
readlink readlinkat getdents64 getcwd dup dup2 dup3 fcntl pipe2 mmap mprotect munmap mremap brk madvise membarrier
exit exit_group wait4 waitid kill tkill tgkill getpid getppid gettid getpgid getpgrp getsid getuid geteuid getgid
getegid set_robust_list futex rseq getrusage sched_yield pidfd_open pidfd_send_signal times getcpu uname sysinfo
getrandom restart_syscall rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend
sigaltstack signalfd signalfd4 pause timerfd_create timerfd_settime timerfd_gettime clock_gettime clock_getres
clock_nanosleep nanosleep gettimeofday time poll ppoll select pselect6 epoll_create1 epoll_ctl epoll_wait epoll_pwait
epoll_pwait2 eventfd2 accept accept4 getsockname getpeername sendto recvfrom sendmsg recvmsg setsockopt getsockopt
shutdown
"""
#: Calls of a converter besides those of an init that do not reach another process.
_CONVERTER = "pread64 gettid fadvise64"
_REACHING = """
kill pidfd_open pidfd_send_signal accept accept4 sendto recvfrom sendmsg recvmsg setsockopt getsockopt shutdown
"""
#: Known calls that fail with ENOSYS: their callers have a fallback for that.
_ABSENT = "clone3 openat2 io_uring_setup io_uring_enter io_uring_register userfaultfd"

_WRITING = 0o1 | 0o2 | 0o100 | 0o1000  # O_WRONLY O_RDWR O_CREAT O_TRUNC


def _reading(argument: int) -> ArgumentCheck:
    return ArgumentCheck(argument, (0,), ALLOW, EPERM, mask=_WRITING)


def kernel_policy(*, inet: bool, memfd: bool, connect: bool = True) -> dict[str, Verdict]:
    """Return the policy of a session's kernel and of everything it starts.

    Args:
        inet: allow internet sockets, for a network namespace of its own or the host's.
        memfd: allow memory files. Only a memory cgroup accounts for them.
        connect: allow connecting sockets. Without a private root a path may lead to the server's own socket, which
            Landlock does not guard.
    """
    allowed = " ".join((_FILES, _MEMORY, _PROCESS, _SIGNALS_AND_TIME, _SOCKETS)).split()
    policy: dict[str, Verdict] = dict.fromkeys(allowed, ALLOW)
    policy |= dict.fromkeys(_ABSENT.split(), ENOSYS)
    policy["memfd_create"] = ALLOW if memfd else ENOSYS
    return policy | syscall_arguments.checks(inet and connect, connect)


def init_policy() -> dict[str, Verdict]:
    """Return the policy of the init while the kernel runs. It can make nothing new."""
    policy: dict[str, Verdict] = dict.fromkeys(_INIT.split(), ALLOW)
    policy |= dict.fromkeys(_ABSENT.split(), ENOSYS)
    return policy | {"open": _reading(1), "openat": _reading(2)}


def converter_policy() -> dict[str, Verdict]:
    """Return the policy of a process that converts a notebook: it reads files and writes to its pipes, no more."""
    reaching = _REACHING.split()
    kept = {name: verdict for name, verdict in init_policy().items() if name not in reaching}
    return kept | dict.fromkeys(_CONVERTER.split(), ALLOW)


# --- the assembler -------------------------------------------------------------

_LOAD, _AND = 0x20, 0x54
_JUMP, _JUMP_EQUAL, _JUMP_GREATER_EQUAL = 0x05, 0x15, 0x35
_RETURN = 0x06
_NUMBER_OFFSET, _ARCH_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_FURTHEST = 255

Instruction = tuple[int, int, int, int]


def assemble(policy: Mapping[str, Verdict], arch: str) -> bytes:
    """Return a filter program for one architecture.

    Args:
        policy: verdict by name. Names that the architecture lacks are omitted. Calls that it has and the policy does
            not name fail with ``EPERM``.
        arch: ``x86_64`` or ``aarch64``.

    Raises:
        KeyError: there is no table for that architecture.
    """
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH_OFFSET),
        (_JUMP_EQUAL, 1, 0, AUDIT_ARCH[arch]),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
    ]
    program += _search(_runs(policy, NUMBERS[arch]))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


@functools.cache
def kernel_program(arch: str, *, inet: bool, memfd: bool, connect: bool = True) -> bytes:
    """Return ``kernel_policy`` assembled, from a cache."""
    return assemble(kernel_policy(inet=inet, memfd=memfd, connect=connect), arch)


@functools.cache
def init_program(arch: str) -> bytes:
    """Return ``init_policy`` assembled, from a cache."""
    return assemble(init_policy(), arch)


def converter_program(arch: str) -> bytes:
    """Return ``converter_policy`` assembled."""
    return assemble(converter_policy(), arch)


def _runs(policy: Mapping[str, Verdict], numbers: Mapping[str, int]) -> list[tuple[int, Verdict]]:
    """Return (first number, verdict) of each run. Together the runs cover every number.

    The x32 calls (0x40000000 and up) are in the last run, ``ENOSYS``.
    """
    by_number = {number: policy.get(name, EPERM) for name, number in numbers.items()}
    runs: list[tuple[int, Verdict]] = []
    for number in range(max(by_number) + 2):
        verdict = by_number.get(number, ENOSYS)
        if not runs or runs[-1][1] != verdict:
            runs.append((number, verdict))
    return runs


def _search(runs: list[tuple[int, Verdict]]) -> list[Instruction]:
    if len(runs) == 1:
        return _decide(runs[0][1])
    middle = len(runs) // 2
    low, high = _search(runs[:middle]), _search(runs[middle:])
    first = runs[middle][0]
    if len(low) <= _FURTHEST:
        return [(_JUMP_GREATER_EQUAL, len(low), 0, first), *low, *high]
    # A conditional jump has 8 bits and reaches 255 instructions. An unconditional jump has 32 bits.
    return [(_JUMP_GREATER_EQUAL, 0, 1, first), (_JUMP, 0, 0, len(low)), *low, *high]


def _decide(verdict: Verdict) -> list[Instruction]:
    if isinstance(verdict, int):
        return [(_RETURN, 0, 0, verdict)]
    offset = _ARGUMENTS_OFFSET + 8 * verdict.argument + (4 if verdict.high else 0)  # little-endian
    code: list[Instruction] = [(_LOAD, 0, 0, offset)]
    if verdict.mask != 0xFFFF_FFFF:
        code.append((_AND, 0, 0, verdict.mask))
    other, match = _decide(verdict.other), _decide(verdict.match)
    tests = len(verdict.values)
    for i, value in enumerate(verdict.values):
        code.append((_JUMP_EQUAL, tests - i - 1 + len(other), 0, value))
    return [*code, *other, *match]
