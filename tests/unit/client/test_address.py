import os

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


@pytest.mark.parametrize("text", ["", "{", "[]", '{"token": 1}'])
def test_a_broken_file_counts_as_none(tmp_path, text):
    (tmp_path / "server.json").write_text(text)
    assert read_info(tmp_path) is None


def test_names_are_quoted_by_part():
    assert quoted("a dir/ü#?.csv") == "a%20dir/%C3%BC%23%3F.csv"
