"""smolagents with our executor: tools that stay here, variables, pictures, errors. The agent's model is a script."""

import sys

import pytest
from smolagents import AgentExecutionError, CodeAgent, Model, tool
from smolagents.models import ChatMessage, MessageRole
from smolagents.monitoring import LogLevel

from kernelsvc import Client
from kernelsvc.errors import KernelsvcError
from kernelsvc.integrations.smolagents import CodeExecutor

CALLED = []


@tool
def double(n: int) -> int:
    """Doubles a number.

    Args:
        n: what is doubled.
    """
    CALLED.append(n)  # in this process, whose state the tool sees
    return 2 * n


class Script(Model):
    def __init__(self, *codes):
        super().__init__(model_id="script")
        self.codes = list(codes)
        self.seen = []

    def generate(self, messages, **kwargs):
        self.seen = [str(message.content) for message in messages]
        code = self.codes.pop(0)
        return ChatMessage(role=MessageRole.ASSISTANT, content=f"Thought: next.\n<code>\n{code}\n</code>")


def agent(session, *steps):
    model = Script(*steps)
    made = CodeAgent(
        tools=[double],
        model=model,
        executor=CodeExecutor(session),
        verbosity_level=LogLevel.OFF,
        max_steps=len(steps),
    )
    return made, model


with Client(sys.argv[1], sys.argv[2]) as client, client.create_session() as session:
    made, model = agent(
        session,
        "n = double(20)\nprint('seen', n)\ngiven['a'][1]",
        "try:\n    final_answer({'n': n + given['a'][1]})\nexcept Exception:\n    n = None",
    )
    assert made.run("What is it?", additional_args={"given": {"a": [1, 2]}}) == {"n": 42}
    assert CALLED == [20]
    assert r"seen 40\nLast output from code snippet:\n2" in model.seen[-1], model.seen[-1]

    made, model = agent(session, "print('before')\n1 / 0", "final_answer(double(n=n))")
    assert made.run("And now?") == 80  # the variables of the first run
    assert "ZeroDivisionError" in model.seen[-1], model.seen
    assert "before" in "".join(model.seen[-2:]), model.seen
    errors = [step.error for step in made.memory.steps if getattr(step, "error", None)]
    assert [type(each) for each in errors] == [AgentExecutionError], errors

    executor = CodeExecutor(session)
    picture = executor("from PIL import Image\nImage.new('RGB', (3, 2))").output
    assert picture.size == (3, 2), picture
    with pytest.raises(KernelsvcError, match="JSON"):
        executor.send_variables({"a": object()})
print("ok")
