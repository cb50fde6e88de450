"""smolagents with its E2B executor: an agent whose model is a script, tools, variables, images, errors."""

import os
import sys

os.environ.update(E2B_API_URL=sys.argv[1], E2B_SANDBOX_URL=sys.argv[1], E2B_API_KEY=sys.argv[2])

import pytest
from smolagents import AgentError, CodeAgent, Model, tool
from smolagents.models import ChatMessage, MessageRole
from smolagents.monitoring import AgentLogger, LogLevel
from smolagents.remote_executors import E2BExecutor


@tool
def double(n: int) -> int:
    """Doubles a number.

    Args:
        n: what is doubled.
    """
    return 2 * n


class Script(Model):
    """A model that says what it was given."""

    def __init__(self, *codes):
        super().__init__(model_id="script")
        self.codes = list(codes)

    def generate(self, messages, **kwargs):
        code = self.codes.pop(0)
        return ChatMessage(role=MessageRole.ASSISTANT, content=f"Thought: next.\n<code>\n{code}\n</code>")


def executor():
    made = E2BExecutor([], AgentLogger(level=LogLevel.OFF))
    try:
        made.send_variables({"given": {"a": [1, 2]}})
        assert made("given['a'][1]").output == "2"
        out = made("print('seen')\n40 + 2")
        assert (out.output, out.logs.strip(), out.is_final_answer) == ("42", "seen", False)
        image = made("from PIL import Image\nImage.new('RGB', (3, 2))").output
        assert image.size == (3, 2), image
        assert made("import pandas as pd\npd.DataFrame({'a': [1]})").output == {"a": [1]}
        with pytest.raises(AgentError, match="ZeroDivisionError"):
            made("1 / 0")
    finally:
        made.cleanup()


def agent():
    steps = ["n = double(20)\nprint(n)", "final_answer(n + 2)"]
    with CodeAgent(
        tools=[double], model=Script(*steps), executor_type="e2b", max_steps=3, verbosity_level=LogLevel.OFF
    ) as made:
        assert made.run("What is it?") == 42


executor()
agent()
print("ok")
