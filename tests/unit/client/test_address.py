import os
import tempfile

import pytest

from kernelsvc import settings
from kernelsvc.client.address import Address, ServerInfo, find, parse, quoted, read_info, write_info
from kernelsvc.client.values import Unreachable
from kernelsvc.errors import BadRequest


@pytest.mark.parametrize(
    ("url", "base", "websocket"),
    [
        ("http://127.0.0.1:8888", "http://127.0.0.1:8888", "ws://127.0.0.1:8888/v1/ws"),
        ("https://box.example/kernels/", "https://box.example/kernels", "wss://box.example/kernels/v1/ws"),
        ("ws://127.0.0.1:1/v1/ws", "http://127.0.0.1:1", "ws://127.0.0.1:1/v1/ws"),
        ("wss://h", "https://h", "wss://h/v1/ws"),
    ],
)
def test_parse(url, base, websocket):
    address = parse(url)
    assert (address.base, address.websocket, address.token) == (base, websocket, None)


def test_the_printed_address_holds_the_token():
    address = parse("http://127.0.0.1:8888/?token=abc")
    assert address == Address(base="http://127.0.0.1:8888", token="abc")
    assert address.headers() == {"Authorization": "Bearer abc"}
    assert "abc" not in address.shown


def test_unix():
    assert parse("unix:/run/k.sock", "t") == Address(base="http://localhost", token="t", uds="/run/k.sock")
    assert parse("http+unix://%2Frun%2Fk.sock").uds == "/run/k.sock"


@pytest.mark.parametrize("url", ["localhost:8888", "ftp://x", "unix:relative", "", "http://"])
def test_no_address(url):
    with pytest.raises(BadRequest):
        parse(url)


def test_the_environment_counts_and_the_argument_counts_more(tmp_path):
    env = {"KERNELSVC_URL": "http://env:1", "KERNELSVC_TOKEN": "e"}
    assert find(env=env) == Address(base="http://env:1", token="e")
    assert find("http://arg:2", "a", env=env) == Address(base="http://arg:2", token="a")


def test_the_running_servers_file(tmp_path):
    write_info(tmp_path, ServerInfo(url="http://127.0.0.1:5", token="t", pid=os.getpid()))
    assert (tmp_path / "server.json").stat().st_mode & 0o777 == 0o600
    assert find(env={}, runtime_dir=tmp_path) == Address(base="http://127.0.0.1:5", token="t")
    write_info(tmp_path, ServerInfo(url="http://127.0.0.1:5", token="t", pid=2**22 + 1))
    assert read_info(tmp_path) is None
    with pytest.raises(Unreachable, match="kernelsvc serve"):
        find(env={}, runtime_dir=tmp_path)


def test_it_is_found_where_the_settings_say(tmp_path):
    env = {"KERNELSVC_DATA_DIR": str(tmp_path / "d"), "KERNELSVC_RUNTIME_DIR": str(tmp_path)}
    runtime = settings.load(env=env).runtime_path()
    write_info(runtime, ServerInfo(url="http://127.0.0.1:6", pid=os.getpid()))
    assert find(env=env).base == "http://127.0.0.1:6"


@pytest.fixture
def home(tmp_path):
    """The environment of a user, and a function that lets a server run on a data directory of its own."""
    # Short, because a longer directory is not used for sockets. The default one is shared with real servers.
    runtime = tempfile.TemporaryDirectory(dir="/tmp", prefix="k")
    env = {"XDG_RUNTIME_DIR": runtime.name, "HOME": str(tmp_path)}

    def run_server(data_dir, url):
        directory = settings.load({"data_dir": str(data_dir)}, env).runtime_path()
        directory.mkdir(parents=True)
        write_info(directory, ServerInfo(url=url, pid=os.getpid()))

    with runtime:
        yield env, run_server


def test_a_server_with_another_data_directory_is_found(home, tmp_path):
    env, run_server = home
    run_server(tmp_path / "one", "http://127.0.0.1:5")
    assert find(env=env).base == "http://127.0.0.1:5"
    with pytest.raises(Unreachable, match="no server of yours"):
        find(env={**env, "KERNELSVC_DATA_DIR": str(tmp_path / "two")})


def test_of_several_servers_none_is_guessed(home, tmp_path):
    env, run_server = home
    run_server(tmp_path / "one", "http://127.0.0.1:5")
    run_server(tmp_path / "two", "http://127.0.0.1:6")
    with pytest.raises(Unreachable, match=r"http://127.0.0.1:5, http://127.0.0.1:6.*KERNELSVC_URL"):
        find(env=env)


def test_the_directory_of_another_user_counts_as_none(home, tmp_path, monkeypatch):
    env, run_server = home
    run_server(tmp_path / "one", "http://127.0.0.1:5")
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    with pytest.raises(Unreachable):
        find(env=env)


@pytest.mark.parametrize("space", ["\n", "\r\n", " ", "\t"])
def test_white_space_around_a_token_is_dropped(space):
    expected = Address(base="http://h", token="t")
    assert parse("http://h" + space, "t" + space) == expected
    assert find("http://h", env={"KERNELSVC_TOKEN": space + "t" + space}) == expected


@pytest.mark.parametrize("token", ["a\nb", "a\x00b", "a\x7fb", "gr\u00fcn"])
def test_a_token_that_no_header_can_carry_is_refused(token):
    with pytest.raises(BadRequest, match="control character"):
        parse("http://h", token)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"token": 1}'])
def test_a_broken_file_counts_as_none(tmp_path, text):
    (tmp_path / "server.json").write_text(text)
    assert read_info(tmp_path) is None


def test_names_are_quoted_by_part():
    assert quoted("a dir/ü#?.csv") == "a%20dir/%C3%BC%23%3F.csv"
