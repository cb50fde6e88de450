"""IPython in a forked kernel behaves as in Jupyter: every feature, over the real wire."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json

import pytest
from kernel_processes import Client, Template, kernel, now

from kernelsvc.kernels.port import KernelMessage, StreamText


@pytest.fixture(scope="session")
def template(preloaded_template: Template) -> Template:
    return preloaded_template


# --- a cell ---------------------------------------------------------------------------------


async def test_a_cell_brings_the_messages_that_jupyter_brings(k: Client) -> None:
    answer = await k.run("1 + 1", terse=False)
    kinds = [(m.channel, m.msg_type) for m in answer.items if isinstance(m, KernelMessage)]
    assert kinds == [
        ("iopub", "status"),
        ("iopub", "execute_input"),
        ("iopub", "execute_result"),
        ("shell", "execute_reply"),
        ("iopub", "status"),
    ]
    assert answer.result == "2"
    assert answer.reply.content["status"] == "ok"
    assert answer.reply.content["execution_count"] == 1


async def test_a_terse_cell_brings_its_outputs_and_its_reply_in_one_piece(k: Client) -> None:
    answer = await k.run("1 + 1")
    assert [m.msg_type for m in answer.items if isinstance(m, KernelMessage)] == ["execute_result", "execute_reply"]
    assert len(k.batches) == 1
    assert (answer.result, answer.reply.content["execution_count"]) == ("2", 1)


@pytest.mark.parametrize(
    "code",
    [
        "import asyncio; asyncio.get_running_loop().stop(); await asyncio.sleep(0.01)",
        "raise SystemExit(3)",
        "import asyncio; raise asyncio.CancelledError",
        "raise BaseException('no')",
        "get_ipython().run_cell = None",
        "class C:\n    def __repr__(self): raise SystemExit\nC()",
    ],
)
async def test_a_terse_cell_has_one_reply_however_it_ends(k: Client, code: str) -> None:
    first = await k.run(code)
    assert len(first.messages("execute_reply")) == 1
    second = await k.run("1")  # whatever that gives: nothing of the first comes late
    assert [m.msg_type for m in second.items if isinstance(m, KernelMessage)][-1] == "execute_reply"
    assert len(second.messages("execute_reply")) == 1


async def test_a_terse_cell_whose_reply_fails_has_one_reply_all_the_same(k: Client) -> None:
    code = (
        "kernel = get_ipython().kernel\n"
        "def fail(*a):\n    del kernel.finish_metadata\n    raise OSError('no metadata')\n"
        "kernel.finish_metadata = fail"
    )
    answer = await k.run(code, terse=True)
    assert answer.reply.content["evalue"] == "OSError: no metadata"
    answer = await k.run("1 + 1", terse=True)
    assert answer.result == "2"


async def test_output_of_c_code_comes_before_the_end_of_a_terse_cell(k: Client) -> None:
    code = "import ctypes; libc = ctypes.CDLL(None); n = libc.printf(b'from C, no newline')"
    answer = await k.run(code)
    assert answer.stdout == "from C, no newline"
    assert isinstance(answer.items[-1], KernelMessage)


async def test_frames_are_numbered_without_gap(k: Client) -> None:
    await k.run("print('a'); 1 + 1")
    await k.run("print('b')")
    await k.until(lambda: k.wire.last_frame)
    frames = [i.frame for i in k.got if i.frame is not None]
    assert frames == sorted(frames)
    assert k.wire.last_frame == frames[-1]


async def test_variables_persist_between_cells(k: Client) -> None:
    await k.run("x = 41")
    assert (await k.run("x + 1")).result == "42"


async def test_a_new_session_is_empty(k: Client) -> None:
    answer = await k.run("sorted(n for n in globals() if not n.startswith('_')), len(In), Out")
    assert answer.result == "(['In', 'Out', 'exit', 'get_ipython', 'open', 'quit', 'tools'], 2, {})"


async def test_the_reply_reports_usage(k: Client) -> None:
    answer = await k.run("import time; end = time.process_time() + 0.05\nwhile time.process_time() < end: pass")
    usage = answer.reply.metadata["kernelsvc"]
    assert usage["cpu_ms"] >= 50
    assert usage["peak_rss_bytes"] > 1 << 20


async def test_the_peak_is_of_the_cell_and_not_of_the_session(k: Client) -> None:
    big = await k.run("b = bytearray(200 << 20); del b")
    small = await k.run("1")
    before, after = (a.reply.metadata["kernelsvc"]["peak_rss_bytes"] for a in (big, small))
    assert before - after > 150 << 20


async def test_usage_counts_children(k: Client) -> None:
    code = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'x = 0\\nfor i in range(2_000_000): x += i'])"
    answer = await k.run(code)
    assert answer.reply.metadata["kernelsvc"]["cpu_ms"] > 20


# --- text -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "code"),
    [
        ("", "import sys, time\nsys.displayhook(41)\ntime.sleep(60)"),
        ("get_ipython().ast_node_interactivity = 'all'", "41\nimport time; time.sleep(60)"),
        (
            "import time\nafter = lambda *_: 'n' in globals() and time.sleep(60)\n"
            "get_ipython().events.register('post_run_cell', after)",
            "n = 41\nn",
        ),
        (
            "import time\nafter = lambda *_: 'n' in globals() and time.sleep(60)\n"
            "get_ipython().events.register('post_execute', after)",
            "n = 41\nn",
        ),
    ],
)
async def test_a_result_that_is_followed_by_output_is_sent_immediately(k: Client, before: str, code: str) -> None:
    await k.run(before)
    msg_id = k.execute(code)
    await k.until(lambda: k.answer(msg_id).messages("execute_result"), deadline=20)
    assert k.answer(msg_id).result == "41"
    assert not k.idle(msg_id)


async def test_a_result_comes_with_its_reply(k: Client) -> None:
    await k.run("1")
    batches: list[list[str]] = []
    deliver = k.deliver

    def noted(batch):
        batches.append([item.msg_type for item in batch if isinstance(item, KernelMessage)])
        deliver(batch)

    k.wire._deliver = noted
    await k.run("2")
    assert ["execute_result", "execute_reply", "status"] in batches or len(batches) == 1


async def test_prints_are_sent_while_the_cell_sleeps(k: Client) -> None:
    began = now()
    msg_id = k.execute("print('here', end=''); import time; time.sleep(1)")
    await k.until(lambda: k.answer(msg_id).stdout == "here")
    assert now() - began < 0.5
    assert not k.idle(msg_id)
    await k.finish(msg_id)


async def test_prints_keep_their_order_with_displays_and_errors(k: Client) -> None:
    code = "import sys\nprint(1)\ndisplay('two')\nprint(3, file=sys.stderr)\nprint(4)\n1/0"
    answer = await k.run(code)
    seen = [i.text if isinstance(i, StreamText) else f"<{i.msg_type}>" for i in answer.items]
    assert "".join(seen[:-1]) == "1\n<display_data>3\n4\n<error>"


async def test_output_of_c_code_and_subprocesses_arrives_before_the_cell_ends(k: Client) -> None:
    code = """
