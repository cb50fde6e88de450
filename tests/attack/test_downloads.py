"""A session's files as traps for the server: made by real cells, met through the real API."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote_from_bytes

import psutil
import pytest
from served import Served, serving

from kernelsvc import Client

pytestmark = pytest.mark.timeout(180)

#: What a trap may cost, in seconds.
SOON = 5.0
TRAPS = """
import os, socket
os.mkfifo('fifo')
os.symlink('/etc/passwd', 'link')
os.symlink('/', 'root')
os.symlink('.', 'self')
os.mkdir('d')
open('d/hostname', 'w').write('mine')
open('plain', 'w').write('mine')
os.link('plain', 'second')
s = socket.socket(socket.AF_UNIX); s.bind('socket')
with open('sparse', 'wb') as f: f.truncate(190 << 20)
open(b'new\\nline', 'w').write('mine')
open(b'bad\\xff\\xfeutf', 'w').write('mine')
open('secret', 'w').write('mine'); os.chmod('secret', 0)
"""
SWAP = """
import ctypes, os, threading, time
os.symlink('/etc', 'e')
libc = ctypes.CDLL(None)
def swap():
    end = time.monotonic() + 30
    while time.monotonic() < end:
        libc.renameat2(-100, b'd', -100, b'e', 2)
threading.Thread(target=swap, daemon=True).start()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("downloads")) as served:
        yield served


def ask(server: Served, method: str, session: str, name: bytes, body: bytes | None = None) -> tuple[int, bytes]:
    """Status and the first bytes of the answer; fails if it takes long."""
    url = f"{server.url}/v1/sessions/{session}/files/{quote_from_bytes(name)}"
    request = urllib.request.Request(
        url, method=method, data=body, headers={"Authorization": f"Bearer {server.token}", "Connection": "close"}
    )
    began = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=SOON) as answer:
            return answer.status, answer.read(65536)
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    finally:
        assert time.monotonic() - began < SOON


def test_no_trap_makes_the_server_read_write_or_hang_outside(server: Served) -> None:
    with Client(server.url, token=server.token) as client:
        session = client.create_session(limits={"disk_bytes": 200 << 20})
        assert session.run(TRAPS).reason == "ok"
        for name in (b"fifo", b"link", b"root/etc/passwd", b"self/plain", b"second", b"socket", b"secret"):
            status, said = ask(server, "GET", session.id, name)
            assert 400 <= status < 500 or said == b"mine", (name, status, said)
            assert b"root:" not in said
            assert str(server.data_dir).encode() not in said
        for name in (b"link", b"root/tmp/planted", b"fifo"):
            ask(server, "PUT", session.id, name, b"planted")
        assert not Path("/tmp/planted").exists()
        assert "planted" not in Path("/etc/passwd").read_text()
        for name in (b"new\nline", b"bad\xff\xfeutf"):
            assert ask(server, "GET", session.id, name) == (200, b"mine")
        listed = server.call("GET", f"/v1/sessions/{session.id}/files/?recursive=true")
        assert {"plain", "new\nline"} <= {one["path"] for one in listed["files"]}
        assert json.dumps(listed)
        before = psutil.Process(server.pid).memory_info().rss
        assert ask(server, "GET", session.id, b"sparse")[1] == bytes(65536)
        assert psutil.Process(server.pid).memory_info().rss - before < 64 << 20
        session.close()


def test_a_directory_that_is_swapped_for_a_link_again_and_again_leads_nowhere(server: Served) -> None:
    hostname = Path("/etc/hostname").read_bytes()
    with Client(server.url, token=server.token) as client:
        session = client.create_session()
        session.run("import os\nos.mkdir('d')\nopen('d/hostname', 'w').write('mine')")
        assert session.run(SWAP).reason == "ok"
        seen = set()
        until = time.monotonic() + 4
        while time.monotonic() < until:
            status, said = ask(server, "GET", session.id, b"d/hostname")
            assert said != hostname
            seen.add(status)
            ask(server, "PUT", session.id, b"d/kernelsvc-planted", b"x")
            assert not Path("/etc/kernelsvc-planted").exists()
        assert 200 in seen
        session.close()
    assert server.call("GET", "/v1/sessions?state=idle") is not None
