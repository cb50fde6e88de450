"""The kernel hosts that applications with ``kernelsvc-fork`` have started, and their end."""

from __future__ import annotations

import os
from pathlib import Path

import psutil


def hosts(runtime: Path) -> list[psutil.Process]:
    """The kernel hosts that keep their sockets there; they wait some minutes for the next application."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if process.uids().real != os.getuid():
                continue
            host = "kernelsvc.host.daemon" in words and process.environ().get("XDG_RUNTIME_DIR") == str(runtime)
            if host or any(str(runtime) in word for word in words):
                found.append(process)
        except psutil.Error:
            continue
    return found


def end(processes: list[psutil.Process]) -> None:
    """End these processes and their descendants."""
    everybody = [below for each in processes for below in (each, *each.children(recursive=True))]
    for process in everybody:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(everybody, timeout=10)
