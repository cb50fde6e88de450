"""``kernelsvc install-kernelspec``, and the module that was the command before it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kernelsvc.cli import main


def spec_in(prefix: Path, name: str) -> dict[str, object]:
    found = json.loads((prefix / "share" / "jupyter" / "kernels" / name / "kernel.json").read_text())
    assert isinstance(found, dict)
    return found


def test_it_installs_a_kernelspec_that_forks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install-kernelspec", "--name", "forked", "--prefix", str(tmp_path), "--preload", "json", "csv"]) == 0
    assert "jupyter console --kernel forked" in capsys.readouterr().out
    metadata = spec_in(tmp_path, "forked")["metadata"]
    assert isinstance(metadata, dict)
    assert metadata["kernel_provisioner"] == {
        "provisioner_name": "kernelsvc-fork",
        "config": {"python": sys.executable, "preload": ["json", "csv"]},
    }


@pytest.mark.parametrize("wrong", [["--name", "no such name"], ["--prefix", "/proc/nowhere"]])
def test_an_error_names_the_option_to_change(
    wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["install-kernelspec", "--prefix", str(tmp_path), *wrong]) == 2
    assert wrong[0] in capsys.readouterr().err


def test_the_module_that_was_the_command_still_installs(tmp_path: Path) -> None:
    """Until 0.2."""
    words = ["-m", "kernelsvc.jupyter_app.user_host", "install", "--name", "old", "--prefix", str(tmp_path)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (
        0, "kernelsvc: this command is now 'kernelsvc install-kernelspec', and will be removed in 0.2.\n"
    )  # fmt: skip
    assert spec_in(tmp_path, "old")["language"] == "python"
