"""The table of settings: precedence, sources, bad values, platform rules, no token kept."""

from __future__ import annotations

import argparse
import os

import pytest

from kernelsvc import settings as s
from kernelsvc.errors import BadRequest
from kernelsvc.model.limits import Limits
from kernelsvc.service.host_settings import host_settings


def test_precedence_and_sources(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('port = 1\nhost = "0.0.0.0"\nmax_sessions = 7\n[limits]\ncell_seconds = 3\n')
    env = {"KERNELSVC_PORT": "2", "KERNELSVC_MAX_SESSIONS": "8"}
    got = s.load({"port": "3"}, env, file)
    assert (got.port, got.host, got.max_sessions, got.limits.cell_seconds) == (3, "0.0.0.0", 8, 3.0)
    assert got.sources["port"] == "option --port"
    assert got.sources["max_sessions"] == "environment KERNELSVC_MAX_SESSIONS"
    assert got.sources["host"] == f"file {file}"
    assert got.sources["origins"] == "default"


def test_file_named_by_option_or_environment(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("port = 9\n")
    assert s.load({"config": str(file)}).port == 9
    assert s.load({}, {"KERNELSVC_CONFIG": str(file)}).port == 9


@pytest.mark.parametrize(
    ("cli", "words"),
    [
        ({"port": "x"}, ["port", "--port"]),
        ({"port": "70000"}, ["65535"]),
        ({"limits_memory_bytes": "-1"}, ["limits.memory_bytes", "--limits-memory-bytes"]),
        ({"journal_sync": "perhaps"}, ["journal_sync"]),
        ({"limits_network": "all"}, ["limits.network"]),
        ({"templates": "{"}, ["templates"]),
        ({"runtime_dir": "/" + "x" * 100}, ["runtime_dir", "too long"]),
    ],
)
def test_bad_values_name_their_source(cli, words):
    with pytest.raises(BadRequest) as caught:
        s.load(cli)
    assert all(word in caught.value.message for word in words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", ["prot", "port"]),
        ("[limits]\nmemory = 1", ["limits.memory"]),
        ("port = '8'", ["port", "int"]),
        ("= 1", ["TOML"]),
        ("[[tokens]]\nname = 'a'\nsha256 = 'zz'", ["tokens"]),
    ],
)
def test_bad_files_name_the_file(tmp_path, text, words):
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(BadRequest) as caught:
        s.load({}, {}, file)
    assert all(word in caught.value.message for word in [*words, str(file)])


def test_missing_file_is_said(tmp_path):
    with pytest.raises(BadRequest, match="Can't read"):
        s.load({}, {}, tmp_path / "none.toml")


def test_tokens_are_hashed_and_never_shown(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('[[tokens]]\nname = "ana"\ntoken = "s3cret-one"\nscopes = ["read"]\nmax_sessions = 2\n')
    got = s.load({"token": ["s3cret-two", "s3cret-two"]}, {}, file)
    assert [t.name for t in got.tokens] == ["ana", "local"]
    assert "s3cret" not in repr(got)
    assert "s3cret" not in repr(s.describe(got))


def test_a_bad_token_is_not_echoed():
    with pytest.raises(BadRequest) as caught:
        s.load({"tokens": '[{"name": "a", "token": "s3cret", "scopes": ["all"]}]'})
    assert "s3cret" not in caught.value.message


def test_an_unknown_scope_names_the_valid_ones():
    with pytest.raises(BadRequest, match="run, read, approve, provide, delegate, audit, operate, admin"):
        s.load({"tokens": '[{"name": "a", "token": "s3cret-one", "scopes": ["all"]}]'})


@pytest.mark.parametrize(
    ("given", "choices"),
    [({"sandbox": "x"}, "required | best-effort | off"), ({"limits_network": "pypi.org"}, "none | host | table")],
)
def test_a_setting_with_choices_names_them(given, choices):
    with pytest.raises(BadRequest) as caught:
        s.load(given)
    assert caught.value.message.endswith(f"Write {choices}.")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"token": ["a"]}, "has 1 characters. On a server on loopback a token needs at least 8"),
        ({"token": ["good enough here", "aaaaaaaa"]}, "fewer than 4 different"),
        ({"tokens": '[{"name": "a", "token": "short"}]'}, "has 5 characters"),
        ({"token": ["only-loopback"], "host": "0.0.0.0"}, "other machines can reach a token needs at least 16"),
        ({"token": ["only-loopback"], "host": "example.org"}, "at least 16"),
    ],
)
def test_a_token_that_can_be_guessed_is_refused(given, why):
    with pytest.raises(BadRequest) as caught:
        s.load(given)
    assert why in caught.value.message
    assert "openssl" in caught.value.message
    assert "only-loopback" not in caught.value.message


