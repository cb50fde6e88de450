"""Replies and answers in the types of the vendors' own packages; no network but the served instance.

Run by the environment that has those packages, with the project's source on its path for ``kernelsvc.integrations``.
"""

from __future__ import annotations

import asyncio
import json
import sys

URL, TOKEN = sys.argv[1:3]
CODE = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nprint('said')"

from kernelsvc.integrations import AsyncTools, Tools  # noqa: E402


def anthropic(tools: Tools) -> None:
    from anthropic.types import Message, MessageParam, ToolParam
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
    from langchain_core.tools import BaseTool
    from langchain_core.utils.function_calling import convert_to_openai_tool

    from kernelsvc.integrations import langchain as ours

    made = {tool.name: tool for tool in ours.tools(tools)}
    assert all(isinstance(tool, BaseTool) for tool in made.values())
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

    async def awaited() -> None:
        async with AsyncTools(URL, TOKEN, session="awaited") as over:
            (tool,) = ours.tools(over, ["run_code"])
            message = await tool.ainvoke({**call, "args": {"code": "6 * 7"}})
            assert message.artifact["text"] == "42\n"
            await over.call("close_session", {"session": "awaited"})

    asyncio.run(awaited())


with Tools(URL, TOKEN, session="calls") as over:
    {"anthropic": anthropic, "openai": openai, "google-genai": gemini, "langchain-core": langchain}[sys.argv[3]](over)
    over.call("close_session", {"session": "calls"})
print("ok")
