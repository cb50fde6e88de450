"""An MCP server for tests, made with the official SDK, and the settings with which kernelsvc starts it."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

SERVER = textwrap.dedent('''
    import os, sys, time
    from mcp.server import MCPServer
    from mcp_types import ToolAnnotations

    server = MCPServer("shop")
    READ = ToolAnnotations(read_only_hint=True)

    @server.tool(annotations=READ)
    def add(a: int, b: int = 2) -> int:
        """Add two numbers."""
        return a + b

    @server.tool(annotations=READ)
    def where() -> list[str]:
        return [str(os.getpid()), os.environ["SHOP_KEY"]]

    @server.tool(annotations=READ)
    def held(ran: str, go: str) -> str:
        open(ran, "a").write("x")
        while not os.path.exists(go):
            time.sleep(0.02)
        return "late"

    @server.tool(annotations=READ)
    def fail() -> str:
        raise ValueError("no such order")

    @server.tool()
    def buy(n: int) -> int:
        return n

    @server.tool()
    def delete_all() -> int:
        return 0

    server.run()
''')


def shop_settings(root: Path) -> Path:
    """Write the server and the settings into a directory, and return the path of the settings."""
    (root / "shop.py").write_text(SERVER)
    path = root / "config.toml"
    path.write_text(
        f"[tools.mcp.shop]\ncommand = [{sys.executable!r}, {str(root / 'shop.py')!r}]\n"
        'env = {SHOP_KEY = "CANARY-88"}\ntrusted_hints = true\ntimeout_seconds = 600\ndeny = ["delete_*"]\n'
    )
    return path