import ctypes, os, subprocess
libc = ctypes.CDLL(None)
libc.puts(b"from C")
os.system("echo from a shell")
subprocess.run(["sh", "-c", "echo to stderr >&2"])
os.write(1, b"raw")
"""
    answer = await k.run(code)
    assert {"from C", "from a shell", "raw"} <= set(answer.stdout.split("\n"))
    assert answer.stderr == "to stderr\n"
    kinds = [i.msg_type if isinstance(i, KernelMessage) else "text" for i in answer.items]
    assert kinds.index("execute_reply") > max(i for i, kind in enumerate(kinds) if kind == "text")


async def test_raw_bytes_that_are_no_text_are_replaced_and_cut_characters_joined(k: Client) -> None:
    answer = await k.run("import os\nfor b in 'ä€'.encode(): os.write(1, bytes([b]))\nos.write(1, b'\\xff!')")
    assert answer.stdout == "ä€�!"


async def test_stdout_is_a_text_stream_like_any_other(k: Client) -> None:
    code = """
import sys
print(sys.stdout.encoding, sys.stdout.isatty(), sys.stdout.writable(), sys.stdout.fileno())
sys.stdout.writelines(['a', 'b\\n'])
sys.stdout.buffer.write('bytes ä\\n'.encode())
sys.stdout.close()
sys.stdout.reconfigure(line_buffering=True)
print('still here', '\\ud800')
try: sys.stdout.write(b'x')
except TypeError as e: print(e)
"""
    lines = (await k.run(code)).stdout.splitlines()
    assert lines == [
        "utf-8 False True 1",
        "ab",
        "bytes ä",
        "still here ?",
        "write() argument must be str, not bytes",
    ]


async def test_threads_print_into_the_running_cell(k: Client) -> None:
    code = """