def test_a_token_may_be_shorter_where_nobody_else_can_connect():
    assert s.load({"token": ["test-token"]}).tokens
    assert s.load({"token": ["test-token"], "host": "0.0.0.0", "uds": "/run/k.sock"}).tokens
    assert s.load({"token": ["0123456789abcdef"], "host": "0.0.0.0"}).tokens


def test_none_clears_an_optional_limit_but_network_none_is_a_value():
    got = s.load({"limits_memory_bytes": "none", "limits_network": "none"})
    assert got.limits.memory_bytes is None
    assert got.limits.network == "none"


def test_platform_rules(tmp_path):
    got = s.load({}, {"STATE_DIRECTORY": "/var/lib/kernelsvc:/x", "RUNTIME_DIRECTORY": "/run/kernelsvc"})
    assert str(got.data_dir) == "/var/lib/kernelsvc"
    assert str(got.runtime_dir) == "/run/kernelsvc"
    a = s.load({"data_dir": str(tmp_path / "a")}, {"XDG_RUNTIME_DIR": "/run/user/7"})
    b = s.load({"data_dir": str(tmp_path / "b")}, {"XDG_RUNTIME_DIR": "/run/user/7"})
    assert str(a.runtime_dir).startswith("/run/user/7/kernelsvc/")
    assert a.runtime_dir != b.runtime_dir
    assert s.load({}, {}).sandbox == "best-effort"
    assert s.load({}, {"SYSTEMD_EXEC_PID": str(os.getpid())}).sandbox == "required"
    assert s.load({"sandbox": "off"}, {"SYSTEMD_EXEC_PID": str(os.getpid())}).sandbox == "off"


def test_every_setting_has_an_option_an_environment_name_and_a_help_line():
    parser = argparse.ArgumentParser()
    s.add_options(parser)
    options = {o for action in parser._actions for o in action.option_strings}
    assert {row.option for row in s.TABLE} <= options
    assert len({row.env for row in s.TABLE}) == len(s.TABLE)
    assert all(row.help.endswith(".") for row in s.TABLE)
    assert {r.name.partition(".")[2] for r in s.TABLE if r.name.startswith("limits.")} == set(Limits.__struct_fields__)
    parser.format_help()
    assert vars(parser.parse_args([])) == {}
    got = s.load(vars(parser.parse_args(["--token", "aaaabcde", "--token", "bbbbcdef", "--limits-cpu-cores", "1.5"])))
    assert len(got.tokens) == 2
    assert got.limits.cpu_cores == 1.5


def test_table_is_documented():
    text = s.markdown()
    assert all(f"`{row.name}`" in text for row in s.TABLE)


def test_templates_add_to_the_default():
    got = s.load({"templates": '{"bare": {"python": "/usr/bin/python3"}}'})
    assert set(got.templates) == {"python3", "bare"}


def test_under_systemd_the_kernel_host_is_a_unit_of_its_own():
    env = {"SYSTEMD_EXEC_PID": str(os.getpid())}
    assert s.load({}, env).start_host is False
    assert s.load({}, env).sandbox == "required"
    assert s.load({"start_host": "true"}, env).start_host is True
    assert s.load({}, {"SYSTEMD_EXEC_PID": "1"}).start_host is True


