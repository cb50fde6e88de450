"""The command that starts a front."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelsvc.cli import main
from kernelsvc.cli.cluster.front import own_address


@pytest.mark.parametrize(
    ("address", "own"),
    [
        ("http://0.0.0.0:1", "http://127.0.0.1:1"),
        ("http://[::]:1", "http://[::1]:1"),
        ("http://10.0.0.1:1", "http://10.0.0.1:1"),
        ("unix:/x", "unix:/x"),
    ],
)
def test_its_own_address(address: str, own: str) -> None:
    assert own_address(address) == own


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({}, "A cluster needs a key"),
        ({"KERNELSVC_CLUSTER_KEY": "short"}, "A cluster needs a key"),
        ({"KERNELSVC_CLUSTER_KEY": "k" * 32}, "A front needs the tokens of its cluster"),
    ],
    ids=["no key", "short key", "no tokens"],
)
def test_a_front_without_key_or_tokens_does_not_start(
    env: dict[str, str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("KERNELSVC_TOKEN", "KERNELSVC_TOKENS", "KERNELSVC_CONFIG", "KERNELSVC_CLUSTER_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert main(["front", "--data-dir", str(tmp_path)]) == 2
    assert why in " ".join(capsys.readouterr().err.split())
