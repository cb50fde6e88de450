"""Nodes and fronts as processes of their own, over TCP, as on several machines."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import READY_SECONDS, Served
from waiting import wait_for

from kernelsvc import Client
from kernelsvc.store.verify import verify_journal

KEY = {"KERNELSVC_CLUSTER_KEY": "0123456789abcdef0123456789abcdef"}


pytestmark = pytest.mark.timeout(600)


class RunningFront:
    """One ``kernelsvc front``."""

    def __init__(self, root: Path, *args: str, port: int = 0) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.log = root / f"front-{time.monotonic_ns()}.log"
        command = [sys.executable, "-m", "kernelsvc", "front", "--port", str(port), "--token", "test-token"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--data-dir", str(root / "no data"), *args],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **KEY}, start_new_session=True,
            )  # fmt: skip
        found = wait_for(lambda: re.search(r"listens on (http://\S+)", self.log.read_text()), deadline=READY_SECONDS)
        self.url = found[1]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(30)


def node(root: Path, *fronts: RunningFront, env: dict[str, str] | None = None) -> Served:
    joins = [part for front in fronts for part in ("--join", front.url)]
    return Served(root, *joins, env={**KEY, **(env or {})}).start()


class Cluster:
    """Two fronts and two nodes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fronts = [RunningFront(root) for _ in range(2)]
        self.nodes = [node(root / name, *self.fronts) for name in ("a", "b")]

    def by(self, front: RunningFront) -> Served:
        """Something to call a front with."""
        served = Served(self.root / "caller")
        served.url = front.url
        return served

    def states(self, front: RunningFront | None = None) -> dict[str, str]:
        found = self.by(front or self.fronts[0]).call("GET", "/v1/nodes")["nodes"]
        return {each["node"]: each["state"] for each in found}

    def name(self, served: Served) -> str:
        return (served.data_dir / "node").read_text()

    def stop(self) -> None:
        for each in (*self.nodes, *self.fronts):
            each.stop()


@pytest.fixture(scope="module")
def cluster(short_tmp: Path) -> Iterator[Cluster]:
    made = Cluster(short_tmp / "cluster")
    try:
        for front in made.fronts:
            wait_for(lambda front=front: [*made.states(front).values()] == ["ready", "ready"], deadline=60)
        yield made
    finally:
        made.stop()


def on(client: Client, name: str) -> Any:
    """A session on this node. The front chooses the node of each one that is made."""
    for _ in range(50):
        session = client.create_session()
        if session.id[2:8] == name:
            return session
    raise AssertionError(f"no session of 50 is on node {name}")


def test_either_front_serves_a_session(cluster: Cluster) -> None:
    with Client(cluster.fronts[0].url, "test-token") as client:
        session = client.create_session()
        session.run("z = 3")
    cell = cluster.by(cluster.fronts[1]).call("POST", f"/v1/sessions/{session.id}/cells", {"code": "print(z)"})
    assert cell["text"] == "3\n"


def test_a_killed_front_is_replaced_by_another_on_its_port(cluster: Cluster) -> None:
    front = cluster.fronts[1]
    with Client(front.url, "test-token") as client:
        session = client.create_session()
        session.run("n = 0")
        front.kill()
        cluster.fronts[1] = RunningFront(cluster.root, port=int(front.url.rpartition(":")[2]))
        # The nodes join again, and requests wait for them.
        assert session.run("n += 1; print(n)").text == "1\n"


def test_a_killed_node_is_held_until_it_serves_again(cluster: Cluster) -> None:
    served = cluster.nodes[1]
    with Client(cluster.fronts[0].url, "test-token") as client:
        session = on(client, cluster.name(served))
        session.run("v = 5")
        served.kill()
        wait_for(lambda: cluster.states()[cluster.name(served)] == "unreachable", deadline=10)
        assert cluster.by(cluster.fronts[0]).call("GET", "/v1/sessions")["unreachable"] == [cluster.name(served)]
        served.start()
        assert session.run("print(v)").text == "5\n"


def test_a_node_with_the_wrong_key_is_not_listed_and_says_so(cluster: Cluster) -> None:
    stranger = node(cluster.root / "c", cluster.fronts[0], env={"KERNELSVC_CLUSTER_KEY": "another-key-0123456789"})
    try:
        wait_for(lambda: "another cluster key" in stranger.output(), what="the message")
        assert cluster.name(stranger) not in cluster.states()
    finally:
        stranger.stop()


