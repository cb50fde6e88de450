"""A forked kernel for Jupyter clients without a server: queues, threads, pdb, as ipykernel does it."""

from __future__ import annotations

import pytest
from kernel_processes import Client


@pytest.mark.parametrize("code", ["1 / 0", "await asyncio.sleep(0.1); 1 / 0", "raise SystemExit"])
async def test_a_failed_cell_aborts_the_cells_that_wait(k: Client, code: str) -> None:
    await k.run("import time, asyncio; ran = []")
    failing = k.execute(f"time.sleep(0.3); {code}", terse=False)
    waiting = [k.execute(f"ran.append({n})", terse=False) for n in range(3)]
    other = k.send("is_complete_request", {"code": "1"})
    await k.finish(failing)
    for cell in waiting:
        answer = await k.finish(cell)
        assert answer.reply.content == {"status": "aborted"}
        assert [m.content["execution_state"] for m in answer.messages("status")] == ["busy", "idle"]
    assert (await k.finish(other)).reply.content["status"] == "complete"
    assert (await k.run("ran", terse=False)).result == "[]"


@pytest.mark.parametrize("options", [{"stop_on_error": False}, {"terse": True}])
async def test_cells_that_wait_run_if_the_client_asks_for_it_or_has_its_own_queue(
    k: Client, options: dict[str, bool]
) -> None:
    failing = k.execute("import time; time.sleep(0.3); 1 / 0", **{"terse": False, **options})
    waiting = k.execute("40 + 2", terse=False)
    assert (await k.finish(failing)).error == "ZeroDivisionError"
    assert (await k.finish(waiting)).result == "42"


async def test_cells_of_the_control_channel_run_in_order(k: Client) -> None:
    await k.run("ran = []")
    cells = [
        k.send("execute_request", {"code": f"import time; time.sleep(0.1); ran.append({n})"}, "control")
        for n in range(3)
    ]
    for cell in cells:
        assert (await k.finish(cell)).reply.content["status"] == "ok"
    assert (await k.run("ran")).result == "[0, 1, 2]"


async def test_an_interrupt_ends_pdb(k: Client) -> None:
    cell = k.execute("import pdb; pdb.set_trace()", terse=False)
    await k.until(lambda: k.answer(cell).messages("input_request"))
    k.interrupt()
    await k.finish(cell)
    assert (await k.run("40 + 2")).result == "42"


async def test_a_thread_may_name_the_cell_that_its_output_belongs_to(k: Client) -> None:
    code = (
        "import threading\nparent, go = get_ipython().get_parent(), threading.Event()\n"
        "def work():\n token = get_ipython().set_thread_parent(parent)\n go.wait()\n print('first')\n display(1)\n"
        " get_ipython().reset_thread_parent(token)\n print('second')\n"
        "thread = threading.Thread(target=work); thread.start()"
    )
    first = k.execute(code, terse=False)
    await k.finish(first)
    second = k.execute("go.set(); thread.join()", terse=False)
    await k.finish(second)
    assert (k.answer(first).stdout, k.answer(second).stdout) == ("first\n", "second\n")
    assert k.answer(first).displays == [{"text/plain": "1"}]


async def test_a_request_s_session_id_reaches_the_kernel(k: Client) -> None:
    content = {"code": "k = get_ipython().kernel; k.get_parent('shell')['header']['session'], k._parent_ident['shell']"}
    cell = k.send("execute_request", content, session="mine")
    assert (await k.finish(cell)).result == "('mine', [b'mine'])"


async def test_figures_are_inline_when_matplotlib_was_not_preloaded(k: Client) -> None:
    code = "import sys; new = 'matplotlib' not in sys.modules\nimport matplotlib as m; new, m.get_backend()"
    result = (await k.run(code)).result or ""
    assert result.startswith("(True")
    assert "inline" in result


@pytest.mark.parametrize("action", ["create", "delete", "list"])
async def test_subshells_are_refused(k: Client, action: str) -> None:
    content = await k.ask(f"{action}_subshell_request", {"subshell_id": "x"}, "control")
    assert (content["status"], content["ename"]) == ("error", "BadRequest")
