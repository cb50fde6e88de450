"""Secrets of the settings, as E2B's clients see them."""

from __future__ import annotations

import pytest

from kernelsvc.errors import BadRequest
from kernelsvc.model.network.secrets import SecretSource
from kernelsvc.server.e2b import secrets


def test_a_secret_has_a_name_and_hosts_and_nothing_of_its_source() -> None:
    shown = secrets.secret_model("models", SecretSource(hosts=("a.test", "b.test"), env="KEY_OF_MODELS"))
    assert (shown["secretID"], shown["name"], shown["metadata"]) == ("sec_models", "models", {"hosts": "a.test b.test"})
    assert "KEY_OF_MODELS" not in str(shown)


def test_pages() -> None:
    names = dict.fromkeys("cab")
    assert secrets.page(names, "3", "") == (["a", "b", "c"], None)
    assert secrets.page(names, "1", "a") == (["b"], "b")
    assert secrets.page({}, "100", "x") == ([], None)
    for wrong in ("0", "101", "-1", "x"):
        with pytest.raises(BadRequest):
            secrets.page(names, wrong, "")
