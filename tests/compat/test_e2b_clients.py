"""E2B's clients at their current releases, unmodified, each in an environment of its own, with two addresses changed.

What a client does is a script in ``clients/`` that runs in that environment and says "ok".
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from environments import INSTALL_SECONDS, clean_env, node_with, python_with
from served import Served, serving

from kernelsvc import Client
from kernelsvc.guest.e2b import charts as e2b_charts

CLIENTS = Path(__file__).parent / "clients"
RUN_SECONDS = 180

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS + 60)]

PYTHON = ("e2b-code-interpreter==2.11.5", "e2b==2.63.0", "pytest")
JAVASCRIPT = ("@e2b/code-interpreter@2.8.0", "e2b@2.51.0")
SMOLAGENTS = ("smolagents==1.26.0", "e2b-code-interpreter==2.11.5", "python-dotenv", "pytest")
CLI = ("@e2b/cli@2.19.0",)
DENO = ("deno@2.9.6",)
CHARTS = ("e2b-charts==1.0.0",)


def run(*command: Any, seconds: float = RUN_SECONDS, **more: Any) -> None:
    # One run of some twenty ended by SIGABRT after its "ok", with nothing said: the next one says where.
    env = clean_env(PYTHONFAULTHANDLER="1")
    done = subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, timeout=seconds, env=env, **more
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip().endswith("ok")


def test_secrets(short_tmp: Path) -> None:
    secrets = {name: {"hosts": ["api.example.com"], "env": "PATH"} for name in ("models", "first")}
    rule = {"host": "api.example.com", "secrets": ["models"]}
    env = {
        "KERNELSVC_SECRETS": json.dumps(secrets),
        "KERNELSVC_LIMITS_NETWORK": json.dumps({"allow": [rule, "other.example.com"]}),
    }
    with serving(short_tmp / "secrets", env=env) as served:
        run(python_with(*PYTHON), CLIENTS / "e2b_secrets.py", served.url, served.token)


def test_code_of_a_sandbox_calls_a_function_of_another_program(served: Served) -> None:
    command = [python_with(*PYTHON), CLIENTS / "e2b_tools.py", served.url, served.token]
    with (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_env()
        ) as sandbox,
        Client(served.url, served.token) as client,
    ):
        assert sandbox.stdin is not None
        assert sandbox.stdout is not None
        session = client.session(sandbox.stdout.readline().strip())
        session.offer(lambda customer: {"customer": customer}, name="search_orders", effects="read",
                      parameters={"type": "object", "properties": {"customer": {"type": "integer"}}})  # fmt: skip
        said, errors = sandbox.communicate("\n", timeout=RUN_SECONDS)
        assert (said, sandbox.returncode) == ("ok\n", 0), errors[-4000:]


@pytest.mark.timeout(2 * INSTALL_SECONDS + 60)
def test_templates(served: Served) -> None:
    # Environments are installed from the index of the machine.
    run(python_with(*PYTHON), CLIENTS / "e2b_templates.py", served.url, served.token, seconds=2 * INSTALL_SECONDS)


@pytest.mark.parametrize(
    ("script", "packages"),
    [
        ("e2b_sync", PYTHON),
        ("e2b_async", PYTHON),
        ("e2b_figures", PYTHON),
        ("e2b_smolagents", SMOLAGENTS),
        ("e2b_volumes", PYTHON),
    ],
)
def test_a_python_client(served: Served, script: str, packages: tuple[str, ...]) -> None:
    run(python_with(*packages), CLIENTS / f"{script}.py", served.url, served.token)


def test_cold_kernels_contexts_and_programs_together(short_tmp: Path) -> None:
    """With a kernelspec of the machine's own, as a server that has other languages."""
    spec = short_tmp / "jupyter" / "kernels" / "cold"
    spec.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.joinpath("kernel.json").write_text(json.dumps({"argv": command, "display_name": "C", "language": "python"}))
    with serving(short_tmp / "together", env={"JUPYTER_PATH": str(short_tmp / "jupyter")}, preload=True) as served:
        run(python_with(*PYTHON), CLIENTS / "e2b_together.py", served.url, served.token)


def test_javascript_and_typescript_run_in_deno(short_tmp: Path) -> None:
    deno = node_with(*DENO) / "node_modules" / "@deno" / "linux-x64-glibc" / "deno"
    if not deno.exists():
        pytest.skip("npm has no deno for this machine")
    place = Path(tempfile.mkdtemp(prefix="deno-", dir=sys.prefix))  # where sessions see it
    spec = short_tmp / "deno" / "kernels" / "deno"
    spec.mkdir(parents=True)
    command = [str(place / "deno"), "jupyter", "--kernel", "--conn", "{connection_file}"]
    spec.joinpath("kernel.json").write_text(
        json.dumps({"argv": command, "display_name": "Deno", "language": "typescript", "env": {"NO_COLOR": "1"}})
    )
    try:
        shutil.copy2(deno, place)
        place.chmod(0o755)
        with serving(short_tmp / "languages", env={"JUPYTER_PATH": str(short_tmp / "deno")}) as served:
            run(python_with(*PYTHON), CLIENTS / "e2b_languages.py", served.url, served.token)
    finally:
        shutil.rmtree(place)


def test_the_javascript_client(served: Served, tmp_path: Path) -> None:
    # Node looks for packages beside the script.
    (tmp_path / "node_modules").symlink_to(node_with(*JAVASCRIPT) / "node_modules")
    script = tmp_path / "e2b_javascript.mjs"
    script.write_text((CLIENTS / script.name).read_text())
    run("node", script, served.url, served.token)


def test_charts_are_those_of_e2bs_own_extractor() -> None:
    run(python_with(*CHARTS), CLIENTS / "e2b_charts_peer.py", e2b_charts.__file__)


def test_the_command_line(served: Served, tmp_path: Path) -> None:
    cli = node_with(*CLI) / "node_modules" / ".bin" / "e2b"
    env = clean_env(HOME=str(tmp_path), E2B_API_URL=served.url, E2B_SANDBOX_URL=served.url, E2B_API_KEY=served.token)

    def said(*words: str) -> str:
        done = subprocess.run([cli, "sandbox", *words], capture_output=True, text=True, timeout=RUN_SECONDS, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    session = served.call("POST", "/v1/sessions", {"labels": {"of": "the command line"}})["id"]
    sandbox = session.replace("_", "-")
    assert sandbox[:20] in said("list")
    assert "the command line" in said("info", session)
    assert "Memory" in said("metrics", session)
    assert "killed" in said("kill", session)
    assert sandbox not in said("list")
