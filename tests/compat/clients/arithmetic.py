"""Eight questions to a small model, through OpenAI's package as it is: ``arithmetic.py URL TOKEN``.

The model gets three examples first: without examples, one of this size does not call a tool. Prints a JSON object with
the number of right answers, the seconds and the container of each.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from openai import OpenAI

client = OpenAI(base_url=sys.argv[1] + "/v1", api_key=sys.argv[2])
EXAMPLES = {"What is 17*23?": "17*23", "What is 902+77?": "902+77", "What is 2**20?": "2**20"}
QUESTIONS = ("123*45", "12345*6789", "7**5", "99*99", "1000-58", "31*17", "4096*12", "5**9")


def example(number: int, question: str, code: str) -> list[dict[str, Any]]:
    """A question, the call and its result, and the answer."""
    value = eval(code)
    call = {
        "type": "code_interpreter_call", "id": f"ci_{number}", "code": f"print({code})", "container_id": "",
        "status": "completed", "outputs": [{"type": "logs", "logs": f"{value}\n"}],
    }  # fmt: skip
    return [
        {"type": "message", "role": "user", "content": question},
        call,
        {"type": "message", "role": "assistant", "content": f"{code} is {value}."},
    ]


shots = [item for number, (question, code) in enumerate(EXAMPLES.items()) for item in example(number, question, code)]
container = client.containers.create(name="arithmetic").id
right, began, answers = 0, time.monotonic(), []
for asked in QUESTIONS:
    with client.responses.stream(
        model="smollm2",
        input=[*shots, {"type": "message", "role": "user", "content": f"What is {asked}?"}],
        tools=[{"type": "code_interpreter", "container": container}],
        include=["code_interpreter_call.outputs"],
        max_tool_calls=3,
        temperature=0,
    ) as stream:
        response = stream.get_final_response()
    calls = [each for each in response.output if each.type == "code_interpreter_call"]
    logs = "".join(each.logs for call in calls for each in call.outputs or [] if each.type == "logs")
    # Right: the value is what the code printed, and the answer says it.
    good = str(eval(asked)) in logs and str(eval(asked)) in response.output_text
    right += good
    answers.append([asked, [call.code for call in calls], response.output_text.strip()[:80], good])
took = time.monotonic() - began
print(json.dumps({"right": right, "seconds": round(took, 1), "container": container, "answers": answers}))