import sys, threading
ts = [threading.Thread(target=sys.stdout.write, args=(f'{i} ',)) for i in range(50)]
[t.start() for t in ts]; [t.join() for t in ts]; None"""
    answer = await k.run(code)
    assert sorted(answer.stdout.split(), key=int) == [str(i) for i in range(50)]


async def test_a_task_prints_into_the_cell_that_made_it(k: Client) -> None:
    late = "async def late():\n    await asyncio.sleep(0.2)\n    print('late')"
    code = f"import asyncio\n{late}\nt = asyncio.create_task(late())"
    first = k.execute(code)
    await k.finish(first)
    second = k.execute("print('now')")
    await k.finish(second)
    await k.until(lambda: "late" in k.answer(first).stdout)
    assert k.answer(second).stdout == "now\n"


# --- display --------------------------------------------------------------------------------

_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.mark.parametrize(
    ("code", "mime"),
    [
        (f"Image(data=__import__('base64').b64decode('{_PIXEL}'))", "image/png"),
        ("SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>')", "image/svg+xml"),
        ("HTML('<b>x</b>')", "text/html"),
        ("Latex('$x$')", "text/latex"),
        ("JSON({'a': [1, None]})", "application/json"),
        ("Markdown('# x')", "text/markdown"),
        ("Javascript('1')", "application/javascript"),
    ],
)
async def test_rich_display(k: Client, code: str, mime: str) -> None:
    shown = (await k.run(f"from IPython.display import *\ndisplay({code})")).displays
    assert mime in shown[0]
    result = await k.run(code)
    assert mime in result.messages("execute_result")[0].content["data"]


async def test_pdf_and_any_other_mime_type_can_be_displayed(k: Client) -> None:
    pdf = base64.b64encode(b"%PDF-1.4").decode()
    code = f"display({{'application/pdf': '{pdf}', 'application/x-own': 'y'}}, raw=True)"
    assert (await k.run(code)).displays == [{"application/pdf": pdf, "application/x-own": "y"}]


@pytest.mark.parametrize(
    ("register", "value"),
    [
        ("ip.display_formatter.formatters['text/html'].for_type(int, lambda n: f'<b>{n}</b>')", "7"),
        ("ip.display_formatter.formatters['text/html'].for_type_by_name('builtins', 'str', lambda s: s)", "'<b>7</b>'"),
        ("ip.display_formatter.formatters['text/html'].for_type(object, lambda n: f'<b>{n}</b>')", "7.5"),
        ("ip.display_formatter.mimebundle_formatter.for_type(int, lambda n, **_: {'text/html': '<b>'})", "7"),
    ],
)
async def test_a_form_that_the_user_registers_for_a_plain_type_is_used(k: Client, register: str, value: str) -> None:
    before = (await k.run(value)).messages("execute_result")[0].content["data"]
    assert list(before) == ["text/plain"]
    after = (await k.run(f"ip = get_ipython(); {register}\n{value}")).messages("execute_result")[0].content["data"]
    assert after["text/html"].startswith("<b>")
    assert (await k.run("%precision 2\n3.14159")).messages("execute_result")[0].content["data"]["text/plain"] == "3.14"


@pytest.mark.parametrize(
    ("register", "value"),
    [
        ("for_type(int, lambda n, p, cycle: p.text('mine'))", "7"),
        ("for_type(int, lambda n, p, cycle: p.text('mine'))", "True + 0"),
        ("for_type(object, lambda n, p, cycle: p.text('mine'))", "None or True"),
        ("for_type_by_name('builtins', 'str', lambda s, p, cycle: p.text('mine'))", "'a'"),
    ],
)
async def test_a_text_that_the_user_registers_for_a_plain_type_is_used(k: Client, register: str, value: str) -> None:
    plain = "get_ipython().display_formatter.formatters['text/plain']"
    before = (await k.run(value)).result
    assert before == repr(eval(value))
    await k.run(f"f = {plain}; _ = f.{register}")
    theirs = (await k.run(f"import io; print(f({value}))")).stdout.strip()
    assert (await k.run(value)).result == theirs


async def test_a_number_too_long_to_print_gives_the_error_of_ipython(k: Client) -> None:
    answer = await k.run("10 ** 5000")
    assert answer.result is None
    assert [m.content["ename"] for m in answer.messages("error")] == ["ValueError"]


async def test_a_payload_belongs_to_one_cell(k: Client) -> None:
    first = await k.run("get_ipython().set_next_input('x = 1')")
    (payload,) = first.reply.content["payload"]
    assert (payload["source"], payload["text"]) == ("set_next_input", "x = 1")
    assert (await k.run("1 + 1")).reply.content["payload"] == []


async def test_a_display_can_be_updated(k: Client) -> None:
    answer = await k.run("h = display('a', display_id='me')\nh.update('b')")
    (shown,), (updated,) = answer.messages("display_data"), answer.messages("update_display_data")
    assert shown.content["transient"] == updated.content["transient"] == {"display_id": "me"}
    assert updated.content["data"]["text/plain"] == "'b'"


async def test_output_can_be_cleared(k: Client) -> None:
    answer = await k.run("from IPython.display import clear_output\nprint(1)\nclear_output(wait=True)")
    assert [m.content for m in answer.messages("clear_output")] == [{"wait": True}]


async def test_figures_appear_without_asking(k: Client) -> None:
    answer = await k.run("import matplotlib.pyplot as plt\nplt.plot([1, 2])")
    assert base64.b64decode(answer.displays[0]["image/png"]).startswith(b"\x89PNG")
    assert (await k.run("%matplotlib inline\nplt.plot([2, 1]);")).displays


async def test_a_data_frame_has_a_table(k: Client) -> None:
    answer = await k.run("import pandas as pd\npd.DataFrame({'a': [1]})")
    assert "<table" in answer.messages("execute_result")[0].content["data"]["text/html"]


async def test_values_that_json_lacks_are_sent_as_text(k: Client) -> None:
    answer = await k.run("display({'application/json': {'nan': float('nan'), 'b': b'x'}}, raw=True)")
    assert set(answer.displays[0]["application/json"]) == {"nan", "b"}


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("display({'text/plain': 'x' * (65 << 20)}, raw=True)", "at most"),
        ("x = []\nfor i in range(150): x = [x]\ndisplay({'application/json': x}, raw=True)", "nested"),
        ("display({'application/json': [0] * 2_100_000}, raw=True)", "values"),
    ],
)
async def test_an_output_too_large_for_the_wire_is_replaced_by_a_notice(k: Client, code: str, why: str) -> None:
    answer = await k.run(code)
    assert answer.reply.content["status"] == "ok"
    assert "was not sent" in answer.stderr
    assert why in answer.stderr
    assert (await k.run("1 + 1")).result == "2"


async def test_a_reply_too_large_for_the_wire_is_still_a_reply(k: Client) -> None:
    answer = await k.run("1", user_expressions={"big": "'x' * (70 << 20)"})
    assert answer.reply.content["ename"] == "TooLarge"


# --- IPython ----------------------------------------------------------------------------------


async def test_magics(k: Client) -> None:
    assert "3.1" in (await k.run("%precision 2\n3.14159")).result  # type: ignore[operator]
    assert "loop" in (await k.run("%timeit -n1 -r1 None")).stdout
    assert (await k.run("%%writefile f.txt\nhello")).stdout == "Writing f.txt\n"
    assert (await k.run("%pwd")).result is not None
    assert "Wall time" in (await k.run("%%time\n1")).stdout
    assert (await k.run("%nosuchmagic")).stderr.startswith("UsageError")


async def test_output_can_be_captured(k: Client) -> None:
    answer = await k.run("%%capture out\nprint('a')\ndisplay('b')\n3")
    assert (answer.stdout, answer.displays, answer.result) == ("", [], None)
    assert await _result(k, "out.stdout, len(out.outputs)") == "('a\\n', 2)"
    code = "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()) as s: print('c')\ns.getvalue()"
    assert await _result(k, code) == "'c\\n'"


async def _result(k: Client, code: str) -> str | None:
    return (await k.run(code)).result


async def test_logging_and_warnings_go_to_stderr(k: Client) -> None:
    answer = await k.run("import logging, warnings\nlogging.warning('careful')\nwarnings.warn('odd')")
    assert "WARNING:root:careful" in answer.stderr
    assert "UserWarning: odd" in answer.stderr


async def test_the_debugger_asks_as_input_does(k: Client) -> None:
    await k.run("def f(x):\n    return 1 / x\n")
    await k.run("f(0)")
    msg_id = k.execute("%debug")
    await _asked(k, msg_id)
    k.send("input_reply", {"value": "p x + 41"}, "stdin")
    await k.until(lambda: len(k.answer(msg_id).messages("input_request")) == 2)
    k.send("input_reply", {"value": "q"}, "stdin")
    assert "41" in (await k.finish(msg_id)).stdout


async def test_a_nested_event_loop_loses_no_output(k: Client) -> None:
    """Code that runs the loop again from inside a cell, as nest_asyncio lets it."""
    code = """
