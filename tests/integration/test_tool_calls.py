"""Code in a session calls functions of its clients: real kernels, a real server, and each fault caused for real."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from call_storm import Storm
from command_line import kernelsvc
from served import QUICK, Served, serving, serving_on_one_port
from waiting import wait_for
from websockets.sync.client import ClientConnection, connect

from kernelsvc import Client
from kernelsvc.client.sync_client import Session
from kernelsvc.client.tool_provider import ToolCall
from kernelsvc.errors import Conflict, Forbidden, NotFound, TooLarge
from kernelsvc.model import events as ev
from kernelsvc.model.cluster.ids import node_of
from kernelsvc.model.tokens import TokenRecord
from kernelsvc.store.token_file import TokenFile


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client]:
    with Client(served.url, served.token) as found:
        yield found


@pytest.fixture(scope="module")
def session(client: Client) -> Iterator[Session]:
    with client.create_session() as found:

        @found.tool(effects="read")
        def add(a: int, b: int = 2) -> int:
            """Add two numbers."""
            return a + b

        @found.tool
        async def slow(x: int) -> list[dict]:
            await asyncio.sleep(0.05)
            return [{"x": x}]

        @found.tool
        def fail(kind: str) -> None:
            raise {"key": KeyError, "own": _Own, "type": TypeError}[kind]("the cause")

        @found.tool
        def echo(value: Any) -> Any:
            return value

        @found.tool
        def picture() -> bytes:
            return b"\x00\xff"

        found.offer(lambda **given: given, name="fetch-page", parameters={"type": "object", "properties": {"u": {}}})
        yield found


class _Own(LookupError):
    pass


def ok(session: Session, code: str) -> str:
    cell = session.run(code, timeout=30)
    assert cell.ok, cell.text
    return cell.text


def events_of(session: Session, kind: type[ev.Event]) -> list[Any]:
    return [event for event in session.events(follow=False) if isinstance(event, kind)]


# --- forms of a call --------------------------------------------------------------------


@pytest.mark.parametrize(("code", "expected"), [
    ("tools.add(a=1)", "3"),
    ("tools.add(3, 4)", "7"),
    ("tools.add({'a': 3, 'b': 5})", "8"),
    ("tools['fetch-page'](u='x')", "{'u': 'x'}"),
    ("tools.fetch_page({'u': 'x'})", "{'u': 'x'}"),
    ("tools.call('add', {'a': 1, 'b': 1})", "2"),
    ("[tools.add(a=i) for i in range(3)]", "[2, 3, 4]"),
    ("list(map(lambda i: tools.add(a=i), range(3)))", "[2, 3, 4]"),
    ("def f():\n    return tools.add(a=1)\nf()", "3"),
    ("await tools.add(a=1)", "3"),
    ("import asyncio\nawait asyncio.gather(*[tools.add(a=i) for i in range(3)])", "[2, 3, 4]"),
    ("import asyncio\nawait asyncio.gather(*(tools.add(a=i) for i in range(3)))", "[2, 3, 4]"),
    ("import asyncio\nawait asyncio.gather(*map(lambda i: tools.add(a=i), range(3)))", "[2, 3, 4]"),
    ("async def f():\n    return tools.call('add', {'a': 1}) + await tools.add(a=2)\nawait f()", "7"),
    ("def f():\n    return tools.add(a=1)\nasync def g():\n    return f()\nawait g()", "3"),
    ("a = tools.start('add', {'a': 1}); b = tools.start('add', {'a': 2})\nb.result() + a.result()", "7"),
    ("from concurrent.futures import ThreadPoolExecutor\n"
     "with ThreadPoolExecutor(8) as pool:\n    found = list(pool.map(lambda i: tools.add(a=i), range(40)))\n"
     "found == list(range(2, 42))", "True"),
    ("import asyncio\nawait asyncio.to_thread(lambda: tools.add(a=1))", "3"),
    ("tools.echo(value='[1, 2]')", "'[1, 2]'"),
    ("tools.picture()", "b'\\x00\\xff'"),
    ("import numpy, pandas, datetime, pathlib\n"
     "tools.echo(value=[numpy.int64(3), numpy.array([1.5, float('nan')]), pathlib.Path('/x'),"
     " datetime.date(2026, 1, 2), pandas.DataFrame({'a': [1, 2]})])",
     "[3, [1.5, None], '/x', '2026-01-02', [{'a': 1}, {'a': 2}]]"),
    ("tools.slow(x=1).to_frame().x[0].item()", "1"),
])  # fmt: skip
def test_the_forms_of_a_call(session: Session, code: str, expected: str) -> None:
    assert ok(session, code).strip() == expected


def test_fifty_calls_by_gather_run_at_once(session: Session) -> None:
    code = "import asyncio\nfound = await asyncio.gather(*(tools.slow(x=i) for i in range(50)))\n"
    cell = session.run(code + "found == [[{'x': i}] for i in range(50)]", timeout=30)
    assert cell.text.strip() == "True"
    assert cell.calls.counts == {"slow": {"ok": 50}}
    numbers = [int(each.call.rpartition(".")[2]) for each in cell.calls]
    assert numbers == sorted(numbers), "the log has program order"


@pytest.mark.parametrize(("code", "error"), [
    ("tools.fail(kind='key')", "KeyError"),
    ("tools.fail(kind='own')", "LookupError"),
    ("tools.fail(kind='type')", "TypeError"),
    ("tools.add(a='x')", "tools.ToolArgumentError"),
    ("tools.add(a=1, c=2)", "TypeError"),
    ("tools.add(1, 2, 3)", "TypeError"),
    ("tools.add(a=object())", "tools.ToolArgumentError"),
    ("tools.nothing(x=1)", "NameError"),
    ("tools.echo(value='x' * (2 << 20))", "tools.ToolTooLarge"),
    ("x = []\nx.append(x)\ntools.echo(value=x)", "tools.ToolArgumentError"),
])  # fmt: skip
def test_errors_are_those_that_ordinary_functions_raise(session: Session, code: str, error: str) -> None:
    indented = "\n    ".join(code.splitlines())
    text = ok(session, f"try:\n    {indented}\nexcept {error} as e:\n    print(type(e).__name__, e)")
    assert text, "no error was raised"


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("tools.add(1, c=3)", "has no argument c: add(a: int, b: int = 2)"),
        ("tools.add(b=3)", "lacks the argument a"),
        ("tools.add({'a': 1, 'x': 2})", "has no argument x"),
        ("tools.add(1, 2, 3)", "takes 2 arguments by position, not 3"),
        ("tools.add(1, a=2)", "got a twice"),
    ],
)
def test_wrong_names_of_arguments_are_refused_before_anything_is_sent(session: Session, call: str, why: str) -> None:
    before = session.info().last_seq
    cell = session.run(f"try: {call}\nexcept TypeError as e: print(e)")
    assert why in cell.text
    assert not [e for e in session.events(before, follow=False) if isinstance(e, ev.ToolCalled)]


@pytest.mark.parametrize("call", ["tools.ad(1, 2)", "tools.ad(a=1)", "tools.ad({'a': 1})", "tools.call('ad', {})"])
def test_an_unknown_function_is_refused_with_the_nearest_names(session: Session, call: str) -> None:
    cell = session.run(f"try: {call}\nexcept NameError as e: print(type(e).__name__, e)")
    assert "ToolRefused" in cell.text
    assert "add" in cell.text


def test_the_message_of_an_error_and_the_nearest_names(session: Session) -> None:
    assert "'fetch-page'" in session.run("tools.call('fetch_pag', {})").text
    assert ok(session, "try:\n    tools.fail(kind='key')\nexcept KeyError as e:\n    print(e)") == "the cause\n"


def test_code_can_look_at_functions(session: Session) -> None:
    assert "'add'" in ok(session, "[name for name in dir(tools) if name == 'add']")
    assert "Add two numbers." in ok(session, "help(tools.add)")
    assert "add(a: int, b: int = 2) -> int" in ok(session, "tools.search('numbers')")
    assert 'def slow(x: int) -> list[dict]:\n    """' in ok(session, "print(tools.stubs())")
    assert "add" in session.complete("tools.a")["matches"]
    assert "tools" not in {each.name for each in session.variables()}


