"""Shell commands in cells: side by side with ipykernel, and where they differ on purpose."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from kernel_processes import Client
from waiting import wait_until

from kernelsvc.linux import procfs

#: Cells that print, return and leave the same in both. The variables that they use are in ``BEFORE``.
SAME = {
    "output": "!echo hi",
    "no output": "!true",
    "standard error is shown in order": "!echo out; echo err >&2; echo out",
    "two commands in order with prints": "print('a')\n!echo b\nprint('c')\n!echo d",
    "a pipe": "!printf 'b\\na\\n' | sort | head -1",
    "a list": "!true && echo and || echo or",
    "a status": "!exit 7\n_exit_code",
    "a failed command's status": "!false\n_exit_code",
    "a command that is not there": "!no-such-command-here 2>/dev/null\n_exit_code",
    "the last status of a pipe": "!false | true\n_exit_code",
    "a signal": "!kill -TERM $$\n_exit_code",
    "a signal of an inner shell": "!exit 137\n_exit_code",
    "a variable": "!echo $name",
    "a variable in braces": "!echo {name}",
    "an expression": "!echo {number * 2}",
    "a format": "!echo {number:05d}",
    "a list of values": "!echo $names",
    "an attribute": "!echo {name.upper()}",
    "a variable of the shell": "!X=5; echo $$X",
    "no variable of that name": "!X=5; echo ${X}",
    "quotes": "!echo 'a  b' \"c  d\" e\\ f",
    "a percent sign and an exclamation mark": "!echo 100% done!",
    "a file's name with a blank": "!touch 'a b'; ls 'a b'",
    "a pattern": "!touch z1 z2; echo z?",
    "a directory of the command only": "!mkdir -p d; cd d; basename $(pwd)\nos.path.basename(os.getcwd()) == 'd'",
    "here string": "!bash -c 'cat <<< text'",
    "substitution": "!echo $(echo inner) `echo old`",
    "in the background": "!sleep 20 & echo going on",
    "in the background, alone": "!sleep 20 &",
    "colours": "!printf '\\033[31mred\\033[0m\\n'; ls --color=auto -d /usr",
    "a terminal": "!test -t 1 && echo terminal; tput cols",
    "unicode": "!echo 'Grüße, 数据 🙂'",
    "no UTF-8": "!printf 'caf\\351\\n'",
    "no line end": "!printf abc",
    "a large output": "!seq 60000 | tr -d '\\n' | cut -c1-200000",
    "many lines": "!seq 5000",
    "two lines of code": "!echo a \\\n  b",
    "in a loop": "for i in range(3):\n    !echo $i",
    "in a function": "def f(word):\n    !echo $word\nf('local')",
    "assigned": "x = !echo a; echo b; printf c\nx",
    "assigned, with its kind": "x = !echo a; echo b\ntype(x).__name__, x.n, x.s, x.l, x.grep('a')",
    "assigned, standard error too": "x = !echo a >&2; echo b\nx",
    "assigned, with a variable": "x = !echo {number} $name\nx",
    "assigned, nothing": "x = !true\nx",
    "assigned, no terminal": "x = !test -t 1 || echo none\nx",
    "assigned, in the background": "x = !sleep 20 &",
    "captured by two marks": "!!echo a; echo b",
    "%sx": "%sx echo a",
    "%system": "%system echo a",
    "%%sx": "%%sx\necho a\necho b",
    "%%sh": "%%sh\necho a\necho b >&2\necho $0",
    "%%bash": "%%bash\nfor i in 1 2; do echo $i; done\necho 'Grüße'",
    "%%bash, here document": "%%bash\ncat << END\nline $((1 + 1))\nEND",
    "%%bash, no variables of Python": "%%bash\necho $name",
    "%%bash, into variables": "%%bash --out o --err e\necho a; echo b >&2",
    "%%bash, into variables, shown": "o, e",
    "%%bash, failed": "%%bash\necho before\nexit 3",
    "%%bash, failed and ignored": "%%bash --no-raise-error\nexit 3",
    "%%script": "%%script cat -\nthe cell",
    "%%script, not there": "%%script no-such-program-here\nx",
    "%alias": "%alias shout echo %s!\n%shout now",
    "get_ipython().system": "get_ipython().system('echo called')",
    "raise on error": "ip = get_ipython(); ip.system_raise_on_error = True\ntry:\n    !exit 4\nexcept Exception as e:\n"
    "    print(type(e).__name__, e)\nfinally:\n    ip.system_raise_on_error = False\n_exit_code",
    "into captured output": "%%capture c\n!echo inside",
    "into captured output, shown": "c.stdout",
}
BEFORE = "import os; os.environ['SHELL'] = '/bin/sh'; name, number, names = 'Ada', 21, ['a', 'b']"
SECONDS = 30.0

Shown = tuple[str, str, str | None, str | None]


@pytest.fixture(scope="module")
def ipykernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlockingKernelClient]:
    """ipykernel as Jupyter starts it."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(tmp_path_factory.mktemp("ipykernel")), env=dict(os.environ, LANG="C.UTF-8"))
    client = manager.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=SECONDS)
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def by_ipykernel(client: BlockingKernelClient, code: str) -> Shown:
    """Stdout, stderr, result and exception of a cell."""
    found: dict[str, Any] = {"stdout": "", "stderr": "", "result": None, "ename": None}
    request = client.execute(code)
    while True:
        try:
            message = client.get_iopub_msg(timeout=SECONDS)
        except queue.Empty:
            pytest.fail("ipykernel does not end the cell")
        if message["parent_header"].get("msg_id") != request:
            continue
        content = message["content"]
        match message["msg_type"]:
            case "stream":
                found[content["name"]] += content["text"]
            case "execute_result":
                found["result"] = content["data"]["text/plain"]
            case "error":
                found["ename"] = content["ename"]
            case "status" if content["execution_state"] == "idle":
                return found["stdout"], found["stderr"], found["result"], found["ename"]


