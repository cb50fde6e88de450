"""Function calling against a real server, with replies as the vendors' APIs send them, in plain JSON."""

from __future__ import annotations

import asyncio
import base64
import json
from types import SimpleNamespace

import pytest
from served import Served

from kernelsvc import Client
from kernelsvc.client.values import CellFailed
from kernelsvc.errors import BadRequest
from kernelsvc.integrations import AsyncTools, Tools, anthropic, gemini, langchain, openai
from kernelsvc.integrations.fastmcp import SandboxProvider
from kernelsvc.integrations.smolagents import CodeExecutor, ExecutedCode

PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"


@pytest.fixture
def tools(served: Served):
    with Tools(served.url, served.token) as tools:
        yield tools
        session = tools.call("list_sessions").facts["sessions"][0]["session"]
        tools.call("close_session", {"session": session})


def test_anthropic(tools):
    calls = [{"type": "text", "text": "Let me see."}]
    calls += [{"type": "tool_use", "id": "t1", "name": "run_code", "input": {"code": "x = 6\nx * 7"}}]
    calls += [{"type": "tool_use", "id": "t2", "name": "run_code", "input": {"code": PLOT}}]
    calls += [{"type": "tool_use", "id": "t3", "name": "run_code", "input": {"code": "1/0"}}]
    (message,) = anthropic.run(tools, SimpleNamespace(role="assistant", content=calls))
    first, second, third = message["content"]
    assert message["role"] == "user"
    assert (first["type"], first["tool_use_id"], first["is_error"]) == ("tool_result", "t1", False)
    assert first["content"][0]["text"].startswith("42\n")
    assert second["content"][1]["source"]["media_type"] == "image/png"
    assert base64.b64decode(second["content"][1]["source"]["data"]).startswith(b"\x89PNG")
    assert third["is_error"]
    assert anthropic.run(tools, {"content": [{"type": "text", "text": "Done."}]}) == []


def test_openai(tools):
    function = {"name": "run_code", "arguments": json.dumps({"code": "print('hi')\n" + PLOT})}
    broken = {"name": "run_code", "arguments": '{"code": '}
    unknown = {"name": "run_cobol", "arguments": "{}"}
    calls = [{"id": str(n), "type": "function", "function": f} for n, f in enumerate([function, broken, unknown])]
    reply = {"choices": [{"message": {"role": "assistant", "tool_calls": calls}}]}
    said, wrong, missing, shown = openai.run(tools, reply)
    assert (said["role"], said["tool_call_id"]) == ("tool", "0")
    assert said["content"].startswith("hi\n")
    assert "not valid JSON" in wrong["content"]
    assert "run_code" in missing["content"]
    assert shown["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")
    assert openai.run(tools, {"choices": [{"message": {"content": "Done."}}]}) == []


def test_openai_responses(tools):
    call = {"type": "function_call", "call_id": "c1", "name": "run_code", "arguments": json.dumps({"code": PLOT})}
    (item,) = openai.responses.run(tools, {"output": [{"type": "reasoning"}, call]})
    assert (item["type"], item["call_id"]) == ("function_call_output", "c1")
    assert [part["type"] for part in item["output"]] == ["input_text", "input_image"]


def test_gemini(tools):
    parts = [{"functionCall": {"name": "run_code", "args": {"code": PLOT}}}, {"text": "…"}]
    parts += [{"functionCall": {"id": "g2", "name": "run_code", "args": {"code": "1/0"}}}]
    (content,) = gemini.run(tools, {"candidates": [{"content": {"role": "model", "parts": parts}}]})
    first, second, picture = content["parts"]
    assert "output" in first["functionResponse"]["response"]
    assert second["functionResponse"]["id"] == "g2"
    assert "ZeroDivisionError" in second["functionResponse"]["response"]["error"]
    assert picture["inlineData"]["mimeType"] == "image/png"


async def test_awaited_and_in_a_session_of_a_name(served: Served):
    call = {"type": "tool_use", "id": "t", "name": "run_code", "input": {"code": "n = globals().get('n', 0) + 1\nn"}}
    for expected in ("1\n", "2\n"):
        async with AsyncTools(served.url, served.token, session="counting") as tools:
            (message,) = await anthropic.arun(tools, {"content": [call]})
            assert message["content"][0]["content"][0]["text"].startswith(expected)
    async with AsyncTools(served.url, served.token) as tools:
        assert not (await tools.call("close_session", {"session": "counting"})).failed


