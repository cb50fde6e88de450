"""A cell that exits ends, and the session keeps its kernel: every way to exit, in a real kernel over the real wire."""

from __future__ import annotations

import pytest
from kernel_processes import Answer, Client

from kernelsvc.guest.exit_calls import NOTE
from kernelsvc.kernels.forked.wire_client import WireLost


def shown(answer: Answer) -> str:
    """All that a user sees of a cell: its text, and the tracebacks of its errors."""
    lines = [line for message in answer.messages("error") for line in message.content["traceback"]]
    return answer.stdout + answer.stderr + "\n".join(lines)


async def lives(k: Client) -> None:
    """The next cell runs in the same process, with the variables of the cell before."""
    after = await k.run("x, __import__('os').getpid()")
    assert after.result == f"(1, {k.pid})"


#: Each ends its cell, after it has set ``x``, and with ``evalue``.
ENDS = {
    "exit": ("exit()", ""),
    "quit": ("quit()", ""),
    "exit with a status": ("exit(3)", "3"),
    "exit with a text": ("exit('no data')", "no data"),
    "exit as ipykernel has it": ("exit(keep_kernel=True)", ""),
    "sys.exit": ("import sys; sys.exit()", ""),
    "sys.exit(0)": ("import sys; sys.exit(0)", "0"),
    "sys.exit(3)": ("import sys; sys.exit(3)", "3"),
    "raise": ("raise SystemExit('text')", "text"),
    "builtins": ("import builtins; builtins.exit()", ""),
    "ask_exit": ("get_ipython().ask_exit()", ""),
    "do_shutdown": ("get_ipython().kernel.do_shutdown(False)", ""),
    "do_shutdown, to restart": ("get_ipython().kernel.do_shutdown(True)", ""),
    "do_shutdown, awaited": ("await get_ipython().kernel.do_shutdown(True)", ""),
    "in nested calls": (
        "def inner():\n    try:\n        exit()\n    finally:\n        print('finally')\n"
        "def outer():\n    inner()\n    print('not reached')\nouter()",
        "",
    ),
    "in an async cell": ("import asyncio\nawait asyncio.sleep(0)\nexit()", ""),
    "in a task that the cell awaits": (
        "import asyncio\nasync def work():\n    exit(4)\nawait asyncio.create_task(work())",
        "4",
    ),
    "in a pool's thread that the cell waits for": (
        "from concurrent.futures import ThreadPoolExecutor as Pool\nwith Pool(1) as p: p.submit(exit, 5).result()",
        "5",
    ),
    "in a repr": ("class C:\n    def __repr__(self): exit()\nimport sys; sys.displayhook(C())", ""),
    "in a display formatter": (
        "class C:\n    def _repr_html_(self): exit()\nfrom IPython.display import display\ndisplay(C())",
        "",
    ),
    "in a module": (
        "import sys, pathlib\npathlib.Path('leaver.py').write_text('def leave(): exit(6)')\n"
        "sys.path.insert(0, '')\nimport leaver\nleaver.leave()",
        "6",
    ),
    "with warnings as errors": ("import warnings\nwarnings.simplefilter('error')\nexit()", ""),
    "with all warnings shown": ("import warnings\nwarnings.simplefilter('always')\nexit()", ""),
}


@pytest.mark.parametrize("case", ENDS)
async def test_an_exit_ends_the_cell_and_nothing_else(k: Client, case: str) -> None:
    code, evalue = ENDS[case]
    answer = await k.run(f"x = 1\n{code}\nx = 'not reached'")
    content = answer.reply.content
    assert (content["status"], content["ename"], content["evalue"]) == ("error", "SystemExit", evalue)
    assert content["payload"] == []
    assert [m.content["ename"] for m in answer.messages("error")] == ["SystemExit"]
    text = shown(answer)
    assert text.count(NOTE) == 1
    assert "To exit" not in text
    assert "not reached" not in text
    assert ("finally" in text) == ("finally" in code)
    await lives(k)


@pytest.mark.parametrize("name", ["exit", "quit"])
async def test_exit_without_parentheses(k: Client, name: str) -> None:
    await k.run("x = 1")
    answer = await k.run(name)
    assert answer.reply.content["ename"] == "SystemExit"
    assert shown(answer).count(NOTE) == 1
    shown_only = await k.run(f"x\n{name}")  # IPython calls a name only when it is all of the cell
    assert NOTE in (shown_only.result or "")
    await lives(k)


async def test_exit_depending_on_what_input_gave(k: Client) -> None:
    msg_id = k.execute("x = 1\nif input('go on? ') == 'n': exit()\nx = 2")
    await k.until(lambda: k.answer(msg_id).messages("input_request"))
    k.send("input_reply", {"status": "ok", "value": "n"}, "stdin")
    answer = await k.finish(msg_id)
    assert answer.reply.content["ename"] == "SystemExit"
    await lives(k)


@pytest.mark.parametrize("code", ["import sys\nsys.exit(0)", "import sys\nsys.exit(3)", "exit(3)", "quit()"])
async def test_a_script_that_exits_ends_alone(k: Client, code: str) -> None:
    await k.run(f"import pathlib; n = pathlib.Path('s.py').write_text({code!r})")
    answer = await k.run("x = 1\nget_ipython().run_line_magic('run', 's.py')\nprint('after')")
    assert answer.reply.content["status"] == "ok"
    assert answer.stdout == "after\n"
    assert answer.error == ("SystemExit" if "3" in code else None)  # as IPython has it
    await lives(k)