import asyncio
loop = asyncio.get_running_loop()
def nested(coro):
    task = loop.create_task(coro)
    previous = asyncio.current_task()
    asyncio.tasks._leave_task(loop, previous)
    while not task.done():
        loop._run_once()
    asyncio.tasks._enter_task(loop, previous)
    return task.result()
print('on')
print(nested(asyncio.sleep(0.3, 'nested')))
"""
    msg_id = k.execute(code)
    await k.until(lambda: "on" in k.answer(msg_id).stdout)
    other = k.execute("'after'")
    assert (await k.finish(msg_id)).stdout == "on\nnested\n"
    assert (await k.finish(other)).result == "'after'"


async def test_shell_escapes(k: Client) -> None:
    assert "hello" in (await k.run("!echo hello")).stdout
    assert (await k.run("files = !printf 'a\\nb'\nlist(files)")).result == "['a', 'b']"
    assert (await k.run("%%bash\necho one\necho two >&2")).stdout == "one\n"
    assert (await k.run("!exit 3\n_exit_code")).result == "3"


async def test_history_variables(k: Client) -> None:
    await k.run("10")
    await k.run("20")
    answer = await k.run("_, __, _1, In[1], Out[2], _i2")
    assert answer.result == "(20, 10, 10, '10', 20, '20')"
    assert (await k.run("%history -n 1-2")).stdout == "   1: 10\n   2: 20\n"
    assert (await k.run("%rerun 1")).result == "10"


async def test_tracebacks_show_the_cell(k: Client) -> None:
    answer = await k.run("def f():\n    return 1/0\nf()")
    (error,) = answer.messages("error")
    assert error.content["ename"] == "ZeroDivisionError"
    trace = "\n".join(error.content["traceback"])
    assert "f()" in trace
    assert "kernelsvc" not in trace
    assert answer.reply.content["status"] == "error"
    assert answer.reply.content["traceback"] == error.content["traceback"]


async def test_syntax_errors(k: Client) -> None:
    answer = await k.run("for")
    assert answer.error == "SyntaxError"
    assert answer.reply.content["ename"] == "SyntaxError"


async def test_silent_cells_leave_no_trace(k: Client) -> None:
    answer = await k.run("y = 1\ny", silent=True, store_history=False)
    assert answer.result is None
    assert (await k.run("y")).reply.content["execution_count"] == 1


async def test_user_expressions(k: Client) -> None:
    answer = await k.run("z = 5", user_expressions={"z": "z * 2", "bad": "1/0"})
    found = answer.reply.content["user_expressions"]
    assert found["z"]["data"]["text/plain"] == "10"
    assert found["bad"]["status"] == "error"


async def test_the_pager_is_a_payload(k: Client) -> None:
    answer = await k.run("print?")
    assert "Docstring" in answer.reply.content["payload"][0]["data"]["text/plain"]


async def test_modules_beside_the_session_can_be_imported(k: Client) -> None:
    await k.run("%%writefile mine.py\nx = 7")
    assert (await k.run("import mine\nmine.x")).result == "7"


async def test_classes_of_a_session_can_be_pickled(k: Client) -> None:
    code = "import pickle\nclass A: pass\ntype(pickle.loads(pickle.dumps(A()))) is A"
    assert (await k.run(code)).result == "True"


async def test_multiprocessing_works_in_a_cell(k: Client) -> None:
    code = """
