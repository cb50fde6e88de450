"""What a language model is offered: tools over sessions, the same for every protocol that carries tool calls.

Flow: ``table`` says which tools there are, with their arguments and results as
types; ``schema`` turns those into JSON Schema and into each vendor's form.
``Toolbox`` carries a call out over a ``ToolBackend`` (``port``: the service within the
server, or a client outside of it) and gives an ``ToolResult`` (``outcome``): text
within a budget, pictures, and the same facts for programs. ``choosing`` finds
the session that a call means.

MCP (``transports.mcp``) and function calling (``integrations``) are adapters
over this package; no wording and no rule stands in them twice.
"""

from kernelsvc.tools.backend import FilePart, ToolBackend
from kernelsvc.tools.definitions import TOOLS, Tool
from kernelsvc.tools.result import ImageContent, ResourceLink, TextContent, ToolResult
from kernelsvc.tools.schema import FORMATS, tool_definitions
from kernelsvc.tools.toolbox import Toolbox

__all__ = [
    "FORMATS",
    "TOOLS",
    "FilePart",
    "ImageContent",
    "ResourceLink",
    "TextContent",
    "Tool",
    "ToolBackend",
    "ToolResult",
    "Toolbox",
    "tool_definitions",
]
