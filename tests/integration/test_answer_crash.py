"""A kill of the server while a model's answer runs: no code runs twice, no item is lost."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
from pathlib import Path
from typing import Any

import pytest
from served import QUICK, serving
from waiting import wait_for

OUTPUTS = "code_interpreter_call.outputs"
CODE = {"type": "code_interpreter"}
#: The second cell continues until its file is there, over the kill of the server.
PROMPT = """python: x = 41; open('runs', 'a').write('1')
python: import os, time; n = open('runs', 'a').write('2'); print('begun', flush=True); exec("while not os.path.exists('go'): time.sleep(0.02)"); x += 1; print('ended')
"""  # noqa: E501


@pytest.mark.timeout(120)
def test_a_background_answer_continues_after_a_kill_of_the_server_and_runs_no_code_twice(short_tmp: Path) -> None:
    command = [sys.executable, "-m", "kernelsvc.answers.scripted_model", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as model:
        assert model.stdout is not None
        url = model.stdout.readline().rpartition(" ")[2].strip()
        env = {**QUICK, "KERNELSVC_MODELS": json.dumps({"m": {"url": url}})}
        try:
            with serving(short_tmp / "crash", env=env) as served:
                body = {"model": "m", "input": PROMPT, "tools": [CODE], "background": True}
                path = "/v1/responses/" + served.call("POST", "/v1/responses", body)["id"]

                def second_runs() -> Any:
                    items = served.call("GET", f"{path}?include={OUTPUTS}")["output"]
                    return items if len(items) == 2 and "begun" in json.dumps(items[1]["outputs"]) else None

                before = wait_for(second_runs, what="the second cell")
                served.kill()
                served.start()
                after = served.call("GET", f"{path}?include={OUTPUTS}")
                assert (after["status"], after["error"]) == ("in_progress", None)
                assert [each["id"] for each in after["output"]] == [each["id"] for each in before]
                assert [each["status"] for each in after["output"]] == ["completed", "in_progress"]
                container = after["output"][0]["container_id"]
                files = f"/v1/sessions/{container.replace('cntr_', 's_')}/files"
                served.call("PUT", f"{files}/go", "")
                # The cell has gone on in its kernel. The answer has joined it, and asks the model for the rest.
                wait_for(lambda: served.call("GET", path)["status"] == "completed", what="the end of the answer")
                after = served.call("GET", f"{path}?include={OUTPUTS}")
                assert [each["id"] for each in after["output"][:2]] == [each["id"] for each in before]
                assert "ended" in after["output"][1]["outputs"][0]["logs"]
                assert "ended" in after["output"][2]["content"][0]["text"]
                assert not list((served.data_dir / "responses" / "running").iterdir())
                asked = "python: print(x, open('runs').read())"
                body = {"model": "m", "input": asked, "tools": [CODE], "previous_response_id": after["id"]}
                last = served.call("POST", "/v1/responses", {**body, "include": [OUTPUTS]})
                assert last["output"][0]["outputs"] == [{"type": "logs", "logs": "42 12\n"}]
                with pytest.raises(urllib.error.HTTPError):
                    served.call("POST", path + "x/cancel", {})
        finally:
            model.terminate()
