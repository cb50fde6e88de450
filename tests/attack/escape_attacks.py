"""Cells that reach for what lies outside: files, namespaces, other processes, the network."""

from __future__ import annotations

from attack.cell import ROOT, UNSAFE, attack

FILES = [
    attack(
        "own inodes",
        "meet another's lock on a program",
        """
import fcntl
try:
    fcntl.flock(open(C['locked'], 'rb'), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    pass
else:
    raise AssertionError('no lock of others is here')
""",
        needs="overlayfs",
    ),
    attack(
        "private root",
        "list the administrator's files beside the programs",
        "need(os.listdir('/usr/local/etc') is not None, '?')",
        needs="usr_local_etc",
    ),
    attack(
        "private root",
        "read the service's configuration where it lies beside Python",
        """
import glob
below = os.path.relpath(C['concealed'], C['prefix'])
# The host's path, and wherever Python is inside.
prefixes = [C['prefix'], sys.prefix, sys.base_prefix, *glob.glob('/opt/*')]
places = {os.path.join(prefix, below) for prefix in prefixes}
need(''.join(open(place).read() for place in places if os.path.exists(place)), 'empty')
""",
    ),
    attack(
        "filesystem",
        "read the server's secret",
        "open(C['secret']).read()",
    ),
    attack(
        "filesystem",
        "list the server's data directory",
        "os.listdir(os.path.dirname(C['secret']))",
    ),
    attack(
        "filesystem",
        "read it through a symlink",
        """
os.symlink(C['secret'], 's')
open('s').read()
""",
    ),
    attack(
        "filesystem",
        "read it through init's root",
        "open(f'/proc/{INIT}/root' + C['secret']).read()",
    ),
    attack(
        "filesystem",
        "read it through .. from here",
        """
fd = os.open('.', os.O_PATH)
for _ in range(40):
    fd = os.open('..', os.O_PATH, dir_fd=fd)
os.open(C['secret'].lstrip('/'), os.O_RDONLY, dir_fd=fd)
""",
    ),
    attack(
        "filesystem",
        "hard-link it into the session",
        "os.link(C['secret'], C['inside'] + '/h')",
    ),
    attack(
        "filesystem",
        "read another session's file",
        "open(C['neighbour'] + '/theirs').read()",
    ),
    attack(
        "filesystem",
        "write another session's file",
        "open(C['neighbour'] + '/theirs', 'a').write('x')",
    ),
    attack(
        "filesystem",
        "read the host's accounts",
        "need('daemon:' in open('/etc/passwd').read(), 'a made-up file')",
    ),
    attack(
        "filesystem",
        "read the host's /tmp",
        "open(C['tmp']).read()",
    ),
    attack(
        "filesystem",
        "read the host's /dev/shm",
        "open(C['shm']).read()",
    ),
    attack(
        "filesystem",
        "find the host's root",
        "os.stat(C['secret'])",
    ),
    attack(
        "filesystem",
        "write beside Python",
        """
p = C['prefix'] + '/kernelsvc-attack'
open(p, 'w').close()
os.unlink(p)
""",
        ROOT,
    ),
    attack(
        "filesystem",
        "write into /usr",
        """
open('/usr/kernelsvc-attack', 'w').close()
os.unlink('/usr/kernelsvc-attack')
""",
        ROOT,
    ),
    attack(
        "filesystem",
        "write into /etc",
        """
open('/etc/kernelsvc-attack', 'w').close()
os.unlink('/etc/kernelsvc-attack')
""",
        ROOT,
    ),
    attack(
        "filesystem",
        "make a file in /",
        """
open('/kernelsvc-attack', 'w').close()
os.unlink('/kernelsvc-attack')
""",
        ROOT,
    ),
    attack(
        "filesystem",
        "make a file in /dev",
        """
open('/dev/kernelsvc-attack', 'w').close()
os.unlink('/dev/kernelsvc-attack')
""",
        ROOT,
    ),
    attack(
        "filesystem",
        "open a disk",
        "os.open(C['disk'] or '/dev/sda', os.O_RDONLY)",
        ROOT,
        needs="disk",
    ),
    attack(
        "filesystem",
        "open the kernel log",
        "os.open('/dev/kmsg', os.O_RDONLY)",
        ROOT,
    ),
    attack(
        "filesystem",
        "open physical memory",
        "os.open('/dev/mem', os.O_RDONLY)",
        UNSAFE,
    ),
    attack(
        "filesystem",
        "steer core dumps",
        "os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY)",
        ROOT,
    ),
    attack(
        "filesystem",
        "press SysRq",
        """
fd = os.open('/proc/sysrq-trigger', os.O_WRONLY)
need(os.fstat(fd).st_rdev == 0, 'a mask')
""",
        ROOT,
        needs="sysrq",
    ),
    attack(
        "filesystem",
        "read the boot command line",
        "need(open('/proc/cmdline').read().strip(), 'empty')",
    ),
    attack(
        "filesystem",
        "reach the cgroup files",
        "os.listdir('/sys/fs/cgroup')",
    ),
    attack(
        "filesystem",
        "write to /sys",
        "os.open('/sys/kernel/mm/transparent_hugepage/enabled', os.O_WRONLY)",
        ROOT,
    ),
    attack(
        "filesystem",
        "unmount /proc",
        "need(_libc.umount2(b'/proc', 2) == 0, os.strerror(ctypes.get_errno()))",
        UNSAFE,
    ),
    attack(
        "descriptors",
        "find a descriptor that leads outside",
        """
for n in os.listdir('/proc/self/fd'):
    if int(n) > 2:
        try:
            t = os.readlink('/proc/self/fd/' + n)
        except OSError:
            continue
        if t.startswith('/') and (not t.startswith(('/proc', '/dev', '/home', '/tmp'))):
            break
else:
    raise LookupError('none')
""",
        UNSAFE,
    ),
]

