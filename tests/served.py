"""A real server, started through the command line as a user would."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shown_paths import answers_with_paths
from waiting import wait_for

#: Longer than the service promises (5 s), for a machine that does much else.
READY_SECONDS = 120.0
STOP_SECONDS = 30.0
#: A template that imports nothing in advance: importing pandas and matplotlib costs seconds at each start of a server.
QUICK = {"KERNELSVC_TEMPLATES": '{"python3": {"preload": []}}'}

_connections = itertools.count()


def source_address() -> tuple[str, int]:
    """Return where a connection may come from: another address of loopback after each 50 calls.

    The server delays the refusals of an address that has sent 100 wrong tokens.
    """
    return f"127.0.0.{2 + next(_connections) // 50 % 250}", 0


#: With KERNELSVC_TEST_WORKERS=2, tests that know nothing of fronts use one.
WORKERS = ["--workers", count] if (count := os.environ.get("KERNELSVC_TEST_WORKERS")) else []
#: The environment of a server that also knows ``other-token``, of another principal than its own token's. All values
#: of ``--token`` are one principal's.
OTHER_PRINCIPAL = {
    "KERNELSVC_TOKENS": json.dumps(
        [{"name": "other", "sha256": hashlib.sha256(b"other-token").hexdigest(), "scopes": ["run"]}]
    )
}


def free_port() -> int:
    """Return a TCP port of loopback that is free now, for a program that can't choose one itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Served:
    """One ``kernelsvc serve`` on a free port, with directories and a token of its own.

    Its kernels import pandas and matplotlib in advance only with ``preload``.

    Attributes:
        url: where it listens, ``http://127.0.0.1:PORT``.
        token: its only token, with every scope.
        data_dir: where its sessions lie.
        process: the server itself.
    """

    def __init__(
        self,
        root: Path,
        *args: str,
        env: dict[str, str] | None = None,
        token: str = "test-token",
        preload: bool = False,
    ) -> None:
        self.root, self.args, self.token = root, args, token
        self.data_dir = root / "data"
        self.runtime_dir = root / "run"
        self.log = root / "serve.log"
        self.env = {**os.environ, **({} if preload else QUICK), **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.ready_after = 0.0
        self._said_before = 0

    def command(self) -> list[str]:
        """What is run, without the descriptor that says when it is ready."""
        where = ["--port", "0", "--data-dir", str(self.data_dir), "--runtime-dir", str(self.runtime_dir)]
        return [sys.executable, "-m", "kernelsvc", "serve", *where, "--token", self.token, *WORKERS, *self.args]

    def start(self) -> Served:
        """Start it and wait until it says that it is ready."""
        self.root.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        self._said_before = len(self.output())
        ready, ready_end = os.pipe()
        # A log of its own: nobody reads a pipe here, and a full pipe would stop the server.
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command(), "--ready-fd", str(ready_end)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
                pass_fds=[ready_end],
                start_new_session=True,
            )
        os.close(ready_end)
        try:
            self._wait_ready(ready)
        except BaseException:
            self.kill()
            raise
        finally:
            os.close(ready)
        self.ready_after = time.monotonic() - started
        return self

    def _wait_ready(self, ready: int) -> None:
        readable, _, _ = select.select([ready], [], [], READY_SECONDS)
        if not readable or not os.read(ready, 4096):
            raise AssertionError(f"kernelsvc serve is not ready; its log says:\n{self.output()}")
        said = self._said_before  # an earlier run's address is in the same log
        # A worker of an earlier run may log that one, too.
        address = re.compile(r"listens on (https?://[\w.\[\]:-]+:\d+)")
        found = wait_for(lambda: address.search(self.output()[said:]), what="the address in the log")
        self.url = found.group(1)

    def output(self) -> str:
        """All it has printed."""
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self.process is not None
        return self.process.pid

    def stop(self) -> int:
        """As Ctrl-C would; returns its exit status. No answer of its sessions to a model names a path of the server."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            status = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"kernelsvc serve did not stop within {STOP_SECONDS} s:\n{self.output()}") from None
        if found := answers_with_paths(self.data_dir):
            raise AssertionError("\n".join(found))
        return status

    def kill(self) -> None:
        """As the OOM killer would: kernels live on and wait for the next server."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self.process.wait()

    def call(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None, timeout: float = 60
    ) -> Any:
        """One REST call with the token; the JSON that came back, None for an empty answer.

        Raises:
            urllib.error.HTTPError: the status was not 2xx.
        """
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json", **(headers or {})},
        )
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            data = answer.read()
        return json.loads(data) if data else None

    @property
    def client_env(self) -> dict[str, str]:
        """An environment in which the command line and the client find this server."""
        return {**self.env, "KERNELSVC_URL": self.url, "KERNELSVC_TOKEN": self.token}


@contextlib.contextmanager
def serving(root: Path, *args: str, env: dict[str, str] | None = None, preload: bool = False) -> Iterator[Served]:
    """A server for the length of a ``with``; nothing of it is left after."""
    served = Served(root, *args, env=env, preload=preload)
    try:
        yield served.start()
    finally:
        served.stop()


@contextlib.contextmanager
def serving_on_one_port(root: Path, *args: str, env: dict[str, str] | None = None) -> Iterator[Served]:
    """A server in a directory of its own, which has the same address after it was killed and started again."""
    port = free_port()
    with serving(root / f"own{port}", "--port", str(port), *args, env=env) as served:
        yield served
