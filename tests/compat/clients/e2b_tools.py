"""E2B's Python SDK, unmodified: code of a sandbox calls a function that another program offers to it.

Arguments: address, token. Says the sandbox's id, waits for a line, calls, and says "ok".
"""

import os
import sys

ADDRESS, TOKEN = sys.argv[1:]
os.environ |= {"E2B_API_KEY": TOKEN, "E2B_API_URL": ADDRESS, "E2B_SANDBOX_URL": ADDRESS}

from e2b_code_interpreter import Sandbox  # noqa: E402

with Sandbox.create() as sandbox:
    print(sandbox.sandbox_id, flush=True)
    sys.stdin.readline()
    seen = []
    code = "rows = [tools.search_orders(customer=n) for n in range(100)]\nprint(len(rows))\nrows[7]"
    execution = sandbox.run_code(code, on_stdout=lambda message: seen.append(message.line))
    assert execution.error is None, execution.error
    assert (execution.text, seen) == ("{'customer': 7}", ["100\n"]), (execution.text, seen)
    failed = sandbox.run_code("tools.search_order(customer=1)")
    assert failed.error.name == "ToolRefused", failed.error
    assert "search_orders" in failed.error.value
    context = sandbox.create_code_context()
    assert sandbox.run_code("tools.search_orders(customer=8)", context=context).text == "{'customer': 8}"
print("ok")
