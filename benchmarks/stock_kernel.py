"""The same cells in a plain ipykernel, with its streams, ``text/plain`` and tracebacks as they come."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jupyter_client import BlockingKernelClient, KernelManager
from jupyter_client.kernelspec import KernelSpec

from benchmarks.corpus import CorpusCell
from benchmarks.model_corpus import CellAnswer

_SECONDS = 30.0


def answers(python: str, directory: Path, cells: Iterable[CorpusCell]) -> Iterator[CellAnswer]:
    """Run cells in a new kernel without a network, and yield the text that a first adapter would give to a model.

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
            parts, pictures = _run(manager, client, cell)
            took = (time.perf_counter() - started) * 1000
            text = "\n".join(parts)
            if not cell.setup:
                yield CellAnswer(cell, text, pictures, cell.missing(text, pictures), took)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _connected(manager: KernelManager) -> BlockingKernelClient:
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=_SECONDS)
    return client


def _run(manager: KernelManager, client: BlockingKernelClient, cell: CorpusCell) -> tuple[list[str], int]:
    parts: list[str] = []
    pictures = 0

    def received(message: dict[str, Any]) -> None:
        nonlocal pictures
        content = message["content"]
        if message["msg_type"] == "stream":
            parts.append(content["text"])
        elif message["msg_type"] == "error":
            parts.append("\n".join(content["traceback"]))
        elif message["msg_type"] in ("display_data", "execute_result"):
            parts.append(content["data"].get("text/plain", ""))
            pictures += "image/png" in content["data"]

    code = cell.code.strip("\n")
    try:
        client.execute_interactive(code, timeout=cell.seconds or _SECONDS, output_hook=received, allow_stdin=False)
    except (TimeoutError, RuntimeError):
        # Its time is over, or the kernel has died.
        if manager.is_alive():
            manager.interrupt_kernel()
    return parts, pictures
