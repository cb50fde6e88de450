"""Function calling against a real server, with replies as the vendors' APIs send them, in plain JSON."""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace

import pytest
from served import Served

from kernelsvc.integrations import AsyncTools, Tools, anthropic, gemini, langchain, openai

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
        name, description, args_schema = "shout", "Louder.", Model

        def get_input_schema(self):
            return Model

        async def ainvoke(self, arguments):
            return arguments["text"].upper()

    tools.offer(*langchain.offers([Tool()]))
    assert "HI" in tools.call("run_code", {"code": "tools.shout('hi')"}).text