def test_a_copy_of_a_data_directory_is_refused(cluster: Cluster) -> None:
    root = cluster.root / "copy"
    (root / "data").mkdir(parents=True, mode=0o700)
    (root / "data" / "node").write_text(cluster.name(cluster.nodes[0]))
    (root / "data" / "keys").mkdir(mode=0o700)
    copy = node(root, cluster.fronts[0])
    try:
        wait_for(lambda: "Two servers use copies of one data directory" in copy.output(), what="the message")
        refused = cluster.by(cluster.fronts[0]).call("GET", "/v1/nodes")["refused"]
        assert any(cluster.nodes[0].url in each for each in refused)
    finally:
        copy.stop()


def test_other_tokens_are_named(cluster: Cluster) -> None:
    other = Served(
        cluster.root / "d", "--join", cluster.fronts[0].url, env=KEY, token="another-token-of-the-node"
    ).start()
    try:

        def warned() -> bool:
            found = cluster.by(cluster.fronts[0]).call("GET", "/v1/nodes")["nodes"]
            return any("tokens" in warning for each in found for warning in each["warnings"])

        wait_for(warned, what="the warning")
    finally:
        other.stop()


def test_a_drained_node_saves_its_sessions(cluster: Cluster) -> None:
    served = cluster.nodes[0]
    with Client(cluster.fronts[0].url, "test-token") as client:
        session = on(client, cluster.name(served))
        session.run("kept = 'yes'")
    command = [sys.executable, "-m", "kernelsvc", "drain", cluster.name(served)]
    env = {**served.env, "KERNELSVC_URL": cluster.fronts[0].url, "KERNELSVC_TOKEN": "test-token"}
    subprocess.run(command, env=env, check=True, timeout=60, capture_output=True)
    assert served.process is not None
    served.process.wait(60)
    served.start()
    wait_for(lambda: cluster.states()[cluster.name(served)] == "ready", deadline=30)
    cell = cluster.by(cluster.fronts[0]).call("POST", f"/v1/sessions/{session.id}/cells", {"code": "print(kept)"})
    assert cell["text"] == "yes\n"


def test_a_node_that_leaves_gives_its_sessions_to_others(cluster: Cluster) -> None:
    leaving, staying = cluster.nodes
    caller = cluster.by(cluster.fronts[0])
    with Client(cluster.fronts[0].url, "test-token") as client:
        session = on(client, cluster.name(leaving))
        session.run("kept = {'a': 1}; open('file.txt', 'w').write('text')")
        (branch,) = session.branch(count=1)
        branch.run("kept['b'] = 2")
        ended = on(client, cluster.name(leaving))
        ended.run("print('before')")
        ended.close()
        before = [
            event["seq"] for event in caller.call("GET", f"/v1/sessions/{session.id}/events?limit=1000")["events"]
        ]
    command = [sys.executable, "-m", "kernelsvc", "drain", "--move", cluster.name(leaving)]
    env = {**leaving.env, "KERNELSVC_URL": cluster.fronts[0].url, "KERNELSVC_TOKEN": "test-token"}
    subprocess.run(command, env=env, check=True, timeout=60, capture_output=True)
    assert leaving.process is not None
    assert leaving.process.wait(120) == 0, leaving.output()
    assert re.search(r"moved \d+ sessions", leaving.output())
    assert "not moved" not in leaving.output(), leaving.output()
    assert [*(leaving.data_dir / "sessions").iterdir()] == []

    def run(session: str, code: str) -> str:
        return caller.call("POST", f"/v1/sessions/{session}/cells", {"code": code})["text"]

    assert run(session.id, "print(kept, open('file.txt').read())") == "{'a': 1} text\n"
    assert run(branch.id, "print(kept)") == "{'a': 1, 'b': 2}\n"
    listed = {each["id"]: each for each in caller.call("GET", "/v1/sessions?limit=1000")["sessions"]}
    assert (listed[ended.id]["state"], listed[branch.id]["parent"]["session"]) == ("closed", session.id)
    assert session.id in listed
    record = caller.call("GET", f"/v1/sessions/{ended.id}/events?limit=1000")["events"]
    assert "".join(event.get("text", "") for event in record) == "before\n"  # one event or two
    events = caller.call("GET", f"/v1/sessions/{session.id}/events?limit=1000")["events"]
    assert [event["seq"] for event in events][: len(before)] == before
    for each in (session, branch, ended):
        directory = staying.data_dir / "sessions" / each.id
        assert verify_journal(directory / "journal.jsonl").fault is None
    assert not any(event["type"] == "not_as_written" for event in events), "the log is signed by the node that took it"
    # The node without sessions can be used again.
    leaving.start()
    wait_for(lambda: cluster.states()[cluster.name(leaving)] == "ready", deadline=60)
    assert run(session.id, "print(kept)") == "{'a': 1}\n"


