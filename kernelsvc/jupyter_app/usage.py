"""Reply to Jupyter's ``usage_request``, measured from outside the kernel, so that it also comes while a cell runs.

The fields are those of ipykernel's ``usage_reply``, which JupyterLab shows in its panel "Kernel usage".
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import psutil


class UsageMeter:
    """Measures one kernel and the processes that it started.

    Args:
        pid: The kernel's pid on this machine.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        #: psutil computes the load since the last call on the same object.
        self._processes: dict[int, psutil.Process] = {}

    def content(self) -> dict[str, Any]:
        """Return the content of a ``usage_reply``: memory in bytes, load in percent of one processor."""
        found: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            kernel = psutil.Process(self._pid)
            found = [kernel, *kernel.children(recursive=True)]
        self._processes = {each.pid: self._processes.get(each.pid, each) for each in found}
        cpu, memory = 0.0, 0
        for process in self._processes.values():
            with contextlib.suppress(psutil.Error):  # It has ended meanwhile, or belongs to another user.
                cpu += process.cpu_percent()
                memory += process.memory_full_info().pss
        return {
            "hostname": socket.gethostname(),
            "pid": self._pid,
            "kernel_cpu": cpu,
            "kernel_memory": memory,
            "host_cpu_percent": psutil.cpu_percent(),
            "cpu_count": psutil.cpu_count(),
            "host_virtual_memory": psutil.virtual_memory()._asdict(),
        }
