"""Sessions with network rules: what they reach, what they read when they are refused, and what survives a restart."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import tempfile
import urllib.error
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from egress_servers import ADDRESS, RULES, Servers, egress_environment, egress_servers, needs_low_ports
from served import QUICK, Served, serving
from waiting import wait_for

from kernelsvc import Client
from kernelsvc.errors import KernelsvcError

pytestmark = [needs_low_ports, pytest.mark.timeout(120)]

#: Defined in each session: a request over TLS that trusts the test's authority.
SETUP = """
import socket, ssl, urllib.request
context = ssl.create_default_context(cadata={authority!r})
def get(url, **headers):
    request = urllib.request.Request(url, headers=headers)
    return urllib.request.urlopen(request, timeout=10, context=context if url.startswith("https") else None).read()
"""
#: Rules that no datagram between the server and the proxy holds.
LONG = {"allow": [{"host": "ok.test", "paths": [f"/{n}/{'x' * 480}" for n in range(60)]}] * 8}
TLS = "print(get('https://ok.test/over-tls').decode())"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with egress_servers(tmp_path_factory.mktemp("egress")) as running:
        yield running


@pytest.fixture(scope="module")
def filtered() -> Iterator[Served]:
    """A server whose sessions may have rules."""
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp", ignore_cleanup_errors=True) as root:
        served = Served(Path(root), env={**QUICK, **egress_environment()}).start()
        try:
            yield served
        finally:
            served.stop()


@pytest.fixture(scope="module")
def client(filtered: Served) -> Iterator[Client]:
    with Client(filtered.url, filtered.token) as connected:
        yield connected


def events(served: Served, session: str, *kinds: str) -> list[dict]:
    lines = (served.data_dir / "sessions" / session / "journal.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["type"] in kinds]


@contextlib.contextmanager
def session_with(client: Client, servers: Servers, *allow: str | dict, **more: object) -> Iterator:
    rules = {"allow": list(allow), **more} if allow else None
    with client.create_session(limits={"network": rules} if rules else None) as session:
        session.run(SETUP.format(authority=servers.authority))
        yield session


def proxy_of(served: Served) -> int:
    """The pid of a server's proxy."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes() if entry.name.isdecimal() else b""
            if b"kernelsvc.egress.daemon" in command and _parent(entry) == served.pid:
                return int(entry.name)
    return 0


def _parent(entry: Path) -> int:
    return int((entry / "stat").read_text().rpartition(")")[2].split()[1])


def test_a_session_without_rules_starts_no_proxy(filtered: Served, client: Client) -> None:
    with client.create_session(limits={"network": "none"}) as session:
        assert session.run("1").ok
        assert session.info().sandbox.isolation == "full"
    assert not (filtered.runtime_dir / "egress.sock").exists()
    assert not proxy_of(filtered)


def test_names_with_a_rule_are_reached_and_recorded(filtered: Served, client: Client, servers: Servers) -> None:
    with session_with(client, servers, "ok.test", "*.wild.test:443") as session:
        assert session.info().sandbox.isolation == "filtered"
        assert session.info().sandbox.limits["network"] == "hard"
        assert session.run(TLS).text == "GET /over-tls 0\n"
        assert session.run("print(get('https://a.wild.test/w').decode())").text == "GET /w 0\n"
        plain = session.run("print(get('http://ok.test/plain?key=secret').decode())")
        assert plain.text == "GET /plain?key=secret 0\n"
        recorded = wait_for(lambda: (found := events(filtered, session.id, "egress"))[2:] and found)
        over_tls, _, over_http = recorded
        assert (over_tls["host"], over_tls["port"], over_tls["rule"]) == ("ok.test", 443, "ok.test")
        assert over_tls["address"] == ADDRESS
        assert over_tls["received"] > 500
        assert (over_http["method"], over_http["path"], over_http["status"]) == ("GET", "/plain", 200)
        assert "secret" not in json.dumps(recorded)


def test_a_refusal_is_in_the_text_and_in_the_journal(filtered: Served, client: Client, servers: Servers) -> None:
    with session_with(client, servers, "ok.test") as session:
        refused = session.run("get('http://evil.example/')")
        assert not refused.ok
        assert "[network: evil.example was refused: no rule. Allowed: ok.test]" in refused.text
        assert "This session has no network" not in refused.text
        viewed = session.run("[get('http://evil.example/') for _ in range(3)]")
        assert viewed.text.count("[network: evil.example") == 1
        again = session.run("!curl -sS http://evil.example/")
        assert "was refused: no rule" in again.text
        denied = events(filtered, session.id, "egress_denied")
        assert [one["host"] for one in denied] == ["evil.example"] * 3
        assert {one["via"] for one in denied} == {"dns"}