import multiprocessing as mp
def square(x):
    print('in a child', x)
    return x * x
with mp.get_context('fork').Pool(2) as pool:
    r = pool.map(square, range(4))
r"""
    answer = await k.run(code)
    assert answer.result == "[0, 1, 4, 9]"
    assert answer.stdout.count("in a child") == 4


async def test_environment_and_directory_are_the_sessions(template: Template) -> None:
    async with kernel(template, env={"MINE": "yes"}) as k:
        answer = await k.run("import os\nprint(os.environ['MINE'], os.getcwd().endswith('.d'))")
        assert answer.stdout.split()[:2] == ["yes", "True"]


# --- async -----------------------------------------------------------------------------------


async def test_top_level_await(k: Client) -> None:
    assert (await k.run("import asyncio\nawait asyncio.sleep(0.01, 'slept')")).result == "'slept'"


async def test_background_tasks_run_between_cells(k: Client) -> None:
    await k.run("import asyncio\ndone = asyncio.Event()\nt = asyncio.create_task(asyncio.sleep(0.05)); n = 0\n"
                "async def count():\n    global n\n    while True:\n        await asyncio.sleep(0.01); n += 1\n"
                "c = asyncio.create_task(count())")  # fmt: skip
    seen = 0
    async with asyncio.timeout(10):
        while seen < 5:
            await asyncio.sleep(0.02)
            seen = int((await k.run("n")).result or 0)
    await k.run("c.cancel()")


async def test_a_sync_cell_may_use_the_running_loop(k: Client) -> None:
    code = "import asyncio\nf = asyncio.ensure_future(asyncio.sleep(0, 3))\nasyncio.get_running_loop().is_running()"
    assert (await k.run(code)).result == "True"
    assert (await k.run("await f")).result == "3"


async def test_context_variables_persist_between_cells(k: Client) -> None:
    await k.run("import contextvars\nv = contextvars.ContextVar('v')\nv.set(3)")
    assert (await k.run("v.get()")).result == "3"
    assert (await k.run("import asyncio\nawait asyncio.sleep(0)\nv.get()")).result == "3"


async def test_async_errors_are_shown(k: Client) -> None:
    answer = await k.run("import asyncio\nawait asyncio.sleep(0)\n1/0")
    assert answer.error == "ZeroDivisionError"


async def test_a_task_that_raises_system_exit_ends_nothing(k: Client) -> None:
    await k.run("import asyncio\nasync def bad():\n    raise SystemExit(3)\nt = asyncio.create_task(bad())")
    assert (await k.run("1 + 1")).result == "2"


async def test_an_async_cell_lets_comms_and_control_requests_through(k: Client) -> None:
    code = """
import asyncio
from IPython import get_ipython
got = asyncio.Event()
def opened(comm, msg):
    @comm.on_msg
    def heard(msg):
        got.set()