def test_a_call_that_is_not_awaited_is_named(session: Session) -> None:
    cell = session.run("async def f():\n    tools.add(a=1)\nawait f()")
    assert "never awaited: add" in cell.text
    cell = session.run("async def f():\n    return len(tools.slow(x=1))\nawait f()")
    assert "await tools.slow" in cell.text


def test_a_process_that_code_forks_has_no_functions(session: Session) -> None:
    code = "import os\npid = os.fork()\nif pid == 0:\n    try:\n        tools.add(a=1)\n    except ConnectionError:\n"
    assert ok(session, code + "        os._exit(7)\nos.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])").strip() == "7"


def test_a_session_without_offers_gets_no_field_frame_or_event(client: Client) -> None:
    with client.create_session() as session:
        cell = session.run("1")
        raw = session.journal()
        assert b"tool" not in raw
        assert not cell.calls
        assert (
            "No client offers functions" in session.run("tools.x()").text or "no tool" in session.run("tools.x()").text
        )


# --- ends ---------------------------------------------------------------------------------


def test_an_interrupt_ends_the_call_and_tells_the_function(client: Client) -> None:
    with client.create_session() as session:
        begun, told = threading.Event(), threading.Event()

        @session.tool
        def wait(call: ToolCall) -> None:
            begun.set()
            if call.cancelled.wait(20):
                told.set()

        cell = session.run("tools.wait()", wait="queued")
        assert begun.wait(20)
        session.interrupt()
        wait_for(lambda: session.cell(cell.id).reason, what="the end")
        assert session.cell(cell.id).error.ename == "KeyboardInterrupt"
        assert told.wait(20)
        assert [each.status for each in events_of(session, ev.ToolReturned)] == ["cancelled"]


