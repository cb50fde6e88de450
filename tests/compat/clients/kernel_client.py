"""jupyter-kernel-client, as its README uses it."""

import sys

from jupyter_kernel_client import JupyterKernelClient

url, token = sys.argv[1:3]
with JupyterKernelClient(server_url=url, token=token) as kernel:
    assert kernel.kernel_info["language_info"]["name"] == "python"
    reply = kernel.execute("x = 20 + 1\nprint('hi')\nx * 2")
    assert reply["status"] == "ok", reply
    assert "".join(o["text"] for o in reply["outputs"] if o["output_type"] == "stream") == "hi\n"
    assert reply["outputs"][-1]["data"]["text/plain"] == "42"
    failed = kernel.execute("1/0")
    assert (failed["status"], failed["outputs"][-1]["ename"]) == ("error", "ZeroDivisionError")
    shown = kernel.execute("import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()")
    assert any("image/png" in o.get("data", {}) for o in shown["outputs"])
    big = kernel.execute("for i in range(20000): print(i)")
    said = "".join(o["text"] for o in big["outputs"] if o["output_type"] == "stream")
    assert said == "".join(f"{i}\n" for i in range(20000))
    kernel.restart()
    assert kernel.execute("x")["outputs"][-1]["ename"] == "NameError"
print("ok")
