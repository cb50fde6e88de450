"""OpenAI's and Anthropic's packages as they are, on a real server over a scripted model, with the packages' types."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from environments import INSTALL_SECONDS, clean_env, node_with, python_with
from served import QUICK, Served, serving

CLIENTS = Path(__file__).parent / "clients"
RUN_SECONDS = 120

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS + 60)]


@pytest.fixture(scope="module")
def served_with_model(short_tmp: Path) -> Iterator[Served]:
    """A server whose model runs the lines of the prompt that begin with ``python:``."""
    command = [sys.executable, "-m", "kernelsvc.answers.scripted_model", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as model:
        assert model.stdout is not None
        url = model.stdout.readline().rpartition(" ")[2].strip()
        models = json.dumps({"qwen": {"url": url, "key_env": "QWEN_KEY"}, "o3": {"url": url, "vision": True}})
        env = {**QUICK, "KERNELSVC_MODELS": models, "QWEN_KEY": "canary-key"}
        try:
            with serving(short_tmp / "openai", env=env) as served:
                yield served
        finally:
            model.terminate()


def run(served: Served, *command: object) -> None:
    """Run a client's program with the address and the token. It must end with ``ok``."""
    done = subprocess.run(
        [*map(str, command), served.url, served.token],
        capture_output=True, text=True, timeout=RUN_SECONDS, env=clean_env(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip().endswith("ok")


#: Packages, and the program that uses them.
PROGRAMS = {
    "openai_responses.py": ["openai==3.57.0"],
    "anthropic_messages.py": ["anthropic==2.15.0"],
    "openai_agents.py": ["openai-agents==0.24.0"],
    "langchain_responses.py": ["langchain-openai==1.7.4"],
    "vllm_tool_server.py": ["mcp==1.30.0", "openai-harmony==0.0.8"],
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_package_as_it_is(served_with_model: Served, program: str) -> None:
    run(served_with_model, python_with(*PROGRAMS[program]), CLIENTS / program)


NODE_PROGRAMS = {
    "openai_javascript.mjs": ["openai@6.49.0"],
    "ai_sdk.mjs": ["ai@6.0.326", "@ai-sdk/openai@3.0.141", "zod@4.1.12"],
}


@pytest.mark.parametrize("program", NODE_PROGRAMS)
def test_a_package_of_javascript_as_it_is(served_with_model: Served, program: str, tmp_path: Path) -> None:
    place = node_with(*NODE_PROGRAMS[program])
    # Node looks for packages from the program's own place.
    copied = place / program
    copied.write_bytes((CLIENTS / program).read_bytes())
    run(served_with_model, "node", copied)


def test_no_process_that_the_server_starts_has_the_key(served_with_model: Served) -> None:
    body = {"model": "qwen+python", "input": "python: 6 * 7", "include": ["code_interpreter_call.outputs"]}
    answer = served_with_model.call("POST", "/v1/responses", body)
    assert answer["output"][0]["outputs"] == [{"type": "logs", "logs": "42\n"}]
    started = psutil.Process(served_with_model.pid).children(recursive=True)
    read = []
    for each in started:
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            if b"serve" not in Path(f"/proc/{each.pid}/cmdline").read_bytes():  # workers are servers, too
                read.append(Path(f"/proc/{each.pid}/environ").read_bytes())
    assert any(read)
    assert not any(b"canary-key" in each for each in read)
    files = [each for each in served_with_model.data_dir.rglob("*") if each.is_file()]
    assert not any(b"canary-key" in each.read_bytes() for each in files)


@pytest.mark.parametrize(("kind", "passed"), [("open-responses", 13), ("anthropic", 8), ("openai-chat", 9)])
def test_the_public_tests_of_the_formats(served_with_model: Served, kind: str, passed: int) -> None:
    """llm-comply has the tests of Open Responses, and their equivalents for the two other formats."""
    comply = python_with("llm-comply==0.5.0").with_name("llm-comply")
    # Its tests of reasoning run only for models with a name that it knows.
    command = [comply, "run", "-u", f"{served_with_model.url}/v1", "-k", served_with_model.token, "-m", "o3", "--json"]
    done = subprocess.run(
        [*map(str, command), "--format", kind], capture_output=True, text=True, timeout=RUN_SECONDS, env=clean_env()
    )
    found = json.loads(done.stdout)
    failed = {each["id"]: each["errors"] for each in found["results"] if each["status"] == "failed"}
    assert not failed
    assert sum(each["status"] == "passed" for each in found["results"]) == passed