def test_time_outs_limits_and_large_results(client: Client) -> None:
    with client.create_session() as session:

        @session.tool(timeout=0.2)
        async def forever() -> None:
            await asyncio.sleep(60)

        @session.tool
        async def held() -> None:
            await asyncio.Event().wait()

        @session.tool(max_calls_per_cell=2)
        def few() -> int:
            return 1

        @session.tool
        def huge() -> str:
            return "x" * (17 << 20)

        for code, error, status in (
            ("tools.forever()", "TimeoutError", "timeout"),
            ("await __import__('asyncio').wait_for(tools.held(), 0.05)", "TimeoutError", "cancelled"),
            ("[tools.few() for _ in range(3)]", "tools.ToolLimit", "limit"),
            ("tools.huge()", "tools.ToolTooLarge", "too_large"),
        ):
            assert "caught" in ok(session, f"try:\n    {code}\nexcept {error}:\n    print('caught')")
            assert events_of(session, ev.ToolReturned)[-1].status == status
        assert ok(session, "tools.few()").strip() == "1"


def test_a_function_may_not_run_a_cell_of_the_session_that_waits_for_it(client: Client) -> None:
    with client.create_session() as session:
        session.offer(lambda: session.run("1"), name="nested")
        assert "can't run a cell in the same session" in session.run("tools.nested()").text


def test_progress_and_uploads(client: Client) -> None:
    with client.create_session() as session:

        @session.tool
        def work(call: ToolCall) -> str:
            call.progress(1, 2, "half")
            call.upload("data.bin", b"abc")
            return "data.bin"

        assert ok(session, "open(tools.work()).read()").strip() == "'abc'"
        (progress,) = wait_for(lambda: events_of(session, ev.ToolProgress), what="the progress")
        assert (progress.progress, progress.total, progress.message) == (1, 2, "half")


# --- approvals --------------------------------------------------------------------------------


