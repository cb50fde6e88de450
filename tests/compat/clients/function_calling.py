"""Replies and answers in the types of the vendors' own packages; no network but the served instance.

Run by the environment that has those packages, with the project's source on its path for ``kernelsvc.integrations``.
"""

from __future__ import annotations

import asyncio
import json
import sys

URL, TOKEN = sys.argv[1:3]
CODE = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nprint('said')"

#: An application's own function, which code may call a hundred times in one trip.
SCHEMA = {"type": "object", "properties": {"customer": {"type": "integer"}}, "required": ["customer"]}
FIND = {"name": "find_orders", "description": "Orders of a customer."}
USES = "print(sum(len(tools.find_orders(customer=n)) for n in range(100)))"

from kernelsvc.integrations import AsyncTools, Tools  # noqa: E402


def find_orders(customer: int) -> list[int]:
    return [customer, customer]


def anthropic(tools: Tools) -> None:
    from anthropic.types import Message, MessageParam, ToolParam, ToolUnionParam
    from pydantic import TypeAdapter

    from kernelsvc.integrations import anthropic as ours

    for tool in ours.tools():
        TypeAdapter(ToolParam).validate_python(tool, strict=True)
    reply = Message.model_validate(
        {
            "id": "m", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "tool_use",
            "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1},
            "content": [
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "t1", "name": "run_code", "input": {"code": CODE}},
                {"type": "tool_use", "id": "t2", "name": "run_code", "input": {"code": "1/0"}},
                {"type": "tool_use", "id": "t3", "name": "variables", "input": {}},
            ],
        }
    )  # fmt: skip
    (message,) = answers = ours.run(tools, reply)
    TypeAdapter(list[MessageParam]).validate_python(answers)
    first, second, third = message["content"]
    assert [part["type"] for part in first["content"]] == ["text", "image"], first
    assert second["is_error"]
    assert not third["is_error"]

    definition = {**FIND, "input_schema": SCHEMA, "allowed_callers": ["direct", "code_execution_20260120"]}
    TypeAdapter(ToolParam).validate_python(definition, strict=True)
    tools.offer(*ours.offers([definition], {"find_orders": find_orders}))
    for each in ours.tools(also=[definition]):
        TypeAdapter(ToolUnionParam).validate_python(each)
    asked = {"type": "tool_use", "id": "t4", "name": "run_code", "input": {"code": USES}}
    direct = {"type": "tool_use", "id": "t5", "name": "find_orders", "input": {"customer": 7}}
    reply = reply.model_validate({**reply.model_dump(), "content": [asked, direct]})
    (message,) = answers = ours.run(tools, reply, {"find_orders": find_orders})
    TypeAdapter(list[MessageParam]).validate_python(answers)
    assert "200" in message["content"][0]["content"][0]["text"]
    assert message["content"][1]["content"][0]["text"] == "[7, 7]"


def openai(tools: Tools) -> None:
    from openai.types.chat import ChatCompletion, ChatCompletionMessageParam, ChatCompletionToolParam
    from openai.types.responses import FunctionToolParam, Response, ResponseInputItemParam
    from pydantic import TypeAdapter

    from kernelsvc.integrations import openai as ours

    for tool in ours.tools():
        TypeAdapter(ChatCompletionToolParam).validate_python(tool)
    function = {"name": "run_code", "arguments": json.dumps({"code": CODE})}
    message = {
        "role": "assistant", "content": None, "refusal": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }  # fmt: skip
    reply = ChatCompletion.model_validate(
        {
            "id": "x", "object": "chat.completion", "created": 1, "model": "gpt",
            "choices": [{"index": 0, "finish_reason": "tool_calls", "logprobs": None, "message": message}],
        }
    )  # fmt: skip
    answers = ours.run(tools, reply)
    TypeAdapter(list[ChatCompletionMessageParam]).validate_python(answers)
    assert [each["role"] for each in answers] == ["tool", "user"], answers

    for tool in ours.responses.tools():
        TypeAdapter(FunctionToolParam).validate_python(tool)
    call = {"type": "function_call", "id": "f", "call_id": "c2", "status": "completed", **function}
    response = Response.model_validate(
        {
            "id": "r", "object": "response", "created_at": 1, "model": "gpt", "output": [call], "tools": [],
            "parallel_tool_calls": True, "tool_choice": "auto",
        }
    )  # fmt: skip
    (item,) = ours.responses.run(tools, response)
    TypeAdapter(ResponseInputItemParam).validate_python(item)
    assert item["output"][1]["type"] == "input_image"

    definition = {"type": "function", **FIND, "parameters": SCHEMA, "strict": False}
    definition["allowed_callers"] = ["direct", "programmatic"]
    TypeAdapter(FunctionToolParam).validate_python(definition, strict=True)
    tools.offer(*ours.responses.offers([definition], {"find_orders": find_orders}))
    for each in ours.responses.tools(also=[definition]):
        TypeAdapter(FunctionToolParam).validate_python(each)
    asked = {**call, "arguments": json.dumps({"code": USES})}
    direct = {**call, "call_id": "c3", "name": "find_orders", "arguments": json.dumps({"customer": 7})}
    response = Response.model_validate({**response.model_dump(), "output": [asked, direct]})
    items = ours.responses.run(tools, response, {"find_orders": find_orders})
    TypeAdapter(list[ResponseInputItemParam]).validate_python(items)
    assert "200" in str(items[0]["output"])
    assert items[1]["output"] == "[7, 7]"


