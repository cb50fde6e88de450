"""MCP servers whose tools code may call: the table ``[tools.mcp.NAME]`` of the settings, and tools as offers. Pure."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from kernelsvc.errors import BadRequest
from kernelsvc.model.tool_calls.offers import Approval, Effects, Offer, Seconds, ToolFilter, ToolPattern, ToolPatterns

#: Name of a server: the namespace of its tools in code.
McpName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_]*$(?!\n)")]
#: Provider ids of the bridge begin with this.
PROVIDER = "mcp."


class McpServer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An MCP server.

    Attributes:
        command: its program and the arguments, for a server on standard input and output.
        url: its address, for a server over HTTP.
        env: environment variables of the program, beside PATH, HOME and the like.
        headers: HTTP headers, for example with a key.
        allow, deny: tools that code may call. ``*`` stands for any characters.
        approval: when a person must approve a call, by pattern of the tool's name. The first pattern that fits counts.
            Default: always, unless the server marks the tool as reading only, and ``trusted_hints`` is set.
        trusted_hints: believe the server's hints ``readOnlyHint`` and ``idempotentHint``.
        principals: whose sessions may call its tools. Default: those of everyone.
        timeout_seconds: for one call.
        max_in_flight: calls at the same time. More calls wait.
    """

    command: list[str] = []
    url: str = ""
    env: dict[str, str] = {}
    headers: dict[str, str] = {}
    allow: ToolPatterns | None = None
    deny: ToolPatterns = []
    approval: dict[ToolPattern, Approval] = {}
    trusted_hints: bool = False
    principals: list[str] = msgspec.field(default_factory=lambda: ["*"])
    timeout_seconds: Seconds = 60.0
    max_in_flight: Annotated[int, Meta(ge=1, le=1000)] = 32

    def __post_init__(self) -> None:
        if bool(self.command) == bool(self.url):
            raise ValueError("An MCP server needs either a 'command' or a 'url'")

    def permits(self, tool: str) -> bool:
        """Return whether code may call a tool of this server."""
        return ToolFilter(allow=self.allow, deny=self.deny).permits(tool)


def offer_of(
    server: str,
    about: McpServer,
    tool: str,
    *,
    description: str,
    parameters: Mapping[str, Any],
    returns: Mapping[str, Any] | None,
    read_only: bool,
    idempotent: bool,
) -> Offer:
    """Return a tool of an MCP server as an offer in the server's namespace.

    Args:
        server: the name in the settings.
        about: the settings.
        tool: the tool's name, as the MCP server has it.
        description: from the MCP server.
        parameters: JSON schema of the arguments.
        returns: JSON schema of the result that code gets.
        read_only: the server's hint that the tool changes nothing.
        idempotent: the server's hint that it may be carried out twice.

    Raises:
        BadRequest: the tool's name has characters that no offer may have.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.\-/]{1,60}", tool):
        raise BadRequest(f"The tool {tool[:100]!r} of the MCP server {server} can't be offered: its name is not valid.")
    trusted = about.trusted_hints
    effects: Effects = "read" if trusted and read_only else "unknown"
    chosen = next((mode for pattern, mode in about.approval.items() if fnmatch.fnmatchcase(tool, pattern)), None)
    default: Approval = "never" if effects == "read" else "always"
    return Offer(
        name=tool,
        namespace=server,
        description=description[:32_000],
        parameters=dict(parameters),
        returns=None if returns is None else dict(returns),
        effects=effects,
        idempotent=trusted and (idempotent or read_only),
        approval=chosen or default,
        timeout_seconds=about.timeout_seconds,
        max_in_flight=about.max_in_flight,
    )