def test_parallel_approvals_wait_and_no_line_runs_twice(client: Client) -> None:
    with client.create_session() as session:
        ran: list[int] = []
        session.offer(ran.append, name="send", parameters={"type": "object"}, approval="always")
        session.withdraw("send")

        @session.tool(approval="always", effects="write")
        def send_mail(n: int) -> int:
            ran.append(n)
            return n

        code = "open('lines', 'a').write('x')\nimport asyncio\n"
        code += "r = await asyncio.gather(*(tools.send_mail(n=i) for i in range(5)), return_exceptions=True)\n"
        cell = session.run(code + "print(r)", wait="queued", timeout=1)
        pending = wait_for(lambda: len(found := session.calls(state="pending")) == 5 and found, what="five calls")
        assert ran == []
        assert session.info().approvals_pending == 5
        assert session.cell(cell.id).waits_for == "approval"
        for call in pending[1:]:
            call.approve()
        pending[0].deny("not on Fridays")
        with pytest.raises(Conflict):
            pending[0].approve()
        assert session.run("open('lines').read()").text.strip() == "'x'"
        text = session.cell(cell.id).text
        assert "not on Fridays" in text
        assert "1, 2, 3, 4]" in text
        assert sorted(ran) == [1, 2, 3, 4]
        notes = [c["source"] for c in json.loads(session.notebook())["cells"] if c["cell_type"] == "markdown"]
        assert any("approved by" in note for note in notes), notes


def test_an_approval_is_remembered_for_the_cell(client: Client) -> None:
    with client.create_session() as session:

        @session.tool(approval="once_per_cell")
        def delete(n: int) -> int:
            return n

        asked = []
        cell = session.run("[tools.delete(n=i) for i in range(3)]", on_approval=lambda c: asked.append(c.tool) or True)
        assert cell.text.strip() == "[0, 1, 2]"
        assert asked == ["delete"]
        denied = session.run("tools.delete(n=1)", on_approval=lambda call: "no")
        assert "denied the call: no" in denied.text


def test_an_approval_for_a_cell_ends_with_it(client: Client) -> None:
    """Code of a later cell says that its call is one of the approved cell."""
    with client.create_session() as session:
        ran = []

        @session.tool(approval="once_per_cell")
        def delete(n: int) -> int:
            ran.append(n)
            return n

        first = "mine = get_ipython().kernel.get_parent('shell')\ntools.delete(n=1)"
        session.run(first, on_approval=lambda call: True)
        forged = "get_ipython().kernel.get_parent = lambda *_: mine\ntools.delete(n=2)"
        session.run(forged, wait="queued")
        (call,) = wait_for(lambda: ran[1:] or session.calls(state="pending"), what="the question")
        call.deny("no")
        assert ran == [1]


def test_the_command_line_lists_and_decides(client: Client, served: Served) -> None:
    def run(*args: str) -> str:
        return kernelsvc(*args, env=served.client_env)[0]

    with client.create_session() as session:
        session.offer(lambda n: n, name="ask", parameters={"type": "object"}, approval="always")
        cell = session.run("import asyncio\nawait asyncio.gather(*(tools.ask(n=i) for i in (7, 8)), "
                           "return_exceptions=True)", wait="queued")  # fmt: skip
        first = wait_for(lambda: len(c := session.calls(state="pending")) == 2 and c, what="the calls")[0]
        assert f'{first.info.call} pending ask {{"n":7}}' in run("approvals", session.id)
        run("approve", session.id, first.info.call)
        run("deny", session.id, "--reason", "no mail today")
        wait_for(lambda: session.cell(cell.id).reason, what="the end")
        text = session.cell(cell.id).text
        assert text.startswith("[7,")
        assert "ToolDenied('local denied the call: no mail today')" in text
        with urllib.request.urlopen(f"{served.url}/metrics") as metrics:
            counted = rb'kernelsvc_tool_calls_total\{(node="\w+",)?status="denied",tool="ask"\} 1.0'  # of a node
            assert re.search(counted, metrics.read())