def gemini(tools: Tools) -> None:
    from google.genai import types

    from kernelsvc.integrations import gemini as ours

    config = types.GenerateContentConfig(tools=ours.tools())
    declared = types.Tool.model_validate(ours.tools()[0]).function_declarations
    assert declared
    assert config.tools
    assert {each.name for each in declared} >= {"run_code", "undo"}
    assert declared[0].parameters.properties["code"].type == types.Type.STRING
    call = types.FunctionCall(id="g1", name="run_code", args={"code": CODE})
    content = types.Content(role="model", parts=[types.Part(text="…"), types.Part(function_call=call)])
    reply = types.GenerateContentResponse(candidates=[types.Candidate(content=content)])
    (answer,) = ours.run(tools, reply)
    parsed = types.Content.model_validate(answer)
    response, picture = parsed.parts
    assert response.function_response.id == "g1"
    assert "said" in response.function_response.response["output"]
    assert picture.inline_data.mime_type == "image/png"
    assert picture.inline_data.data.startswith(b"\x89PNG")


def langchain(tools: Tools) -> None:
    from langchain_core.messages import AIMessage, ToolMessage
    from langchain_core.tools import BaseTool, tool
    from langchain_core.utils.function_calling import convert_to_openai_tool

    from kernelsvc.integrations import langchain as ours

    made = {each.name: each for each in ours.tools(tools)}
    assert all(isinstance(each, BaseTool) for each in made.values())
    shown = convert_to_openai_tool(made["run_code"])["function"]
    assert shown["parameters"]["required"] == ["code"], shown
    call = {"name": "run_code", "args": {"code": CODE}, "id": "l1", "type": "tool_call"}
    (asked,) = AIMessage(content="", tool_calls=[call]).tool_calls
    message = made["run_code"].invoke(asked)
    assert isinstance(message, ToolMessage)
    assert message.tool_call_id == "l1"
    assert [part["type"] for part in message.content] == ["text", "image"]
    assert message.artifact["images"] == 1
    failed = made["run_code"].invoke({**call, "args": {"code": "1/0"}})
    assert failed.artifact["error"]["ename"] == "ZeroDivisionError"

    tools.offer(*ours.offers([tool(find_orders, description=FIND["description"])]))
    assert made["run_code"].invoke({**call, "args": {"code": USES}}).artifact["text"] == "200\n"

    async def awaited() -> None:
        async with AsyncTools(URL, TOKEN, session="awaited") as over:
            (runs,) = ours.tools(over, ["run_code"])
            message = await runs.ainvoke({**call, "args": {"code": "6 * 7"}})
            assert message.artifact["text"] == "42\n"
            await over.call("close_session", {"session": "awaited"})

    asyncio.run(awaited())


with Tools(URL, TOKEN, session="calls") as over:
    {"anthropic": anthropic, "openai": openai, "google-genai": gemini, "langchain-core": langchain}[sys.argv[3]](over)
    over.call("close_session", {"session": "calls"})
print("ok")
