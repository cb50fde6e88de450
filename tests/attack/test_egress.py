"""Hostile code in a session with network rules: as root's session and a user's, in branches and restored kernels."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from egress_servers import API_KEY, HUB_KEY, Servers, egress_servers, needs_low_ports, reading_environment
from served import QUICK, Served

from attack import egress_attacks, interception_attacks
from attack.unprivileged import UID, as_ordinary_user
from kernelsvc import Client

pytestmark = [needs_low_ports, pytest.mark.timeout(180)]


class UserServed(Served):
    """A server of an ordinary user, whose sessions are in user namespaces."""

    def command(self) -> list[str]:
        return as_ordinary_user(super().command())


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with egress_servers(tmp_path_factory.mktemp("egress")) as running:
        yield running


@pytest.fixture(scope="module", params=["root", "user"])
def served(
    request: pytest.FixtureRequest, servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    kind = Served if request.param == "root" else UserServed
    keys = tmp_path_factory.mktemp("keys")
    environment = reading_environment(keys, servers.authority)
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp", ignore_cleanup_errors=True) as root:
        if request.param == "user":
            for path in (Path(root), *keys.iterdir()):
                os.chown(path, UID, UID)
            for above in (keys, *keys.parents):
                if above == Path(tempfile.gettempdir()):
                    break  # its mode is the machine's
                above.chmod(0o755)
        served = kind(Path(root), env={**QUICK, **environment, "HOME": root}).start()
        try:
            yield served
        finally:
            served.stop()


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client]:
    with Client(served.url, served.token) as connected:
        yield connected


def test_each_attack_gets_its_verdict(client: Client, served: Served, servers: Servers) -> None:
    with client.create_session() as session:
        assert session.info().sandbox.isolation == "filtered"
        (branch,) = session.branch()
        attacked = [branch.run(code.CODE) for code in (egress_attacks, interception_attacks)]
        branch.close()
        killed = session.run("import os; os.kill(os.getpid(), 9)")
        assert not killed.ok, killed.text
        attacked += [session.run(code.CODE) for code in (egress_attacks, interception_attacks)]
        for number, cell in enumerate(attacked):
            assert cell.ok, cell.text
            printed = cell.text.splitlines()[0]
            assert json.loads(printed) == (interception_attacks if number % 2 else egress_attacks).EXPECTED
        # The refusals are in the text, a few of them.
        assert "[network: " in attacked[0].text
    assert not [line for line in servers.requests if "/attack" in line]
    # The servers got the keys, and no file of this server has them.
    assert servers.headers["/echo-split"]["x-key"] == HUB_KEY
    assert servers.headers["/echo-gzip"]["authorization"] == f"Bearer {API_KEY}"
    for path in (*served.data_dir.rglob("*"), *served.runtime_dir.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            assert API_KEY.encode() not in content, path
            assert HUB_KEY.encode() not in content, path


def test_no_process_but_the_server_and_the_proxy_begins_with_a_secret(client: Client, served: Served) -> None:
    with client.create_session() as session:
        assert session.run("1").ok
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if HUB_KEY.encode() in (process / "environ").read_bytes():
                    found[int(process.name)] = (process / "cmdline").read_bytes().split(b"\0")
    assert served.pid in found, "the search finds nothing"
    own = [command for command in found.values() if os.fsencode(served.data_dir) in b" ".join(command)]
    others = [command for command in found.values() if command not in own and b"kernelsvc.egress.daemon" not in command]
    assert not others


def test_a_flood_of_look_ups_and_connections_does_not_disturb_others(client: Client) -> None:
    flood = """
import socket, threading
def flood():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for n in range(5000):
        name = f"n{n}".encode()
        question = bytes([len(name)]) + name + b"\\4evil\\0\\0\\1\\0\\1"
        sock.sendto(b"\\0\\7\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0" + question, ("127.0.0.1", 53))
threads = [threading.Thread(target=flood) for _ in range(4)]
[thread.start() for thread in threads]
held = [socket.create_connection(("127.0.0.1", 443)) for _ in range(100)]
[thread.join() for thread in threads]
print(len(held))
"""
    with client.create_session() as hostile, client.create_session() as other:
        flooded = hostile.run(flood)
        assert flooded.text.startswith("100\n"), flooded.text
        reached = other.run(
            "import urllib.request; print(urllib.request.urlopen('http://ok.test/', timeout=10).status)"
        )
        assert reached.text == "200\n"
        refused = [one for one in hostile.events(follow=False) if type(one).__name__ == "EgressDenied"]
        # 64 kinds, and the repetitions of some.
        assert len(refused) <= 100
