"""Cells that press on the machine's kernel, or use up what there is."""

from __future__ import annotations

from attack.cell import ROOT, UNSAFE, Cell, attack

SURFACE = [
    attack(
        "seccomp",
        "take a file out of its quota",
        """
import fcntl
with open('counted', 'w') as f:
    fcntl.ioctl(f, 0x401C5820, fcntl.ioctl(f, 0x801C581F, bytes(28)))
""",
    ),
    attack(
        "seccomp",
        "make files that no quota counts",
        """
import fcntl
with open('uncounted', 'w') as f:
    fcntl.ioctl(f, 0x40086602, fcntl.ioctl(f, 0x80086601, bytes(8)))
""",
    ),
    attack(
        "seccomp",
        "hide memory from whoever counts it",
        "need(_libc.prctl(4, 0, 0, 0, 0) == 0, 'refused')",
    ),
    attack(
        "seccomp",
        "take a lease on a file",
        """
import fcntl
f = open('leased', 'w')
fcntl.fcntl(f, 1024, fcntl.F_WRLCK)
fcntl.fcntl(f, 1024, fcntl.F_UNLCK)
""",
    ),
    attack(
        "seccomp",
        "watch a directory of the system's by dnotify",
        """
import fcntl
fcntl.fcntl(os.open('/usr/bin', 0), 1026, 1)
""",
        needs="dnotify",
    ),
    attack(
        "seccomp",
        "attach a filter program to a socket",
        """
code = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 65535))
a, b = socket.socketpair()
a.setsockopt(1, 26, struct.pack('H6xQ', 1, ctypes.addressof(code)))
""",
    ),
    attack(
        "seccomp",
        "open a socket of a rare protocol",
        """
for family, kind, protocol in [(f, *p) for f in (2, 10) for p in ((1, 262), (2, 136), (1, 132), (5, 132))]:
    try:
        socket.socket(family, kind, protocol).close()
    except OSError:
        continue
    break
else:
    need(False, 'all refused')
""",
        needs="udplite",
    ),
    attack(
        "seccomp",
        "give a TCP socket another protocol above it",
        """
import errno
try:
    socket.socket().setsockopt(6, 31, b'kernelsvc')
except OSError as error:
    need(error.errno == errno.ENOENT, error)  # Linux has looked for a protocol of that name
""",
    ),
    attack(
        "seccomp",
        "send out-of-band data over a Unix socket",
        """
a, b = socket.socketpair()
a.send(b'x', 1)
""",
        needs="unix_oob",
    ),
    *(
        attack(
            "seccomp",
            f"{what} of another process",
            f"""
p = os.fork()
if p == 0:
    import signal
    signal.pause()
try:
    {code}
finally:
    os.kill(p, 9)
    os.waitpid(p, 0)
""",
        )
        for what, code in (
            ("change the policy", "os.sched_setscheduler(p, os.SCHED_IDLE, os.sched_param(0))"),
            ("change the processors", "os.sched_setaffinity(p, {min(os.sched_getaffinity(0))})"),
            ("change the priority", "os.setpriority(os.PRIO_PROCESS, p, 19)"),
        )
    ),
    attack(
        "seccomp",
        "change the priority of all processes of my user",
        "os.setpriority(os.PRIO_USER, 0, os.getpriority(os.PRIO_PROCESS, 0))",
    ),
    attack(
        "mounts",
        "set the times of the host's /dev/null",
        "os.utime('/dev/null')",
    ),
    attack(
        "seccomp",
        "load a BPF program",
        "call('bpf', 0, struct.pack('IIIII', 2, 4, 4, 1, 0) + bytes(100), 120)",
        ROOT,
    ),
    attack(
        "seccomp",
        "count performance events",
        "call('perf_event_open', struct.pack('IIQ', 1, 112, 0) + bytes(96), 0, -1, -1, 0)",
        ROOT,
    ),
    attack(
        "seccomp",
        "handle page faults",
        "call('userfaultfd', 1)",
    ),
    attack(
        "seccomp",
        "make an io_uring",
        "call('io_uring_setup', 2, bytes(120))",
    ),
    attack(
        "seccomp",
        "add a key",
        "call('add_key', b'user', b'kernelsvc', b'x', 1, -2)",
    ),
    attack(
        "seccomp",
        "read keyrings",
        "call('keyctl', 0, -3, 1)",
    ),
    attack(
        "seccomp",
        "load a module",
        "call('finit_module', 0, b'', 0)",
        UNSAFE,
    ),
    attack(
        "seccomp",
        "load a new kernel",
        "call('kexec_load', 0, 0, 0, 0)",
        UNSAFE,
    ),
    attack(
        "seccomp",
        "reboot",
        "call('reboot', 0, 0, 0, 0)",
        UNSAFE,
    ),
    attack(
        "seccomp",
        "set the clock",
        """
import time
time.clock_settime(time.CLOCK_REALTIME, time.time())
""",
        UNSAFE,
    ),
    attack(
        "seccomp",
        "read the kernel's log",
        "call('syslog', 10, 0, 0)",
        ROOT,
    ),
    attack(
        "seccomp",
        "type into a terminal",
        """
import fcntl, pty
a, b = pty.openpty()
p = os.fork()
if p == 0:
    os.setsid()
    fcntl.ioctl(b, 21518, 0)
    try:
        fcntl.ioctl(b, 21522, b'x')
    except OSError:
        os._exit(1)
    os._exit(0)
need(os.waitpid(p, 0)[1] == 0, 'refused')
""",
        ROOT,
    ),
    attack(
        "seccomp",
        "turn off address randomisation",
        "call('personality', 262144)",
    ),
    attack(
        "seccomp",
        "open a file by handle",
        """
h = struct.pack('Ii', 128, 0) + bytes(128)
m = ctypes.c_int()
call('name_to_handle_at', -100, b'/', ctypes.create_string_buffer(h, 200), ctypes.byref(m), 0)
""",
    ),
    attack(
        "seccomp",
        "make a set-user-id file",
        """
open('f', 'w').close()
os.chmod('f', 2541)
os.unlink('f')
""",
    ),
    attack(
        "seccomp",
        "make one on opening",
        """
os.close(os.open('g', os.O_CREAT | os.O_WRONLY, 2541))
need(os.stat('g').st_mode & 2048, 'no bit')
""",
    ),
    attack(
        "seccomp",
        "make a set-group-id directory",
        """
os.mkdir('d')
os.chmod('d', 1517)
need(os.stat('d').st_mode & 1024, 'no bit')
""",
    ),
    attack(
        "seccomp",
        "make a block device",
        """
os.mknod('b', 24960, os.makedev(8, 0))
os.unlink('b')
""",
        ROOT,
    ),
    attack(
        "seccomp",
        "use the x32 calls",
        "call(1073741824 + 39)",
        UNSAFE,
    ),
    attack(
        "seccomp",
        "use the 32-bit calls",
        """
import mmap
need(os.uname().machine == 'x86_64', 'no such thing here')
code = bytes.fromhex('b814000000cd80c3')
p = os.fork()
if p == 0:
    m = mmap.mmap(-1, 4096, prot=7)
    m.write(code)
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()
    os._exit(0)
s = os.waitpid(p, 0)[1]
need(s == 0, f'killed: {s}')
""",
    ),
    attack(
        "seccomp",
        "share System V memory",
        """
n = call('shmget', 0, 4096, 896)
call('shmctl', n, 0, 0)
""",
    ),
    attack(
        "seccomp",
        "make a message queue",
        """
call('mq_open', b'kernelsvc-attack', 66, 384, 0)
call('mq_unlink', b'kernelsvc-attack')
""",
        ROOT,
        needs="resource",
    ),
]

