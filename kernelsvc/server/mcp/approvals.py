"""Approvals of calls by the person at an MCP host: by ``elicitation/create``, or by ``input_required``.

A cell whose call waits for approval keeps waiting. In protocols until 2025-11-25 the server asks the host while
``tools/call`` runs. From 2026-07-28 on the result of ``tools/call`` is ``input_required``: the host asks, and sends the
request again with the decisions, which then goes on waiting for the same cell.

The state in between names session and cell. It is no secret and needs no signature: the repeated request reaches only
sessions of its own principal.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from kernelsvc.model.objects import ToolCallInfo
from kernelsvc.tools import Toolbox
from kernelsvc.tools.toolbox import Decide

Context = ServerRequestContext[Any, Any]
#: Largest text of arguments in a question, in characters.
MAX_ARGUMENTS = 2000
#: Most characters of a state that a client sends back. Those of this server name a session and a cell.
MAX_STATE = 4096
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"approve": {"type": "boolean", "title": "Approve", "description": "Whether the call may run."}},
    "required": ["approve"],
}


class InputRequired(Exception):
    """The host must ask a person before the cell can go on."""

    def __init__(self, call: ToolCallInfo) -> None:
        super().__init__(call.call)
        self.call = call

    def result(self) -> types.InputRequiredResult:
        """Return the result of ``tools/call`` that says so."""
        request = types.ElicitRequest(params=_form(self.call))
        state = json.dumps({"session": self.call.session, "cell": self.call.cell})
        return types.InputRequiredResult(input_requests={self.call.call: request}, request_state=state)


def decider(ctx: Context) -> Decide | None:
    """Return a function that asks the host. None if the host can't ask its person."""
    capabilities = ctx.session.client_capabilities
    if capabilities is None or capabilities.elicitation is None:
        return None
    return _require_input if ctx.session.protocol_version in MODERN_PROTOCOL_VERSIONS else _eliciting(ctx)


async def _require_input(call: ToolCallInfo) -> NoReturn:
    raise InputRequired(call)


def _eliciting(ctx: Context) -> Decide:
    async def decide(call: ToolCallInfo) -> bool | None:
        form = _form(call)
        try:
            answer = await ctx.session.elicit_form(form.message, form.requested_schema, ctx.request_id)
        except MCPError:
            return None  # the host can't ask now, and another client may decide
        return decision_of(answer)

    return decide


def _form(call: ToolCallInfo) -> types.ElicitRequestFormParams:
    arguments = json.dumps(call.arguments, ensure_ascii=False, indent=1)[:MAX_ARGUMENTS]
    text = f"Code in session {call.session} calls {call.tool} with {arguments}. May it?"
    return types.ElicitRequestFormParams(message=text, requested_schema=_SCHEMA)


def decision_of(answer: Any) -> bool | None:
    """Return the decision in a host's answer. None if the person dismissed the question."""
    action = getattr(answer, "action", "cancel")
    if action == "accept":
        return bool((getattr(answer, "content", None) or {}).get("approve"))
    return False if action == "decline" else None


async def decide_again(toolbox: Toolbox, params: types.CallToolRequestParams) -> dict[str, Any] | None:
    """Carry out the decisions of a repeated request. Return the arguments of ``wait`` for its cell, or None.

    Raises:
        MCPError: the state is not one of this server's.
    """
    if params.request_state is None:
        return None
    try:
        if len(params.request_state) > MAX_STATE:
            raise ValueError
        state = json.loads(params.request_state)
        session, cell = str(state["session"]), str(state["cell"])
    except (ValueError, KeyError, TypeError):
        raise MCPError(types.INVALID_PARAMS, "The requestState is not this server's. Call the tool again.") from None
    for call, answer in (params.input_responses or {}).items():
        if (decision := decision_of(answer)) is not None:
            await toolbox.decide(session, call, approve=decision)
    return {"session": session, "cell": cell}
