"""Where a cell's output goes and in which order: real kernels over the real wire."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from kernel_processes import Client

from kernelsvc.kernels.port import Output

#: What programs put in the place of ``sys.stdout``, once, in an early cell.
REPLACED = {
    "a class that copies to a file": (
        "class Both:\n"
        "    def __init__(self, *to): self.to = to\n"
        "    def write(self, text):\n        for one in self.to: one.write(text)\n"
        "    def flush(self):\n        for one in self.to: one.flush()\n"
        "sys.stdout = Both(sys.stdout, open('copy.log', 'w'))"
    ),
    "a class without flush": (
        "class Plain:\n    def __init__(self, to): self.to = to\n    def write(self, text): self.to.write(text)\n"
        "sys.stdout = Plain(sys.stdout)"
    ),
    "a proxy for everything": (
        "class Proxy:\n    def __init__(self, to): self.__dict__['to'] = to\n"
        "    def __getattr__(self, name): return getattr(self.to, name)\n"
        "sys.stdout = Proxy(sys.stdout)"
    ),
    "another encoding": "sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')",
    "codecs": "sys.stdout = codecs.getwriter('utf-8')(sys.stdout.buffer)",
    "the stream of the process": "sys.stdout = sys.__stdout__",
    "a context manager that is never left": (
        "import contextlib; keep = contextlib.redirect_stdout(sys.__stdout__); keep.__enter__()"
    ),
}


@pytest.mark.parametrize("case", REPLACED)
async def test_output_belongs_to_the_running_cell_whatever_stands_in_sys(k: Client, case: str) -> None:
    await k.run(f"import codecs, io, sys\n{REPLACED[case]}")
    for word in ("second", "third"):
        assert (await k.run(f"print({word!r})")).stdout == f"{word}\n"
    failed = await k.run("print('before'); 1 / 0")
    assert (failed.stdout, failed.error) == ("before\n", "ZeroDivisionError")
    assert (await k.run("6 * 7")).result == "42"


@pytest.mark.parametrize("taken", ["sys.stdout = None; print('nowhere')", "del sys.stdout, sys.stderr, sys.stdin"])
async def test_no_output_is_for_one_cell(k: Client, taken: str) -> None:
    answer = await k.run(f"import sys; {taken}; 1 / 0")
    assert (answer.stdout, answer.error) == ("", "ZeroDivisionError")
    answer = await k.run("print('here'); 42")
    assert (answer.stdout, answer.result) == ("here\n", "42")


async def test_the_stream_of_the_process_holds_nothing_back(k: Client) -> None:
    assert (await k.run("import sys; print('direct', file=sys.__stdout__)")).stdout == "direct\n"
    assert (await k.run("print('next')")).stdout == "next\n"


#: Code that writes ``child N`` to descriptor 1.
CHILDREN = {
    "a command": "subprocess.run(['echo', 'child', str(n)])",
    "os.system": "os.system(f'echo child {n}')",
    "a fork": "pid = os.fork()\n    if pid == 0:\n        print('child', n); os._exit(0)\n    os.waitpid(pid, 0)",
    "C code": "libc.printf(b'child %d\\n', n); libc.fflush(None)",
    "the descriptor": "os.write(1, b'child %d\\n' % n)",
    "a shell command": "get_ipython().system(f'echo child {n} | tr -d \\'\\\\r\\'')",
}


@pytest.mark.parametrize("case", CHILDREN)
async def test_output_of_a_child_that_has_ended_comes_before_what_follows(k: Client, case: str) -> None:
    before = "import ctypes, os, subprocess\nlibc = ctypes.CDLL(None)"
    answer = await k.run(f"{before}\nfor n in range(25):\n    print('py', n)\n    {CHILDREN[case]}")
    assert answer.stdout.replace("\r", "").splitlines() == [f"{who} {n}" for n in range(25) for who in ("py", "child")]


@pytest.mark.parametrize("case", CHILDREN)
async def test_a_server_that_is_slow_between_two_reads_keeps_the_order(k: Client, case: str) -> None:
    """While the server processes frames, the kernel goes on, and newer text comes into the pipe."""
    deliver = k.wire._deliver
    assert deliver is not None

    def busy(batch: Sequence[Output]) -> None:
        end = time.monotonic() + 0.003
        while time.monotonic() < end:
            pass
        deliver(batch)

    k.wire._deliver = busy
    before = "import ctypes, os, subprocess\nlibc = ctypes.CDLL(None)"
    then = "sum(range(n % 4 * 20_000))"
    answer = await k.run(f"{before}\nfor n in range(100):\n    print('py', n)\n    {CHILDREN[case]}\n    {then}")
    expected = [f"{who} {n}" for n in range(100) for who in ("py", "child")]
    assert answer.stdout.replace("\r", "").splitlines() == expected


async def test_writes_that_almost_fill_the_pipe_stay_in_order(k: Client) -> None:
    code = (
        "import os\nfor n in range(600):\n    print('py', n)\n    data = b'.' * 60_000 + b'\\nchild %d\\n' % n\n"
        "    while data: data = data[os.write(1, data):]"
    )
    lines = (await k.run(code)).stdout.splitlines()
    assert [line for line in lines if line[:1] != "."] == [f"{who} {n}" for n in range(600) for who in ("py", "child")]


#: Has the server or the kernel read what descriptor 1 holds. The kernel does so before it sends text of its own.
READERS = """
import fcntl, os, sys, termios, time
def unread(): return int.from_bytes(fcntl.ioctl(1, termios.FIONREAD, bytes(4)), sys.byteorder)
def by_server():
    while unread(): time.sleep(0.001)
def by_kernel():
    while unread(): print('.', file=sys.stderr)
