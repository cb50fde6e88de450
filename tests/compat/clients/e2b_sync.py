"""E2B's Python SDK: what its examples do, then errors, time-outs, much output, images, reconnects."""

import datetime
import os
import sys
import time

os.environ.update(E2B_API_URL=sys.argv[1], E2B_SANDBOX_URL=sys.argv[1], E2B_API_KEY=sys.argv[2])

import pytest
from e2b import AuthenticationException, NotFoundException, SandboxException, SandboxQuery, TimeoutException
from e2b.sandbox.sandbox_api import SandboxState
from e2b_code_interpreter import Sandbox


def raises(kind, call, *args, **kwargs):
    with pytest.raises(kind) as found:
        call(*args, **kwargs)
    return str(found.value)


def cells(sandbox):
    assert sandbox.is_running()
    assert sandbox.run_code("x = 1").text is None
    execution = sandbox.run_code("x += 1; x")
    assert (execution.text, execution.execution_count) == ("2", 2)
    seen = []
    execution = sandbox.run_code(
        "import sys\nprint('hello')\nprint('oops', file=sys.stderr)\n'text'",
        on_stdout=lambda message: seen.append((message.line, message.error)),
        on_stderr=lambda message: seen.append((message.line, message.error)),
        on_result=lambda result: seen.append(result.text),
    )
    assert execution.logs.stdout == ["hello\n"], execution.logs
    assert execution.logs.stderr == ["oops\n"]
    assert seen == [("hello\n", False), ("oops\n", True), "text"], seen
    assert execution.to_json()
    execution = sandbox.run_code("import os; os.environ['A'], os.environ['B']", envs={"B": 'it\'s "b"\n'})
    assert execution.text == "('a', 'it\\'s \"b\"\\n')", execution.text
    assert sandbox.run_code("import asyncio\nawait asyncio.sleep(0)\n5").text == "5"
    assert "bash" in sandbox.run_code("!echo bash").logs.stdout[0]


