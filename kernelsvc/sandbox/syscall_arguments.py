"""Arguments with which a session may make a system call that is not allowed as a whole.

Theory of operation. A verdict is an errno or "allow". An ``ArgumentCheck`` chooses between two of them by an argument.
Calls that are many operations in one (ioctl, prctl, fcntl, setsockopt) have allow-lists of operations: those that the C
library, Python, shells, git, Java and the usual libraries use. Any other fails with the errno that an older Linux or
another kind of file would return, so that programs use their fallback. Operations that are refused although programs
know them well fail with ``EPERM``.

seccomp(2): a filter sees numbers and can't follow pointers, and it can't compare an argument with the caller's own pid.
So calls that change the scheduling of a process accept pid 0, which is the caller.

Values are from ``include/uapi`` and equal on x86-64 and aarch64. Everything here is pure.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

ALLOW = 0x7FFF_0000
KILL = 0x8000_0000
_ERRNO = 0x0005_0000


def refuse(number: int) -> int:
    """Return the verdict "fail with this errno"."""
    return _ERRNO | number


EPERM = refuse(errno.EPERM)
ENOSYS = refuse(errno.ENOSYS)


@dataclass(frozen=True)
class ArgumentCheck:
    """Decide by one argument's low half: ``(argument & mask) in values``.

    Attributes:
        argument: 0 to 5.
        values: compared with the masked argument.
        match: the verdict, or the next check, if one of them is equal.
        other: the verdict, or the next check, if none is equal.
        mask: bits of the argument to compare.
        high: compare the upper 32 bits instead.
    """

    argument: int
    values: tuple[int, ...]
    match: int | ArgumentCheck
    other: int | ArgumentCheck
    mask: int = 0xFFFF_FFFF
    high: bool = False


Verdict = int | ArgumentCheck

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
_NETLINK_ROUTE = 0
_SOCK_STREAM, _SOCK_DGRAM, _SOCK_RAW, _SOCK_SEQPACKET = 1, 2, 3, 5
_SOCK_TYPE = 0xF  # the other bits are SOCK_NONBLOCK and SOCK_CLOEXEC
_IPPROTO_TCP, _IPPROTO_UDP = 6, 17
_NEW_NAMESPACES = 0x7E02_0000  # NEWNS NEWCGROUP NEWUTS NEWIPC NEWUSER NEWPID NEWNET
_SET_ID_BITS = 0o6000
_S_IFMT, _S_IFIFO, _S_IFREG, _S_IFSOCK = 0o170000, 0o010000, 0o100000, 0o140000
_PERSONALITY_ASK = 0xFFFF_FFFF

#: ioctl_tty(2) without those that push characters into a terminal's input (TIOCSTI, TIOCLINUX) or take its console or
#: line discipline (TIOCCONS, TIOCSETD).
_TERMINAL_IOCTLS = (
    *range(0x5401, 0x5412),  # TCGETS to TIOCOUTQ
    *(0x5413, 0x5414),  # TIOCGWINSZ TIOCSWINSZ
    *(0x5419, 0x541B, 0x5420, 0x5421, 0x5422, 0x5424, 0x5425),  # GSOFTCAR FIONREAD TIOCPKT FIONBIO NOTTY GETD TCSBRKP
    *(0x5427, 0x5428, 0x5429),  # TIOCSBRK TIOCCBRK TIOCGSID
    *(0x802C_542A, 0x402C_542B, 0x402C_542C, 0x402C_542D),  # TCGETS2 TCSETS2 TCSETSW2 TCSETSF2
    *(0x8004_5430, 0x4004_5431, 0x8004_5432, 0x4004_5436),  # TIOCGPTN TIOCSPTLCK TIOCGDEV TIOCSIG
    *(0x8004_5438, 0x8004_5439, 0x8004_5440, 0x5441),  # TIOCGPKT TIOCGPTLCK TIOCGEXCL TIOCGPTPEER
)
#: Of any file (ioctl_fs(2)): FIONCLEX FIOCLEX FIOASYNC FIOQSIZE FIGETBSZ, clones and extents, reading the attributes.
#: Not FS_IOC_SETFLAGS and FS_IOC_FSSETXATTR: with either one a file leaves the project whose quota counts it.
_FILE_IOCTLS = (
    *(0x5450, 0x5451, 0x5452, 0x5460, 2),
    *(0x4004_9409, 0x4020_940D, 0xC018_9436, 0xC020_660B),  # FICLONE FICLONERANGE FIDEDUPERANGE FS_IOC_FIEMAP
    *(0x8008_6601, 0x8008_7601, 0x801C_581F),  # FS_IOC_GETFLAGS FS_IOC_GETVERSION FS_IOC_FSGETXATTR
    0x8004_5200,  # RNDGETENTCNT
)
#: Of sockets (sockios.h): owner, out-of-band mark, time stamps, and the requests that read an interface.
_SOCKET_IOCTLS = (
    *(0x8901, 0x8902, 0x8903, 0x8904, 0x8905, 0x8906, 0x8907, 0x8010_8906, 0x8010_8907),
    *(0x8910, 0x8912, 0x8913, 0x8915, 0x8917, 0x8919, 0x891B, 0x891D, 0x8921, 0x8927, 0x8933, 0x8938, 0x8942, 0x8970),
)
_SIOCETHTOOL = 0x8946

#: prctl(2). Not PR_SET_IO_FLUSHER, PR_SCHED_CORE, PR_SET_MEMORY_MERGE, PR_SET_SYSCALL_USER_DISPATCH, PR_SET_TSC.
_PRCTLS = (
    *(1, 2, 3, 5, 6, 7, 8, 9, 11),  # PDEATHSIG, GET_DUMPABLE, UNALIGN, KEEPCAPS, FPEMU, FPEXC
    *(13, 14, 15, 16, 19, 20, 21, 23, 24, 25, 27, 28),  # TIMING NAME ENDIAN GET_SECCOMP CAPBSET GET_TSC SECUREBITS
    *(29, 30, 34, 36, 37, 38, 39, 40, 41, 42),  # TIMERSLACK MCE_KILL_GET CHILD_SUBREAPER NO_NEW_PRIVS TID THP_DISABLE
    *(45, 46, 47, 50, 51, 52, 53, 54, 55, 56),  # FP_MODE CAP_AMBIENT SVE_VL SPECULATION_CTRL PAC TAGGED_ADDR
    *(60, 61, 63, 64, 65, 66),  # PAC_KEYS SME_VL MDWE
    *(0x5356_4D41, 0x4155_5856),  # PR_SET_VMA PR_GET_AUXV
)
#: PR_SET_DUMPABLE: the memory and the descriptors of a process that is not dumpable can't be counted, see ``_checks``.
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_MM, _PR_SET_PTRACER = 4, 22, 35, 0x5961_6D61

#: fcntl(2): descriptors, flags, locks, owner and signal, pipes, seals, hints. Not F_SETLEASE (1024), which makes
#: another process's open(2) wait, F_NOTIFY (1026, dnotify) and F_SETDELEG (1040).
_FCNTLS = (*range(12), *range(15, 18), *range(36, 39), 1025, 1027, 1028, *range(1029, 1039))

_SOL_IP, _SOL_SOCKET, _SOL_TCP, _SOL_UDP, _SOL_IPV6, _SOL_NETLINK = 0, 1, 6, 17, 41, 270
#: With SO_LINGER, the process that closes the last reference of a TCP socket waits, for as long as the option says
#: (socket(7)). A reference that was sent to the server is closed by the server, also when it is discarded on arrival.
_SO_LINGER = 13
#: socket(7). Not filter programs (SO_ATTACH_FILTER, SO_ATTACH_BPF, ...), SO_ZEROCOPY, SO_BUSY_POLL, SO_RESERVE_MEM.
_SOCKET_OPTIONS = (
    *(1, 2, 5, 6, 7, 8, 9, 10, 12, 14, 15, 16, 18, 19, 20, 21, 25, 29, 34, 35, 37, 40, 45, 47, 49),
    *(63, 64, 65, 66, 67, 76, 83),  # time stamps and time limits of 64 bits, SO_PASSPIDFD, SO_PASSRIGHTS
)
#: tcp(7). Not TCP_ULP (31), TCP_REPAIR (19 to 22), MD5 and AO signatures (14, 32, 38 to 40).
_TCP_OPTIONS = (*range(1, 14), 15, 16, 17, 18, 23, 24, 25, 27, 28, 29, 30, 34, 36, 37)
_UDP_OPTIONS = (1, 101, 102, 103, 104)  # UDP_CORK, checksums, UDP_SEGMENT, UDP_GRO. Not UDP_ENCAP (100)
#: IPv4 options are below 64. From there on arp, ip and ebtables have theirs. IPv6 shares that range with 64 and 65.
_IP_OPTIONS_MASK, _IP6_TABLES = 0xFFFF_FFC0, (64, 65)
_MSG_OOB = 1


def checks(inet: bool, connect: bool) -> dict[str, Verdict]:
    """Return the verdicts of calls that are allowed by argument.

    Args:
        inet: see ``seccomp.kernel_policy``.
        connect: see ``seccomp.kernel_policy``.
    """
    null = ArgumentCheck(2, (0,), ArgumentCheck(2, (0,), ALLOW, EPERM, high=True), EPERM)
    oneself = ArgumentCheck(0, (0,), ALLOW, EPERM)
    return {
        "clone": ArgumentCheck(0, (0,), ALLOW, EPERM, mask=_NEW_NAMESPACES),
        "ioctl": _ioctl(),
        "prctl": _prctl(),
        "fcntl": ArgumentCheck(1, _FCNTLS, ALLOW, ArgumentCheck(1, (1024, 1026), EPERM, refuse(errno.EINVAL))),
        "setsockopt": _setsockopt(),
        "personality": ArgumentCheck(0, (0, _PERSONALITY_ASK), ALLOW, EPERM),
        # prlimit(2): its own limits, or reading those of another process. Never changing those of another.
        "prlimit64": ArgumentCheck(0, (0,), ALLOW, null),
        # A process may set the scheduling of each process of its user, also that of its init or of the session that it
        # was branched from (sched_setscheduler(2)).
        "sched_setaffinity": oneself,
        "sched_setattr": oneself,
        "sched_setparam": oneself,
        # The C library names the calling thread by its id. libzmq sets the ordinary policy for each of its threads, and
        # ends the process if that fails. For a thread of another process it changes nothing either.
        "sched_setscheduler": ArgumentCheck(1, (0,), ALLOW, oneself),
        "setpriority": ArgumentCheck(0, (0,), ArgumentCheck(1, (0,), ALLOW, EPERM), EPERM),  # PRIO_PROCESS
        "socket": _socket(inet, connect),
        "connect": ALLOW if connect else refuse(errno.EACCES),
        "socketpair": ArgumentCheck(0, (AF_UNIX,), _unix_type(), refuse(errno.EAFNOSUPPORT)),
        "sendto": _in_band(3),
        "sendmsg": _in_band(2),
        "sendmmsg": _in_band(3),
        "open": _mode(2),
        "openat": _mode(3),
        "creat": _mode(1),
        "mkdir": _mode(1),
        "mkdirat": _mode(2),
        "chmod": _mode(1),
        "fchmod": _mode(1),
        "fchmodat": _mode(2),
        "fchmodat2": _mode(2),
        "mknod": _node(1),
        "mknodat": _node(2),
    }


def _mode(argument: int) -> ArgumentCheck:
    return ArgumentCheck(argument, (0,), ALLOW, EPERM, mask=_SET_ID_BITS)


def _node(argument: int) -> ArgumentCheck:
    kinds = (_S_IFIFO, _S_IFREG, _S_IFSOCK, 0)
    return ArgumentCheck(argument, kinds, ALLOW, EPERM, mask=_S_IFMT | _SET_ID_BITS)


def _in_band(argument: int) -> ArgumentCheck:
    # Out-of-band data of Unix sockets is used by no known program, and its queue had several bugs (CVE-2025-38236).
    return ArgumentCheck(argument, (0,), ALLOW, refuse(errno.EOPNOTSUPP), mask=_MSG_OOB)


def _ioctl() -> ArgumentCheck:
    no_tty = refuse(errno.ENOTTY)
    known = ArgumentCheck(1, (0x5412, 0x541C, 0x541D, 0x5423, 0x401C_5820, 0x4008_6602), EPERM, no_tty)
    # psutil reads an interface's speed by it and expects this error from interfaces that have none.
    ethtool = ArgumentCheck(1, (_SIOCETHTOOL,), refuse(errno.EOPNOTSUPP), known)
    return ArgumentCheck(1, (*_TERMINAL_IOCTLS, *_FILE_IOCTLS, *_SOCKET_IOCTLS), ALLOW, ethtool)


def _prctl() -> ArgumentCheck:
    dumpable = ArgumentCheck(1, (1,), ALLOW, EPERM)
    refused = ArgumentCheck(0, (_PR_SET_SECCOMP, _PR_SET_MM, _PR_SET_PTRACER), EPERM, refuse(errno.EINVAL))
    return ArgumentCheck(0, _PRCTLS, ALLOW, ArgumentCheck(0, (_PR_SET_DUMPABLE,), dumpable, refused))


def _setsockopt() -> ArgumentCheck:
    no_option = refuse(errno.ENOPROTOOPT)
    by_level: list[tuple[int, Verdict]] = [
        (_SOL_IPV6, ArgumentCheck(2, _IP6_TABLES, no_option, ALLOW)),
        (_SOL_IP, ArgumentCheck(2, (0,), ALLOW, no_option, mask=_IP_OPTIONS_MASK)),
        (_SOL_UDP, ArgumentCheck(2, _UDP_OPTIONS, ALLOW, no_option)),
        (_SOL_TCP, ArgumentCheck(2, _TCP_OPTIONS, ALLOW, no_option)),
        (_SOL_SOCKET, ArgumentCheck(2, _SOCKET_OPTIONS, ALLOW, ArgumentCheck(2, (_SO_LINGER,), EPERM, no_option))),
    ]
    verdict = ArgumentCheck(1, (_SOL_NETLINK,), ALLOW, no_option)
    for level, options in by_level:
        verdict = ArgumentCheck(1, (level,), options, verdict)
    return verdict


def _unix_type() -> ArgumentCheck:
    return ArgumentCheck(1, (_SOCK_STREAM, _SOCK_DGRAM, _SOCK_SEQPACKET), ALLOW, EPERM, mask=_SOCK_TYPE)


def _socket(inet: bool, connect: bool) -> ArgumentCheck:
    no_family = refuse(errno.EAFNOSUPPORT)
    if not connect:
        # A datagram socket reaches another one without connect(2).
        pairs = ArgumentCheck(1, (_SOCK_STREAM, _SOCK_SEQPACKET), ALLOW, EPERM, mask=_SOCK_TYPE)
        return ArgumentCheck(0, (AF_UNIX,), pairs, no_family)
    if not inet:
        return ArgumentCheck(0, (AF_UNIX,), _unix_type(), no_family)
    # TCP and UDP only: no MPTCP, SCTP, UDP-Lite, SMC, ICMP.
    protocols = ArgumentCheck(2, (0, _IPPROTO_TCP, _IPPROTO_UDP), ALLOW, refuse(errno.EPROTONOSUPPORT))
    internet = ArgumentCheck(1, (_SOCK_STREAM, _SOCK_DGRAM), protocols, EPERM, mask=_SOCK_TYPE)
    # The C library asks netlink for the interfaces; libzmq aborts without it.
    route = ArgumentCheck(2, (_NETLINK_ROUTE,), ALLOW, EPERM)
    routes = ArgumentCheck(1, (_SOCK_DGRAM, _SOCK_RAW), route, EPERM, mask=_SOCK_TYPE)
    rest = ArgumentCheck(0, (AF_NETLINK,), routes, ArgumentCheck(0, (AF_UNIX,), _unix_type(), no_family))
    return ArgumentCheck(0, (AF_INET, AF_INET6), internet, rest)
