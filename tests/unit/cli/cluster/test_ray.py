"""The options of ``kernelsvc ray``, and its table."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelsvc.cli.cluster.ray import lines, plan_of, size_of
from kernelsvc.cli.parser import build_parser
from kernelsvc.errors import BadRequest

KEY = {"KERNELSVC_CLUSTER_KEY": "0123456789abcdef"}


@pytest.mark.parametrize(("text", "size"), [("5", 5), ("32GiB", 2**35), ("7 mib", 7 * 2**20), ("1TiB", 2**40)])
def test_sizes(text: str, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5GiB", "3GB", "many"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(BadRequest, match="is no size"):
        size_of(text)


def test_a_plan(tmp_path: Path) -> None:
    config = tmp_path / "kernelsvc.toml"
    config.write_text("max_sessions = 3\n")
    up = f"ray up --join http://f:1 --memory 2GiB --config {config} --command"
    words = [*up.split(), "a 'b c'"]
    plan = plan_of(build_parser().parse_args(words), dict(KEY))
    assert plan.join == ("http://f:1",)
    assert plan.config == "max_sessions = 3\n"
    assert plan.memory == 2**31
    assert plan.command == ("a", "b c")
    assert plan.cluster_key not in repr(plan)


@pytest.mark.parametrize(
    ("words", "env", "why"),
    [
        ([], KEY, "--join"),
        (["--join", "front"], KEY, "front"),
        (["--join", "http://f:1"], {}, "KERNELSVC_CLUSTER_KEY"),
        (["--join", "http://f:1", "--cpus", "0"], KEY, "--cpus"),
        (["--join", "http://f:1", "--memory", "much"], KEY, "is no size"),
        (["--join", "http://f:1", "--config", "/no/such/file"], KEY, "Can't read"),
    ],
)
def test_bad_options(words: list[str], env: dict[str, str], why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        plan_of(build_parser().parse_args(["ray", "up", *words]), dict(env))


def test_a_settings_file_that_is_no_toml(tmp_path: Path) -> None:
    config = tmp_path / "kernelsvc.toml"
    config.write_text("= 3")
    with pytest.raises(BadRequest, match="not valid TOML"):
        plan_of(build_parser().parse_args(["ray", "up", "--join", "http://f:1", "--config", str(config)]), dict(KEY))


def test_the_table_names_problems() -> None:
    machine = {"host": "10.0.0.1", "state": "starts", "node": "a1b2c3", "url": "", "problem": "no room"}
    assert lines([machine])[1:] == ["10.0.0.1            starts    a1b2c3", "        ! no room"]
