"""Facts about the session that explain an error."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from kernelsvc.guest.model_view import hints


def caught(run: Callable[[], object]) -> BaseException:
    try:
        run()
    except BaseException as error:
        return error
    raise AssertionError("no exception")


def fail(error: BaseException) -> Callable[[], object]:
    def run() -> None:
        try:
            raise error
        except type(error) as cause:
            raise RuntimeError("a library's own") from cause

    return run


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hints.socket, "if_nameindex", lambda: [(1, "lo")])
    monkeypatch.setattr(hints, "_has_route", lambda: False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Data_2024.csv").write_text("a")


@pytest.mark.parametrize(
    ("run", "needle"),
    [
        (fail(socket.gaierror(-3, "Temporary failure in name resolution")), "This session has no network."),
        (fail(OSError(errno.ENETUNREACH, "unreachable")), "This session has no network."),
        (lambda: __import__("nothing_like_it"), "nothing_like_it is not installed here, and there is no network"),
        (lambda: os.stat("data_2024.csv"), "Similar names there: Data_2024.csv"),
        (lambda: os.environ["OPENAI_API_KEY"], "This environment variable is not set."),
        (lambda: pd.DataFrame({"a": [1], "b": [2]})["c"], "The columns are: a, b"),
        (fail(MemoryError()), "limit of memory"),
        (fail(OSError(errno.EROFS, "Read-only file system", "/etc/x")), "This session may write below "),
    ],
)
def test_a_fact_explains_the_error(run: Callable[[], object], needle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    error = caught(run)
    assert needle in str(hints.hint(error))
    monkeypatch.setenv("KERNELSVC_HINTS", "0")
    assert hints.hint(error) is None


@pytest.mark.parametrize("run", [lambda: 1 / 0, lambda: {}["a"], lambda: os.stat("x/y"), fail(ValueError("CUDA"))])
def test_most_errors_have_no_hint(run: Callable[[], object]) -> None:
    assert hints.hint(caught(run)) is None


def test_with_a_network_a_failed_lookup_is_not_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints.socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0")])
    assert hints.hint(socket.gaierror(-3, "x")) is None


def test_with_network_rules_a_failed_lookup_is_not_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints.socket, "if_nameindex", lambda: [(1, "lo")])
    monkeypatch.setattr(hints, "_has_route", lambda: True)
    assert hints.hint(socket.gaierror(-2, "x")) is None


@pytest.mark.parametrize(
    ("command", "network", "wheels", "words"),
    [
        ("pip install x", False, "", "pip install --target lib ./NAME.whl"),
        ("/opt/env/bin/pip install x", False, "/wheels", "packages of /wheels"),
        ("/opt/env/bin/python -m pip install x", False, "", "no network"),
        ("uv pip install x", False, "", "no network"),
        ("pip install x", True, "", None),
        ("pip list", False, "", None),
        ("apt-get install x", False, "", None),
        ("echo install", False, "", None),
    ],
)
def test_a_failed_install_says_what_is_possible(
    monkeypatch: pytest.MonkeyPatch, command: str, network: bool, wheels: str, words: str | None
) -> None:
    monkeypatch.setattr(hints, "has_network", lambda: network)
    monkeypatch.setenv("PIP_FIND_LINKS", wheels)
    found = hints.failed_install(command)
    assert found is None if words is None else words in str(found)