async def test_the_same_as_in_ipykernel(k: Client, ipykernel: BlockingKernelClient) -> None:
    await k.run(BEFORE)
    by_ipykernel(ipykernel, BEFORE)
    differing = {}
    for case, code in SAME.items():
        answer = await k.run(code)
        errors = [message.content["ename"] for message in answer.messages("error")]
        here = answer.stdout, answer.stderr, answer.result, errors[0] if errors else None
        there = by_ipykernel(ipykernel, code)
        if here != there:
            differing[case] = (here, there)
    assert differing == {}


#: Commands that wait for a key or for input in ipykernel.
WAITING = {
    "input": ("!python3 -c \"input('go on? ')\"", "EOFError"),
    "read": ('!read x; echo "got=$x."', "got=."),
    "cat": ("!cat; echo ended", "ended"),
    "the terminal by its usual name": ("!head -c 1 < /dev/tty; echo ended", "ended"),
    "a script": ('%%bash --no-raise-error\nread x; echo "got=$x."', "got=."),
    "git's pager": (
        "!git init -q r; cd r; git config user.email a@example.org; git config user.name n; "
        'for i in $(seq 30); do git commit -q --allow-empty -m "commit $i"; done; git log',
        "commit 1\r\n",
    ),
    "less of a file": ("!seq 500 > f; less f; echo ended", "500"),
    "less of more than its screen": ("!seq 5000 > f; less f; echo ended", "ended"),
}


@pytest.mark.parametrize("case", WAITING)
async def test_a_command_that_would_wait_for_a_key_ends(k: Client, case: str) -> None:
    code, expected = WAITING[case]
    for program in ("git", "less"):
        if program in code and shutil.which(program) is None:
            pytest.skip(f"this machine has no {program}")
    answer = await k.run(code, deadline=15.0)
    assert expected in answer.stdout


#: Each runs until it is interrupted, also where the shell starts it in a process group of its own.
ENDLESS = {
    "a command": "!sleep 4321",
    "a loop of commands": "while True:\n    !true",
    "a command that ignores it": "!trap '' INT TERM; sleep 4321; sleep 4321",
    "assigned": "x = !sleep 4321",
    "os.system": "import os; os.system('sleep 4321')",
    "captured": "!!sleep 4321",
    "a script": "%%bash\nsleep 4321; echo after",
    "a script, ignored": "%%bash --no-raise-error\nsleep 4321",
}


@pytest.mark.parametrize("case", ENDLESS)
async def test_an_interrupt_ends_a_command_and_the_cell(k: Client, case: str) -> None:
    await k.run("y = 1")
    running = k.execute(f"y += 1\n{ENDLESS[case]}\nprint('not reached')" if ENDLESS[case][0] != "%" else ENDLESS[case])
    if case != "a loop of commands":
        await wait_until(lambda: sleepers(k.pid))
    answer = await k.interrupted(running)
    assert answer.reply.content["ename"] == "KeyboardInterrupt"
    assert "not reached" not in answer.stdout
    assert (await k.run("y")).result in ("1", "2")
    await wait_until(lambda: not sleepers(k.pid))


def sleepers(pid: int) -> list[int]:
    """The processes that a kernel's commands have started, and that sleep."""
    found = []
    for each in procfs.below(pid):
        with contextlib.suppress(OSError):
            if b"4321" in Path(f"/proc/{each}/cmdline").read_bytes():
                found.append(each)
    return found


async def test_a_script_leaves_no_thread_that_a_fork_would_lose(k: Client) -> None:
    await k.run("%%bash\necho hi")
    assert (await k.run("import threading; threading.active_count()")).result == "1"


async def test_output_comes_while_the_command_runs(k: Client) -> None:
    await k.run("import os; os.mkfifo('gate')")
    running = k.execute("!echo first; read x < gate; echo second")
    await k.until(lambda: "first" in k.answer(running).stdout)
    (Path(f"/proc/{k.pid}/cwd") / "gate").write_text("go\n")
    assert (await k.finish(running)).stdout == "first\r\nsecond\r\n"