NAMESPACES = [
    attack(
        "seccomp",
        "mount something",
        """
need(_libc.mount(b'none', b'/mnt', b'tmpfs', 0, None) == 0, 'refused')
_libc.umount2(b'/mnt', 2)
""",
        ROOT,
    ),
    attack(
        "seccomp",
        "open a new kind of mount",
        "call('fsopen', b'tmpfs', 0)",
        ROOT,
    ),
    attack(
        "seccomp",
        "clone a mount tree",
        "call('open_tree', -100, b'/', 1)",
        ROOT,
    ),
    attack(
        "seccomp",
        "change root",
        "os.chroot('/tmp')",
        UNSAFE,
    ),
    attack(
        "seccomp",
        "pivot the root",
        "call('pivot_root', b'.', b'.')",
        UNSAFE,
    ),
    attack(
        "seccomp",
        "make a user namespace",
        """
p = os.fork()
if p == 0:
    os._exit(_libc.unshare(268435456) != 0)
need(os.waitpid(p, 0)[1] == 0, 'refused')
""",
    ),
    attack(
        "seccomp",
        "make one with clone",
        """
r = _libc.syscall(ctypes.c_long(NUMBERS['clone']), ctypes.c_ulong(268435473), *(ctypes.c_long(0),) * 4)
if r == 0:
    os._exit(0)
need(r > 0, 'refused')
os.waitpid(r, 0)
""",
    ),
    attack(
        "seccomp",
        "make one with clone3",
        "call('clone3', 0, 0)",
        UNSAFE,
    ),
    attack(
        "seccomp",
        "unshare the mount namespace",
        "need(_libc.unshare(268566528) == 0, 'refused')",
    ),
    attack(
        "seccomp",
        "join init's namespaces",
        """
fd = os.open(f'/proc/{INIT}/ns/net', os.O_RDONLY)
need(_libc.setns(fd, 0) == 0, 'refused')
""",
        ROOT,
    ),
    attack(
        "uts namespace",
        "rename the host",
        "socket.sethostname(socket.gethostname())",
        ROOT,
    ),
]

#: A branch against its parent; run there only.
FAMILY = [
    attack("landlock", "open the parent's memory", "os.open(f'/proc/{os.getppid()}/mem', os.O_RDWR)"),
    attack("landlock", "look through the parent's root", "os.listdir(f'/proc/{os.getppid()}/root')"),
    attack("landlock", "open what the parent has open", "os.open(f'/proc/{os.getppid()}/fd/0', os.O_RDONLY)"),
    attack("seccomp", "take a descriptor of the parent", "call('pidfd_getfd', os.pidfd_open(os.getppid()), 0, 0)"),
    attack("landlock", "write into the parent's directory", "open('/home/user/planted', 'w')"),
    attack("landlock", "put a link into the parent's directory", "os.symlink('/etc/passwd', '/home/user/planted')"),
    attack("landlock", "replace the parent's directory", "os.rename('/home/user', '/home/elsewhere')"),
    *(
        attack(
            "landlock", f"write the parent's {name}", f"open(f'/proc/{{os.getppid()}}/{name}', 'w').write({value!r})"
        )
        for name, value in {
            "oom_score_adj": "1000",
            "clear_refs": "1",
            "coredump_filter": "0",
            "autogroup": "19",
            "sched": "0",
            "timerslack_ns": "1000000000",
        }.items()
    ),
]

