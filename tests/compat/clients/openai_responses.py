"""OpenAI's own package against ``/v1/responses``: create, stream, files, containers. Prints ``ok``."""

from __future__ import annotations

import sys

import openai
from openai import OpenAI
from openai.types.responses import Response
from openai.types.responses.response_stream_event import ResponseStreamEvent
from pydantic import TypeAdapter

EVENT = TypeAdapter(ResponseStreamEvent)


def main(url: str, token: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0)
    outputs = ["code_interpreter_call.outputs"]
    assert "qwen" in [each.id for each in client.models.list()]

    uploaded = client.files.create(file=("sales.csv", b"a,b\n1,2\n"), purpose="user_data")
    container = {"type": "auto", "file_ids": [uploaded.id]}
    tools = [{"type": "code_interpreter", "container": container}]
    prompt = "python: x = open('sales.csv').read(); print(x); len(x)\npython: _ = open('new file.csv', 'w').write('7')"
    first = client.responses.create(model="qwen", input=prompt, tools=tools, include=outputs)
    Response.model_validate(first.model_dump(), strict=False)
    call = first.output[0]
    assert call.type == "code_interpreter_call", first
    assert call.outputs is not None
    assert call.outputs[0].logs == "a,b\n1,2\n\n8\n", call.outputs
    notes = first.output[-1].content[0].annotations
    assert [each.filename for each in notes] == ["new file.csv"], notes
    content = client.containers.files.content.retrieve(notes[0].file_id, container_id=notes[0].container_id)
    assert content.read() == b"7"
    names = {each.path: each.source for each in client.containers.files.list(call.container_id)}
    assert names["/mnt/data/new file.csv"] == "assistant", names

    kinds = []
    stream = client.responses.create(
        model="qwen", input="python: len(x)", tools=tools, include=outputs, stream=True, previous_response_id=first.id
    )
    for event in stream:
        EVENT.validate_python(event.model_dump(warnings="error"))
        kinds.append(event.type)
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert "response.code_interpreter_call_code.delta" in kinds
    assert event.response.output[0].outputs[0].logs == "8\n"

    with client.responses.stream(model="qwen", input="python: 1 / 0", tools=tools, include=outputs) as helper:
        for _ in helper:
            pass
        final = helper.get_final_response()
    assert "ZeroDivisionError" in final.output[0].outputs[0].logs

    waited = client.responses.create(model="qwen", input="python: 2 + 2", tools=tools, background=True)
    replayed = list(client.responses.retrieve(waited.id, stream=True, starting_after=1))
    assert replayed[0].sequence_number == 2
    assert replayed[-1].type == "response.completed"
    assert client.responses.retrieve(waited.id, include=outputs).output[0].outputs[0].logs == "4\n"
    assert client.responses.input_items.list(waited.id).data[0].content[0].text == "python: 2 + 2"
    client.responses.delete(waited.id)

    made = client.containers.create(name="mine", expires_after={"anchor": "last_active_at", "minutes": 20})
    client.containers.delete(made.id)
    named = [{"type": "code_interpreter", "container": made.id}]
    refusal = ""
    try:
        client.responses.create(model="qwen", input="python: 1", tools=named)
    except openai.BadRequestError as error:
        refusal = str(error)
    assert "Container is expired." in refusal


if __name__ == "__main__":
    main(*sys.argv[1:3])
    print("ok")
