"""Jupyter's debugger in a forked kernel: breakpoints, interrupts, forks."""

from __future__ import annotations

import itertools
from typing import Any

from kernel_processes import Client

from kernelsvc.kernels.port import KernelMessage

CODE = "def f(a):\n    b = a + 1\n    return b\n\nprint(f(41))"
_numbers = itertools.count(1)


async def debug(k: Client, command: str, **arguments: Any) -> dict[str, Any]:
    content = {"type": "request", "seq": next(_numbers), "command": command, "arguments": arguments}
    answer = (await k.finish(k.send("debug_request", content, "control"))).reply
    assert answer.channel == "control"
    return answer.content


async def start(k: Client) -> None:
    found = await debug(k, "initialize", clientID="test", adapterID="")
    assert found.get("success"), found
    assert (await debug(k, "attach"))["success"]


async def stopped_at(k: Client, line: int, code: str = CODE) -> str:
    """Run a cell that stops at a breakpoint, and return its id."""
    path = (await debug(k, "dumpCell", code=code))["body"]["sourcePath"]
    found = await debug(k, "setBreakpoints", source={"path": path}, breakpoints=[{"line": line}], sourceModified=False)
    assert found["body"]["breakpoints"][0]["verified"]
    k.got.clear()
    cell = k.execute(code)
    await k.until(lambda: "stopped" in events(k))
    return cell


def events(k: Client) -> list[str]:
    return [m.content["event"] for m in k.got if isinstance(m, KernelMessage) and m.msg_type == "debug_event"]


async def threads(k: Client) -> str | None:
    return (await k.run("import os; len(os.listdir('/proc/self/task'))")).result


async def test_a_cell_stops_at_a_breakpoint_and_continues(k: Client) -> None:
    await start(k)
    cell = await stopped_at(k, 3)
    (top, *_) = (await debug(k, "stackTrace", threadId=1))["body"]["stackFrames"]
    assert (top["name"], top["line"]) == ("f", 3)
    scopes = (await debug(k, "scopes", frameId=top["id"]))["body"]["scopes"]
    shown = await debug(k, "variables", variablesReference=scopes[0]["variablesReference"])
    assert {v["name"]: v["value"] for v in shown["body"]["variables"]} == {"a": "41", "b": "42"}
    assert (await debug(k, "setVariable", variablesReference=scopes[0]["variablesReference"], name="b", value="7"))[
        "success"
    ]
    assert not k.idle(cell)
    await debug(k, "continue", threadId=1)
    assert (await k.finish(cell)).stdout == "7\n"


async def test_an_interrupt_ends_a_cell_that_is_stopped(k: Client) -> None:
    await start(k)
    for _ in range(3):
        cell = await stopped_at(k, 2)
        k.interrupt()
        answer = await k.finish(cell)
        assert (answer.reply.content["ename"], answer.stdout) == ("KeyboardInterrupt", "")
    assert (await k.run("40 + 2")).result == "42"


async def test_the_debugger_starts_again_after_it_was_turned_off(k: Client) -> None:
    for _ in range(2):
        await start(k)
        cell = await stopped_at(k, 2)
        await debug(k, "disconnect", restart=False, terminateDebuggee=True)
        assert (await k.finish(cell)).stdout == "42\n"  # continues without the debugger


async def test_a_fork_is_refused_while_the_debugger_is_on_and_possible_afterwards(k: Client) -> None:
    await k.run("x = 41")
    await start(k)
    _, reply = await k.fork()
    assert any("Turn the debugger off" in reason for reason in reply["refused"])
    await debug(k, "disconnect")
    branch = await k.branch()
    assert (await branch.run("x + 1")).result == "42"
    await start(branch)
    cell = await stopped_at(branch, 2)
    await debug(branch, "continue", threadId=1)
    assert (await branch.finish(cell)).stdout == "42\n"


async def test_a_process_that_the_user_forks_is_not_stopped(k: Client) -> None:
    await start(k)
    cell = await stopped_at(k, 2)
    await debug(k, "continue", threadId=1)
    await k.finish(cell)
    await k.run("f2 = f")
    code = "import os\npid = os.fork()\nif not pid:\n    f2(1)\n    os._exit(3)\nos.waitpid(pid, 0)[1] >> 8"
    assert (await k.run(code)).result == "3"


async def test_a_session_that_is_not_debugged_pays_nothing(k: Client) -> None:
    before = await threads(k)
    found = await debug(k, "debugInfo")  # JupyterLab sends it to each kernel
    assert (found["success"], found["body"]["isStarted"]) == (True, False)
    assert await debug(k, "stackTrace", threadId=1) == {}
    assert (await k.run("import sys; 'debugpy' in sys.modules, 'pydevd' in sys.modules")).result == "(False, False)"
    assert (before, await threads(k)) == ("1", "1")
    assert (await k.ask("kernel_info_request", {}))["supported_features"] == ["debugger"]


async def test_no_trace_of_the_debugger_is_left(k: Client) -> None:
    await k.run("import os, sys, threading; before = dict(os.environ)")
    await start(k)
    await debug(k, "disconnect")
    await k.branch()  # waits for the debugger's threads
    assert await threads(k) == "1"
    assert (await k.run("threading.active_count(), dict(os.environ) == before, sys.gettrace()")).result == (
        "(1, True, None)"
    )


async def test_variables_are_listed_when_the_debugger_is_off(k: Client) -> None:
    await k.run("answer = 42")
    found = await debug(k, "inspectVariables")
    assert [v["value"] for v in found["body"]["variables"] if v["name"] == "answer"] == ["42"]
    assert (await debug(k, "richInspectVariables", variableName="answer"))["body"]["data"] == {"text/plain": "42"}
