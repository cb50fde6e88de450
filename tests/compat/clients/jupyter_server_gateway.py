"""JupyterLab's server in front of us, driven as JupyterLab drives it."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid

import websocket

url, token = sys.argv[1:3]
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
root = tempfile.mkdtemp()
env = {**os.environ, "JUPYTER_CONFIG_DIR": root, "JUPYTER_DATA_DIR": root, "JUPYTER_RUNTIME_DIR": root, "HOME": root}
server = subprocess.Popen(
    [
        sys.executable,
        "-m",
        "jupyter_server",
        "--allow-root",
        "--no-browser",
        f"--port={port}",
        f"--ServerApp.root_dir={root}",
        "--IdentityProvider.token=front",
        f"--GatewayClient.url={url}",
        f"--GatewayClient.auth_token={token}",
    ],
    env=env,
    stderr=subprocess.DEVNULL,
)
base = f"http://127.0.0.1:{port}"


def call(method, path, body=None):
    request = urllib.request.Request(
        base + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": "token front", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        data = answer.read()
    return json.loads(data) if data else None


try:
    end = time.monotonic() + 40
    while True:
        try:
            call("GET", "/api/status")
            break
        except OSError:
            assert time.monotonic() < end, "jupyter_server does not answer"
            time.sleep(0.1)
    specs = call("GET", "/api/kernelspecs")
    assert "python3" in specs["kernelspecs"], specs
    session = call(
        "POST", "/api/sessions", {"path": "n.ipynb", "name": "n", "type": "notebook", "kernel": {"name": "python3"}}
    )
    kernel = session["kernel"]["id"]
    me = uuid.uuid4().hex
    ws = websocket.create_connection(
        f"ws://127.0.0.1:{port}/api/kernels/{kernel}/channels?session_id={me}",
        header=["Authorization: token front"],
        timeout=30,
    )

    def send(kind, content, channel="shell"):
        id = uuid.uuid4().hex
        header = {
            "msg_id": id,
            "msg_type": kind,
            "session": me,
            "username": "",
            "version": "5.2",
            "date": "2026-01-01T00:00:00Z",
        }
        ws.send(
            json.dumps(
                {
                    "channel": channel,
                    "header": header,
                    "parent_header": {},
                    "metadata": {},
                    "content": content,
                    "buffers": [],
                }
            )
        )
        return id

    def until_idle(id):
        found = []
        while True:
            m = json.loads(ws.recv())
            if m["parent_header"].get("msg_id") == id:
                found.append(m)
                if m["content"].get("execution_state") == "idle":
                    return found

    def run(code):
        return until_idle(
            send(
                "execute_request",
                {
                    "code": code,
                    "silent": False,
                    "store_history": True,
                    "user_expressions": {},
                    "allow_stdin": True,
                    "stop_on_error": True,
                },
            )
        )

    assert "kernel_info_reply" in [m["msg_type"] for m in until_idle(send("kernel_info_request", {}))]
    assert [m["content"]["text"] for m in run("print('hi', end='')") if m["msg_type"] == "stream"] == ["hi"]
    shown = run("import matplotlib.pyplot as plt; plt.plot([1,2]); plt.show()")
    assert any("image/png" in m["content"].get("data", {}) for m in shown)
    failed = run("1/0")
    assert [m["content"]["ename"] for m in failed if m["msg_type"] == "execute_reply"] == ["ZeroDivisionError"]
    cell = send("execute_request", {"code": "import time\nprint('on', flush=True)\ntime.sleep(60)", "silent": False})
    while json.loads(ws.recv())["msg_type"] != "stream":
        pass
    call("POST", f"/api/kernels/{kernel}/interrupt", {})
    assert "KeyboardInterrupt" in [m["content"].get("ename") for m in until_idle(cell)]
    call("POST", f"/api/kernels/{kernel}/restart", {})
    assert kernel in [k["id"] for k in call("GET", "/api/kernels")]
    ws.close()
    ws = websocket.create_connection(
        f"ws://127.0.0.1:{port}/api/kernels/{kernel}/channels?session_id={me}",
        header=["Authorization: token front"],
        timeout=30,
    )
    assert any(m["content"].get("ename") == "NameError" for m in run("plt"))
    call("DELETE", f"/api/sessions/{session['id']}")
    print("ok")
finally:
    server.terminate()
    server.wait()
