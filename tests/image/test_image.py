"""deploy/Containerfile and deploy/compose.yaml, built and run by the programs that Debian packages.

No registry is needed: the base image is made of Debian's packages. Containers have no network but a loopback that the
server and its proxy share.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from waiting import wait_for

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
TOOLS = ("mmdebstrap", "buildah", "podman", "runc", "openssl")
MISSING = [name for name in TOOLS if shutil.which(name) is None]
if MISSING or os.geteuid() != 0:
    reason = f"no {' and no '.join(MISSING)}" if MISSING else "not root"
    pytest.skip(f"images can't be built here: {reason}", allow_module_level=True)

pytestmark = pytest.mark.timeout(1800)

#: The part of Docker's default seccomp profile that matters here: no new namespaces without CAP_SYS_ADMIN.
NO_NAMESPACES = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        {"names": ["unshare", "setns", "mount", "umount2", "pivot_root"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
        {
            "names": ["clone"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 1,
            "args": [{"index": 0, "value": 0x10000000, "valueTwo": 0x10000000, "op": "SCMP_CMP_MASKED_EQ"}],
        },
    ],
}


class Engine:
    """podman and buildah with a storage of their own.

    Args:
        place: an empty directory.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._storage = ["--root", str(place / "images"), "--runroot", str(place / "run")]

    def command(self, *words: str) -> list[str]:
        """Return a command of podman."""
        # crun refuses machines with both versions of cgroups.
        return ["podman", *self._storage, "--runtime", "runc", "--cgroup-manager", "cgroupfs", *words]

    def podman(self, *words: str, check: bool = True, **more: Any) -> str:
        """Run podman and return its standard output."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=300, check=False, **more)
        assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    def run(self, *words: str, **more: Any) -> str:
        """Run a container without a network to its end."""
        return self.podman("run", "--rm", "--network", "none", *LIMITS, *words, **more)

    def build(self, target: str) -> str:
        """Build a stage of the Containerfile and return the image's name."""
        more = ["--build-arg", "BASE=localhost/base"]
        if cert := os.environ.get("PIP_CERT"):
            more += ["--volume", f"{os.path.realpath(cert)}:/ca.crt:ro", "--build-arg", "PIP_CERT=/ca.crt"]
        if index := os.environ.get("PIP_INDEX_URL"):
            more += ["--build-arg", f"PIP_INDEX_URL={index}"]
        # Docker's format: OCI's has no health check. Isolation by chroot(2) needs no network of the engine's.
        command = ["buildah", *self._storage, "bud", "--format", "docker", "--isolation", "chroot", "--network", "host"]
        command += [*more, "--layers", "-f", str(ROOT / "deploy" / "Containerfile"), "--target", target]
        done = subprocess.run([*command, "-t", target, str(ROOT)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return f"localhost/{target}"


#: Within the limits of this machine: podman's own may be higher, which needs CAP_SYS_RESOURCE.
LIMITS = ["--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"]


def options(service: str) -> list[str]:
    """Return the options of a service of the compose file as podman's."""
    found = COMPOSE["services"][service]
    words = ["--read-only"] if found.get("read_only") else []
    words += [f"--cap-drop={name}" for name in found.get("cap_drop", [])]
    words += [f"--security-opt={word}" for word in found.get("security_opt", [])]
    return words + [f"--tmpfs={word}" for word in found.get("tmpfs", [])]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    place = Path(f"/var/tmp/kernelsvc-{uuid.uuid4().hex[:8]}")
    place.mkdir(mode=0o711)
    engine = Engine(place)
    try:
        base = place / "base.tar"
        command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates", "trixie", str(base)]
        subprocess.run([*command, "http://deb.debian.org/debian"], check=True, timeout=600)
        engine.podman("import", str(base), "localhost/base")
        yield engine
    finally:
        engine.podman("rm", "--all", "--force", "--time", "0", check=False)
        with contextlib.suppress(subprocess.SubprocessError):
            subprocess.run(["umount", "--recursive", place / "images" / "overlay"], capture_output=True, check=False)
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="module")
def server(engine: Engine) -> str:
    return engine.build("server")


UNMASKED = ("--security-opt", "unmask=ALL")


@pytest.mark.parametrize(
    ("words", "isolation", "missing"),
    [
        (["--security-opt", "seccomp={profile}"], "files", {"user namespace", "filesystem", "proc"}),
        (["--cap-drop", "ALL", "--security-opt", "no-new-privileges"], "full", {"proc"}),
        (["--cap-drop", "ALL", "--security-opt", "no-new-privileges", *UNMASKED], "full", set()),
        (options("kernelsvc"), "full", set()),
        (["--user", "0"], "files", {"filesystem", "proc"}),
        (["--user", "0", "--privileged"], "full", set()),
    ],
    ids=["no namespaces", "default", "whole /proc", "compose.yaml", "root", "privileged"],
)
def test_doctor_reports_the_isolation_of_the_page(
    engine: Engine, server: str, tmp_path: Path, words: list[str], isolation: str, missing: set[str]
) -> None:
    profile = tmp_path / "seccomp.json"
    profile.write_text(json.dumps(NO_NAMESPACES))
    words = [word.format(profile=profile) for word in words]
    found = json.loads(engine.run(*words, server, "kernelsvc", "doctor", "--json", check=False))["report"]
    lacks = {each["layer"] for each in found["not_enforced"]}
    assert found["isolation"] == isolation, found
    # Whether a container may make groups for its sessions depends on the machine.
    assert missing <= lacks, found
    assert missing or lacks <= {"memory cgroup", "pids cgroup", "own inodes"}, found


def test_the_analysis_of_the_demo_runs_as_an_ordinary_user(engine: Engine, server: str) -> None:
    script = "id -u && kernelsvc demo --out /tmp/out && ls /tmp/out"
    printed = engine.run(*options("kernelsvc"), server, "sh", "-c", script)
    assert printed.startswith("10001\n")
    assert "penguins.ipynb" in printed or ".ipynb" in printed.splitlines()[-3:]


@pytest.fixture
def running(engine: Engine, server: str) -> Iterator[str]:
    name = f"server-{uuid.uuid4().hex[:8]}"
    volume = f"{name}:/var/lib/kernelsvc"
    words = ["--detach", "--name", name, "--network", "none", "-v", volume]
    engine.podman("run", *words, *LIMITS, *options("kernelsvc"), server)
    wait_for(lambda: healthy(engine, name), deadline=120, what="a healthy server")
    yield name
    engine.podman("rm", "--force", "--volumes", "--time", "0", name)


def healthy(engine: Engine, name: str) -> bool:
    return subprocess.run(engine.command("healthcheck", "run", name), capture_output=True, check=False).returncode == 0


def run(engine: Engine, name: str, *words: str, code: str, environment: str = "") -> str:
    script = (
        f"export KERNELSVC_TOKEN=$(cat /var/lib/kernelsvc/keys/token) {environment}; kernelsvc run - {' '.join(words)}"
    )
    return engine.podman("exec", "--interactive", name, "sh", "-c", script, input=code)


MAKE_SESSION = """
import kernelsvc
with kernelsvc.Client() as client:
    session = client.create_session(keep=True)
    session.run("x = 41")
    print(session.id)
"""


def test_a_stop_hibernates_and_the_next_start_has_the_variables(engine: Engine, running: str) -> None:
    id = engine.podman("exec", "--interactive", running, "/opt/kernelsvc/bin/python", input=MAKE_SESSION).strip()
    engine.podman("stop", "--time", "60", running)
    logged = subprocess.run(engine.command("logs", running), capture_output=True, text=True, check=True)
    assert "hibernated" in logged.stdout + logged.stderr
    engine.podman("start", running)
    wait_for(lambda: healthy(engine, running), deadline=120, what="a healthy server")
    assert run(engine, running, "--session", id, code="x + 1").endswith("42\n")


def test_the_proxy_of_the_compose_file_serves_it_with_tls(engine: Engine, running: str, tmp_path: Path) -> None:
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    key = ["-newkey", "rsa:2048", "-nodes", "-keyout", "privkey.pem", "-out", "fullchain.pem"]
    subprocess.run(["openssl", "req", "-x509", *key, *name], cwd=tmp_path, check=True, capture_output=True)
    where = COMPOSE["services"]["proxy"]["volumes"][0].partition(":")[2]
    volume = ["-v", f"{tmp_path}:{where}"]
    # As in the network of a compose file, where the server's name is kernelsvc.
    network = ["--network", f"container:{running}", "--no-hosts"]
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost kernelsvc\n")
    proxy = f"proxy-{running}"
    image = engine.build("proxy")
    engine.podman("run", "--detach", "--name", proxy, *network, "-v", f"{hosts}:/etc/hosts:ro", *LIMITS, *volume, image)
    try:
        certificate = (tmp_path / "fullchain.pem").read_text()
        engine.podman("exec", "--interactive", running, "sh", "-c", "cat > /tmp/ca.pem", input=certificate)
        url = "KERNELSVC_URL=https://localhost SSL_CERT_FILE=/tmp/ca.pem"
        wait_for(
            lambda: "42" in run(engine, running, code="print(6 * 7)", environment=url), deadline=60, what="an answer"
        )
    finally:
        engine.podman("rm", "--force", "--time", "0", proxy)