@pytest.mark.parametrize("event", ["pre_execute", "pre_run_cell", "post_execute", "post_run_cell"])
async def test_a_hook_that_exits_fails_as_any_other(k: Client, event: str) -> None:
    await k.run("x = 0\ndef hook(*_): exit(3)")
    await k.run(f"get_ipython().events.register({event!r}, hook)")
    answer = await k.run("x = 1\nprint('ran')")
    assert answer.reply.content["status"] == "ok"
    assert "ran" in answer.stdout
    assert "Error in callback" in answer.stdout
    assert shown(answer).count(NOTE) == 1
    await k.run(f"get_ipython().events.unregister({event!r}, hook)")
    await lives(k)


async def test_a_transformer_that_exits_ends_its_cell(k: Client) -> None:
    code = (
        "x = 1\ndef leave(lines):\n    if 'leave' in ''.join(lines): exit(3)\n    return lines\n"
        "get_ipython().input_transformers_cleanup.append(leave)"
    )
    await k.run(code)
    answer = await k.run("'leave'")
    assert (answer.reply.content["status"], answer.reply.content["ename"]) == ("error", "SystemExit")
    assert shown(answer).count(NOTE) == 1
    await lives(k)


async def test_a_thread_that_exits_ends_alone_and_in_silence_as_in_python(k: Client) -> None:
    code = "x = 1\nimport threading\nt = threading.Thread(target=exit); t.start(); t.join()\nprint(t.is_alive())"
    answer = await k.run(code)
    assert answer.reply.content["status"] == "ok"
    assert shown(answer) == "False\n"
    await lives(k)


@pytest.mark.parametrize(
    "code",
    [
        "x = 1\nimport asyncio\nasyncio.get_running_loop().call_soon(exit, 3)",
        "x = 1\nimport asyncio\nasync def work(): exit(3)\nt = asyncio.create_task(work())\nt.add_done_callback(id)",
        "x = 1\nimport asyncio\nasyncio.get_running_loop().call_later(0.01, exit, 3)\nawait asyncio.sleep(0.05)",
    ],
)
async def test_a_callback_of_the_loop_that_exits_says_so(k: Client, code: str) -> None:
    msg_id = k.execute(code)
    await k.until(lambda: NOTE in k.answer(msg_id).stderr)
    answer = await k.finish(msg_id)
    assert "SystemExit in a callback or task of the event loop: 3" in answer.stderr
    assert answer.reply.content["status"] == "ok"
    await lives(k)


async def test_a_comm_callback_that_exits_says_so(k: Client) -> None:
    await k.run(
        "x = 1\ndef opened(comm, msg):\n    comm.on_msg(lambda msg: exit(3))\n"
        "get_ipython().kernel.comm_manager.register_target('t', opened)"
    )
    k.send("comm_open", {"comm_id": "c", "target_name": "t", "data": {}})
    msg_id = k.send("comm_msg", {"comm_id": "c", "data": {}})
    await k.finish(msg_id)
    wanted = f"SystemExit in the answer to a comm_msg: 3\n{NOTE}\n"
    await k.until(lambda: k.answer(msg_id).stderr == wanted)  # it may come after the idle status
    await lives(k)


async def test_what_is_registered_for_the_end_of_the_process_ends_nothing_before(k: Client) -> None:
    await k.run("x = 1\nimport atexit\natexit.register(exit, 3)")
    await lives(k)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("sys.exit(3)", "768 "),
        ("exit(3)", "768 "),
        ("sys.exit()", "0 "),
        ("get_ipython().ask_exit()", "0 "),
        ("sys.exit('why')", "256 why\n"),
    ],
)
async def test_a_forked_child_that_exits_ends_as_a_process_of_python(k: Client, code: str, said: str) -> None:
    cell = f"x = 1\nimport os, sys\npid = os.fork()\nif pid == 0:\n    {code}\nprint(os.waitpid(pid, 0)[1], end=' ')"
    answer = await k.run(cell)
    assert sorted(shown(answer).split()) == sorted(said.split())
    assert answer.reply.content["status"] == "ok"
    await lives(k)


async def test_a_process_of_multiprocessing_that_exits_ends_alone(k: Client) -> None:
    code = "x = 1\nimport multiprocessing\np = multiprocessing.get_context('fork').Process(target=exit, args=(3,))"
    answer = await k.run(f"{code}\np.start(); p.join(); p.exitcode")
    assert answer.result == "3"
    await lives(k)


@pytest.mark.parametrize(
    ("code", "ename"),
    [
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import asyncio; asyncio.get_running_loop().stop(); await asyncio.sleep(0.01)", None),
        ("get_ipython().exit_now = True", None),
    ],
)
async def test_what_resembles_an_exit_ends_no_session_either(k: Client, code: str, ename: str | None) -> None:
    answer = await k.run(f"x = 1\n{code}")
    assert answer.error == ename
    await lives(k)


@pytest.mark.parametrize("code", ["os._exit(3)", "os.kill(os.getpid(), signal.SIGTERM)"])
async def test_the_end_of_the_process_is_the_end(k: Client, code: str) -> None:
    msg_id = k.execute(f"import os, signal\n{code}\nprint('not reached')")
    with pytest.raises(WireLost):
        await k.finish(msg_id)


@pytest.mark.parametrize("case", ["exit", "do_shutdown"])
async def test_a_cell_that_was_sent_with_one_that_exits_runs(k: Client, case: str) -> None:
    k.execute(f"x = 1\n{ENDS[case][0]}")
    second = await k.finish(k.execute("x + 1"))
    assert second.result == "2"
