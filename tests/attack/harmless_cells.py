"""Ordinary cells that a wall too high would break."""

from __future__ import annotations

from attack.cell import harmless

HARMLESS = [
    harmless(
        "write and read in the session's directory",
        """
open('a.txt', 'w').write('x')
os.rename('a.txt', 'b.txt')
need(open('b.txt').read() == 'x', '?')
""",
    ),
    harmless(
        "links and pipes in the directory",
        """
open('l1', 'w').close()
os.symlink('l1', 'l2')
os.link('l1', 'l3')
os.mkfifo('l4')
os.mkdir('l5')
os.chmod('l5', 448)
""",
    ),
    harmless(
        "temporary files",
        """
import tempfile
with tempfile.NamedTemporaryFile() as f:
    f.write(b'x')
with tempfile.TemporaryDirectory() as d:
    open(d + '/x', 'w').close()
""",
    ),
    harmless(
        "a shell command",
        r"""
import subprocess
need(subprocess.run('echo $((6*7)) | cat', shell=True, capture_output=True, text=True).stdout == '42\n', '?')
""",
    ),
    harmless(
        "a bash script with a substitution",
        r"""
import subprocess
need(subprocess.run(['bash', '-c', 'cat <(echo hi)'], capture_output=True, text=True).stdout == 'hi\n', '?')
""",
    ),
    harmless(
        "a pseudo-terminal",
        """
import pty
p, fd = pty.fork()
if p == 0:
    os.execvp('echo', ['echo', 'tty'])
need(b'tty' in os.read(fd, 100), '?')
os.waitpid(p, 0)
""",
    ),
    harmless(
        "matplotlib",
        """
import matplotlib
matplotlib.use('agg')
import matplotlib.pyplot as plt
plt.plot([1, 2])
plt.savefig('p.png')
need(os.path.getsize('p.png') > 1000, '?')
""",
    ),
    harmless(
        "numpy with BLAS",
        """
import numpy as np
a = np.ones((500, 500))
need((a @ a)[0, 0] == 500, '?')
""",
    ),
    harmless(
        "pandas",
        """
import pandas as pd
d = pd.DataFrame({'a': [1, 2]})
d.to_csv('d.csv')
need(pd.read_csv('d.csv').a.sum() == 3, '?')
""",
    ),
    harmless(
        "sqlite",
        """
import sqlite3
c = sqlite3.connect('x.db')
c.execute('pragma journal_mode=wal')
c.execute('create table t(a)')
c.execute('insert into t values (1)')
c.commit()
need(c.execute('select count(*) from t').fetchone() == (1,), '?')
c.close()
""",
    ),
    harmless(
        "threads",
        """
import concurrent.futures as f
with f.ThreadPoolExecutor(8) as e:
    need(sum(e.map(abs, range(100))) == 4950, '?')
""",
    ),
    harmless(
        "multiprocessing",
        """
import multiprocessing as mp
with mp.get_context('fork').Pool(2) as p:
    need(p.map(abs, [-1, -2]) == [1, 2], '?')
""",
    ),
    harmless(
        "shared memory",
        """
from multiprocessing import shared_memory as s
m = s.SharedMemory(create=True, size=4096)
m.buf[0] = 1
m.close()
m.unlink()
""",
    ),
    harmless(
        "joblib",
        """
import warnings
warnings.simplefilter('error')
from joblib import Parallel, delayed
need(Parallel(n_jobs=2)((delayed(abs)(-i) for i in range(4))) == [0, 1, 2, 3], '?')
from joblib.externals.loky import get_reusable_executor
get_reusable_executor().shutdown(wait=True)
""",
        needs="joblib",
    ),
    harmless(
        "counting physical cores",
        """
import warnings
warnings.simplefilter('error')
import joblib
need(joblib.cpu_count(only_physical_cores=True) >= 1, '?')
""",
        needs="joblib",
    ),
    harmless(
        "a web server on loopback",
        """
import http.server, threading, urllib.request
s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=s.serve_forever, daemon=True).start()
need(urllib.request.urlopen(f'http://127.0.0.1:{s.server_port}/').status == 200, '?')
s.shutdown()
s.server_close()
""",
    ),
    harmless(
        "asyncio with a subprocess",
        """
import asyncio, subprocess

async def f():
    p = await asyncio.create_subprocess_exec('true')
    return await p.wait()
import threading
r = []
t = threading.Thread(target=lambda: r.append(asyncio.run(f())))
t.start()
t.join()
need(r == [0], r)
""",
    ),
    harmless(
        "a Python subprocess",
        r"""
import subprocess
code = 'import numpy; print(numpy.ones(3).sum())'
need(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout == '3.0\n', '?')
""",
    ),
    harmless(
        "compiling and running C",
        """
import shutil, subprocess
if shutil.which('gcc'):
    open('c.c', 'w').write('int main(){return 7;}')
    subprocess.run(['gcc', 'c.c', '-o', 'c'], check=True)
    need(subprocess.run(['./c']).returncode == 7, '?')
""",
    ),
    harmless(
        "scheduling myself",
        """
os.nice(1)
os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0))
os.sched_setaffinity(0, os.sched_getaffinity(0))
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
import subprocess
subprocess.run(['nice', '-n', '5', 'true'], check=True)
""",
    ),
    harmless(
        "ZeroMQ",
        """
import zmq
with zmq.Context() as c, c.socket(zmq.PAIR) as a, c.socket(zmq.PAIR) as b:
    b.connect(f"tcp://127.0.0.1:{a.bind_to_random_port('tcp://127.0.0.1')}")
    b.send(b'x')
    need(a.recv() == b'x', '?')
""",
    ),
    harmless(
        "OpenMP in scikit-learn",
        """
import importlib.util
import numpy as np
if importlib.util.find_spec('sklearn'):
    from sklearn.cluster import KMeans
    need(len(KMeans(2, n_init=1).fit(np.arange(4000.0).reshape(-1, 2)).labels_) == 2000, '?')
""",
    ),
    harmless(
        "options of sockets",
        """
s = socket.socket()
for level, option in (
    (socket.SOL_SOCKET, socket.SO_REUSEADDR), (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    (socket.SOL_SOCKET, socket.SO_REUSEPORT), (socket.SOL_SOCKET, socket.SO_SNDBUF),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY), (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT), (socket.IPPROTO_IP, socket.IP_TOS),
):
    s.setsockopt(level, option, 1)
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 2)
socket.if_nametoindex('lo')
import psutil
need(psutil.net_if_addrs() and psutil.net_if_stats(), '?')
""",
    ),
    harmless(
        "job control in a shell's terminal",
        r"""
import pty, time
p, fd = pty.fork()
if p == 0:
    os.execvp('bash', ['bash', '--norc', '-i'])
os.write(fd, b'sleep 60 &\njobs\nstty size\nkill %1; wait; fg; exit 7\n')
said = b''
try:
    while (chunk := os.read(fd, 4096)):
        said += chunk
except OSError:
    pass
need(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) == 7, said)
need(b'no job control' not in said and b'Running' in said, said)
""",
    ),
    harmless(
        "a pager and a terminal's recorder",
        r"""
import shutil, subprocess
open('page.txt', 'w').write('one\n' * 200)
if shutil.which('script') and shutil.which('less'):
    done = subprocess.run(['script', '-qec', 'less +q page.txt', 'log'], stdin=subprocess.DEVNULL, capture_output=True)
    need(done.returncode == 0, done)
""",
    ),
    harmless(
        "Java",
        """
import shutil, subprocess
if shutil.which('java') and shutil.which('keytool'):  # which reads java.security, on Debian below /etc
    small = ['-J-Xmx64m', '-J-XX:+UseSerialGC', '-J-XX:TieredStopAtLevel=1']
    done = subprocess.run(['keytool', *small, '-list', '-cacerts', '-storepass', 'changeit'], capture_output=True)
    need(b'java.security' not in done.stdout + done.stderr, done)
""",
    ),
    harmless(
        "Node.js",
        """
import shutil, subprocess
if shutil.which('node'):
    done = subprocess.run(['node', '--jitless', '-e', 'console.log(6*7)'], capture_output=True, text=True)
    need(done.stdout == '42\\n', done)
""",
    ),
    harmless(
        "git",
        """
import shutil, subprocess
if shutil.which('git'):
    who = '-c user.name=a -c user.email=a@b'
    subprocess.run(f'git init -q r && cd r && git {who} commit -q --allow-empty -m x', shell=True, check=True)
""",
    ),
    harmless(
        "what psutil tells",
        """
import psutil
need(psutil.virtual_memory().total > 0 and psutil.cpu_count() >= 1, '?')
need(psutil.Process().memory_info().rss > 0 and psutil.pids(), '?')
""",
    ),
    harmless(
        "who and where I am",
        """
import getpass, pathlib, pwd
need(getpass.getuser() and pathlib.Path.home() == pathlib.Path.cwd() == pathlib.Path(C['inside']), pathlib.Path.home())
""",
    ),
    harmless(
        "time zones and locales",
        """
import zoneinfo, locale, time
zoneinfo.ZoneInfo('Europe/Berlin')
time.localtime()
locale.setlocale(locale.LC_ALL, 'C.UTF-8')
""",
    ),
    harmless(
        "TLS certificates",
        """
import ssl
ssl.create_default_context()
""",
    ),
    harmless(
        "file locks and memory maps",
        """
import fcntl, mmap
f = open('m', 'w+b')
f.truncate(4096)
fcntl.flock(f, fcntl.LOCK_EX)
m = mmap.mmap(f.fileno(), 4096)
m[0] = 1
m.close()
""",
    ),
    harmless(
        "signals and timers",
        """
import signal, threading
need(signal.getitimer(signal.ITIMER_REAL)[0] == 0, '?')
os.kill(os.getpid(), 0)
""",
    ),
    harmless(
        "lowering my own limits",
        """
import resource
s, h = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (s - 1, h))
resource.prlimit(0, resource.RLIMIT_CORE)
""",
    ),
    harmless(
        "ending my own child",
        """
import subprocess
p = subprocess.Popen(['sleep', '60'])
p.kill()
need(p.wait() == -9, '?')
""",
    ),
]
