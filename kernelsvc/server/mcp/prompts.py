"""MCP prompts for common tasks, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping

from msgspec import Struct

from kernelsvc.errors import BadRequest, NotFound


class Prompt(Struct, frozen=True, kw_only=True):
    """A text with placeholders.

    Attributes:
        name: Its id for clients.
        title: Its name for people.
        about: One sentence.
        arguments: Each placeholder and its description.
        required: The mandatory placeholders.
        text: The text with ``{placeholders}``. A line whose optional placeholder is empty is omitted.
    """

    name: str
    title: str
    about: str
    arguments: dict[str, str]
    required: tuple[str, ...] = ()
    text: str


_PROMPTS = (
    Prompt(
        name="analyse",
        title="Analyse data",
        about="Explore a file and answer a question about it, step by step, with plots.",
        arguments={"path": "A file in the session's working directory.", "question": "What you want to know."},
        required=("path",),
        text="Analyse the file {path} with run_code.\n"
        "The question: {question}\n"
        "First look at its size, columns, types and missing values; then go in small steps, one idea a cell. Show a "
        "plot where it says more than a number. If a step turns out wrong, undo it. At the end, say what "
        "you found, how sure it is, and give the user the notebook by export_notebook.",
    ),
    Prompt(
        name="compare",
        title="Try several ways",
        about="Prepare once, try alternatives in copies of the session, and go on with the best.",
        arguments={"task": "What is to be solved.", "ways": "How many alternatives, such as 4."},
        required=("task",),
        text="Solve this by trying alternatives: {task}\n"
        "How many: {ways}\n"
        "Load and prepare what all of them need in one session with run_code. Then call fork, try a different way in "
        "each copy, and print one comparable figure in each. Compare, say which is best and why, go on in that "
        "copy, and close the others with sessions.",
    ),
    Prompt(
        name="resume",
        title="Go on where we were",
        about="Look at a session's state and go on with it.",
        arguments={"session": "Its id or name; the tool sessions shows them."},
        required=("session",),
        text="Go on in the session {session}. Look at its variables and files (read_file without a path) first, and at "
        "the resource kernelsvc://sessions/{session}/notebook.py for what was done. Then say in two sentences where "
        "things stand, and ask what is next.",
    ),
)

_GAP = re.compile(r"\{(\w+)\}")

PROMPTS: dict[str, Prompt] = {prompt.name: prompt for prompt in _PROMPTS}


def render_prompt(name: str, arguments: Mapping[str, str]) -> str:
    """Return a prompt's text.

    Raises:
        NotFound: There is no such prompt.
        BadRequest: A required argument is missing, or an argument is unknown.
    """
    prompt = PROMPTS.get(name)
    if prompt is None:
        raise NotFound(f"There is no prompt {name!r}. There are {', '.join(PROMPTS)}.")
    if missing := [each for each in prompt.required if not arguments.get(each)]:
        raise BadRequest(f"The prompt {name!r} needs the argument {missing[0]!r}.")
    if unknown := [each for each in arguments if each not in prompt.arguments]:
        raise BadRequest(f"The prompt {name!r} has no argument {unknown[0]!r}.")
    lines = []
    for line in prompt.text.split("\n"):
        gaps = [each for each in prompt.arguments if f"{{{each}}}" in line]
        if all(arguments.get(each) for each in gaps):
            lines.append(_GAP.sub(lambda found: arguments[found[1]], line))
    return "\n".join(lines)
