"""``required`` and ``best-effort`` where a machine has no namespaces: refused aloud, or run and said aloud."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Served

from attack.missing_syscalls import PATHS, MissingSyscalls, without
from attack.unprivileged import UID, as_ordinary_user

pytestmark = pytest.mark.timeout(120)


class WithoutNamespaces(MissingSyscalls):
    calls, error = ("unshare",), errno.EPERM


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp", ignore_cleanup_errors=True) as root:
        if os.geteuid() == 0:
            os.chown(root, UID, UID)
        yield Path(root)


def serve(place: Path, policy: str) -> Served:
    return WithoutNamespaces(place, "--sandbox", policy, env={"HOME": str(place), **PATHS}).start()


def test_required_refuses_the_session_and_says_what_is_missing(place: Path) -> None:
    server = serve(place, "required")
    try:
        with pytest.raises(urllib.error.HTTPError) as refused:
            server.call("POST", "/v1/sessions", {})
        said = json.loads(refused.value.read())
        assert (refused.value.code, said["code"], said["retryable"]) == (503, "sandbox_unavailable", False)
        assert "kernelsvc doctor" in said["message"]
        assert said["details"]["isolation"] == "files"
        assert "mount namespace" in {lack["layer"] for lack in said["details"]["not_enforced"]}
        assert server.call("GET", "/v1/sessions")["sessions"] == []
    finally:
        server.stop()


def test_best_effort_runs_and_says_the_same_everywhere(place: Path) -> None:
    server = serve(place, "best-effort")
    try:
        about = server.call("POST", "/v1/sessions", {})
        first = server.call("GET", f"/v1/sessions/{about['id']}/events?after=0&limit=1")["events"][0]
        assert first["sandbox"] == about["sandbox"]
        assert about["sandbox"]["isolation"] == "files"
        info = server.call("GET", "/v1/info")["sandbox"]
        assert (info["isolation"], info["not_enforced"]) == ("files", about["sandbox"]["not_enforced"])
        done = server.call("POST", f"/v1/sessions/{about['id']}/cells", {"code": "open('/etc/shadow')"})
        assert "PermissionError" in done["text"]
        assert "files" in server.output()
    finally:
        server.stop()


def test_doctor_names_the_command_that_would_change_it() -> None:
    command = without(["unshare"], errno.EPERM, [sys.executable, "-m", "kernelsvc", "doctor"])
    command = as_ordinary_user(command) if os.geteuid() == 0 else command
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **PATHS})
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    missing = next(number for number, line in enumerate(lines) if line.startswith("missing   mount namespace: "))
    assert lines[missing + 1].strip()
    assert "isolation: files" in done.stdout