@pytest.mark.parametrize(
    ("network", "code", "words"),
    [
        ({"allow": ["evil.example"]}, "limit_too_high", "evil.example is more than"),
        ({"allow": ["ok.test:8080"]}, "limit_too_high", "ok.test:8080 is more than"),
        ("host", "limit_too_high", "network = host"),
        ({"allow": ["*.com"]}, "bad_request", "many owners"),
        ({"allow": ["127.1"]}, "bad_request", "an address and not a name"),
        ({"allow": ["ok.test"], "speed": 3}, "bad_request", "speed"),
        ({"deny": []}, "bad_request", "allow"),
        (LONG, "bad_request", "98304 is the limit"),
    ],
)
def test_bad_rules_change_nothing(client: Client, network: object, code: str, words: str) -> None:
    before = len(client.sessions())
    with pytest.raises(KernelsvcError, match=words) as raised:
        client.create_session(limits={"network": network})
    assert raised.value.code == code
    assert len(client.sessions()) == before


def test_branches_and_restored_kernels_have_the_same_rules(client: Client, servers: Servers) -> None:
    with session_with(client, servers, "ok.test") as session:
        (branch,) = session.branch()
        assert branch.run(TLS).text == "GET /over-tls 0\n"
        assert "no rule" in branch.run("get('http://evil.example/')").text
        branch.run("kept = socket.create_connection(('ok.test', 80)); address = socket.gethostbyname('ok.test')")
        assert session.run("import os; os.kill(os.getpid(), 9)").reason == "kernel_died"
        assert session.run(TLS).text == "GET /over-tls 0\n"
        assert "no rule" in session.run("get('http://evil.example/')").text
        session.close()
        assert branch.run(TLS).text == "GET /over-tls 0\n"
        asked = "kept.sendall(b'GET /kept HTTP/1.1\\r\\nHost: ok.test\\r\\n\\r\\n'); print(kept.recv(12).decode())"
        assert branch.run(asked).text == "HTTP/1.1 200\n"
        assert branch.run("print(address == socket.gethostbyname('ok.test'))").text == "True\n"
        branch.hibernate()
        branch.run(SETUP.format(authority=servers.authority))
        assert branch.run(TLS).text == "GET /over-tls 0\n"
        assert "no rule" in branch.run("get('http://evil.example/')").text
        branch.close()


def test_a_killed_proxy_loses_no_listener(filtered: Served, client: Client, servers: Servers) -> None:
    with session_with(client, servers, "ok.test") as session:
        assert session.run(TLS).ok
        killed = proxy_of(filtered)
        os.kill(killed, signal.SIGKILL)
        # The look-up waits in the socket, the connection in the listener's queue.
        assert session.run(TLS).text == "GET /over-tls 0\n"
        assert proxy_of(filtered) not in (0, killed)


def test_a_session_that_ends_leaves_nothing_in_the_proxy(filtered: Served, client: Client, servers: Servers) -> None:
    with session_with(client, servers, "ok.test") as session:
        assert session.run(TLS).ok
    descriptors = Path(f"/proc/{proxy_of(filtered)}/fd")
    wait_for(lambda: len(list(descriptors.iterdir())) < 20, what="the listeners of ended sessions to be closed")


def test_a_quota_of_bytes_ends_connections(client: Client, servers: Servers) -> None:
    with session_with(client, servers, "ok.test", bytes=20_000) as session:
        assert session.run(TLS).ok
        assert not session.run("urllib.request.urlopen('http://ok.test/up', data=b'x' * 100_000, timeout=10)").ok
        assert "20000 bytes" in session.run("get('http://ok.test/')").text


def test_more_connections_than_allowed_wait(client: Client, servers: Servers) -> None:
    code = """
first = [socket.create_connection(("ok.test", 443)) for _ in range(4)]
import threading
done = threading.Event()
thread = threading.Thread(target=lambda: (get("http://ok.test/"), done.set()))
thread.start()
print(done.wait(0.3))
first[0].close()
print(done.wait(10))
"""
    with session_with(client, servers, "ok.test", connections=4) as session:
        assert session.run(code).text == "False\nTrue\n"


