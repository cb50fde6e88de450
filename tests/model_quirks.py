"""The habits of models' servers: the streams of one turn that calls for ``6 * 7``, byte for byte."""

from __future__ import annotations

import json
from typing import Any

from kernelsvc.answers.scripted_model import delta, usage

CODE = "6 * 7"
ARGUMENTS = json.dumps({"code": CODE})


def call(arguments: Any, name: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk with a part of a call."""
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    return delta(tool_calls=[{"function": function, **more}])


def stream(*chunks: dict[str, Any] | str, end: str = "\n\n", done: bool = True) -> bytes:
    """The bytes of a stream. A text is sent as it is."""
    lines = [each if isinstance(each, str) else f"data: {json.dumps(each, ensure_ascii=False)}" for each in chunks]
    return (end.join(lines + (["data: [DONE]"] if done else [])) + end).encode()


LAST = delta("tool_calls")
#: A habit, and the bytes of the turn.
QUIRKS: dict[str, bytes] = {
    "llama.cpp: name and first arguments together, usage without choices": stream(
        call(ARGUMENTS[:3], "python", index=0, id="a"), call(ARGUMENTS[3:], index=0), LAST, usage()
    ),
    "vLLM: the name alone, then single characters": stream(
        call("", "python", index=0, id="a"), *[call(each, index=0) for each in ARGUMENTS], LAST
    ),
    "Ollama: no index, no id, a whole call, arguments as an object": stream(
        call({"code": CODE}, "python"), delta("stop"), usage()
    ),
    "Ollama: always index 0, finish_reason stop": stream(call(ARGUMENTS, "python", index=0, id="a"), delta("stop")),
    "the name and the id in each piece": stream(
        call(ARGUMENTS[:7], "python", index=0, id="a"), call(ARGUMENTS[7:], "python", index=0, id="a"), LAST
    ),
    "gpt-oss: the code itself in place of JSON": stream(call("6 *", "python", index=0, id="a"), call(" 7", index=0)),
    "code in a fence as the arguments": stream(call("```python\n6 * 7\n```", "python", index=0, id="a"), LAST),
    "a string as the arguments": stream(call(json.dumps(CODE), "python", index=0, id="a"), LAST),
    "another name of the tool": stream(call(ARGUMENTS, "functions.python", index=0, id="a"), LAST),
    "another name of the argument": stream(call('{"input": "6 * 7"}', "ipython", index=0, id="a"), LAST),
    "escapes in the code": stream(call('{"code": "6 \\u002a 7"}', "python", index=0, id="a"), LAST),
    "reasoning_content, then a call": stream(
        delta(reasoning_content="hm é"), call(ARGUMENTS, "python", index=0, id="a"), LAST
    ),
    "reasoning under its other name": stream(delta(reasoning="hm é"), call(ARGUMENTS, "python", index=0, id="a"), LAST),
    "reasoning as a tag in the text": stream(
        delta(content="<thi"), delta(content="nk>hm é</think>\n"), call(ARGUMENTS, "python", index=0, id="a"), LAST
    ),
    "a whole message in place of a delta": stream(
        {"choices": [{"message": {"tool_calls": [{"function": {"name": "python", "arguments": ARGUMENTS}}]}}]}
    ),
    "comments, line ends of two characters, no [DONE]": stream(
        ": ping", "event: chunk", call(ARGUMENTS, "python", index=0, id="a"), LAST, end="\r\n\r\n", done=False
    ),
    "null in each field": stream(
        {"id": "x", "choices": [{"index": 0, "delta": {"content": None, "tool_calls": None}, "finish_reason": None}]},
        call(ARGUMENTS, "python", index=0, id="a", type="function"),
        {"choices": None, "usage": None},
        LAST,
    ),
}  # fmt: skip
#: The same for a model without tool calls.
FENCES: dict[str, bytes] = {
    "a block in pieces": stream(delta(content="So:\n``"), delta(content="`python\n6 *"), delta(content=" 7\n```\n")),
    "a block in one chunk, more text behind it": stream(delta(content="```py\n6 * 7\n```\nIt is 41.")),
    "a block that a stop word has cut": stream(delta(content="```python\n6 * 7\n"), delta("stop")),
    "a block behind reasoning": stream(delta(content="<think>x</think>```python\n6 * 7\n```")),
}