get_ipython().kernel.comm_manager.register_target('t', opened)
await got.wait()
print('heard')
"""
    msg_id = k.execute(code, terse=False)
    await k.until(lambda: k.answer(msg_id).messages("execute_input"))
    k.send("comm_open", {"comm_id": "c", "target_name": "t", "data": {}})
    k.send("comm_msg", {"comm_id": "c", "data": {}})
    info = k.send("kernel_info_request", {}, "control")
    assert (await k.finish(msg_id)).stdout == "heard\n"
    assert (await k.finish(info)).reply.content["status"] == "ok"


# --- comms, input, questions --------------------------------------------------------------------


async def test_comms_both_ways_with_buffers(k: Client) -> None:
    code = """
from comm import create_comm
c = create_comm(target_name='front', data={'a': 1}, buffers=[b'\\x00\\xff'])
@c.on_msg
def heard(msg):
    c.send({'echo': msg['content']['data']}, buffers=[bytes(b) for b in msg['buffers']])
"""
    (opened,) = (await k.run(code)).messages("comm_open")
    assert opened.buffers == (b"\x00\xff",)
    comm_id = opened.content["comm_id"]
    k.send("comm_msg", {"comm_id": comm_id, "data": [1]}, buffers=[b"\x01"])
    (echo,) = await k.until(lambda: [m for m in k.got if isinstance(m, KernelMessage) and m.msg_type == "comm_msg"])
    assert echo.content["data"] == {"echo": [1]}
    assert echo.buffers == (b"\x01",)
    info = await k.ask("comm_info_request", {})
    assert comm_id in info["comms"]
    await k.run("c.close()")
    assert comm_id not in (await k.ask("comm_info_request", {}))["comms"]


async def _asked(k: Client, msg_id: str) -> KernelMessage:
    (found,) = await k.until(lambda: k.answer(msg_id).messages("input_request"))
    return found


async def test_input(k: Client) -> None:
    msg_id = k.execute("print('hello', input('name? '))")
    assert (await _asked(k, msg_id)).content == {"prompt": "name? ", "password": False}
    k.send("input_reply", {"value": "Ann"}, "stdin")
    assert (await k.finish(msg_id)).stdout == "hello Ann\n"


async def test_getpass(k: Client) -> None:
    msg_id = k.execute("import getpass; len(getpass.getpass())")
    assert (await _asked(k, msg_id)).content["password"] is True
    k.send("input_reply", {"value": "secret"}, "stdin")
    assert (await k.finish(msg_id)).result == "6"


async def test_input_can_be_interrupted_and_its_late_answer_is_dropped(k: Client) -> None:
    msg_id = k.execute("input()")
    await _asked(k, msg_id)
    assert (await k.interrupted(msg_id)).error == "KeyboardInterrupt"
    k.send("input_reply", {"value": "late"}, "stdin")
    msg_id = k.execute("input('again')")
    await _asked(k, msg_id)
    k.send("input_reply", {"value": "right"}, "stdin")
    assert (await k.finish(msg_id)).result == "'right'"


async def test_input_where_it_is_not_allowed(k: Client) -> None:
    assert (await k.run("input()", allow_stdin=False)).error == "StdinNotImplementedError"


async def test_requests_that_come_while_a_cell_waits_for_input_are_answered_after_it(k: Client) -> None:
    msg_id = k.execute("input()")
    await _asked(k, msg_id)
    other = k.execute("'other'")
    k.send("input_reply", {"value": ""}, "stdin")
    await k.finish(msg_id)
    assert (await k.finish(other)).result == "'other'"


async def test_completion_inspection_and_completeness(k: Client) -> None:
    await k.run("frame = __import__('pandas').DataFrame({'a': [1]})")
    matches = (await k.ask("complete_request", {"code": "frame.hea", "cursor_pos": 9}))["matches"]
    assert any("head" in m for m in matches)
    found = await k.ask("inspect_request", {"code": "frame.head", "cursor_pos": 10, "detail_level": 0})
    assert found["found"] is True
    assert "rows" in found["data"]["text/plain"]
    assert (await k.ask("is_complete_request", {"code": "for x in y:"}))["status"] == "incomplete"
    assert (await k.ask("is_complete_request", {"code": "1"}))["status"] == "complete"


async def test_history_requests(k: Client) -> None:
    for code in ("a = 1", "b = 2", "a = 3"):
        await k.run(code)
    tail = await k.ask("history_request", {"hist_access_type": "tail", "n": 2, "output": False, "raw": True})
    assert [entry[2] for entry in tail["history"]] == ["b = 2", "a = 3"]
    search = {"hist_access_type": "search", "pattern": "a*", "n": 5, "output": False, "raw": True, "unique": False}
    assert len((await k.ask("history_request", search))["history"]) == 2
    part = {"hist_access_type": "range", "session": 0, "start": 1, "stop": 3, "output": True, "raw": True}
    assert [e[1] for e in (await k.ask("history_request", part))["history"]] == [1, 2]


async def test_kernel_info(k: Client) -> None:
    info = await k.ask("kernel_info_request", {})
    assert info["language_info"]["name"] == "python"
    assert info["protocol_version"].startswith("5.")


async def test_a_request_that_does_not_exist_or_lacks_fields_is_refused(k: Client) -> None:
    assert (await k.ask("fly_request", {}))["status"] == "error"
    assert (await k.ask("complete_request", {}))["status"] == "error"
    assert (await k.run("1 + 1")).result == "2"


async def test_variables_are_listed_without_running_their_code(k: Client) -> None:
    code = """
