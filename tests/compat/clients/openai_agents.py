"""OpenAI's Agents SDK, unmodified, with its hosted ``CodeInterpreterTool``: ``openai_agents.py URL TOKEN``."""

from __future__ import annotations

import asyncio
import sys

from agents import Agent, CodeInterpreterTool, OpenAIResponsesModel, Runner, set_tracing_disabled
from openai import AsyncOpenAI

set_tracing_disabled(True)
client = AsyncOpenAI(base_url=sys.argv[1] + "/v1", api_key=sys.argv[2])
tool = CodeInterpreterTool(tool_config={"type": "code_interpreter", "container": {"type": "auto"}})
agent = Agent(name="calculator", model=OpenAIResponsesModel("qwen", client), tools=[tool])


async def main() -> None:
    first = await Runner.run(agent, "python: x = 6 * 7\npython: x")
    assert "42" in first.final_output, first.final_output
    kinds = [item.raw_item.type for item in first.new_items]
    assert kinds == ["code_interpreter_call", "code_interpreter_call", "message"], kinds
    streamed = Runner.run_streamed(agent, [*first.to_input_list(), {"role": "user", "content": "python: x + 1"}])
    deltas = [
        event.data.delta
        async for event in streamed.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.code_interpreter_call_code.delta"
    ]
    assert "".join(deltas) == "x + 1", deltas
    assert "43" in streamed.final_output, streamed.final_output
    print("ok")


asyncio.run(main())
