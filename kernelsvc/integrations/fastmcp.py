"""A sandbox for FastMCP's code mode: a model's program runs in a session, its tool calls in the MCP server.

    from fastmcp.experimental.transforms.code_mode import CodeMode
    from kernelsvc.integrations.fastmcp import SandboxProvider

    server.add_transform(CodeMode(sandbox_provider=SandboxProvider()))

Each program gets a session of its own, which is on record like any other. A program has numpy, pandas and the rest of
the session's environment. This module does not import FastMCP.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from kernelsvc.client import AsyncClient, Cell
from kernelsvc.client.offered import offered

#: MIME type of the display with a program's value.
_VALUE = "application/vnd.kernelsvc.value+json"

# Defines run_program in the session. The parser accepts `return` and `await` outside of a function, so the statements
# become the body of a coroutine without a change of their text, which could change strings of several lines.
_SETUP = '''
def _define(names, inputs):
    import ast, inspect, json
    from IPython.display import display

    def plain(value):
        for name, more in (("to_dict", {"orient": "records"}), ("tolist", {})):
            if callable(method := getattr(value, name, None)):
                return method(**(more if hasattr(value, "columns") else {}))
        raise TypeError(f"The program returned a {type(value).__name__} inside its value. Return JSON values.")

    async def run_program(source):
        """Run a program that may use return and await. Its value is displayed as JSON."""
        tree = ast.parse("async def program(): pass")
        tree.body[0].body = ast.parse(source, "<program>").body or tree.body[0].body
        exec(compile(tree, "<program>", "exec"), globals())
        value = await globals()["program"]()
        if value is not None:
            display({MIME: json.loads(json.dumps(value, default=plain))}, raw=True)

    globals().update(inputs, run_program=run_program, **{name: tools[name] for name in names})
'''.replace("MIME", repr(_VALUE))


class SandboxProvider:
    """Runs programs of FastMCP's code mode in sessions (FastMCP's protocol ``SandboxProvider``)."""

    def __init__(self, url: str | None = None, token: str | None = None, **options: Any) -> None:
        """Make a provider. It connects when a program runs.

        Args:
            url: address of the server. Default: as ``Client`` finds it.
            token: its token.
            options: of ``AsyncClient.create_session``: ``limits``, ``template``, ``mounts``, …
        """
        self._address = (url, token)
        self._options = options
        self._running: set[asyncio.Task[Any]] = set()

    async def run(
        self,
        code: str,
        *,
        inputs: dict[str, Any] | None = None,
        external_functions: dict[str, Callable[..., Any]] | None = None,
    ) -> Any:
        """Run a program in a session of its own and return its value.

        Cancelling ends the session and with it the program.

        Args:
            code: statements, with ``await`` and ``return`` as in an async function.
            inputs: JSON values that the program finds under these names.
            external_functions: functions that the program may call by these names. They run in this process.

        Returns:
            The value of ``return`` as JSON. None without one.

        Raises:
            CellFailed: the program raised an exception. Its message has the exception's.
            KernelsvcError: the server made no session.
        """
        work = asyncio.ensure_future(self._run(code, inputs or {}, external_functions or {}))
        self._running.add(work)
        work.add_done_callback(self._running.discard)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # The task closes the session, which cancels the functions that still run, and they end before this method.
            # A cancelled AnyIO scope also cancels this wait, but not the task, which is outside of the scope.
            work.cancel()
            await asyncio.wait([work])
            raise

    async def _run(self, code: str, inputs: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]]) -> Any:
        url, token = self._address
        async with AsyncClient(url, token) as client, await client.create_session(**self._options) as session:
            await session.offer(*(offered(function, name=name) for name, function in functions.items()))
            names, values = json.dumps([*functions]), json.dumps(json.dumps(inputs))
            define = f"{_SETUP}\nimport json as _json\n_define({names}, _json.loads({values}))\ndel _define, _json"
            (await session.run(define, silent=True)).raise_for_error()
            cell = await session.run(f"await run_program({_literal(code)})")
            return _value(cell.raise_for_error())


def _literal(code: str) -> str:
    """Return a Python literal of the code that a reader of the notebook can read, where there is one."""
    plain = "'''" not in code and "\\" not in code and not code.endswith("'") and "\r" not in code
    return f"'''\n{code}\n'''" if plain and "\0" not in code else repr(code)


def _value(cell: Cell) -> Any:
    shown = [output["data"][_VALUE] for output in cell.outputs if _VALUE in output.get("data", {})]
    return shown[-1] if shown else None