def test_a_node_without_others_is_not_emptied(cluster: Cluster) -> None:
    name = cluster.name(cluster.nodes[0])
    cluster.nodes[1].stop()
    try:
        wait_for(lambda: cluster.states()[cluster.name(cluster.nodes[1])] == "unreachable", deadline=30)
        with pytest.raises(urllib.error.HTTPError) as refused:
            cluster.by(cluster.fronts[0]).call("POST", f"/v1/nodes/{name}/drain?move=true")
        assert refused.value.code == 503
        refused.value.close()
        assert cluster.states()[name] == "ready"
    finally:
        cluster.nodes[1].start()


def test_a_front_stops_in_order(cluster: Cluster) -> None:
    front = RunningFront(cluster.root)
    front.process.send_signal(signal.SIGTERM)
    assert front.process.wait(30) == 0


def test_a_record_outlives_its_node(short_tmp: Path) -> None:
    """The archive is away at the close, the server is killed before it is back, and then the machine is lost."""
    root, archive = short_tmp / "outlives", short_tmp / "outlives" / "archive"
    others = [{"name": "other", "sha256": hashlib.sha256(b"other-token").hexdigest(), "scopes": ["read"]}]
    front = RunningFront(
        root, "--archive-url", f"file://{archive}", "--tokens", json.dumps(others), "--hold-seconds", "1"
    )
    settings = {"KERNELSVC_ARCHIVE_URL": f"file://{archive}", "KERNELSVC_ADOPTION_SECONDS": "1"}
    served = node(root / "lost", front, env=settings)
    staying = node(root / "stays", front, env=settings)
    caller = Served(root / "caller")
    caller.url = front.url
    try:
        with Client(served.url, "test-token") as client:
            session = client.create_session()
            session.run("print(6 * 7)")
            session.close()
            key = client.info()["public_key"]
        wait_for(lambda: "can't be copied" in served.output(), what="the message")
        served.kill()
        archive.mkdir()
        served.start()
        folder = archive / session.id
        wait_for((folder / "record.json").exists, deadline=30)
        journal = (served.data_dir / "sessions" / session.id / "journal.jsonl").read_bytes()
        wait_for((served.data_dir / "sessions" / session.id / "archived").exists)
        served.kill()
        shutil.rmtree(served.data_dir)
        wait_for(lambda: not (served.runtime_dir / "host.sock").exists(), deadline=30, what="the kernel host ends")
        for name in ("journal.jsonl", "notebook.ipynb"):
            command = [sys.executable, "-m", "kernelsvc", "verify", "--key", key, str(folder / name)]
            assert subprocess.run(command, check=False).returncode == 0
        name = session.id[2:8]
        wait_for(lambda: _state(caller, name) in ("unreachable", "lost"), deadline=30)
        path = f"/v1/sessions/{session.id}"
        assert caller.call("GET", f"{path}/notebook")["cells"][0]["outputs"][0]["text"] == "42\n"
        assert _status(front, f"{path}/journal", "test-token") == (200, journal)
        assert _status(front, f"{path}/notebook", "other-token")[0] == 404
        assert _status(front, f"{path}/notebook", "wrong")[0] == 401
        assert _status(front, path, "test-token")[0] == 503
        for suffix, content in (("html", b"<title>"), ("py", b"print(6 * 7)"), ("jsonl", journal)):
            where = ("--url", front.url, "--token", "test-token", "-o", str(root / f"old.{suffix}"))
            command = [sys.executable, "-m", "kernelsvc", "export", session.id, *where]
            assert subprocess.run(command, check=False, timeout=60).returncode == 0
            assert content in (root / f"old.{suffix}").read_bytes()
    finally:
        for each in (served, staying, front):
            each.stop()


def _state(caller: Served, name: str) -> str:
    return {each["node"]: each["state"] for each in caller.call("GET", "/v1/nodes")["nodes"]}[name]


def _status(front: RunningFront, path: str, token: str) -> tuple[int, bytes]:
    request = urllib.request.Request(front.url + path, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read()