import numpy as np, pandas as pd
class Evil:
    def __repr__(self): raise SystemExit
    def __len__(self): raise SystemExit
    def __sizeof__(self): raise SystemExit
    @property
    def __class__(self): raise SystemExit
evil, n, s, long = Evil(), 3, 'text', 'x' * 10_000_000
big = 7 ** 1_000_000
arr, df, l, f = np.zeros((3, 4)), pd.DataFrame({'a': [1, 2]}), [1, 2], lambda: 0
_hidden = 1
"""
    assert (await k.run(code)).reply.content["status"] == "ok"
    began = now()
    reply = await k.ask("kernelsvc_variables_request", {})
    assert now() - began < 1
    found = {v["name"]: v for v in reply["variables"]}
    assert set(found) == {"evil", "n", "s", "long", "big", "arr", "df", "l", "f", "Evil"}
    assert found["n"] | {"size_bytes": 0} == {"name": "n", "type": "int", "summary": "3", "size_bytes": 0}
    assert found["arr"]["summary"] == "shape (3, 4), float64"
    assert found["arr"]["size_bytes"] == 96
    assert found["df"]["summary"] == "2 rows x 1 columns: 'a'"
    assert found["l"]["summary"] == "2 items"
    assert found["evil"]["type"] == "Evil"
    assert len(json.dumps(found["long"])) < 400
    assert "bits" in found["big"]["summary"]


# --- interrupts ---------------------------------------------------------------------------------


async def _started(k: Client, code: str) -> str:
    msg_id = k.execute("print('on')\n" + code)
    await k.until(lambda: "on" in k.answer(msg_id).stdout)
    return msg_id


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(30)",
        "while True: pass",
        "import asyncio; await asyncio.sleep(30)",
        "import asyncio\nawait asyncio.sleep(0)\nprint('busy')\nwhile True: pass",
        "while True: print('x')",
        "import subprocess; subprocess.run(['sleep', '3'])",
        "import threading; threading.Event().wait()",
    ],
)
async def test_an_interrupt_ends_a_cell_and_nothing_else(k: Client, code: str) -> None:
    await k.run("kept = 1")
    msg_id = await _started(k, code)
    if "busy" in code:
        await k.until(lambda: "busy" in k.answer(msg_id).stdout)
    answer = await k.interrupted(msg_id)
    assert answer.reply.content["ename"] == "KeyboardInterrupt"
    assert answer.error == "KeyboardInterrupt"
    assert (await k.run("kept")).result == "1"


async def test_an_interrupt_between_cells_has_no_effect(k: Client) -> None:
    for _ in range(5):
        k.interrupt()
    assert (await k.run("1 + 1")).result == "2"


async def test_interrupts_at_any_moment_lose_no_reply(k: Client) -> None:
    """The handler may strike between any two bytecodes; each cell still ends with one reply, and frames go on."""
    for i in range(60):
        msg_id = k.execute("for i in range(200): print(i)")
        await asyncio.sleep(i * 0.0001)
        k.interrupt()
        answer = await k.finish(msg_id)
        assert answer.reply.content["status"] in ("ok", "error")
        k.got.clear()
    assert (await k.run("1 + 1")).result == "2"


async def test_a_handler_of_the_users_that_raises_loses_no_frame(k: Client) -> None:
    code = """
import signal
class Alarm(TimeoutError): pass  # An OSError, which a failed send raises too.
def ring(*_): raise Alarm
signal.signal(signal.SIGALRM, ring)
rung, n = 0, 0
while rung < 150:
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
        while True:
            n += 1
            line = f'{n};'
            print(line, end='')
    except Alarm:
        rung += 1
signal.setitimer(signal.ITIMER_REAL, 0)
"""
    answer = await k.run(code)
    assert answer.reply.content["status"] == "ok"
    numbers = [int(x) for x in answer.stdout.split(";")[:-1]]
    assert all(a < b for a, b in itertools.pairwise(numbers))
    assert len(numbers) >= numbers[-1] - 150  # at most the print that an alarm cut short is not there
    assert not k.wire._disconnects
    assert (await k.run("1 + 1")).result == "2"


async def test_a_handler_of_the_users_that_prints_loses_no_frame(k: Client) -> None:
    code = """
