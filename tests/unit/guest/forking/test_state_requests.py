"""Saving to a descriptor and loading from it, in the kernel's process."""

import os
from types import SimpleNamespace

from kernelsvc.guest.forking import state_requests


def shell(**variables):
    return SimpleNamespace(user_ns=dict(variables), user_ns_hidden={}, execution_count=7)


def test_there_and_back(tmp_path):
    path = tmp_path / "variables"
    said = state_requests.answer(
        shell(x=[1, 2], gone=(i for i in ())), {"op": "save"}, os.open(path, os.O_WRONLY | os.O_CREAT)
    )
    assert (said["ok"], said["saved"], list(said["lost"])) == (True, 1, ["gone"])
    fresh = shell()
    said = state_requests.answer(fresh, {"op": "load", "count": 9}, os.open(path, os.O_RDONLY))
    assert (said["ok"], fresh.user_ns["x"], fresh.execution_count) == (True, [1, 2], 9)
    assert "lost" in repr(fresh.user_ns["gone"])


def test_what_can_not_be_loaded_is_refused_and_changes_nothing(tmp_path):
    path = tmp_path / "variables"
    path.write_bytes(b"no pickle at all")
    fresh = shell(kept=1)
    said = state_requests.answer(fresh, {"op": "load"}, os.open(path, os.O_RDONLY))
    assert said["ok"] is False
    assert said["refused"]
    assert fresh.user_ns == {"kept": 1}
    assert fresh.execution_count == 7


def test_a_full_disk_is_refused():
    said = state_requests.answer(shell(x=bytes(1000)), {"op": "save"}, os.open("/dev/full", os.O_WRONLY))
    assert said["ok"] is False
    assert "No space" in said["refused"][0]
