"""Time of calls of an MCP tool from code in ipybox. Runs in ipybox's own environment: ``ipybox_script.py COUNT``.

The tool is a stub in this file (``--serve``), which an MCP server offers on its standard streams. Approval is off.
Prints the times of COUNT calls in seconds, as JSON.
"""

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path

CODE = """
import time
from mcptools.stub import same
times = []
for n in range({count}):
    began = time.perf_counter()
    same.run(same.Params(n=n))
    times.append(time.perf_counter() - began)
print(times)
"""


TOOL = {
    "name": "same",
    "description": "Return n.",
    "inputSchema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
}


def serve() -> None:
    """Serve the stub until standard input ends. Without a library, which would take seconds to import."""
    for line in sys.stdin:
        request = json.loads(line)
        if "id" not in request:
            continue
        params = request.get("params") or {}
        answers = {
            "initialize": lambda p: {
                "protocolVersion": p["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "stub", "version": "1"},
            },
            "tools/list": lambda p: {"tools": [TOOL]},
            "tools/call": lambda p: {"content": [{"type": "text", "text": str(p["arguments"]["n"])}]},
        }
        result = answers[request["method"]](params)
        print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}), flush=True)


async def measure(count: int) -> None:
    """Print the times of calls."""
    from ipybox import CodeExecutor, generate_mcp_sources
    from ipybox.kernel_mgr.client import KernelClient

    # Its own ten attempts, one a second, are not enough for the start of its gateway on a busy machine.
    KernelClient.connect.__defaults__ = (120, 1.0, None)

    with tempfile.TemporaryDirectory(prefix="ipybox") as root:
        os.chdir(root)
        me = {"command": sys.executable, "args": [__file__, "--serve"]}
        await generate_mcp_sources("stub", me, Path("mcptools"))
        async with CodeExecutor(
            approve_tool_calls=False, kernel_init_timeout=60, kernel_env={"PYTHONPATH": root}
        ) as executor:
            await executor.execute(CODE.format(count=5))
            print((await executor.execute(CODE.format(count=count))).text)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve()
    else:
        asyncio.run(measure(int(sys.argv[1])))
