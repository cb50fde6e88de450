"""papermill with parameters, its kernels through the gateway client."""

import sys
import tempfile

import nbformat
import papermill
from jupyter_server.gateway.gateway_client import GatewayClient

GatewayClient.instance().url = sys.argv[1] + "/t/" + sys.argv[2]
d = tempfile.mkdtemp()
cell = nbformat.v4.new_code_cell("n = 1")
cell.metadata["tags"] = ["parameters"]
nb = nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell("print(n * 3, end='')")])
nb.metadata["kernelspec"] = {"name": "python3", "display_name": "p", "language": "python"}
nbformat.write(nb, d + "/in.ipynb")
out = papermill.execute_notebook(
    d + "/in.ipynb",
    d + "/out.ipynb",
    parameters={"n": 14},
    progress_bar=False,
    kernel_manager_class="jupyter_server.gateway.managers.GatewayKernelManager",
)
assert out.cells[-1].outputs[0].text == "42", out.cells[-1]
print("ok")