def test_sessions_keep_their_network_when_the_server_is_killed(short_tmp: Path, servers: Servers) -> None:
    served = Served(short_tmp / "killed", env={**QUICK, **egress_environment(RULES)}).start()
    try:
        with Client(served.url, served.token) as client:
            session = client.create_session()
            session.update_network({"allow": ["ok.test"]})
            session.run(SETUP.format(authority=servers.authority))
            assert session.run(TLS).ok
            name = session.id
        served.kill()
        served.start()
        with Client(served.url, served.token) as client:
            session = client.session(name)
            assert session.run(TLS).text == "GET /over-tls 0\n"
            # The host knows the first rules only.
            assert "Allowed: ok.test]" in session.run("get('http://other.test/')").text
            session.close()
    finally:
        served.stop()


def test_a_server_that_can_not_enforce_rules_refuses_the_session(short_tmp: Path) -> None:
    with (
        serving(short_tmp / "off", "--sandbox", "off", env=egress_environment()) as served,
        Client(served.url, served.token) as client,
    ):
        with pytest.raises(KernelsvcError, match="can't enforce rules for the network") as raised:
            client.create_session()
        assert raised.value.code == "sandbox_unavailable"
        with client.create_session(limits={"network": "none"}) as session:
            assert session.run("1").ok


def test_e2bs_allow_out_is_an_allow_list(filtered: Served, servers: Servers) -> None:
    asked = {"templateID": "base", "network": {"allowOut": ["ok.test"], "denyOut": ["0.0.0.0/0"]}}
    headers = {"X-API-Key": filtered.token}
    made = filtered.call("POST", "/v2/sandboxes", asked, headers=headers)
    with Client(filtered.url, filtered.token) as client:
        session = client.session(made["sandboxID"])
        assert session.info().limits.network.allow == ("ok.test",)
        session.run(SETUP.format(authority=servers.authority))
        assert session.run(TLS).text == "GET /over-tls 0\n"
        assert "other.test was refused: no rule" in session.run("get('http://other.test/')").text
        session.close()
    asked["network"]["allowOut"] = ["evil.example"]
    with pytest.raises(urllib.error.HTTPError, match="400"):
        filtered.call("POST", "/v2/sandboxes", asked, headers=headers)


def test_the_rules_of_a_running_session_can_be_replaced(filtered: Served, client: Client, servers: Servers) -> None:
    with session_with(client, servers, "ok.test", "other.test") as session:
        (branch,) = session.branch()
        session.run("kept = {name: socket.create_connection((name, 443)) for name in ('ok.test', 'other.test')}")
        session.run("kept = {name: context.wrap_socket(one, server_hostname=name) for name, one in kept.items()}")
        info = session.update_network({"allow": ["ok.test"]})
        assert info.limits.network.allow == ("ok.test",)
        # The connection to the other host ends, and that to this one does not.
        ask = (
            "kept[{0!r}].sendall(b'GET /kept HTTP/1.1\\r\\nHost: {0}\\r\\n\\r\\n')\n"
            "print(kept[{0!r}].recv(12).decode())"
        )
        assert session.run(ask.format("ok.test")).text == "HTTP/1.1 200\n"
        assert session.run(ask.format("other.test")).text != "HTTP/1.1 200\n"
        for one in (session, branch):
            assert one.run(TLS).text == "GET /over-tls 0\n"
            assert "other.test was refused: no rule. Allowed: ok.test" in one.run("get('http://other.test/')").text
        branch.close()
        refused = [
            ({"allow": ["evil.example"]}, "limit_too_high", "evil.example is more than"),
            ("host", "limit_too_high", "network = host"),
            ({"allow": ["*.com"]}, "bad_request", "many owners"),
            (LONG, "bad_request", "98304 is the limit"),
        ]
        for rules, code, words in refused:
            with pytest.raises(KernelsvcError, match=words) as raised:
                session.update_network(rules)
            assert raised.value.code == code
        session.hibernate()
        session.run(SETUP.format(authority=servers.authority))
        assert "other.test was refused" in session.run("get('http://other.test/')").text
        put = {"allowOut": ["a.wild.test"], "denyOut": ["0.0.0.0/0"]}
        filtered.call("PUT", f"/sandboxes/{session.id}/network", put, headers={"X-API-Key": filtered.token})
        assert session.run("print(get('https://a.wild.test/w').decode())").text == "GET /w 0\n"
        assert "ok.test was refused" in session.run("get('http://ok.test/')").text
        session.update_network("none")
        assert "a.wild.test was refused: no rule. Allowed: nothing" in session.run("get('http://a.wild.test/')").text
        assert session.update_network().limits.network.allow == tuple(RULES["allow"])
        changed = events(filtered, session.id, "network_changed")
        assert [one["network"]["allow"] for one in changed[:2]] == [["ok.test"], ["a.wild.test"]]
    with client.create_session(limits={"network": "none"}) as closed, pytest.raises(KernelsvcError) as raised:
        closed.update_network({"allow": ["ok.test"]})
    assert raised.value.code == "conflict"


