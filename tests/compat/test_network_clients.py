"""Programs and libraries that people use, in sessions with network rules, each as it comes from its registry.

``clients/network_clients.py`` runs in a session and ``clients/network_server.py`` outside. The table of ``network.md``
has the result.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from egress_servers import chain, needs_low_ports
from environments import INSTALL_SECONDS, clean_env, node_with, python_with
from served import serving

from kernelsvc import Client
from packages import write_wheel

CLIENTS = Path(__file__).parent / "clients"
ADDRESS = "127.77.0.5"
KEY = "matrix-key-0123456789"
PACKAGES = (
    "websocket-client==1.9.2", "websockets==17.4", "httpx[http2]==0.28.1", "aiohttp==3.14.5", "boto3==1.44.8",
    "openai==3.57.0", "anthropic==2.15.0", "psycopg[binary]==3.3.9", "redis==8.1.0", "grpcio==1.85.3", "uv==0.13.9",
    "requests==2.34.2", "urllib3==2.8.0", "hypercorn==0.18.0",
)  # fmt: skip
JAVASCRIPT = {"deno": ("deno@2.9.6", "@deno/linux-x64-glibc/deno"), "bun": ("bun@1.4.5", "bun/bin/bun.exe")}
NETWORK = {
    "allow": [
        {"host": "open.test", "ports": [80, 443, 5432, 6379, 8443]},
        {"host": "read.test", "ports": [443, 8443], "inject": {"Authorization": "Bearer ${matrix}"}},
    ],
    "private": ["127.77.0.0/16"],
}

pytestmark = [needs_low_ports, pytest.mark.slow, pytest.mark.timeout(2 * INSTALL_SECONDS)]


def make_files(root: Path) -> None:
    """Write an index of Python packages, a tarball for npm, a repository of git and one of Debian packages."""
    simple = root / "simple" / "thing"
    simple.mkdir(parents=True)
    wheel = write_wheel("thing", simple)
    simple.joinpath("index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    (root / "npm").mkdir()
    with tarfile.open(root / "npm" / "thing-1.0.0.tgz", "w:gz") as archive:
        for name, text in (
            ("package.json", '{"name": "thing", "version": "1.0.0"}'),
            ("index.js", "module.exports = 42"),
        ):
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    (root / "deb").mkdir()
    package = "Package: thing\nVersion: 1.0\nArchitecture: all\nMaintainer: x <x@example.com>\nDescription: x\n"
    (root / "deb" / "Packages").write_text(f"{package}Filename: ./thing.deb\nSize: 1\nSHA256: {'0' * 64}\n")
    made = root / "made"
    made.mkdir()
    (made / "README").write_text("cloned")
    who = ("-c", "user.name=x", "-c", "user.email=x@example.com")
    for command in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "x")):
        subprocess.run(["git", *command], cwd=made, check=True)
    subprocess.run(["git", "clone", "-q", "--bare", str(made), str(root / "thing.git")], check=True)
    subprocess.run(["git", "update-server-info"], cwd=root / "thing.git", check=True)


@pytest.fixture(scope="module")
def python() -> Path:
    return python_with(*PACKAGES)


@pytest.fixture(scope="module")
def authority(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The certificate of the authority of the servers, which run."""
    root = tmp_path_factory.mktemp("servers")
    certified, server = chain(["open.test", "read.test"])
    (root / "server.pem").write_text(server)
    make_files(root / "files")
    command = [python, CLIENTS / "network_server.py", ADDRESS, root / "server.pem", root / "files", f"Bearer {KEY}"]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True, env=clean_env()) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "ready\n"
            yield certified
        finally:
            running.terminate()


def programs(directory: Path) -> Path:
    """Return a directory with the programs that npm has for this machine."""
    directory.mkdir()
    for name, (package, path) in JAVASCRIPT.items():
        try:
            found = node_with(package) / "node_modules" / path
        except pytest.skip.Exception:
            continue
        if found.exists():
            shutil.copy2(found, directory / name)
    return directory


