"""smolagents' Docker executor, whose container is us: its own way to make a kernel and to run code, without Docker.

Its constructor builds an image and starts a container before it talks to Jupyter; only that part is left out.
"""

import sys
import time

import requests
from smolagents import AgentError, tool
from smolagents.default_tools import FinalAnswerTool
from smolagents.monitoring import AgentLogger, LogLevel
from smolagents.remote_executors import DockerExecutor, RemotePythonExecutor, _create_kernel_http

url, token = sys.argv[1:3]


class HereExecutor(DockerExecutor):
    def __init__(self):
        RemotePythonExecutor.__init__(self, [], AgentLogger(level=LogLevel.OFF))
        self.base_url = url
        self._wait_for_server(token)
        self.kernel_id = _create_kernel_http(f"{url}/api/kernels?token={token}", self.logger)
        self.ws_url = f"{url.replace('http', 'ws', 1)}/api/kernels/{self.kernel_id}/channels?token={token}"


@tool
def double(n: int) -> int:
    """Doubles a number.

    Args:
        n: what is doubled.
    """
    return 2 * n


def wait_until_idle():
    end = time.monotonic() + 30
    while requests.get(f"{url}/api/kernels/{executor.kernel_id}?token={token}").json()["execution_state"] != "idle":
        assert time.monotonic() < end
        time.sleep(0.05)


executor = HereExecutor()
executor.send_variables({"given": {"a": [1, 2]}})
executor.send_tools({"double": double, "final_answer": FinalAnswerTool()})
ran = executor("print('heard', given['a'])\ndouble(21)")
assert (ran.output, ran.logs.strip(), ran.is_final_answer) == ("42", "heard [1, 2]", False), ran
lines = executor("for i in range(5000): print(i)").logs
assert lines.split() == [str(i) for i in range(5000)]
done = executor("final_answer({'sum': sum(given['a'])})")
assert (done.output, done.is_final_answer) == ({"sum": 3}, True), done
# A final answer is an exception, and a cell that is sent while the one that failed still ends would be aborted.
wait_until_idle()
failed = ""
try:
    executor("1/0")
except AgentError as error:
    failed = str(error)
assert "ZeroDivisionError" in failed
requests.delete(f"{url}/api/kernels/{executor.kernel_id}?token={token}").raise_for_status()
print("ok")
