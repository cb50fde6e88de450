"""The worked examples: valid, run again by nbclient, and they print what they printed."""

import os
import shutil
from pathlib import Path
from unittest import mock

import nbformat
import pytest
from nbclient import NotebookClient
from served import Served

from kernelsvc.cli import main
from kernelsvc.cli.output_diff import difference
from kernelsvc.model.events import Reason
from kernelsvc.store.verify import verify_notebook

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
#: Cells that ended so are not run again: they would run for ever, or take the kernel down.
NOT_AGAIN = {Reason.TIMEOUT, Reason.KERNEL_DIED, Reason.MEMORY, Reason.INTERRUPTED, Reason.CANCELLED}
#: The example whose code calls functions of an application.
CALLS = "functions"


@pytest.fixture(scope="session")
def served(preloaded_server: Served) -> Served:
    return preloaded_server


def reason_of(cell):
    return cell["metadata"].get("kernelsvc", {}).get("reason")


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_examples():
    assert {"analysis", "streaming", "recovery"} <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_a_record_of_a_session(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(reason_of(cell) for cell in code_of(notebook))
    # As exported: a formatter that touched it, or a hand, would show here.
    verdict = verify_notebook(path)
    assert verdict.fault is None, verdict.message
    assert verdict.signature == "good"


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem != CALLS], ids=lambda path: path.stem)
@pytest.mark.timeout(120)
def test_it_runs_again_and_prints_the_same(path, tmp_path):
    shutil.copy(ROOT / "kernelsvc" / "data" / "penguins.csv", tmp_path)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if reason_of(cell) not in NOT_AGAIN]
    before = [[dict(output) for output in cell.outputs] for cell in code_of(notebook)]
    # Cells that raised carry the tag "raises-exception", which nbclient obeys; any other error ends the test.
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for cell, was in zip(code_of(notebook), before, strict=True):
        assert difference(_without_pictures(was), _without_pictures(cell.outputs)) is None, cell.source


def test_calls_of_functions_get_the_results_on_record(served: Served, capsys):
    with mock.patch.dict(os.environ, served.client_env):
        assert main(["replay", str(ROOT / "notebooks" / f"{CALLS}.ipynb"), "--tools", "recorded"]) == 0
    assert "4 of 4 cells had the same output" in capsys.readouterr().out


def _without_pictures(outputs):
    # Another release of matplotlib or its fonts draws other pixels; that there is a picture is compared.
    for output in outputs:
        data = {mime: "" if mime.startswith("image/") else value for mime, value in output.get("data", {}).items()}
        yield {**output, "data": data} if "data" in output else output