# --- nothing is lost ---------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory, short_tmp: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    """A server of its own on a fixed port, which may be killed."""
    with serving_on_one_port(short_tmp, env=QUICK) as instance:
        yield instance


def test_a_server_that_is_killed_in_calls_delivers_each_result_once(own: Served) -> None:
    """Calls are in every state at the kill: done, at work, waiting for a person, and with a secret argument."""
    ran: list[Any] = []
    go = threading.Event()
    with Client(own.url, own.token) as client:
        session = client.create_session(keep=True)

        @session.tool
        def quick(n: int) -> int:
            ran.append(n)
            return n

        @session.tool
        def held() -> str:
            ran.append("held")
            go.wait(30)
            return "held"

        @session.tool(approval="always", redact=["password"])
        def secret(password: str) -> str:
            ran.append(password)
            return "sent"

        code = "open('lines', 'a').write('x')\nimport asyncio\n"
        code += "r = await asyncio.gather(*(tools.quick(n=i) for i in range(5)), tools.held(), "
        code += "tools.secret(password='CANARY-' + '77'))\nprint(r, open('lines').read())"
        cell = session.run(code, wait="queued", timeout=60)
        wait_for(lambda: len(session.calls(state="pending")) == 1 and "held" in ran, what="the calls")
        own.kill()
        go.set()  # the function ends while there is no server
        own.start()
        (call,) = wait_for(lambda: session.calls(state="pending"), deadline=20, what="the pending call")
        assert call.info.arguments == {"password": {"$redacted": 11}}
        call.approve()
        text = wait_for(lambda: (c := session.cell(cell.id)).reason and c.text, deadline=20, what="the cell's end")
        assert text == "[0, 1, 2, 3, 4, 'held', 'sent'] x\n"
        assert sorted(map(str, ran)) == ["0", "1", "2", "3", "4", "CANARY-77", "held"]
        assert [each.status for each in events_of(session, ev.ToolReturned)] == ["ok"] * 7
        notebook = session.notebook()
        session.close()
    assert b"CANARY-77" not in notebook
    for path in [*own.root.rglob("*")]:
        if path.is_file():
            assert b"CANARY-77" not in path.read_bytes(), path


def test_calls_survive_cut_sockets_and_a_killed_server(own: Served) -> None:
    Storm(own, calls=300, faults=["socket", "server", "socket"]).run()


@pytest.fixture
def impatient(short_tmp: Path) -> Iterator[Served]:
    """A server that soon takes a lost client for dead."""
    with serving(short_tmp / "impatient", env={"KERNELSVC_TOOLS_GRACE_SECONDS": "0.5"}) as instance:
        yield instance


def test_a_client_that_dies_loses_its_call_and_another_one_may_repeat_it(impatient: Served) -> None:
    with Client(impatient.url, impatient.token) as watcher:
        session = watcher.create_session(keep=True)
        begun, left = threading.Event(), threading.Event()

        def work() -> str:
            begun.set()
            left.wait(20)
            return "first"

        for idempotent in (True, False):
            begun.clear()
            dying = Client(impatient.url, impatient.token)
            inner = dying.session(session.id)
            inner.offer(work, idempotent=idempotent)
            cell = session.run("tools.work()", wait="queued")
            assert begun.wait(20)
            if idempotent:
                session.offer(lambda: "second", name="work", idempotent=True)
            dying.close()
            expected = "'second'" if idempotent else "ToolLost"
            wait_for(lambda id=cell.id: session.cell(id).reason, deadline=40, what="the end")
            assert expected in session.cell(cell.id).text
            session.withdraw("work")
        left.set()
        session.close()


def test_a_branch_calls_the_functions_of_its_own_origin(client: Client) -> None:
    """Others of the same client have the same name."""
    with client.create_session() as first, client.create_session() as second:
        for session in (first, second):

            @session.tool
            def whose(id: str = session.id) -> str:
                return id

        for session in (first, second):
            (branch,) = session.branch()
            with branch:
                assert branch.run("tools.whose()").text.strip() == repr(session.id)