def test_models_and_answers_are_tables_of_a_file(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text(
        '[models.qwen]\nurl = "http://gpu1:8000/v1"\nkey_env = "QWEN_KEY"\n'
        '[answers]\nexpired = "error"\nmax_running = 3\n'
    )
    got = s.load({"answers_max_running": "4"}, {"QWEN_KEY": "canary-key"}, file)
    assert (got.models["qwen"].url, got.models["qwen"].max_turns) == ("http://gpu1:8000/v1", 30)
    assert (got.answers.expired, got.answers.max_running, got.answers.store_days) == ("error", 4, 30.0)
    assert "canary-key" not in str(s.describe(got)) + repr(got)
    assert s.load().models == {}


@pytest.mark.parametrize(
    "model",
    [
        '{"m": {"url": "http://user:canary@gpu1"}}',
        '{"m": {"url": "http://gpu1/v1?key=canary"}}',
        '{"m": {"url": "file:///canary"}}',
        '{"m": {"url": "http://gpu1", "key": "canary"}}',
    ],
)
def test_a_wrong_model_is_refused_without_its_values(model):
    with pytest.raises(BadRequest) as caught:
        s.load({"models": model})
    assert "canary" not in caught.value.message
    assert "models" in caught.value.message


def test_a_mount_of_private_files_is_refused(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "link").symlink_to(data)
    file = tmp_path / "c.toml"
    for path, words in [(data, "it holds"), (data / "keys", "it lies in"), (tmp_path / "link", "no session may see")]:
        file.write_text(f'data_dir = "{data}"\n[mounts.x]\npath = "{path}"\n')
        with pytest.raises(BadRequest, match=words) as caught:
            s.load({}, {}, file)
        assert "mounts.x" in caught.value.message
    file.write_text(f'data_dir = "{data}"\n[mounts.x]\npath = "{tmp_path}"\n')
    with pytest.raises(BadRequest, match="it holds"):  # the settings file itself, also
        s.load({}, {}, file)
    file.write_text('[mounts.x]\npath = "sales"\n')
    with pytest.raises(BadRequest, match="mounts"):
        s.load({}, {}, file)
    file.write_text('[mounts.x]\npath = "/srv/sales"\n')
    assert s.load({}, {}, file).mounts["x"].principals == ["*"]


@pytest.mark.parametrize(
    "text",
    [
        'signing_key = "{}"',
        'cluster_key_file = "{}"',
        '[encryption]\nkey_file = "{}"',
        '[telemetry]\nheaders_file = "{}"',
        '[models.m]\nurl = "http://gpu1/v1"\nkey_file = "{}"',
        '[secrets.api]\nhosts = ["api.example.com"]\nfile = "{}"',
    ],
)
def test_a_file_with_a_secret_is_in_no_mount_and_in_no_session(tmp_path, text):
    (shown := tmp_path / "shown").mkdir()
    file = tmp_path / "c.toml"
    file.write_text(text.format(shown / "secret"))
    assert str(shown / "secret") in host_settings(s.load({}, {}, file)).hidden_files
    file.write_text(text.format(shown / "secret") + f'\n[mounts.x]\npath = "{shown}"\n')
    with pytest.raises(BadRequest, match="it holds"):
        s.load({}, {}, file)


def test_systemd_gives_keys_as_credentials(tmp_path):
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    got = s.load({}, env)
    assert (got.signing_key, got.encryption.key_file) == (None, None)
    for name in ("signing-key", "data-key"):
        (tmp_path / name).touch()
    got = s.load({}, env)
    assert (got.signing_key, got.encryption.key_file) == (tmp_path / "signing-key", tmp_path / "data-key")
    assert got.sources["encryption.key_file"] == "platform"
    got = s.load({"encryption_key_file": "/etc/key", "signing_key": "/etc/sign"}, env)
    assert (str(got.signing_key), str(got.encryption.key_file)) == ("/etc/sign", "/etc/key")
    with pytest.raises(BadRequest, match="either"):
        s.load({"encryption_key_file": "/etc/key", "encryption_key_command": '["print-key"]'}, {})


def test_a_wheelhouse_is_a_directory_that_sessions_may_see(tmp_path):
    data = tmp_path / "data"
    for path, words in [(tmp_path, "it holds"), (data / "sessions", "it lies in"), ("/nonexistent", "not a directory")]:
        with pytest.raises(BadRequest, match=words):
            s.load({"data_dir": str(data), "wheelhouse": str(path)})
