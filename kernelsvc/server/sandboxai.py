"""The SandboxAI API: ``/v1/spaces/...``, five routes.

A sandbox is a session. Its space and name are a label. Cells and shell commands
are cells of the session, in its log and its notebook. SandboxAI's client
sends no token, so its base URL contains it: ``http://HOST:PORT/t/TOKEN/v1``.
"""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from kernelsvc.errors import Conflict, NotFound
from kernelsvc.model.objects import CellInfo, CellRequest, SessionInfo, SessionRequest, SessionState
from kernelsvc.protocol.jsonrpc import decode_json
from kernelsvc.server.handler import ApiHandler
from kernelsvc.server.jupyter.handlers import token_of

#: Prefix with a token, for clients that can't send one in another way.
PREFIX = r"(?:/t/[^/]+)?"
LABEL = "sandboxai"
_PAGE = 20


class SpaceSandboxSpec(msgspec.Struct, frozen=True):
    """A sandbox's specification. The image has no effect. It is stored and returned."""

    image: str | None = None
    env: dict[str, str] | None = None


class SpaceSandboxRequest(msgspec.Struct):
    """``POST .../sandboxes``."""

    name: str | None = None
    spec: SpaceSandboxSpec = SpaceSandboxSpec()


class RunCellRequest(msgspec.Struct):
    """``tools:run_ipython_cell``."""

    code: str
    split_output: bool | None = False


class RunCommandRequest(msgspec.Struct):
    """``tools:run_shell_command``."""

    command: str
    split_output: bool | None = False


_sandbox_decoder = msgspec.json.Decoder(SpaceSandboxRequest)
_cell_decoder = msgspec.json.Decoder(RunCellRequest)
_command_decoder = msgspec.json.Decoder(RunCommandRequest)


def command_cell(command: str) -> str:
    """Return a cell that runs a shell command. As in SandboxAI, a non-zero exit status is not an error."""
    return f"%%bash --no-raise-error\n{command}"


def result(cell: CellInfo, split: bool) -> dict[str, str]:
    """Return a cell's output, joined or split by stream. An error is part of stdout, where IPython prints it."""
    if not split:
        return {"output": _with_cause(cell, cell.text)}
    errors = "".join(_text(each) for each in cell.outputs if each.get("name") == "stderr")
    output = "".join(_text(each) for each in cell.outputs if each.get("name") != "stderr")
    return {"stdout": _with_cause(cell, output), "stderr": errors}


def _with_cause(cell: CellInfo, text: str) -> str:
    """Append the reason why the cell ended, unless its output has it."""
    return text + (f"\n{cell.message}\n" if cell.message and cell.error is None else "")


def _text(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return _joined(output["text"])
    if output["output_type"] == "error":
        return "\n".join(output["traceback"]) + "\n"
    plain = output.get("data", {}).get("text/plain")
    return _joined(plain) + "\n" if plain is not None else ""


def _joined(text: Any) -> str:
    return "".join(text) if isinstance(text, list) else str(text)


class SandboxAiHandler(ApiHandler):
    """Base of SandboxAI's handlers: authentication, and finding a sandbox."""

    transport = "sandboxai"
    route = "/v1/spaces"

    def token(self) -> str | None:
        """Return the token that the request carries."""
        return token_of(self, query=False)

    def find(self, space: str, name: str) -> SessionInfo:
        """Return the open session of a sandbox.

        Raises:
            NotFound: The caller has no sandbox of this name.
        """
        found = self.known(space, name)
        if found is None:
            raise NotFound(f"There is no sandbox {name!r} in the space {space!r}. POST one to its sandboxes.")
        return found

    def known(self, space: str, name: str) -> SessionInfo | None:
        """Return the open session of a sandbox, or None."""
        sessions, _ = self.context.service.list(self.who, label=f"{LABEL}={space}/{name}", limit=_PAGE)
        return next((each for each in sessions if each.state is not SessionState.CLOSED), None)


class SpaceSandboxesHandler(SandboxAiHandler):
    """Handler of ``/v1/spaces/{space}/sandboxes``."""

    async def post(self, space: str) -> None:
        """Create a sandbox."""
        self.auth_scope("run")
        asked = decode_json(_sandbox_decoder, self.body(), "body")
        name = asked.name or f"sandbox-{secrets.token_hex(6)}"
        if self.known(space, name) is not None:
            raise Conflict(f"The sandbox {name!r} exists in the space {space!r}. Delete it, or choose another name.")
        labels = {LABEL: f"{space}/{name}", "sandboxai-image": (asked.spec.image or "")[:256]}
        raw = {"name": name, "labels": labels, "env": asked.spec.env or {}}
        made = await self.context.service.create(
            self.who, decode_json(_session_decoder, msgspec.json.encode(raw), "body")
        )
        self.answer(sandbox_model(made), 201)


_session_decoder = msgspec.json.Decoder(SessionRequest)


class SpaceSandboxHandler(SandboxAiHandler):
    """Handler of ``/v1/spaces/{space}/sandboxes/{name}``."""

    async def get(self, space: str, name: str) -> None:
        """Return the sandbox."""
        self.answer(sandbox_model(self.find(space, name)))

    async def delete(self, space: str, name: str) -> None:
        """Close the session. Its log stays."""
        self.auth_scope("run")
        await self.context.service.close(self.who, self.find(space, name).id)
        self.answer(None)


class SpaceToolHandler(SandboxAiHandler):
    """Handler of ``.../tools:run_ipython_cell`` and ``.../tools:run_shell_command``."""

    async def post(self, space: str, name: str, tool: str) -> None:
        """Run the code or the command, and respond when it has ended."""
        self.auth_scope("run")
        session = self.find(space, name)
        if tool == "run_ipython_cell":
            asked: Any = decode_json(_cell_decoder, self.body(), "body")
            code = asked.code
        else:
            asked = decode_json(_command_decoder, self.body(), "body")
            code = command_cell(asked.command)
        request = CellRequest(code=code, on_error="continue")
        cell = await self.while_connected(self.context.service.execute(self.who, session.id, request, client=self))
        self.answer(result(cell, bool(asked.split_output)))


class SandboxAiHealthHandler(SandboxAiHandler):
    """Handler of ``/v1/healthz``."""

    scope = None

    async def get(self) -> None:
        """Respond, which shows that the server runs."""
        self.answer({"status": "ok"})


def sandbox_model(session: SessionInfo) -> dict[str, Any]:
    """Return a session as a sandbox."""
    spec = {"image": session.labels.get("sandboxai-image") or session.template, "env": None}
    return {"name": session.name, "uid": session.id, "spec": spec, "status": {}}


def routes(shared: dict[str, Any]) -> list[Any]:
    """Return Tornado's routes of the SandboxAI API.

    Args:
        shared: Passed to each handler's ``initialize``.
    """
    sandbox = rf"{PREFIX}/v1/spaces/([A-Za-z0-9._-]{{1,100}})/sandboxes"
    name = r"([A-Za-z0-9._-]{1,100})"
    return [
        (rf"{PREFIX}/v1/healthz", SandboxAiHealthHandler, shared),
        (sandbox, SpaceSandboxesHandler, shared),
        (rf"{sandbox}/{name}", SpaceSandboxHandler, shared),
        (rf"{sandbox}/{name}/tools:(run_ipython_cell|run_shell_command)", SpaceToolHandler, shared),
    ]
