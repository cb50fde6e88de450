"""nbclient through jupyter_server's GatewayKernelManager, which sends no token: a capability URL."""

import sys

import nbformat
from jupyter_server.gateway.gateway_client import GatewayClient
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

GatewayClient.instance().url = sys.argv[1].rstrip("/") + "/t/" + sys.argv[2]
MANAGER = "jupyter_server.gateway.managers.GatewayKernelManager"


def executed(*cells: str) -> list:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in cells])
    NotebookClient(notebook, kernel_manager_class=MANAGER, timeout=60).execute()
    return [cell.outputs for cell in notebook.cells]


done = executed("x = 5\nprint('one')", "x * 3", "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()")
assert "".join(output.text for output in done[0]) == "one\n"
assert done[1][0].data["text/plain"] == "15"
assert "image/png" in done[2][-1].data
(clear,) = executed("from IPython.display import display, clear_output\nprint(1); clear_output(); print(2)")
assert "".join(output.text for output in clear) == "2\n"
failed = None
try:
    executed("1/0")
except CellExecutionError as error:
    failed = error.ename
assert failed == "ZeroDivisionError"
print("ok")