RESOURCES = [
    attack(
        "rlimits",
        "take more memory at once than allowed",
        "b = bytearray(C['memory'] * 2)",
        UNSAFE,
    ),
    Cell(
        name="take it in many processes",
        layer="memory cgroup",
        code="""
import time
r, w = os.pipe()
ps = []
for _ in range(8):
    p = os.fork()
    if p == 0:
        b = bytearray(C['memory'] // 4)
        os.write(w, b'x')
        os.close(w)
        time.sleep(60)
        os._exit(0)
    ps.append(p)
os.close(w)
done = 0
while os.read(r, 1):
    done += 1
for p in ps:
    os.kill(p, 9)
    os.waitpid(p, 0)
need(done == 8, f'{8 - done} were killed')
""",
        confined="blocked",
        bare=UNSAFE,
        only=ROOT,
    ),
    attack(
        "tmpfs size",
        "fill /tmp",
        """
f = open('/tmp/f', 'wb')
for _ in range(C['memory'] // (1 << 20)):
    f.write(bytes(1 << 20))
f.flush()
""",
        UNSAFE,
    ),
    attack(
        "tmpfs size",
        "fill /dev/shm",
        """
f = open('/dev/shm/f', 'wb')
for _ in range(C['memory'] // (1 << 20)):
    f.write(bytes(1 << 20))
f.flush()
""",
        UNSAFE,
    ),
    attack(
        "tmpfs size",
        "fill /tmp with names",
        """
os.mkdir('/tmp/n')
for i in range(1000000):
    os.close(os.open(f'/tmp/n/{i}', os.O_CREAT | os.O_WRONLY))
""",
        UNSAFE,
    ),
    attack(
        "rlimits",
        "write a file above the disk cap",
        """
f = open('big', 'wb')
f.truncate(C['disk_bytes'] + 1)
""",
        UNSAFE,
    ),
    attack(
        "rlimits",
        "open too many files",
        "fs = [os.open('/dev/null', 0) for _ in range(5000)]",
        UNSAFE,
    ),
    attack(
        "task cap",
        "fork without end",
        """
import time
ps = []
try:
    for _ in range(2000):
        p = os.fork()
        if p == 0:
            time.sleep(60)
            os._exit(0)
        ps.append(p)
finally:
    for p in ps:
        os.kill(p, 9)
        os.waitpid(p, 0)
""",
        UNSAFE,
    ),
    attack(
        "task cap",
        "start threads without end",
        """
import threading
e = threading.Event()
try:
    for _ in range(2000):
        threading.Thread(target=e.wait, daemon=True).start()
finally:
    e.set()
""",
        UNSAFE,
    ),
    attack(
        "rlimits",
        "lock memory",
        """
need(_libc.mlockall(3) == 0, 'refused')
_libc.munlockall()
""",
        ROOT,
    ),
    attack(
        "devpts",
        "take all terminals",
        """
import pty
fs = [pty.openpty() for _ in range(400)]
""",
        UNSAFE,
    ),
    Cell(
        name="signal init",
        layer="pid namespace",
        code="""
import time
for n in (9, 19, 15):
    try:
        os.kill(1, n)
    except PermissionError:
        pass
time.sleep(0.05)
""",
        confined="reached",
        bare=UNSAFE,
    ),
    Cell(
        name="kill everything I can see",
        layer="pid namespace",
        code="""
try:
    os.kill(-1, 9)
except OSError:
    pass
""",
        confined="reached",
        bare=UNSAFE,
    ),
    Cell(
        name="die by a segmentation fault",
        layer="init",
        code="ctypes.string_at(0)",
        confined="died",
        bare=UNSAFE,
        survives=False,
    ),
    Cell(
        name="kill myself",
        layer="init",
        code="os.kill(os.getpid(), 9)",
        confined="died",
        bare=UNSAFE,
        survives=False,
    ),
]
