"""The same cells in a plain ipykernel, and the texts that other projects make of its outputs.

One run of a cell gives the outputs for all. ``text/plain`` with streams and tracebacks as they come is what a first
adapter gives to a model. The functions of the other projects are taken from their installed packages.
"""

from __future__ import annotations

import ast
import json
import re
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jupyter_client import BlockingKernelClient, KernelManager
from jupyter_client.kernelspec import KernelSpec

from benchmarks.corpus import CorpusCell

Output = dict[str, Any]
_SECONDS = 30.0
_PICTURES = ("image/png", "image/jpeg")
_COLOURS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


def outputs(
    python: str, directory: Path, cells: Iterable[CorpusCell]
) -> Iterator[tuple[CorpusCell, list[Output], float]]:
    """Run cells in a new kernel without a network. Yield the outputs of each, as in a notebook, and the milliseconds.

    Args:
        python: interpreter of an environment with ipykernel.
        directory: where the kernel works.
        cells: in order. A kernel that dies is started again.
    """
    directory.mkdir(exist_ok=True)
    manager = KernelManager(transport="ipc", ip=str(directory / "k"))
    command = ["unshare", "-n", python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager._kernel_spec = KernelSpec(argv=command, display_name="plain", language="python")
    manager.start_kernel(cwd=str(directory))
    client = _connected(manager)
    try:
        for cell in cells:
            if not manager.is_alive():
                client.stop_channels()
                manager.restart_kernel(now=True)
                client = _connected(manager)
            started = time.perf_counter()
            found = _run(manager, client, cell)
            took = (time.perf_counter() - started) * 1000
            if not cell.setup:
                yield cell, found, took
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _connected(manager: KernelManager) -> BlockingKernelClient:
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=_SECONDS)
    return client


def _run(manager: KernelManager, client: BlockingKernelClient, cell: CorpusCell) -> list[Output]:
    found: list[Output] = []

    def received(message: dict[str, Any]) -> None:
        if message["msg_type"] in ("stream", "error", "display_data", "execute_result"):
            found.append({"output_type": message["msg_type"], **message["content"]})

    code = cell.code.strip("\n")
    try:
        client.execute_interactive(code, timeout=cell.seconds or _SECONDS, output_hook=received, allow_stdin=False)
    except (TimeoutError, RuntimeError):
        # Its time is over, or the kernel has died.
        if manager.is_alive():
            manager.interrupt_kernel()
    return found


#: From the outputs of a cell to the text that a model gets, and the number of pictures.
Reader = Callable[[list[Output]], tuple[str, int]]


def plain(found: list[Output]) -> tuple[str, int]:
    """Return streams, ``text/plain`` and tracebacks as they come."""
    parts = []
    for each in found:
        if each["output_type"] == "stream":
            parts.append(each["text"])
        elif each["output_type"] == "error":
            parts.append("\n".join(each["traceback"]))
        else:
            parts.append(each["data"].get("text/plain", ""))
    return "\n".join(parts), sum(any(kind in each.get("data", {}) for kind in _PICTURES) for each in found)


def readers(packages: Path | None) -> Mapping[str, Reader]:
    """Return the readers of outputs by the name of their project.

    Args:
        packages: a directory with jupyter-mcp-server 2.2 and open-interpreter 0.4, which need not be complete:
            ``pip install --no-deps --target DIRECTORY jupyter-mcp-server==2.2.4 open-interpreter==0.4.3``.
    """
    if packages is None:
        return {"a plain ipykernel": plain}
    return {
        "a plain ipykernel": plain,
        "jupyter-mcp-server": _jupyter_mcp_server(packages),
        "open-interpreter": _open_interpreter(packages),
    }


def _jupyter_mcp_server(packages: Path) -> Reader:
    """Its ``extract_output`` for each output."""
    names = {"Any": Any, "json": json, "re": re, "ImageContent": lambda **_: None, "ALLOW_IMG_OUTPUT": True}
    extract = _function(packages / "jupyter_mcp_server/utils.py", "extract_output", names)

    def read(found: list[Output]) -> tuple[str, int]:
        texts = [extract(each) for each in found]
        return "\n".join(each for each in texts if each), texts.count(None)

    return read


def _open_interpreter(packages: Path) -> Reader:
    """Its choice of a form (pictures, then HTML, then text), and its cut of what a cell printed to the last part."""
    cut = _function(packages / "interpreter/core/utils/truncate_output.py", "truncate_output", {})

    def read(found: list[Output]) -> tuple[str, int]:
        parts: list[str] = []
        pictures, printed = 0, False
        for each in found:
            data = each.get("data", {})
            if any(kind in data for kind in _PICTURES):
                pictures, printed = pictures + 1, False
                continue
            if "text/html" in data:
                parts.append(data["text/html"])
                printed = False
                continue
            text = each.get("text") or data.get("text/plain") or _COLOURS.sub("", "\n".join(each.get("traceback", [])))
            parts[-1:] = [cut(parts[-1] + text)] if printed else [*parts[-1:], cut(text)]
            printed = True
        return "\n".join(parts).strip() or "No output", pictures

    return read


def _function(path: Path, name: str, names: dict[str, Any]) -> Any:
    """Return a function of a module, with what it needs of that module, but without the module's imports."""
    tree = ast.parse(path.read_text("utf-8"))
    kept: list[ast.stmt] = [ast.parse("from __future__ import annotations").body[0]]
    kept += [each for each in tree.body if isinstance(each, ast.FunctionDef) or _is_constant(each)]
    module = types.ModuleType(path.stem)
    module.__dict__.update(names)
    for each in kept:
        try:
            exec(compile(ast.Module([kept[0], each], []), str(path), "exec"), module.__dict__)
        except NameError:
            continue  # it needs an import, and so is not one that the function calls
    return getattr(module, name)


def _is_constant(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign | ast.AnnAssign)
