"""A pod of Kubernetes, as far as its confinement goes, made of the manifest's own values with util-linux.

A user namespace of 65,536 ids, further namespaces that its containers share, a PID 1 that reaps, and for each container
a user without capabilities and ``no_new_privs``. Images, limits of memory, networks and a kubelet are missing: a
container runs this interpreter, and its volumes lie in one directory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from attack.unprivileged import with_readable_interpreter
from waiting import wait_for

#: The first id of the machine that the user namespace has.
FIRST_ID = 300_000
_PAUSE = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # sigaction(2): children are reaped
while True:
    signal.pause()
"""


class Pod:
    """One pod.

    Args:
        spec: The pod's, from a manifest.
        root: An empty directory for its volumes.
        changes: Values of environment variables that are others here.
    """

    def __init__(self, spec: dict[str, Any], root: Path, changes: dict[str, str]) -> None:
        self.spec, self.root, self._changes = spec, root, changes
        assert spec["hostUsers"] is False
        assert spec["shareProcessNamespace"] is True
        self._user, self._group = spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]
        self._paths = {}
        for mount in self.container("server")["volumeMounts"]:
            self._paths[mount["mountPath"]] = volume = root / mount["name"]
            if not volume.exists():
                volume.mkdir(parents=True)
                os.chown(volume, FIRST_ID, FIRST_ID + spec["securityContext"]["fsGroup"])
                volume.chmod(0o2775)
        self._running: list[subprocess.Popen[bytes]] = []
        self._start()

    def container(self, name: str) -> dict[str, Any]:
        return next(
            each for each in [*self.spec.get("initContainers", ()), *self.spec["containers"]] if each["name"] == name
        )

    def _start(self) -> None:
        """Make the namespaces, which live as long as the pause process."""
        self._holder = subprocess.Popen(["unshare", "-U", "sleep", "infinity"], stdin=subprocess.DEVNULL)
        here = os.stat("/proc/self/ns/user").st_ino
        wait_for(lambda: os.stat(f"/proc/{self._holder.pid}/ns/user").st_ino != here, what="a user namespace")
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{self._holder.pid}/{kind}").write_text(f"0 {FIRST_ID} 65536")
        enter = ["nsenter", "-t", f"{self._holder.pid}", "-U", "-S", "0", "-G", "0"]
        apart = ["unshare", "-m", "-p", "-i", "-u", "-C", "--mount-proc", "--fork", "--kill-child"]
        command = with_readable_interpreter([*enter, *apart, sys.executable, "-c", _PAUSE])
        self._outer = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self._pause = wait_for(self._find_pause, what="the pause process")

    def _find_pause(self) -> int | None:
        """Return the pid of the process that is the pod's first, and not that of a helper of unshare(1), which ends."""
        for child in psutil.Process(self._outer.pid).children():
            with contextlib.suppress(psutil.Error):
                if child.cmdline()[1:] == ["-c", _PAUSE]:
                    return child.pid
        return None

    def path(self, text: str) -> str:
        """Replace the path of a volume by that of its directory here."""
        for mounted, volume in self._paths.items():
            if text.startswith(mounted):
                return f"{volume}{text.removeprefix(mounted)}"
        return text

    def run(self, name: str, log: Path, *words: str) -> subprocess.Popen[bytes]:
        """Start a container, or other words in place of its command."""
        container = self.container(name)
        context = container["securityContext"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["allowPrivilegeEscalation"] is False
        env = {"PATH": os.environ["PATH"], "HOME": "/", "PYTHONPATH": f"{Path(__file__).parents[2]}"}
        env |= {each["name"]: self.path(each["value"]) for each in container["env"]}
        env |= {key: value for key, value in self._changes.items() if key in env or name == "server"}
        program, *rest = container["command"]
        assert program == "kernelsvc"
        command = [sys.executable, "-m", "kernelsvc", *(words or rest)]
        enter = ["nsenter", "-t", f"{self._pause}", "-U", "-m", "-p", "-i", "-u", "-C", "-S", "0", "-G", "0"]
        user = ["setpriv", "--reuid", f"{self._user}", "--regid", f"{self._group}", "--groups", f"{self._group}"]
        confined = [*user, "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", *command]
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*enter, "unshare", "-m", *confined], env=env, cwd="/", stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self._running.append(process)
        return process

    def main_process(self, container: subprocess.Popen[bytes]) -> psutil.Process:
        """The first process of a container: nsenter(1) forks it."""
        return wait_for(lambda: psutil.Process(container.pid).children(), what="its process")[0]

    def stop(self) -> None:
        """End it as a lost machine does, and keep the volumes but those of memory."""
        for process in (self._outer, self._holder, *self._running):
            if process.poll() is None:
                process.kill()
            process.wait()
        for volume in self.spec["volumes"]:
            if "emptyDir" in volume:
                shutil.rmtree(self.root / volume["name"], ignore_errors=True)
