"""Secrets as the proxy reads them."""

import os
import sys

import msgspec
import pytest

from kernelsvc.egress import secret_values as module
from kernelsvc.egress.client import START_SECONDS
from kernelsvc.egress.secret_values import Secret, read_secrets, values_for
from kernelsvc.model.network.policy import Refused
from kernelsvc.model.network.rules import NetworkRules
from kernelsvc.model.network.secrets import SecretSource

VALUE = "sk-0123456789"


def source(**kind):
    return SecretSource(hosts=("api.test",), **kind)


def test_each_kind_of_source_is_read(tmp_path, monkeypatch):
    file = tmp_path / "key"
    file.write_text(f"{VALUE}\r\n")
    monkeypatch.setenv("TEST_KEY", VALUE)
    sources = {
        "a": source(file=str(file)),
        "b": source(env="TEST_KEY"),
        "c": source(command=(sys.executable, "-c", f"print('{VALUE}')")),
    }
    assert read_secrets(sources) == dict.fromkeys("abc", Secret(VALUE.encode(), ("api.test",)))
    assert "TEST_KEY" not in os.environ


@pytest.mark.parametrize("text", ["short", "two\nlines of text", "a\0b-0123456789", " padded-0123", "x" * 9000])
def test_a_value_that_is_no_header_is_left_out_and_not_logged(text, tmp_path, caplog):
    file = tmp_path / "key"
    file.write_bytes(text.encode())
    assert read_secrets({"a": source(file=str(file)), "b": source(env="TEST_NO_KEY")}) == {}
    assert "secret a can't be read" in caplog.text
    assert "no environment variable TEST_NO_KEY" in caplog.text
    assert text not in caplog.text


def test_a_command_that_fails_is_logged_without_its_output(caplog):
    command = (sys.executable, "-c", f"print('{VALUE}'); raise SystemExit(3)")
    assert read_secrets({"a": source(command=command)}) == {}
    assert "the command ended with 3" in caplog.text
    assert VALUE not in caplog.text


def test_commands_that_hang_leave_time_for_the_start_of_the_proxy(tmp_path, monkeypatch, caplog):
    assert module.COMMANDS_SECONDS + 5 < START_SECONDS
    monkeypatch.setattr(module, "COMMAND_SECONDS", 0.2)
    monkeypatch.setattr(module, "COMMANDS_SECONDS", 0.3)
    late = tmp_path / "late"
    sources = {
        "a": source(command=("sleep", "60")),
        "b": source(command=("sleep", "60")),
        "c": source(command=("touch", str(late))),
        "d": source(env="TEST_KEY"),
    }
    monkeypatch.setenv("TEST_KEY", VALUE)
    assert list(read_secrets(sources)) == ["d"]
    assert "the commands of other secrets took" in caplog.text
    assert not late.exists()


def test_the_proxy_checks_the_host_again():
    (rule,) = msgspec.convert({"allow": [{"host": "evil.test", "secrets": ["a"]}]}, NetworkRules).parsed()
    with pytest.raises(Refused, match="not for this host"):
        values_for(rule, {"a": Secret(VALUE.encode(), ("api.test",))})
    with pytest.raises(Refused, match="can't be read"):
        values_for(rule, {})
    assert values_for(rule, {"a": Secret(VALUE.encode(), ("evil.test",))}) == {"a": VALUE.encode()}