import signal, sys
rung = 0
def ring(*_):
    global rung
    rung += 1
    sys.stdout.write(f'{-rung};')
signal.signal(signal.SIGALRM, ring)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
n = 0
while rung < 300:
    n += 1
    line = f'{n};'
    print(line, end='')
signal.setitimer(signal.ITIMER_REAL, 0)
"""
    answer = await k.run(code)
    assert answer.reply.content["status"] == "ok"
    numbers = [int(x) for x in answer.stdout.split(";") if x]
    printed, rung = [n for n in numbers if n > 0], [-n for n in numbers if n < 0]
    assert printed == list(range(1, len(printed) + 1))
    assert sorted(rung) == list(range(1, len(rung) + 1))  # an alarm may ring in the handler of another
    assert not k.wire._disconnects


async def test_the_interrupt_message(k: Client) -> None:
    msg_id = await _started(k, "import asyncio; await asyncio.sleep(30)")
    k.send("interrupt_request", {}, "control")
    assert (await k.finish(msg_id)).reply.content["ename"] == "KeyboardInterrupt"


# --- ends -------------------------------------------------------------------------------------------


async def test_shutdown_by_message(k: Client) -> None:
    msg_id = k.send("shutdown_request", {"restart": False}, "control")
    assert (await k.finish(msg_id)).messages("shutdown_reply")
    with pytest.raises(Exception, match="can't be reached"):
        await k.until(lambda: False)


async def test_a_forked_child_ends_after_its_cell(k: Client) -> None:
    code = """
import os
pid = os.fork()
if pid == 0:
    print('the child speaks')
    display('never seen')
else:
    r = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""
    answer = await k.run(code)
    assert answer.stdout == "the child speaks\n"
    assert answer.displays == []
    assert (await k.run("r")).result == "0"


async def test_a_forked_child_that_raises_prints_its_traceback_and_ends(k: Client) -> None:
    code = "import os\npid = os.fork()\nif pid == 0:\n    1/0\nr = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\nr"
    answer = await k.run(code)
    assert answer.result == "1"
    assert "ZeroDivisionError" in answer.stderr
    assert answer.error is None


async def test_a_child_forked_by_a_background_task_ends(k: Client) -> None:
    code = """
import asyncio, os
async def forks():
    global pid
    await asyncio.sleep(0)
    pid = os.fork()
    await asyncio.sleep(0.01)
    if pid == 0: print('never')
t = asyncio.create_task(forks())"""
    await k.run(code)
    answer = await k.run("await t\nos.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])")
    assert (answer.result, answer.stdout) == ("0", "")


async def test_a_crash_prints_the_stack(k: Client) -> None:
    k.execute("import ctypes; ctypes.string_at(0)")
    with pytest.raises(Exception, match="can't be reached"):
        await k.until(lambda: False)
    text = "".join(i.text for i in k.got if isinstance(i, StreamText))
    assert "Segmentation fault" in text
    assert "string_at" in text


async def test_two_sessions_of_one_template_share_no_random_numbers(template: Template) -> None:
    code = "import random, numpy, uuid, tempfile\n"
    code += "random.random(), numpy.random.rand(), uuid.uuid4(), tempfile.mktemp()"
    async with kernel(template) as a, kernel(template) as b:
        one, two = await a.run(code), await b.run(code)
    first, second = (str(r.result).strip("()").split(", ") for r in (one, two))
    assert all(x != y for x, y in zip(first, second, strict=True))


async def test_a_session_has_one_thread_and_few_descriptors(k: Client) -> None:
    answer = await k.run("import os\nlen(os.listdir('/proc/self/task')), len(os.listdir('/proc/self/fd'))")
    threads, fds = eval(str(answer.result))
    assert threads == 1
    assert fds <= 16


# --- cells that await nothing, and the loop ------------------------------------------------------


async def test_a_cell_that_awaits_nothing_runs_in_the_running_loop_and_leaves_it_work(k: Client) -> None:
    await k.run("import asyncio\nseen = []\nloop = asyncio.get_running_loop()\nhandle = loop.call_soon(seen.append, 1)")
    assert (await k.run("loop.is_running(), asyncio.get_running_loop() is loop, seen")).result == "(True, True, [1])"


async def test_cells_that_are_sent_at_once_and_what_they_leave_to_the_loop_all_run(k: Client) -> None:
    ids = [
        k.execute(code)
        for code in ("import asyncio", "seen = []", "asyncio.get_event_loop().call_soon(seen.append, 1)")
    ]
    ids += [k.execute("seen.append(2)"), k.execute("await asyncio.sleep(0)\nseen"), k.execute("len(seen)")]
    for msg_id in ids:
        await k.finish(msg_id)
    assert sorted(eval(k.answer(ids[-2]).result or "")) == [1, 2]
    assert k.answer(ids[-1]).result == "2"
