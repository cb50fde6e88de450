"""The keys of models' servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelsvc.answers.answers import read_keys
from kernelsvc.errors import BadRequest
from kernelsvc.model.answers.model_settings import ModelSettings


def test_a_key_is_read_once_and_its_variable_removed(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from-file\n")
    models = {
        "a": ModelSettings(url="http://x", key_env="A_KEY"),
        "b": ModelSettings(url="http://x", key_env="A_KEY"),
        "c": ModelSettings(url="http://x", key_file=str(file)),
        "d": ModelSettings(url="http://x"),
    }
    env = {"A_KEY": "from-env", "OTHER": "x"}
    assert read_keys(models, env) == {"a": "from-env", "b": "from-env", "c": "from-file"}
    assert env == {"OTHER": "x"}


@pytest.mark.parametrize("given", [{"key_env": "MISSING"}, {"key_file": "/nothing"}, {"key_env": "BAD"}])
def test_a_key_that_is_missing_or_wrong_is_named_and_not_shown(given: dict[str, str]) -> None:
    with pytest.raises(BadRequest) as caught:
        read_keys({"m": ModelSettings(url="http://x", **given)}, {"BAD": "canary\r\nHost: x"})
    assert "canary" not in caught.value.message
    assert "m" in caught.value.message