#: A WebSocket whose server sends the headers that it got, and then each message back.
SOCKET = """
kept = socket.create_connection(("ok.test", 80), 10)
kept.sendall(b"GET /ws HTTP/1.1\\r\\nHost: ok.test\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n"
             b"Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n\\r\\n")
while b"dGhlIH" not in (got := kept.recv(4096)):
    pass
"""
ECHO = "kept.sendall(b'\\x81\\x82\\0\\0\\0\\0hi'); print(kept.recv(10))"


def test_a_websocket_passes_and_ends_when_its_handshake_has_no_rule_any_more(
    filtered: Served, client: Client, servers: Servers
) -> None:
    rule = {"host": "ok.test", "ports": [80], "paths": ["/ws"]}
    with session_with(client, servers, rule, "other.test") as session:
        assert session.run(SOCKET).ok
        assert session.run(ECHO).text == "b'\\x81\\x02hi'\n"
        session.update_network({"allow": [rule]})
        assert session.run(ECHO).text == "b'\\x81\\x02hi'\n"
        session.update_network({"allow": [rule | {"paths": ["/other"]}]})
        assert "x02hi" not in session.run(ECHO).text
        (recorded,) = wait_for(lambda: events(filtered, session.id, "egress"))
        assert (recorded["method"], recorded["path"], recorded["status"]) == ("GET", "/ws", 101)
        assert recorded["end"] == "the rules have changed"
        # The session trusts the proxy's certificate since its start, whatever its rules were meanwhile.
        session.update_network("none")
        session.update_network({"allow": [rule]})
        assert session.run(SOCKET).ok


def offer_a_package(servers: Servers) -> None:
    """Let the servers be an index with one package."""
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("fromindex.py", "VALUE = 42\n")
        about = "fromindex-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: fromindex\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "".join(f"{name},,\n" for name in archive.namelist()))
    name = "fromindex-1.0-py3-none-any.whl"
    servers.files["/simple/fromindex/"] = ("text/html", f'<a href="/{name}">{name}</a>'.encode())
    servers.files[f"/{name}"] = ("application/zip", wheel.getvalue())


def test_the_guide_works_as_it_is_written(
    short_tmp: Path, servers: Servers, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip from the one index, another name refused in words, and a key that arrives and is never inside."""
    offer_a_package(servers)
    page = Path(__file__).parents[2] / "docs" / "howto" / "network.md"
    section = page.read_text().partition("## Try it with")[2].partition("\n## ")[0]
    settings, code = re.findall(r"```(?:toml|python)\n(.*?)```", section, re.DOTALL)
    settings = settings.replace("127.77.0.1", ADDRESS)
    for name, text in (("authorities.pem", servers.authority), ("models.key", "key-0123456789\n")):
        (short_tmp / name).write_text(text)
        settings = settings.replace(f'"{name}"', f'"{short_tmp / name}"')
    config = short_tmp / "kernelsvc.toml"
    config.write_text(settings)
    with serving(short_tmp / "guide", "--config", str(config)) as served:
        monkeypatch.setenv("KERNELSVC_URL", served.url)
        monkeypatch.setenv("KERNELSVC_TOKEN", served.token)
        exec(compile(code, str(page), "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("42\n")
    assert "[network: evil.example was refused: no rule. Allowed: packages.test, models.test (GET; secret" in printed
    assert printed.endswith("200\n\nFalse False\n\n")
    assert servers.headers["/v1/models"]["authorization"] == "Bearer key-0123456789"