"""


@pytest.mark.parametrize("first", [0, 1], ids=["server first", "kernel first"])
async def test_characters_whose_bytes_go_to_two_readers_stay_whole(k: Client, first: int) -> None:
    await k.run(READERS)
    answer = await k.run(
        f"for n, byte in enumerate('ä€😀 '.encode() * 20):\n    os.write(1, bytes([byte]))\n"
        f"    by_kernel() if n % 2 == {first} else by_server()"
    )
    assert answer.stdout == "ä€😀 " * 20


@pytest.mark.parametrize("opened", ["fd", "os.open(f'/proc/self/fd/{fd}', os.O_RDONLY)"], ids=["same", "reopened"])
async def test_code_that_locks_the_pipes_and_keeps_the_lock_gets_all_its_text(k: Client, opened: str) -> None:
    """The kernel's process has the read ends. The lock of a reopened one is against the kernel's own code, too."""
    code = (
        "import fcntl, os, stat\nlocked = []\n"
        "for fd in range(3, 64):\n"
        "    try:\n"
        "        if stat.S_ISFIFO(os.fstat(fd).st_mode):\n"
        "            locked.append(OPENED); fcntl.flock(locked[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "    except OSError: pass\n"
        "os.write(1, b'child\\n'); print('printed')"
    )
    answer = await k.run(code.replace("OPENED", opened))
    assert sorted(answer.stdout.splitlines()) == ["child", "printed"]
    assert (await k.run("print('next'), len(locked) > 1")).result == "(None, True)"


async def test_output_of_a_child_comes_before_a_result(k: Client) -> None:
    answer = await k.run("import subprocess\nsubprocess.run(['echo', 'a'])\ndisplay(1)")
    kinds = [getattr(item, "msg_type", "stream") for item in answer.items]
    assert kinds.index("stream") < kinds.index("display_data")


async def test_a_child_that_runs_does_not_cut_a_print(k: Client) -> None:
    answer = await k.run(
        "import subprocess\nchild = subprocess.Popen(['sh', '-c', 'for i in $(seq 400); do echo child $i; done'])\n"
        "for i in range(400): print('py', i, 'and', 'more', 'words')\nchild.wait();"
    )
    expected = [f"py {i} and more words" for i in range(400)] + [f"child {i}" for i in range(1, 401)]
    assert sorted(answer.stdout.splitlines()) == sorted(expected)


async def test_lines_of_forked_workers_stay_whole(k: Client) -> None:
    answer = await k.run(
        "import multiprocessing as mp\ndef work(n):\n    for i in range(50): print(n, i, 'of', 'worker')\n"
        "workers = [mp.get_context('fork').Process(target=work, args=(n,)) for n in range(3)]\n"
        "for each in workers: each.start()\nfor each in workers: each.join()"
    )
    assert sorted(answer.stdout.splitlines()) == sorted(f"{n} {i} of worker" for n in range(3) for i in range(50))


async def test_a_python_child_shows_its_lines_while_it_runs(k: Client) -> None:
    running = k.execute(
        "import os, subprocess, sys; os.mkfifo('gate')\n"
        "subprocess.run([sys.executable, '-c', \"print('early'); open('gate').read()\"]);"
    )
    await k.until(lambda: "early" in k.answer(running).stdout)
    await k.interrupted(running)


async def test_input_reads_what_stands_in_sys_stdin(k: Client) -> None:
    answer = await k.run(
        "import io, sys\nsys.stdin = io.StringIO('3\\n1 2\\n')\n"
        "n = int(input('n? ')); print(n, input().split())\ninput()"
    )
    assert (answer.stdout, answer.error) == ("n? 3 ['1', '2']\n", "EOFError")


async def test_input_without_anybody_is_the_end_of_the_input(k: Client) -> None:
    answer = await k.run("try: input()\nexcept EOFError as error: print(type(error).__name__)", allow_stdin=False)
    assert answer.stdout == "StdinNotImplementedError\n"


#: Raises with so many frames. The second is what programs do whose recursion is meant to be deep.
DEEP = {
    "a recursion": "import sys; sys.setrecursionlimit(50_000)\ndef down(n): return down(n + 1)\ndown(0)",
    "two functions": (
        "import sys; sys.setrecursionlimit(50_000)\ndef a(n): return b(n)\ndef b(n): return a(n + 1)\na(0)"
    ),
    "with a cause": (
        "import sys; sys.setrecursionlimit(20_000)\ndef down(n): return down(n + 1)\n"
        "try: down(0)\nexcept RecursionError as error: raise ValueError('x') from error"
    ),
}


@pytest.mark.parametrize("case", DEEP)
async def test_the_traceback_of_a_deep_recursion_is_short(k: Client, case: str) -> None:
    answer = await k.run(DEEP[case], deadline=20.0)
    assert answer.error == ("ValueError" if case == "with a cause" else "RecursionError")
    (shown,) = answer.messages("error")
    assert sum(map(len, shown.content["traceback"])) < 400_000
    if case != "with a cause":
        assert "frames between the first and the last are left out" in "".join(shown.content["traceback"])


async def test_threads_that_print_at_the_same_time_do_not_fail(k: Client) -> None:
    """They look at the pipes of subprocesses at the same time, and poll(2) of one object in two threads is an error."""
    answer = await k.run(
        "import threading\nfailed = []\n"
        "def go():\n"
        "    try:\n"
        "        for _ in range(200): print('x' * 5_000)\n"
        "    except Exception as error:\n"
        "        failed.append(error)\n"
        "threads = [threading.Thread(target=go) for _ in range(4)]\n"
        "for thread in threads: thread.start()\n"
        "for _ in range(200): display({'text/plain': 'shown'}, raw=True)\n"
        "for thread in threads: thread.join()\n"
        "failed",
        deadline=50.0,
    )
    assert (answer.error, answer.result) == (None, "[]")
