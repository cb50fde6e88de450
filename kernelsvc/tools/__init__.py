"""Tools for language models, independent of the protocol of the tool calls.

* ``definitions``: the tools, with their wording, arguments and results.
* ``schema``: the same as JSON Schema, in each vendor's format.
* ``toolbox``: runs a call over a ``ToolBackend``, which is the service in the server, or a client outside of it.
* ``result``: the result of a call. Text of limited length, images, and the same facts for programs.
* ``session_resolver``: finds the session of a call.

MCP (``server.mcp``) and function calling (``integrations``) are adapters over this package.
"""

from kernelsvc.tools.backend import FilePart, ToolBackend
from kernelsvc.tools.definitions import CORE, TOOLS, Tool
from kernelsvc.tools.result import ImageContent, ResourceLink, TextContent, ToolResult
from kernelsvc.tools.schema import FORMATS, tool_definitions
from kernelsvc.tools.toolbox import Toolbox

__all__ = [
    "CORE",
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