def test_code_and_the_model_call_the_applications_own_functions(tools):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    definitions = [
        {"name": "from_code", "input_schema": schema, "allowed_callers": ["code_execution_20260120"]},
        {"name": "by_model", "input_schema": schema},
    ]

    async def by_model(n):
        return {"n": n}

    functions = {"from_code": lambda n: [n] * 2, "by_model": by_model}
    tools.offer(*anthropic.offers(definitions, functions))
    assert [each["name"] for each in anthropic.tools(["run_code"], also=definitions)] == ["run_code", "by_model"]
    code = "print(sum(sum(tools.from_code(n=n)) for n in range(100)))"
    calls = [
        {"type": "tool_use", "id": "a", "name": "run_code", "input": {"code": code}},
        {"type": "tool_use", "id": "b", "name": "by_model", "input": {"n": 7}},
        {"type": "tool_use", "id": "c", "name": "by_model", "input": {"wrong": 7}},
    ]
    (message,) = anthropic.run(tools, {"content": calls}, functions)
    first, second, third = message["content"]
    assert "9900" in first["content"][0]["text"]
    assert (second["content"][0]["text"], second["is_error"]) == ('{"n": 7}', False)
    assert third["is_error"]


def test_langchain_tools_are_functions_for_code(tools):
    class Model:
        @staticmethod
        def model_json_schema():
            return {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}

    class Tool:
        name, description, tool_call_schema = "shout", "Louder.", Model

        async def ainvoke(self, arguments):
            return arguments["text"].upper()

    tools.offer(*langchain.offers([Tool()]))
    assert "HI" in tools.call("run_code", {"code": "tools.shout('hi')"}).text


async def call_tool(tool_name: str, params: dict[str, int]) -> dict[str, int]:
    if tool_name == "boom":
        raise ValueError("deliberate")
    return {"result": sum(params.values())}


STRINGS = "x = '''a\n b\\n'''\nreturn x"


@pytest.mark.parametrize(
    ("program", "value"),
    [
        ("return [n, (await call_tool('add', {'x': 1, 'y': 2}))['result']]", [{"a": None}, 3]),
        ("try:\n    await call_tool('boom', {})\nexcept Exception as error:\n    return str(error)", "deliberate"),
        ("import numpy, pandas\nreturn [numpy.arange(2), pandas.DataFrame({'x': [1]})]", [[0, 1], [{"x": 1}]]),
        (STRINGS, "a\n b\n"),
        ("", None),
        ("return {1}", "TypeError: The program returned a set"),
        ("return await call_tool('boom', {})", "deliberate"),
        ("retur n", "SyntaxError"),
    ],
)
async def test_a_program_of_code_mode_calls_back_and_returns_json(served: Served, program: str, value: object) -> None:
    provider = SandboxProvider(served.url, served.token)
    run = provider.run(program, inputs={"n": {"a": None}}, external_functions={"call_tool": call_tool})
    if program.startswith(("return {1}", "return await", "retur n")):
        with pytest.raises(CellFailed, match=str(value)):
            await run
    else:
        assert await run == value


async def test_a_cancelled_program_ends_with_its_functions(served: Served) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    provider = SandboxProvider(served.url, served.token)
    run = asyncio.ensure_future(provider.run("await wait()", external_functions={"wait": wait}))
    await asyncio.wait_for(started.wait(), 30)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert cancelled.is_set()


def test_the_code_of_an_agent_calls_tools_here_and_ends_with_its_answer(served: Served) -> None:
    inputs = {"n": {"type": "integer", "description": "a number"}}
    double = Tool(lambda n: 2 * n, inputs)
    answer = Tool(None, {"answer": {"type": "any", "description": "the answer"}})
    with Client(served.url, served.token) as client, client.create_session() as session:
        run = CodeExecutor(session)
        for _ in range(2):  # an agent sends them at each start
            run.send_tools({"double": double, "final_answer": answer})
        run.send_variables({"given": [1, 2]})
        assert run("print('seen')\ndouble(given[1])") == ExecutedCode("4", "seen\n", is_final_answer=False)
        final = run("try:\n    final_answer({'n': double(n=3)})\nexcept Exception:\n    print('caught')")
        assert final == ExecutedCode({"n": 6}, "", is_final_answer=True)
        with pytest.raises(CellFailed, match="ZeroDivisionError"):
            run("print('before')\n1 / 0")
        assert run.state["_print_outputs"] == "before\n"
        with pytest.raises(BadRequest, match="JSON"):
            run.send_variables({"a": object()})


class Tool:
    def __init__(self, function, inputs):
        self.inputs, self.description, self._function = inputs, "A tool.", function

    def __call__(self, **arguments):
        return self._function(**arguments)
