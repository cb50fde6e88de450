"""Anthropic's package, unmodified: ``anthropic_messages.py URL TOKEN``. The model runs lines with ``python:``."""

from __future__ import annotations

import sys

import anthropic
from anthropic.types import Message

client = anthropic.Anthropic(base_url=sys.argv[1], api_key=sys.argv[2])
TOOL = {"type": "code_execution_20260120", "name": "code_execution"}


def strict(message: Message) -> Message:
    """Check a message against the package's own types, which the client itself does not."""
    return Message.model_validate(message.to_dict())


def ask(said: list, **more) -> Message:
    return strict(client.messages.create(model="qwen", max_tokens=1000, tools=[TOOL], messages=said, **more))


said = [{"role": "user", "content": "python: x = 6 * 7; print('out'); x"}]
first = ask(said)
assert [block.type for block in first.content] == ["server_tool_use", "code_execution_tool_result", "text"], first
assert first.content[1].content.stdout == "out\n42\n", first.content[1]
assert first.stop_reason == "end_turn"
assert first.container.expires_at.tzinfo is not None

said += [{"role": "assistant", "content": first.content}]
said += [{"role": "user", "content": "python: _ = open('a.csv', 'w').write(str(x))\npython: 1 / 0"}]
second = ask(said, container=first.container.id)
results = [block.content for block in second.content if block.type == "code_execution_tool_result"]
assert [each.return_code for each in results] == [0, 1], results
assert "ZeroDivisionError" in results[1].stderr
[made] = results[0].content
assert client.beta.files.retrieve_metadata(made.file_id).filename == "a.csv"
assert client.beta.files.download(made.file_id).read() == b"42"

with client.messages.stream(model="qwen", max_tokens=1000, tools=[TOOL], messages=said[:1]) as stream:
    events = [event.type for event in stream]
    last = strict(stream.get_final_message())
assert last.content[0].input == {"code": "x = 6 * 7; print('out'); x"}, last.content[0]
assert last.content[1].content.stdout == "out\n42\n"
assert events.count("content_block_start") == events.count("content_block_stop") == 3
assert "input_json" in events

uploaded = client.beta.files.upload(file=("in.txt", b"given", "text/plain"))
question = {"type": "text", "text": "python: open('in.txt').read()"}
read = ask([{"role": "user", "content": [{"type": "container_upload", "file_id": uploaded.id}, question]}])
assert read.content[1].content.stdout == "'given'\n", read.content[1]
assert client.beta.files.delete(uploaded.id).type == "file_deleted"

refused = ""
try:
    ask(said[:1], extra_body={"top_k": 3})
except anthropic.BadRequestError as error:
    refused = str(error)
assert "top_k" in refused, refused
print("ok")
