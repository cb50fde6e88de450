"""An executor for smolagents' ``CodeAgent``: its code runs in a session, its tools in this process.

    from kernelsvc import Client
    from kernelsvc.integrations.smolagents import CodeExecutor

    with Client() as client, client.create_session() as session:
        agent = CodeAgent(tools=[search], model=model, executor=CodeExecutor(session))

The tools keep the keys and the state that they have here, because the session gets their names and not their source.
This module does not import smolagents.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

from kernelsvc.client import Cell, Session
from kernelsvc.client.offered import OfferedFunction, offered, require_named
from kernelsvc.errors import BadRequest

#: The tool that ends the agent's run. Its argument is the agent's answer.
_FINAL = "final_answer"
#: Types of smolagents that JSON Schema has, too. Its others (``any``, ``image``, ``audio``) allow every value.
_JSON_TYPES = frozenset({"string", "boolean", "integer", "number", "array", "object", "null"})
#: Pillow's names of the formats of pictures.
_PICTURES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/gif": "GIF", "image/webp": "WEBP"}

# Gives tools their names in the session. final_answer ends the cell, past an `except Exception` of the code.
_DEFINE = """
def _define(names):
    class FinalAnswer(BaseException):
        def _render_traceback_(self):
            return ["The code called final_answer, which ends it."]

    def final_answer(*args, **kwargs):
        tools.final_answer(*args, **kwargs)
        raise FinalAnswer

    found = {name: tools[name] for name in names}
    globals().update(found, **({"final_answer": final_answer} if "final_answer" in found else {}))
"""


@dataclasses.dataclass(frozen=True)
class ExecutedCode:
    """What smolagents reads of a run (its class ``CodeOutput``).

    Attributes:
        output: the agent's answer, else an image of PIL, else the text of the last expression, or None.
        logs: the printed text.
        is_final_answer: whether the code called ``final_answer``.
    """

    output: Any
    logs: str
    is_final_answer: bool


class CodeExecutor:
    """Runs the code of one agent in a session (smolagents' interface ``PythonExecutor``).

    Attributes:
        state: the text that failed code had printed, where smolagents looks for it.
    """

    def __init__(self, session: Session) -> None:
        """Make an executor. The session stays open when the agent ends: who made it closes it."""
        self.state: dict[str, Any] = {}
        self._session = session
        self._answers: list[Any] = []

    def send_tools(self, tools: Mapping[str, Any]) -> None:
        """Let code call tools and agents by their names. They run here, each in a thread.

        Args:
            tools: objects with ``description``, ``inputs`` and ``__call__``, by name.

        Raises:
            BadRequest: a name or the inputs can't be offered.
        """
        self._session.offer(*(self._offer(name, tool) for name, tool in tools.items()))
        self._run_silently(f"{_DEFINE}\n_define({json.dumps([*tools])})\ndel _define")

    def send_variables(self, variables: Mapping[str, Any]) -> None:
        """Set variables of the session.

        Args:
            variables: JSON values by name.

        Raises:
            BadRequest: a value has no JSON form.
        """
        try:
            values = json.dumps(dict(variables))
        except (TypeError, ValueError) as error:
            raise BadRequest(f"A variable has no JSON form: {error}. Upload it as a file to the session.") from None
        self._run_silently(f"import json as _json\nglobals().update(_json.loads({json.dumps(values)}))\ndel _json")

    def __call__(self, code_action: str) -> ExecutedCode:
        """Run code.

        Raises:
            CellFailed: the code failed.
        """
        self._answers.clear()
        cell = self._session.run(code_action)
        logs = "".join(str(output.get("text", "")) for output in cell.outputs if output.get("output_type") == "stream")
        self.state["_print_outputs"] = logs
        if self._answers:
            return ExecutedCode(self._answers[-1], logs, is_final_answer=True)
        return ExecutedCode(_output(cell.raise_for_error()), logs, is_final_answer=False)

    def _run_silently(self, code: str) -> None:
        self._session.run(code, silent=True).raise_for_error()

    def _offer(self, name: str, tool: Any) -> OfferedFunction:
        properties = {key: _schema(value) for key, value in tool.inputs.items()}
        required = [key for key, value in tool.inputs.items() if not value.get("nullable")]
        schema = {"type": "object", "properties": properties, "required": required}
        call = self._answered if name == _FINAL else _calling(name, tool, schema)
        return offered(call, name=name, description=tool.description, parameters=schema)

    def _answered(self, answer: Any = None) -> None:
        self._answers.append(answer)


def _calling(name: str, tool: Any, schema: Mapping[str, Any]) -> Callable[..., Any]:
    def call(**arguments: Any) -> Any:
        # An agent takes those of its method ``run``, too, for example ``max_steps``.
        require_named(name, arguments, schema)
        return tool(**arguments)

    return call


def _schema(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of an input of a tool."""
    kinds = value.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    schema: dict[str, Any] = {"description": str(value.get("description", ""))}
    if all(kind in _JSON_TYPES for kind in kinds):
        schema["type"] = [*kinds, "null"] if value.get("nullable") else kinds
    return schema


def _output(cell: Cell) -> Any:
    if pictures := [image for image in cell.images if image.mime in _PICTURES]:
        found = pictures[-1]
        # The session wrote the bytes. Pillow would try each of its formats, and run a program for one (EPS).
        return importlib.import_module("PIL.Image").open(io.BytesIO(found.data), formats=[_PICTURES[found.mime]])
    results = [output for output in cell.outputs if output.get("output_type") == "execute_result"]
    return results[-1]["data"].get("text/plain") if results else None
