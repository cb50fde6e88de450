"""The command line without a server."""

import json
import os
import re
from importlib import import_module

import pytest

from kernelsvc.cli import main
from kernelsvc.cli.parser import build_parser


def commands():
    [action] = [a for a in build_parser()._actions if a.choices]
    return action.choices


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """Hide servers of this machine from the tests."""
    for name in [name for name in os.environ if name.startswith("KERNELSVC_") and "TEST" not in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KERNELSVC_RUNTIME_DIR", str(tmp_path))


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_exists_and_explains_itself(name):
    parser = commands()[name]
    module = import_module(parser.get_default("module"))
    assert callable(getattr(module, parser.get_default("function")))
    assert len(parser.description) > 20
    options = [a for a in parser._actions if a.option_strings]
    assert [a for a in options if not a.help] == []


def test_the_help_lists_the_exit_codes(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = set(map(int, re.findall(r"(?:^|\s{2,})(\d+)  ", capsys.readouterr().out)))
    assert listed == {0, 1, 2, 3, 4, 130}


def test_no_server(capsys):
    assert main(["sessions"]) == 4
    assert "kernelsvc serve" in capsys.readouterr().err
    assert main(["show", "x", "--url", "http://127.0.0.1:9", "--token", "t"]) == 4


def test_a_wrong_command_line():
    for words in (["fly"], ["run"], ["sessions", "--limit", "many"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2


def test_an_unknown_option_is_named_with_the_command_that_lists_them(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--prot", "3"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "kernelsvc: Unknown: --prot 3. 'kernelsvc serve --help' lists the options.\n"
    with pytest.raises(SystemExit):
        main(["ray", "up", "--prot"])
    assert "'kernelsvc ray up --help'" in capsys.readouterr().err


def test_a_wrong_address(capsys):
    assert main(["sessions", "--url", "ftp://x"]) == 2
    assert "http://HOST:PORT" in capsys.readouterr().err


def test_settings(capsys):
    assert main(["settings", "--port", "9000", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["port"]["value"], rows["port"]["source"]) == (9000, "option --port")
    assert main(["settings"]) == 0
    assert re.search(r"^port +8888 +default ", capsys.readouterr().out, re.MULTILINE)


def test_settings_that_are_wrong(capsys):
    assert main(["settings", "--port", "high"]) == 2
    assert "option --port" in capsys.readouterr().err


def test_doctor_says_a_reason_for_each_missing_layer(capsys):
    code = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    lacking = {lack["layer"]: lack["why"] for lack in found["report"]["not_enforced"]}
    missing = [layer for layer in found["layers"] if not layer["ok"] and layer["name"] in lacking]
    assert code == (1 if missing else 0)
    assert all(layer["why"] and layer["fix"] for layer in missing)


def test_doctor_says_how_each_limit_is_held_and_what_follows(capsys):
    main(["doctor"])
    said = capsys.readouterr().out
    assert re.search(r"^(enforced|missing )  seccomp", said, re.MULTILINE)
    assert re.search(r"^(hard|supervised): +.*memory_bytes", said, re.MULTILINE)
    assert re.search(r"^isolation: \w+ .*; sandbox = best-effort: ", said, re.MULTILINE)


def test_verify_what_is_no_record(capsys, tmp_path):
    assert main(["verify", str(tmp_path / "none")]) == 2
    (tmp_path / "x.ipynb").write_text("{}")
    assert main(["verify", str(tmp_path / "x.ipynb")]) == 2
    assert "notebook" in capsys.readouterr().err


def test_run_what_is_not_there(capsys, tmp_path):
    assert main(["run", str(tmp_path / "none.py")]) == 2
    assert "none.py" in capsys.readouterr().err