def expected(client: str, way: str) -> str:
    """What a client prints, unless ``RESULTS`` says otherwise."""
    own = RESULTS.get(client)
    if own is not None:
        return own[way] if isinstance(own, dict) else own
    return {"http": "HTTP/1.1", "https": "HTTP/1.1", "read": "HTTP/1.1, key"}[way]


_HTTP_2 = {"http": "HTTP/1.1", "https": "HTTP/2", "read": "HTTP/1.1, key"}
_ECHOED = {"http": "echoed", "https": "echoed", "read": "echoed, key"}
_UPLOADED = {
    "http": "HTTP/1.1, 1000000 bytes",
    "https": "HTTP/1.1, 1000000 bytes",
    "read": "HTTP/1.1, key, 1000000 bytes",
}
RESULTS: dict[str, str | dict[str, str]] = {
    "curl --http2": _HTTP_2,
    "curl, an upload of 1 MB": _UPLOADED | {"https": "HTTP/2, 1000000 bytes"},
    "requests, a chunked upload": _UPLOADED,
    "httpx with HTTP/2, 20 at once": _HTTP_2,
    "deno, fetch": _HTTP_2,
    "java, HttpClient, its trust by keytool": _HTTP_2,
    "git clone": "cloned",
    "apt-get update": "Package: thing",
    "pip install": "def",
    "uv pip install": "def",
    "npm install": "42",
    "websockets": _ECHOED,
    "websocket-client": _ECHOED,
    "psql": "the database was reached",
    "psycopg": "the database was reached",
    "redis": "True",
    "grpc": {"tcp": "echoed", "read": "UNAVAILABLE"},
}


def test_clients_need_no_setting_but_trust(python: Path, authority: str, short_tmp: Path, tmp_path: Path) -> None:
    secrets = {"matrix": {"hosts": ["read.test"], "file": str(tmp_path / "key")}}
    (tmp_path / "key").write_text(f"{KEY}\n")
    (tmp_path / "authority.pem").write_text(authority)
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    shutil.copy2(CLIENTS / "network_clients.py", scripts)
    mounted = {"clients": python.parent.parent, "programs": programs(tmp_path / "programs"), "scripts": scripts}
    env = {
        "KERNELSVC_LIMITS_NETWORK": json.dumps(NETWORK),
        "KERNELSVC_EGRESS_HOSTS": json.dumps(dict.fromkeys(("open.test", "read.test"), ADDRESS)),
        "KERNELSVC_EGRESS_CA": str(tmp_path / "authority.pem"),
        "KERNELSVC_SECRETS": json.dumps(secrets),
        "KERNELSVC_MOUNTS": json.dumps({name: {"path": str(path)} for name, path in mounted.items()}),
    }
    command = "/data/clients/bin/python /data/scripts/network_clients.py --programs /data/programs"
    with (
        serving(short_tmp / "clients", env=env) as served,
        Client(served.url, served.token) as client,
        client.create_session(mounts=list(mounted)) as session,
    ):
        code = f"import subprocess\ndone = subprocess.run({command.split()!r}, capture_output=True, text=True)\n"
        cell = session.run(f"{code}print(done.stdout or done.stderr[-3000:])", timeout=INSTALL_SECONDS)
        found = json.loads(cell.text.splitlines()[0])
        print(session.run("print(done.stderr)").text)
    # gRPC to a host whose requests are read: the model reads the reason.
    assert (
        "read.test:8443 was refused: requests to this host are read, so the client must use HTTP/1.1 (gRPC" in cell.text
    )
    skipped = {
        f"{name}: {said}" for name, ways in found.items() for said in ways.values() if said.startswith("skipped")
    }
    print(*skipped, sep="\n")
    wrong = [
        f"{name}, {way}: {said}"
        for name, ways in found.items()
        for way, said in ways.items()
        if said != expected(name, way) and not said.startswith("skipped")
    ]
    assert not wrong, "\n".join(wrong)
    assert len(found) - len(skipped) >= 25, "too few clients are on this machine to say anything"