def test_a_dead_kernel_and_a_branch_have_defined_ends(client: Client) -> None:
    with client.create_session() as session:
        begun, go = threading.Event(), threading.Event()

        @session.tool
        def held() -> str:
            begun.set()
            go.wait(20)
            return "late"

        code = "import asyncio\nasync def b():\n    global r\n    try:\n        r = await tools.held()\n"
        code += "    except Exception as e:\n        r = type(e).__name__\ntask = asyncio.ensure_future(b())"
        code += "\nawait asyncio.sleep(0)"
        assert session.run(code).ok
        assert begun.wait(20)
        with pytest.raises(Conflict):
            session.hibernate()
        (branch,) = session.branch()
        with branch:
            assert branch.run("await task\nr").text.strip() == "'ToolLost'"
            session.run("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
            go.set()
            (returned,) = wait_for(lambda: events_of(session, ev.ToolReturned), what="the answer")
            assert (returned.status, returned.delivered) == ("ok", False)
            assert branch.run("tools.held()").text.strip() == "'late'", "a branch inherits the offers"


def test_a_token_without_the_scope_can_not_approve(short_tmp: Path) -> None:
    from kernelsvc.model.tokens import hash_token

    tokens = [{"name": "ana", "sha256": hash_token(f"ana-{scope}"), "scopes": [scope]} for scope in ("run", "approve")]
    env = {**QUICK, "KERNELSVC_TOKENS": json.dumps(tokens)}
    with (
        serving(short_tmp / "scoped", env=env) as served,
        Client(served.url, "ana-run") as agent,
        Client(served.url, "ana-approve") as person,
    ):
        session = agent.create_session()
        session.offer(lambda: 1, name="ask", approval="always")
        cell = session.run("tools.ask()", wait="queued")
        (call,) = wait_for(lambda: session.calls(state="pending"), what="the call")
        with pytest.raises(Forbidden):
            call.approve()
        person.session(session.id).calls(state="pending")[0].approve()
        wait_for(lambda: session.cell(cell.id).reason, what="the end")
        assert session.cell(cell.id).text.strip() == "1"


# --- which calls are possible, and which are repeated ------------------------------------------------


def test_sessions_cells_and_branches_narrow_the_functions(client: Client) -> None:
    with client.create_session(tools={"allow": ["crm.*", "add"], "deny": ["*.delete_*"]}) as session:
        for name in ("crm.find", "crm.delete_all", "other", "add"):
            session.offer(lambda: 1, name=name, parameters={"type": "object"})

        def outcome(call: str, **options: Any) -> str:
            return session.run(f"try: print({call})\nexcept NameError as e: print(e)", **options).text

        assert outcome("tools.crm.find()").strip() == "1"
        assert "may not call 'crm.delete_all'" in outcome("tools.crm.delete_all()")
        assert "may not call 'other'" in outcome("tools.other()")
        assert [each["name"] for each in session.tools()] == ["add", "crm.find"]
        assert outcome("dir(tools)", tools=["add"]).count("crm") == 0
        assert outcome("tools.add()", tools=["a*"]).strip() == "1"
        assert "may not call" in outcome("tools.crm.find()", tools=["add"])
        assert "may not call" in outcome("tools.other()", tools=["other"]), "a cell widens nothing"
        assert "may not call" in outcome("tools.add()", tools=False)
        (branch,) = session.branch(tools={"deny": ["add"]})
        with branch:
            assert "may not call 'add'" in branch.run("tools.add()").text
            assert branch.run("tools.crm.find()").text.strip() == "1"
            assert "may not call" in branch.run("tools.other()").text


def test_a_retry_after_a_crash_repeats_no_effect(client: Client) -> None:
    with client.create_session() as session:
        ran: list[int] = []

        @session.tool(approval="once_per_cell")
        def pay(n: int) -> int:
            ran.append(n)
            return len(ran)

        @session.tool
        def secret(password: str) -> int:
            return len(ran)

        code = "r = [tools.pay(n=1), tools.pay(n=1), tools.pay(n=2)]\n"
        first = session.run(code + "import os; os.kill(os.getpid(), 9)", on_approval=lambda call: True)
        assert first.reason == "kernel_died"
        again = session.run(code + "r.append(tools.pay(n=3)); r", reuse_calls=first, on_approval=lambda call: True)
        assert again.text.strip() == "[1, 2, 3, 4]"
        assert ran == [1, 1, 2, 3]
        reused = [each.reused for each in events_of(session, ev.ToolCalled) if isinstance(each.reused, str)]
        assert reused == [each.call for each in first.calls]
        with pytest.raises(NotFound):
            session.run("1", reuse_calls="no-such-cell")


def _take(text: str) -> None:
    """Do nothing."""


def test_calls_that_are_too_large_together_are_not_used_again(client: Client) -> None:
    with client.create_session() as session:
        session.tool(_take, name="take")
        large = session.run("for n in range(34): tools.take('x' * 1_000_000)")
        assert large.error is None
        with pytest.raises(TooLarge, match="reuse_calls"):
            session.run("1", reuse_calls=large)
        small = session.run("tools.take('x')")
        assert session.run("tools.take('x')", reuse_calls=small).error is None


def test_nested_calls_name_their_parent_and_end(client: Client) -> None:
    with client.create_session() as outer, contextlib.ExitStack() as others:
        inner = others.enter_context(client.create_session())
        while node_of(inner.id) != node_of(outer.id):  # docs/howto/cluster.md: cells of functions stay on their node
            inner = others.enter_context(client.create_session())
        inner.offer(lambda: outer.run("1").text, name="back")
        outer.offer(lambda: inner.run("tools.back()").text, name="deeper")
        text = outer.run("print(tools.deeper())", timeout=20).text
        assert "can't run a cell in the same session" in text
        (call,) = events_of(outer, ev.ToolCalled)
        (nested,) = events_of(inner, ev.ToolCalled)
        assert nested.parent_call == call.call
        with pytest.raises(Conflict):
            inner._loop.run(inner._inner._call("execute", code="1", within=call.call))


def test_a_sidecar_calls_the_functions_of_its_session(client: Client) -> None:
    # An E2B client's further contexts are sidecars of the sandbox's session.
    with client.create_session(tools={"deny": ["hidden"]}) as main, client.create_session(sidecar_of=main.id) as side:
        main.offer(lambda: "shared", name="shared")
        main.offer(lambda: "hidden", name="hidden")
        assert side.run("tools.shared()").text.strip() == "'shared'"
        assert "may not call" in side.run("tools.hidden()").text


def test_a_call_goes_to_the_client_that_runs_the_cell(client: Client, served: Served) -> None:
    with client.create_session() as mine, Client(served.url, served.token) as other:
        theirs = other.session(mine.id)
        mine.offer(lambda: "mine", name="who")
        theirs.offer(lambda: "theirs", name="who")
        assert mine.run("tools.who()").text.strip() == "'mine'"
        assert theirs.run("tools.who()").text.strip() == "'theirs'"
        mine.withdraw("who")
        assert mine.run("tools.who()").text.strip() == "'theirs'"


def test_functions_for_all_sessions_of_a_client(client: Client) -> None:
    with client.create_session() as before:
        before.run("1")
        client.offer(lambda: "all", name="everywhere")
        with client.create_session() as after:
            assert before.run("tools.everywhere()").text.strip() == "'all'"
            assert after.run("tools.everywhere()").text.strip() == "'all'"
            after.offer(lambda: "own", name="everywhere")
            assert after.run("tools.everywhere()").text.strip() == "'own'", "the newest offer counts"
            assert before.run("tools.everywhere()").text.strip() == "'all'"
            client.withdraw("everywhere")
            assert "tools.everywhere" not in str(before.tools())
            assert after.run("tools.everywhere()").text.strip() == "'own'"


class _Process:
    """A client's process that sends the messages of its choice."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.calls: list[str] = []

    def send(self, method: str, **params: Any) -> Any:
        self._socket.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}))
        while (message := self.read()).get("id") != 1:
            pass
        return message.get("result", message.get("error"))

    def read(self) -> dict[str, Any]:
        message = json.loads(self._socket.recv(30))
        if message.get("method") == "tool.call":
            self.calls.append(message["params"]["call"])
        return message


def test_another_principal_can_not_take_or_repeat_a_call(client: Client, served: Served) -> None:
    tokens = TokenFile(served.data_dir / "keys")
    scopes = frozenset({"provide"})
    foreign, kept = tokens.create(lambda digest: TokenRecord(name="mallory", sha256=digest, scopes=scopes))
    offer = {"name": "buy", "parameters": {"type": "object"}}
    about = {"offers": [offer], "provider": {"id": "p", "instance": "one"}}
    url = served.url.replace("http", "ws") + "/v1/ws"
    keys = [{"Authorization": f"Bearer {token}"} for token in (served.token, foreign)]
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(client.create_session())
        own, other = (_Process(stack.enter_context(connect(url, additional_headers=key))) for key in keys)
        own.send("tools.offer", **about, session=session.id)
        cell = session.run("tools.buy()", wait="queued")
        while not own.calls:
            own.read()
        (call,) = own.calls
        for holding in ([], [call]):
            # The log of each session that calls an operator's function shows the process's names.
            answer = other.send("tools.offer", **about, holding=holding)
            assert answer["cancelled"] == holding, "a call of others is one that does not exist"
        refused = other.send("tool.return", session=session.id, call=call, status="ok", value="forged")
        assert refused["data"]["code"] == "not_found"
        other.send("tools.withdraw")
        own.send("tool.return", session=session.id, call=call, status="ok", value="real")
        assert wait_for(lambda: (found := session.cell(cell.id)).state == "finished" and found).text == "'real'\n"
        assert own.calls == [call], "it was sent once"
    tokens.revoke(kept.id)


def test_a_thousand_calls_in_flight(client: Client) -> None:
    with client.create_session() as session:
        begun: list[int] = []
        all_begun = asyncio.Event()

        @session.tool(max_in_flight=1000)
        async def together(n: int) -> int:
            begun.append(n)
            if len(begun) == 1000:
                all_begun.set()
            await all_begun.wait()
            return n

        code = "import asyncio\nlist(range(1000)) == await asyncio.gather(*(tools.together(n=n) for n in range(1000)))"
        assert ok(session, code).strip() == "True"
        assert sorted(begun) == list(range(1000))


def test_a_notebook_is_replayed_with_its_recorded_results(client: Client, served: Served, tmp_path: Path) -> None:
    with client.create_session() as session:
        results = iter(range(10))
        session.offer(lambda n: next(results), name="count", parameters={"type": "object", "properties": {"n": {}}})
        session.offer(lambda: [][0], name="fail")
        session.offer(lambda: b"\x00", name="blob")
        session.run("import asyncio\nawait asyncio.gather(*(tools.count(1) for _ in range(3)))")
        session.run("try: tools.fail()\nexcept IndexError as e: print(type(e).__name__, e)")
        session.run("print(tools.blob(), tools.count(n=2))")
        notebook = json.loads(session.notebook())
        (tmp_path / "j.jsonl").write_bytes(session.journal())
    cells = [each for each in notebook["cells"] if each["cell_type"] == "code"]
    cells[2]["source"] += "\ntools.count(n=99)"
    (tmp_path / "changed.ipynb").write_text(json.dumps(notebook))

    def replay(name: str, code: int) -> list[dict[str, Any]]:
        said, _ = kernelsvc("replay", str(tmp_path / name), "--json", env=served.client_env, code=code)
        return [json.loads(line) for line in said.splitlines()]

    assert [each["outcome"] for each in replay("j.jsonl", 0)] == ["same"] * 3
    *same, changed = replay("changed.ipynb", 1)
    assert [each["outcome"] for each in same] == ["same"] * 2
    assert (changed["outcome"], changed["why"]) == (
        "different",
        "no recorded result of count: the record has no such call",
    )
