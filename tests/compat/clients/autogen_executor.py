"""AutoGen's Jupyter executor, told where we listen."""

import asyncio
import sys
from urllib.parse import urlsplit

from autogen_core import CancellationToken
from autogen_core.code_executor import CodeBlock
from autogen_ext.code_executors.docker_jupyter import DockerJupyterCodeExecutor
from autogen_ext.code_executors.docker_jupyter._jupyter_server import JupyterConnectionInfo

where = urlsplit(sys.argv[1])


async def main():
    info = JupyterConnectionInfo(host=where.hostname, port=where.port, use_https=False, token=sys.argv[2])
    async with DockerJupyterCodeExecutor(jupyter_server=info) as ex:

        async def run(code):
            return await ex.execute_code_blocks([CodeBlock(code=code, language="python")], CancellationToken())

        r = await run("x = 20")
        assert r.exit_code == 0, r
        r = await run("print(x + 1)")
        assert (r.exit_code, r.output.strip()) == (0, "21"), r
        r = await run("1/0")
        assert r.exit_code != 0, r
        assert "ZeroDivisionError" in r.output, r
        await ex.restart()
        r = await run("x")
        assert "NameError" in r.output, r
    print("ok")


asyncio.run(main())