def errors(sandbox):
    seen = []
    execution = sandbox.run_code("def f():\n    return 1 / 0\nf()", on_error=lambda error: seen.append(error.name))
    assert (execution.error.name, execution.error.value) == ("ZeroDivisionError", "division by zero")
    assert "f()" in execution.error.traceback
    assert seen == ["ZeroDivisionError"]
    assert "SyntaxError" in sandbox.run_code("1 +").error.name
    execution = sandbox.run_code("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert execution.error.name == "KernelDied", execution.error
    assert sandbox.run_code("x").text == "2"  # a crash costs one cell
    said = raises(SandboxException, sandbox.run_code, "1", language="cobol")
    assert "cobol" in said
    wrong = Sandbox.connect(sandbox.sandbox_id)
    said = raises(AuthenticationException, Sandbox.connect, sandbox.sandbox_id, api_key="wrong")
    assert wrong.run_code("x").text == "2"
    raises(NotFoundException, Sandbox.connect, "s_0123456789abcdef")


def time_outs(sandbox):
    began = time.monotonic()
    said = raises(TimeoutException, sandbox.run_code, "import time\nwhile True: time.sleep(0.01)", timeout=1)
    assert "timed out" in said
    assert sandbox.run_code("x").text == "2"  # the loop was interrupted
    assert time.monotonic() - began < 20


def much(sandbox):
    execution = sandbox.run_code("for i in range(20000): print(i)")
    assert "".join(execution.logs.stdout).split() == [str(i) for i in range(20000)]
    execution = sandbox.run_code("'x' * 5_000_000")
    assert len(execution.text) == 5_000_000
    execution = sandbox.run_code("import pandas as pd; pd.DataFrame({'a': range(100_000)})")
    assert execution.results[0].data["a"] == [*range(100_000)]
    assert len(execution.results[0].html) > 100


def results(sandbox):
    execution = sandbox.run_code(
        "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.title('T')\nplt.show()\n"
        "plt.bar(['a', 'b'], [1, 2])\nplt.show()\n'end'"
    )
    line, bar, end = execution.results
    assert (line.chart.type.value, line.chart.title, bar.chart.type.value) == ("line", "T", "bar")
    assert line.png.startswith("iVBOR")
    assert (end.text, end.is_main_result, execution.text) == ("end", True, "end")
    made = {
        "html": "HTML('<b>x</b>')", "markdown": "Markdown('*x*')", "latex": "Latex('$x$')", "json": "JSON({'a': [1]})",
        "javascript": "Javascript('1')", "svg": "SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>')",
    }  # fmt: skip
    for name, code in made.items():
        (result,) = sandbox.run_code(f"from IPython.display import *\n{code}").results
        assert name in result.formats(), (name, list(result.formats()))
    assert sandbox.run_code("JSON({'a': [1]})").results[0].json == {"a": [1]}
    (result,) = sandbox.run_code("display({'application/x-own': 'y'}, raw=True)").results
    assert result.extra == {"application/x-own": "y"}


def contexts(sandbox):
    context = sandbox.create_code_context(cwd="/tmp")
    assert (context.cwd, context.language) == ("/tmp", "python")
    assert sandbox.run_code("import os; 'x' in globals(), os.getcwd()", context=context).text == "(False, '/tmp')"
    assert context.id in [each.id for each in sandbox.list_code_contexts()]
    sandbox.run_code("y = 1", context=context)
    sandbox.restart_code_context(context)
    assert sandbox.run_code("y", context=context).error.name == "NameError"
    sandbox.remove_code_context(context)
    assert context.id not in [each.id for each in sandbox.list_code_contexts()]
    raises(NotFoundException, sandbox.run_code, "1", context=context)


def life(sandbox):
    info = sandbox.get_info()
    assert (info.sandbox_id, info.state, info.metadata) == (sandbox.sandbox_id, SandboxState.RUNNING, {"k": "v w"})
    sandbox.set_timeout(600)
    assert (sandbox.get_info().end_at - info.end_at).total_seconds() > 100
    deadline = time.monotonic() + 60
    while len(metrics := sandbox.get_metrics()) < 2:
        assert time.monotonic() < deadline, metrics
        time.sleep(0.2)
    assert metrics[-1].mem_total > 0
    assert metrics[0].timestamp <= metrics[-1].timestamp
    assert sandbox.get_metrics(start=metrics[-1].timestamp + datetime.timedelta(hours=1)) == []
    paginator = Sandbox.list(query=SandboxQuery(metadata={"k": "v w"}), limit=1)
    assert [each.sandbox_id for each in paginator.next_items()] == [sandbox.sandbox_id]
    assert not paginator.has_next
    assert sandbox.pause()
    assert not sandbox.pause()
    assert not sandbox.is_running()
    raises(TimeoutException, sandbox.run_code, "1")
    assert sandbox.get_info().state is SandboxState.PAUSED
    again = Sandbox.connect(sandbox.sandbox_id, timeout=300)
    assert again.run_code("x").text == "2"
    assert sandbox.run_code("x").text == "2"
    forks = sandbox.fork(count=2)
    assert [fork.run_code("x += 1; x").text for fork in forks] == ["3", "3"]
    assert sandbox.run_code("x").text == "2"
    snapshot = sandbox.create_snapshot(name="mine")
    assert snapshot.snapshot_id in [each.snapshot_id for each in sandbox.list_snapshots().next_items()]
    copy = Sandbox.create(snapshot.snapshot_id)
    assert copy.run_code("x").text == "2"
    assert Sandbox.delete_snapshot(snapshot.snapshot_id)
    for each in (*forks, copy):
        assert each.kill()


def main():
    with Sandbox.create(metadata={"k": "v w"}, envs={"A": "a"}, timeout=300) as sandbox:
        for part in (cells, errors, time_outs, much, results, contexts, life):
            part(sandbox)
    assert not sandbox.is_running()
    assert not sandbox.kill()
    assert "sandbox timeout" in raises(TimeoutException, sandbox.run_code, "1")
    short = Sandbox.create(timeout=1)
    deadline = time.monotonic() + 20
    while short.is_running():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    print("ok")


main()