PROCESSES = [
    attack(
        "pid namespace",
        "see the host's processes",
        """
def told(p):
    try:
        return open(f'/proc/{p}/cmdline').read()
    except OSError:
        return ''
need(any((C['cmdline'] in told(p) for p in os.listdir('/proc') if p.isdigit())), 'unseen')
""",
    ),
    attack(
        "pid namespace",
        "signal the host's process",
        "os.kill(C['victim'], 0)",
    ),
    attack(
        "pid namespace",
        "read the server's environment",
        """
open(f"/proc/{C['victim']}/environ").read()
""",
    ),
    attack(
        "pid namespace",
        "get a pidfd of it",
        "os.pidfd_open(C['victim'])",
    ),
    attack(
        "environment",
        "find the server's secret in my environment",
        "need(C['variable'] in os.environ, 'scrubbed')",
        UNSAFE,
    ),
    attack(
        "seccomp",
        "trace the host's process",
        "call('ptrace', 16902, C['victim'], 0, 0)",
    ),
    attack(
        "seccomp",
        "trace my own child",
        """
p = os.fork()
if p == 0:
    os._exit(_libc.ptrace(0, 0, 0, 0) != 0)
need(os.waitpid(p, 0)[1] == 0, 'refused')
""",
    ),
    attack(
        "seccomp",
        "read another process's memory",
        """
b = ctypes.create_string_buffer(8)
here, there = (struct.pack('QQ', ctypes.addressof(b), 8), struct.pack('QQ', id(os), 8))
call('process_vm_readv', INIT, here, 1, there, 1, 0)
""",
    ),
    attack(
        "init guard",
        "open init's memory",
        "os.open(f'/proc/{INIT}/mem', os.O_RDWR)",
    ),
    attack(
        "init guard",
        "read init's environment",
        "open(f'/proc/{INIT}/environ').read()",
    ),
    attack(
        "init guard",
        "list init's descriptors",
        "os.listdir(f'/proc/{INIT}/fd')",
    ),
    attack(
        "seccomp",
        "take a descriptor of init",
        "call('pidfd_getfd', os.pidfd_open(INIT), 0, 0)",
    ),
    attack(
        "seccomp",
        "lower init's limits",
        """
import resource
resource.prlimit(INIT, resource.RLIMIT_NOFILE, (99, 99))
""",
    ),
    attack(
        "seccomp",
        "compare kernel objects",
        "call('kcmp', os.getpid(), INIT, 0, 0, 0)",
    ),
    attack(
        "capabilities",
        "become root",
        """
os.setuid(0)
need(os.getuid() == 0, 'not root')
""",
        ROOT,
    ),
    attack(
        "capabilities",
        "raise a capability",
        """
hdr = struct.pack('Ii', 537396514, 0)
need(_libc.capset(hdr, struct.pack('6I', 1 << 21, 1 << 21, 0, 0, 0, 0)) == 0, 'refused')
""",
        ROOT,
    ),
    attack(
        "capabilities",
        "keep any capability",
        """
t = open('/proc/self/status').read()
sets = [l for l in t.splitlines() if l.startswith('Cap')]
need(any(int(l.split()[1], 16) for l in sets), 'all empty')
""",
        ROOT,
    ),
    attack(
        "no_new_privs",
        "gain by exec",
        r"need('NoNewPrivs:\t0' in open('/proc/self/status').read(), 'set')",
    ),
    attack(
        "capabilities",
        "run in real time",
        "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))",
        UNSAFE,
    ),
    attack(
        "capabilities",
        "go before others",
        "os.setpriority(os.PRIO_PROCESS, 0, -20)",
        ROOT,
    ),
    attack(
        "rlimits",
        "raise a hard limit",
        """
import resource
s, h = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (h, h + 1))
""",
        ROOT,
        needs="resource",
    ),
    attack(
        "rlimits",
        "leave a core dump",
        """
import resource
need(resource.getrlimit(resource.RLIMIT_CORE)[1] != 0, 'none')
""",
        UNSAFE,
    ),
]

NETWORK = [
    attack(
        "net namespace",
        "call the host's loopback",
        "socket.create_connection(('127.0.0.1', C['port']), 2)",
    ),
    attack(
        "net namespace",
        "reach an abstract socket",
        r"""
s = socket.socket(socket.AF_UNIX)
s.connect('\x00' + C['abstract'])
""",
    ),
    attack(
        "filesystem",
        "reach the server's socket",
        """
s = socket.socket(socket.AF_UNIX)
s.connect(C['socket'])
""",
    ),
    attack(
        "net namespace",
        "see the host's interfaces",
        "need(sorted(socket.if_nameindex())[1:], 'only lo')",
        needs="interfaces",
    ),
    attack(
        "net namespace",
        "route to the world",
        """
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(('192.0.2.1', 9))
""",
        UNSAFE,
    ),
    attack(
        "seccomp",
        "sniff packets",
        "socket.socket(17, socket.SOCK_RAW, 3)",
        ROOT,
    ),
    attack(
        "capabilities",
        "forge packets",
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
        ROOT,
    ),
    attack(
        "seccomp",
        "call the hypervisor",
        "socket.socket(40, socket.SOCK_STREAM)",
        UNSAFE,
    ),
    attack(
        "seccomp",
        "use the kernel's crypto sockets",
        "socket.socket(38, socket.SOCK_SEQPACKET)",
        UNSAFE,
    ),
    attack(
        "seccomp",
        "speak to netfilter",
        "socket.socket(16, socket.SOCK_RAW, 12)",
    ),
]
